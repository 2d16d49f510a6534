"""InstanceNorm (Ulyanov, Vedaldi, Lempitsky 2016, arXiv 1607.08022) in plain PyTorch, differentiable by autograd."""

from __future__ import annotations

from torch import Tensor

from ._plane_norm import apply, moments, update, widen
from .batch_norm import batch_norm


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
    activation: str = "none",
    mask: Tensor | None = None,
) -> Tensor:
    """activation((x - mean) / sqrt(variance + eps) * weight + bias + residual), computed in fp32 (fp64 for fp64).

    The moments are those of each channel of each sample, of the elements that ``mask`` counts. The running ones follow
    their averages over the samples (the variances unbiased), and take their place without ``use_input_stats``.
    """
    if not use_input_stats:
        running = (running_mean, running_var)
        return batch_norm(input, *running, weight, bias, eps=eps, residual=residual, activation=activation, mask=mask)
    x = widen(input, mask)
    residual = None if residual is None else widen(residual.to(input.dtype), mask)
    mean, variance, number = moments(x, list(range(2, x.dim())), mask)
    if running_mean is not None and running_var is not None:
        update(running_mean, mean, momentum)
        update(running_var, variance * number / (number - 1).clamp_min(1), momentum)
    return apply(x, mean, variance, eps, weight, bias, activation, mask, residual).to(input.dtype)
