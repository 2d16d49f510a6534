"""SwitchNorm: a learned mixture of the statistics of instances, layers and the batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from .._extension import _C
from ._plane_norm import Activation, PlaneNorm, Sets, call_op, register_fakes

_switch_norm = _C.switch_norm

BUFFERS = ("running_mean", "running_var", "num_batches_summed")


def switch_norm(
    input: Tensor,
    mean_weight: Tensor,
    var_weight: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.9,
    eps: float = 1e-5,
    *,
    moving_average: bool = True,
    residual: Tensor | None = None,
    activation: Activation = "none",
) -> Tensor:
    r"""Switchable normalization (Luo, Ren, Peng, Zhang, Li 2018, https://arxiv.org/abs/1806.10779), in one call.

    .. math::
        y = \mathrm{activation}\left(\frac{x - \mu_{nc}}{\sqrt{v_{nc} + \mathrm{eps}}}
        \cdot \mathrm{weight}_c + \mathrm{bias}_c + \mathrm{residual}\right)

    .. math::
        \mu_{nc} = p_0 \mu^\mathrm{in}_{nc} + p_1 \mu^\mathrm{ln}_n + p_2 \mu^\mathrm{bn}_c, \quad
        v_{nc} = q_0 v^\mathrm{in}_{nc} + q_1 v^\mathrm{ln}_n + q_2 v^\mathrm{bn}_c, \quad
        p = \mathrm{softmax}(\mathrm{mean\_weight}), \quad q = \mathrm{softmax}(\mathrm{var\_weight})

    where :math:`\mu^\mathrm{in}, v^\mathrm{in}` are the mean and the unbiased variance of each channel of each sample
    (0 of one element) and, with means and biased variances over the channels or over the samples,

    .. math::
        \mu^\mathrm{ln}_n = \mathrm{mean}_c(\mu^\mathrm{in}), \quad
        v^\mathrm{ln}_n = \mathrm{mean}_c(v^\mathrm{in}) + \mathrm{var}_c(\mu^\mathrm{in}), \quad
        \mu^\mathrm{bn}_c = \mathrm{mean}_n(\mu^\mathrm{in}), \quad
        v^\mathrm{bn}_c = \mathrm{mean}_n(v^\mathrm{in}) + \mathrm{var}_n(\mu^\mathrm{in})

    Statistics and arithmetic are in float32 (float64 for float64), rounded once. If not ``training``, the running
    statistics, constants to the gradient, take the place of the batch's; the others always come from the input.
    Training updates the running ones that are given, in the same kernels; nothing is written if the call fails:

    .. math::
        \mathrm{running} \leftarrow \mathrm{momentum} \cdot \mathrm{running} +
        (1 - \mathrm{momentum}) \cdot (\mu^\mathrm{bn}, v^\mathrm{bn})

    Args:
        input: float32, float64, float16 or bfloat16, of shape ``(N, C, *)``, contiguous or channels_last.
        mean_weight, var_weight: logits, both of shape ``(3,)`` for instance, layer and batch; of shape ``(2,)`` for
            instance and layer, or, if ``input`` is ``(N, C)``, for layer and batch, with unbiased variances.
        running_mean, running_var: of shape ``(C,)``, of any of these dtypes. Both may be None if ``training``, and
            must be where the batch has no logit.
        weight, bias: of shape ``(C,)``, of any of these dtypes, or None for ones and zeros.
        training: take the batch's statistics from ``input`` and update the running ones. Default: False.
        momentum: weight of the old running statistics, which is one minus :func:`batch_norm`'s. Default: 0.9.
        eps: added to the variance. Default: 1e-5.
        moving_average: update as above; False: add up over the batches, ``running_mean += mean`` and ``running_var +=
            mean ** 2 + var``, from which ``finalize_batch_average`` of the modules makes statistics. Default: True.
        residual: of input's shape, added before the activation; converted to input's dtype. Default: None.
        activation: "none", "relu", "leaky_relu" (slope 0.01), "elu", "silu", "gelu" or "gelu_tanh". Default: "none".

    Returns:
        Tensor of input's shape, dtype and memory format. Differentiable any number of times; the gradients of the
        logits, weight and bias have their dtypes.

    Raises:
        TypeError: an argument is of the wrong Python type.
        ValueError: an unknown activation, or one running statistic without the other.
        IndexError: fewer than two dimensions.
        RuntimeError: shapes do not fit, running statistics are missing in evaluation or given where the batch has no
            logit, or the tensors are on different devices.
        NotImplementedError: a dtype other than the four (a RuntimeError too).
    """
    tensors = (input, mean_weight, var_weight, running_mean, running_var, weight, bias)
    return _call(*tensors, training, momentum, eps, moving_average, residual, activation)


def _call(*values: Any) -> Tensor:
    if not is_compiling():
        y: Tensor = _switch_norm(*values)
        if y is not NotImplemented:
            return y
    running_mean, training = values[3], values[7]
    result: Tensor = call_op("switch_norm", training is True and running_mean is not None, *values)
    return result


register_fakes("switch_norm", Sets.INSTANCE, updates=True)


class _SwitchNorm(PlaneNorm):
    input_dims: int
    mean_weight: Tensor
    var_weight: Tensor
    weight: Tensor

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.9,
        using_moving_average: bool = True,
        using_bn: bool = True,
        last_gamma: bool = False,
        *,
        device: Any = None,
        dtype: Any = None,
        activation: Activation = "none",
    ) -> None:
        super().__init__()
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.using_moving_average, self.using_bn, self.last_gamma = using_moving_average, using_bn, last_gamma
        shape = (1, num_features, *[1] * (self.input_dims - 2))
        logits = (3 if using_bn and self.input_dims > 2 else 2,)
        for name, sizes in (("weight", shape), ("bias", shape), ("mean_weight", logits), ("var_weight", logits)):
            self.register_parameter(name, nn.Parameter(torch.empty(sizes, device=device, dtype=dtype)))
        for name in ("running_mean", "running_var"):
            self.register_buffer(name, torch.empty(shape[:3], device=device, dtype=dtype) if using_bn else None)
        if using_bn and not using_moving_average:
            # A tensor, so that a compiled module counts without being compiled again.
            batches = torch.empty((), device=device, dtype=torch.int64)
            self.register_buffer("num_batches_summed", batches, persistent=False)
        self._set_options(True, activation)
        self.reset_parameters()

    def reset_running_stats(self) -> None:
        """Set the running statistics to 0, and the number of batches in their sums."""
        for name in BUFFERS:
            buffer = getattr(self, name, None)
            if buffer is not None:
                buffer.zero_()

    def reset_parameters(self) -> None:
        """Start anew: ``weight`` 1 (0 with ``last_gamma``), ``bias`` 0, the logits 1, the running statistics 0."""
        super().reset_parameters()
        if self.last_gamma:
            nn.init.zeros_(self.weight)
        nn.init.ones_(self.mean_weight)
        nn.init.ones_(self.var_weight)

    @torch.no_grad()
    def finalize_batch_average(self, num_batches: int | None = None) -> None:
        """Make statistics of the sums that training with ``using_moving_average=False`` leaves, to evaluate with. Call
        :meth:`reset_running_stats` before batches are summed again.

        Args:
            num_batches: in the sums. Default: those in training since the last reset, which no state_dict tells.

        Raises:
            RuntimeError: the running statistics are no sums, or of no batch.
        """
        mean, var, batches = (getattr(self, name, None) for name in BUFFERS)
        count = num_batches if num_batches is not None else 0 if batches is None else int(batches)
        if self.using_moving_average or mean is None or var is None or count < 1:
            raise RuntimeError(
                f"{type(self).__name__}: finalize_batch_average() needs using_moving_average=False, using_bn=True and "
                f"batches, summed in training or told as num_batches=; there are {count}"
            )
        # In float64, for the difference of large numbers.
        var.copy_((var.double() / count - (mean.double() / count).square()).clamp_min(0))
        mean.div_(count)
        if batches is not None:
            batches.zero_()

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        if input.dim() != self.input_dims:
            raise ValueError(f"expected {self.input_dims}D input (got {input.dim()}D input)")
        per_channel: Any = (self.running_mean, self.running_var, self.weight, self.bias)
        flat = [None if t is None else t.view(-1) for t in per_channel]
        options = (self.training, self.momentum, self.eps, self.using_moving_average, residual, self.activation)
        y = _call(input, self.mean_weight, self.var_weight, *flat, *options)
        batches = getattr(self, "num_batches_summed", None)
        if self.training and batches is not None and input.numel() > 0:
            batches.add_(1)
        return y

    def extra_repr(self) -> str:
        names = ("eps", "momentum", "using_moving_average", "using_bn", "last_gamma")[: 5 if self.input_dims > 2 else 3]
        options = ", ".join(f"{name}={getattr(self, name)}" for name in names)
        return f"{self.num_features}, {options}{super().extra_repr()}"


class SwitchNorm1d(_SwitchNorm):
    """:class:`SwitchNorm2d` for input ``(N, C)``: a mixture of layer and batch. Default momentum: 0.997.

    ``options`` are the keywords ``device``, ``dtype`` and ``activation``.
    """

    input_dims = 2

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.997,
        using_moving_average: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(num_features, eps, momentum, using_moving_average, True, False, **options)


class SwitchNorm2d(_SwitchNorm):
    """:func:`switch_norm` as a module, with the arguments and the state_dict of the authors' SwitchNorm2d.

    Args:
        num_features: C of an input ``(N, C, H, W)``.
        eps: added to the variance. Default: 1e-5.
        momentum: weight of the old running statistics, one minus that of torch.nn's norms. Default: 0.9.
        using_moving_average: False: the running statistics are sums over the batches in training, of which
            :meth:`finalize_batch_average` makes the paper's batch average. Default: True.
        using_bn: mix in the batch's statistics, and keep running ones. Default: True.
        last_gamma: ``weight`` begins with zeros, for the last norm of a residual block. Default: False.
        device, dtype: of the parameters and the running statistics.
        activation: applied to the result, see :func:`switch_norm`. Default: "none".

    Shape:
        input ``(N, C, H, W)``, output the same; ``forward`` also takes ``residual``, of input's shape.
    """

    input_dims = 4


class SwitchNorm3d(_SwitchNorm):
    """:class:`SwitchNorm2d` for input ``(N, C, D, H, W)``, with its further arguments. Default momentum: 0.997."""

    input_dims = 5

    def __init__(
        self, num_features: int, eps: float = 1e-5, momentum: float = 0.997, *arguments: Any, **options: Any
    ) -> None:
        super().__init__(num_features, eps, momentum, *arguments, **options)
