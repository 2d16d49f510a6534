"""GroupNorm (Wu, He 2018, arXiv 1803.08494) in plain PyTorch, differentiable by autograd."""

from __future__ import annotations

from torch import Tensor

from ._plane_norm import apply, moments, widen


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    residual: Tensor | None = None,
    activation: str = "none",
    mask: Tensor | None = None,
) -> Tensor:
    """activation((x - mean) / sqrt(variance + eps) * weight + bias + residual), computed in fp32 (fp64 for fp64).

    The moments are those of each sample's groups of consecutive channels, of the elements that ``mask`` counts.
    """
    x = widen(input, mask)
    residual = None if residual is None else widen(residual.to(input.dtype), mask)
    grouped = x.unflatten(1, (num_groups, -1))
    grouped_mask = None if mask is None else mask.expand(len(x), 1, *x.shape[2:]).unsqueeze(1)
    mean, variance, _ = moments(grouped, list(range(2, grouped.dim())), grouped_mask)
    mean, variance = (t.expand(-1, -1, grouped.shape[2], *[1] * (x.dim() - 2)).flatten(1, 2) for t in (mean, variance))
    return apply(x, mean, variance, eps, weight, bias, activation, mask, residual).to(input.dtype)
