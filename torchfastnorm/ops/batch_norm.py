"""BatchNorm: statistics of a channel over all samples, or running ones."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.compiler import is_compiling

from .._extension import _C
from ._plane_norm import Activation, PlaneNorm, Sets, call_op, register_fakes

_batch_norm = _C.batch_norm


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    residual: Tensor | None = None,
    activation: Activation = "none",
    mask: Tensor | None = None,
) -> Tensor:
    r"""Batch normalization (Ioffe, Szegedy 2015, https://arxiv.org/abs/1502.03167), with what follows it, in one call.

    .. math::
        y = \mathrm{activation}\left(\frac{x - \mathrm{mean}_c}{\sqrt{\mathrm{var}_c + \mathrm{eps}}}
        \cdot \mathrm{weight}_c + \mathrm{bias}_c + \mathrm{residual}\right)

    with the mean and the biased variance of channel c over all samples if ``training``, and the running ones otherwise.
    Statistics and arithmetic are in float32 (float64 for float64), rounded once. Training updates

    .. math::
        \mathrm{running} \leftarrow (1 - \mathrm{momentum}) \cdot \mathrm{running} + \mathrm{momentum} \cdot
        (\mathrm{mean}_c, \mathrm{var}_c \cdot n / (n - 1))

    in the same kernels, where n counts the channel's elements; nothing is written if the call fails.

    Args:
        input: float32, float64, float16 or bfloat16, of shape ``(N, C, *)``. Contiguous and channels_last tensors are
            read as they are.
        running_mean, running_var: of shape ``(C,)``, of any of these dtypes. Both may be None if ``training``.
        weight, bias: of shape ``(C,)``, of any of these dtypes, or None for ones and zeros.
        training: normalize with the statistics of ``input`` and update the running ones. Default: False.
        momentum: weight of this batch in the running statistics. Default: 0.1.
        eps: added to the variance. Default: 1e-5.
        residual: of input's shape, added before the activation; converted to input's dtype. Default: None.
        activation: "none", "relu", "leaky_relu" (slope 0.01), "elu", "silu", "gelu" or "gelu_tanh". Default: "none".
        mask: bool, broadcastable to ``(N, 1, *)``, True where an element counts. The others enter neither statistics
            nor gradients; there the result and the gradients of input and residual are 0. Default: all count.

    Returns:
        Tensor of input's shape, dtype and memory format. Differentiable any number of times; the gradients of weight
        and bias have their parameters' dtypes.

    Raises:
        TypeError: an argument is of the wrong Python type, or mask is not of dtype bool.
        ValueError: training on one element per channel or with eps <= 0, one running statistic without the other, or
            an unknown activation.
        IndexError: fewer than two dimensions.
        RuntimeError: shapes do not fit, running statistics are missing, or the tensors are on different devices.
        NotImplementedError: a dtype other than the four (a RuntimeError too).
    """
    if momentum is None:  # what the modules may say, with a count of the batches
        raise TypeError("batch_norm(): argument 'momentum' must be float, not NoneType")
    return _call(
        input, running_mean, running_var, weight, bias, training, momentum, eps, residual, activation, mask, None
    )


def _call(*values: Any) -> Tensor:
    """The op's arguments; the last is num_batches_tracked, which is raised by one and goes into momentum=None."""
    if not is_compiling():
        y: Tensor = _batch_norm(*values)
        if y is not NotImplemented:
            return y
    running_mean, training, batches = values[1], values[5], values[-1]
    updates = training is True and not (running_mean is None and batches is None)
    result: Tensor = call_op("batch_norm", updates, *values)
    return result


register_fakes("batch_norm", Sets.BATCH, updates=True)


class _BatchNorm(PlaneNorm, nn.modules.batchnorm._BatchNorm):
    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
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
        tracks = self.training and self.track_running_stats
        uses_running = tracks or not self.training
        batches = self.num_batches_tracked if tracks else None
        momentum = self.momentum
        if momentum is None and batches is None:
            momentum = 0.0
        return _call(
            input,
            self.running_mean if uses_running else None,
            self.running_var if uses_running else None,
            self.weight,
            self.bias,
            self.training or (self.running_mean is None and self.running_var is None),
            momentum,
            self.eps,
            residual,
            self.activation,
            mask,
            batches,
        )


class BatchNorm1d(_BatchNorm, nn.BatchNorm1d):
    """:class:`torch.nn.BatchNorm1d` on :func:`batch_norm`: same arguments, state_dict, representation and errors.

    Args:
        num_features: C of an input ``(N, C)`` or ``(N, C, L)``.
        eps: added to the variance. Default: 1e-5.
        momentum: weight of a batch in the running statistics; None: their cumulative average. Default: 0.1.
        affine: learn ``weight`` (ones at first) and ``bias``. Default: True.
        track_running_stats: keep running statistics, and normalize with them in evaluation. Default: True.
        device, dtype: of the parameters and the running statistics.
        bias: learn ``bias`` (zeros at first); only with ``affine``. Default: True.
        activation: applied to the result, see :func:`batch_norm`. Default: "none".

    Shape:
        input ``(N, C)`` or ``(N, C, L)``, output the same; ``forward`` also takes ``residual``, of input's shape, and
        the keyword ``mask``, broadcastable to ``(N, 1, L)``.
    """


class BatchNorm2d(_BatchNorm, nn.BatchNorm2d):
    """:class:`BatchNorm1d` for input ``(N, C, H, W)``."""


class BatchNorm3d(_BatchNorm, nn.BatchNorm3d):
    """:class:`BatchNorm1d` for input ``(N, C, D, H, W)``."""
