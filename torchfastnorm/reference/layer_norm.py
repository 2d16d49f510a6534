"""LayerNorm (Ba, Kiros, Hinton 2016, arXiv 1607.06450) in plain PyTorch, differentiable by autograd."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """y = (x - mean) / sqrt(variance + eps) * weight + bias, computed in fp32 (fp64 for fp64), rounded once."""
    x = input.to(torch.float64 if input.dtype == torch.float64 else torch.float32)
    dims = list(range(-len(normalized_shape), 0))
    centred = x - x.mean(dims, keepdim=True)
    y = centred * torch.rsqrt(centred.square().mean(dims, keepdim=True) + eps)
    y = y if weight is None else y * weight
    y = y if bias is None else y + bias
    return y.to(out_dtype or input.dtype)


def add_layer_norm(
    input: Tensor,
    residual: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    out_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """(layer_norm(sum), sum) of sum = input + residual, rounded to residual's dtype before it is normalised."""
    total = (input + residual).to(residual.dtype)
    return layer_norm(total, normalized_shape, weight, bias, eps, out_dtype=out_dtype or input.dtype), total
