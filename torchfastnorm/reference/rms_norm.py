"""RMSNorm (Zhang, Sennrich 2019, arXiv 1910.07467) in plain PyTorch, differentiable by autograd."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """y = x / sqrt(mean(x^2) + eps) * weight, computed in fp32 (fp64 for fp64), rounded once."""
    x = input.to(torch.float64 if input.dtype == torch.float64 else torch.float32)
    dims = list(range(-len(normalized_shape), 0))
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    y = x * torch.rsqrt(x.square().mean(dims, keepdim=True) + eps)
    y = y if weight is None else y * weight
    return y.to(out_dtype or input.dtype)


def add_rms_norm(
    input: Tensor,
    residual: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    out_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """(rms_norm(sum), sum) of sum = input + residual, rounded to residual's dtype before it is normalised."""
    total = (input + residual).to(residual.dtype)
    return rms_norm(total, normalized_shape, weight, eps, out_dtype=out_dtype or input.dtype), total
