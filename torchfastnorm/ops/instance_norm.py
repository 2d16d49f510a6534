"""InstanceNorm: statistics of one channel of one sample, or running ones."""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor, nn
from torch.compiler import is_compiling

from .._extension import _C
from ._plane_norm import Activation, PlaneNorm, Sets, call_op, register_fakes

_instance_norm = _C.instance_norm


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    residual: Tensor | None = None,
    activation: Activation = "none",
    mask: Tensor | None = None,
) -> Tensor:
    r"""Instance normalization (Ulyanov, Vedaldi, Lempitsky 2016, https://arxiv.org/abs/1607.08022), in one call.

    .. math::
        y = \mathrm{activation}\left(\frac{x - \mathrm{mean}(x)}{\sqrt{\mathrm{var}(x) + \mathrm{eps}}}
        \cdot \mathrm{weight}_c + \mathrm{bias}_c + \mathrm{residual}\right)

    with the mean and the biased variance of each channel of each sample if ``use_input_stats``, and the running ones
    otherwise. Statistics and arithmetic are in float32 (float64 for float64), rounded once. With ``use_input_stats``,
    running statistics that are given become ``(1 - momentum) * running + momentum * s``, s the mean and the unbiased
    variance, averaged over the samples.

    Args:
        input: float32, float64, float16 or bfloat16, of shape ``(N, C, *)``. Contiguous and channels_last tensors are
            read as they are.
        running_mean, running_var: of shape ``(C,)``, of any of these dtypes, or None if ``use_input_stats``.
        weight, bias: of shape ``(C,)``, of any of these dtypes, or None for ones and zeros.
        use_input_stats: normalize with the statistics of ``input``. Default: True.
        momentum: weight of this batch in the running statistics. Default: 0.1.
        eps: added to the variance. Default: 1e-5.
        residual: of input's shape, added before the activation; converted to input's dtype. Default: None.
        activation: "none", "relu", "leaky_relu" (slope 0.01), "elu", "silu", "gelu" or "gelu_tanh". Default: "none".
        mask: bool, broadcastable to ``(N, 1, *)``, True where an element counts. The others enter neither statistics
            nor gradients; there the result and the gradients of input and residual are 0. Default: all count.

    Returns:
        Tensor of input's shape, dtype and memory format. Differentiable any number of times.

    Raises:
        TypeError: an argument is of the wrong Python type, or mask is not of dtype bool.
        ValueError: planes of one element, one running statistic without the other, or an unknown activation.
        IndexError: fewer than two dimensions.
        RuntimeError: shapes do not fit, running statistics are missing, or the tensors are on different devices.
        NotImplementedError: a dtype other than the four (a RuntimeError too).
    """
    values = (
        input,
        running_mean,
        running_var,
        weight,
        bias,
        use_input_stats,
        momentum,
        eps,
        residual,
        activation,
        mask,
    )
    if not is_compiling():
        y: Tensor = _instance_norm(*values)
        if y is not NotImplemented:
            return y
    result: Tensor = call_op("instance_norm", use_input_stats is True and running_mean is not None, *values)
    return result


register_fakes("instance_norm", Sets.INSTANCE, updates=True)


class _InstanceNorm(PlaneNorm, nn.modules.instancenorm._InstanceNorm):
    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
        activation: Activation = "none",
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype)
        self._set_options(bias, activation)

    def forward(self, input: Tensor, residual: Tensor | None = None, *, mask: Tensor | None = None) -> Tensor:
        self._check_input_dim(input)
        unbatched = input.dim() == self._get_no_batch_dim()
        channels = 0 if unbatched else 1
        if input.size(channels) != self.num_features:
            if self.affine:
                raise ValueError(
                    f"expected input's size at dim={channels} to match num_features ({self.num_features}), but got: "
                    f"{input.size(channels)}."
                )
            warnings.warn(
                f"input's size at dim={channels} does not match num_features. You can silence this warning by not "
                "passing in num_features, which is not used because affine=False",
                stacklevel=2,
            )
        if unbatched:
            input = input.unsqueeze(0)
            residual = None if residual is None else residual.unsqueeze(0)
        y = instance_norm(
            input,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training or not self.track_running_stats,
            0.0 if self.momentum is None else self.momentum,
            self.eps,
            residual=residual,
            activation=self.activation,
            mask=mask,
        )
        return y.squeeze(0) if unbatched else y


class InstanceNorm1d(_InstanceNorm, nn.InstanceNorm1d):
    """:class:`torch.nn.InstanceNorm1d` on :func:`instance_norm`: same arguments, state_dict, representation and errors.

    Args:
        num_features: C of an input ``(N, C, L)`` or ``(C, L)``.
        eps: added to the variance. Default: 1e-5.
        momentum: weight of a batch in the running statistics. Default: 0.1.
        affine: learn ``weight`` (ones at first) and ``bias``. Default: False.
        track_running_stats: keep running statistics, and normalize with them in evaluation. Default: False.
        device, dtype: of the parameters and the running statistics.
        bias: learn ``bias`` (zeros at first); only with ``affine``. Default: True.
        activation: applied to the result, see :func:`instance_norm`. Default: "none".

    Shape:
        input ``(N, C, L)`` or ``(C, L)``, output the same; ``forward`` also takes ``residual``, of input's shape, and
        the keyword ``mask``, broadcastable to ``(N, 1, L)``.
    """


class InstanceNorm2d(_InstanceNorm, nn.InstanceNorm2d):
    """:class:`InstanceNorm1d` for input ``(N, C, H, W)`` or ``(C, H, W)``."""


class InstanceNorm3d(_InstanceNorm, nn.InstanceNorm3d):
    """:class:`InstanceNorm1d` for input ``(N, C, D, H, W)`` or ``(C, D, H, W)``."""
