"""BatchNorm (Ioffe, Szegedy 2015, arXiv 1502.03167) in plain PyTorch, differentiable by autograd."""

from __future__ import annotations

from torch import Tensor

from ._plane_norm import apply, moments, update, widen


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
    activation: str = "none",
    mask: Tensor | None = None,
) -> Tensor:
    """activation((x - mean) / sqrt(variance + eps) * weight + bias + residual), computed in fp32 (fp64 for fp64).

    In training the moments are those of each channel's elements that ``mask`` counts, and the running ones follow them
    (the variance unbiased); otherwise they are the running ones.
    """
    x = widen(input, mask)
    residual = None if residual is None else widen(residual.to(input.dtype), mask)
    if training:
        mean, variance, number = moments(x, [0, *range(2, x.dim())], mask)
        if running_mean is not None and running_var is not None:
            update(running_mean, mean, momentum)
            update(running_var, variance * number / (number - 1).clamp_min(1), momentum)
    else:
        assert running_mean is not None and running_var is not None
        mean, variance = (t.to(x.dtype).view(1, -1, *[1] * (x.dim() - 2)) for t in (running_mean, running_var))
    return apply(x, mean, variance, eps, weight, bias, activation, mask, residual).to(input.dtype)
