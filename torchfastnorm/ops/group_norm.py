"""GroupNorm: statistics of groups of channels of one sample."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.compiler import is_compiling

from .._extension import _C
from ._plane_norm import Activation, PlaneNorm, Sets, call_op, register_fakes

_group_norm = _C.group_norm


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    residual: Tensor | None = None,
    activation: Activation = "none",
    mask: Tensor | None = None,
) -> Tensor:
    r"""Group normalization (Wu, He 2018, https://arxiv.org/abs/1803.08494), with what follows it, in one call.

    .. math::
        y = \mathrm{activation}\left(\frac{x - \mathrm{mean}(x)}{\sqrt{\mathrm{var}(x) + \mathrm{eps}}}
        \cdot \mathrm{weight}_c + \mathrm{bias}_c + \mathrm{residual}\right)

    with the mean and the biased variance over ``C / num_groups`` consecutive channels of one sample. Statistics and
    arithmetic are in float32 (float64 for float64), rounded once.

    Args:
        input: float32, float64, float16 or bfloat16, of shape ``(N, C, *)``. Contiguous and channels_last tensors are
            read as they are.
        num_groups: a divisor of C.
        weight, bias: of shape ``(C,)``, of any of these dtypes, or None for ones and zeros.
        eps: added to the variance. Default: 1e-5.
        residual: of input's shape, added before the activation; converted to input's dtype. Default: None.
        activation: "none", "relu", "leaky_relu" (slope 0.01), "elu", "silu", "gelu" or "gelu_tanh". Default: "none".
        mask: bool, broadcastable to ``(N, 1, *)``, True where an element counts. The others enter neither statistics
            nor gradients; there the result and the gradients of input and residual are 0. Default: all count.

    Returns:
        Tensor of input's shape, dtype and memory format. Differentiable any number of times.

    Raises:
        TypeError: an argument is of the wrong Python type, or mask is not of dtype bool.
        ValueError: a set of one element, or an unknown activation.
        RuntimeError: shapes do not fit, num_groups does not divide C, fewer than two dimensions, or the tensors are on
            different devices.
        NotImplementedError: a dtype other than the four (a RuntimeError too).
    """
    values = (input, num_groups, weight, bias, eps, residual, activation, mask)
    if not is_compiling():
        y = _group_norm(*values)
        if y is not NotImplemented:
            return y
    return call_op("group_norm", False, *values)


register_fakes("group_norm", Sets.GROUP, updates=False)


class GroupNorm(PlaneNorm, nn.GroupNorm):
    """:class:`torch.nn.GroupNorm` on :func:`group_norm`: same arguments, parameters, state_dict and representation.

    Args:
        num_groups: how many groups the channels make; divides ``num_channels``.
        num_channels: C of an input ``(N, C, *)``.
        eps: added to the variance. Default: 1e-5.
        affine: learn ``weight`` (ones at first) and ``bias``. Default: True.
        device, dtype: of the parameters.
        bias: learn ``bias`` (zeros at first); only with ``affine``. Default: True.
        activation: applied to the result, see :func:`group_norm`. Default: "none".

    Shape:
        input ``(N, C, *)``, output the same; residual as input, mask broadcastable to ``(N, 1, *)``.
    """

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
        activation: Activation = "none",
    ) -> None:
        super().__init__(num_groups, num_channels, eps, affine, device, dtype)
        self._set_options(bias, activation)

    def forward(self, input: Tensor, residual: Tensor | None = None, *, mask: Tensor | None = None) -> Tensor:
        return group_norm(
            input,
            self.num_groups,
            self.weight,
            self.bias,
            self.eps,
            residual=residual,
            activation=self.activation,
            mask=mask,
        )
