"""What the norms of feature maps share: moments of the sets, moving averages of them, and the last step."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda v: v,
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
}


def widen(t: Tensor, mask: Tensor | None) -> Tensor:
    """t in fp32 (fp64 for fp64); where mask does not count, zeros, whatever stood there."""
    t = t.to(torch.float64 if t.dtype == torch.float64 else torch.float32)
    return t if mask is None else t.masked_fill(~mask, 0)


def moments(x: Tensor, dims: list[int], mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance over dims of the elements that mask counts (0 and 0 of none), and their number."""
    counts = torch.ones_like(x) if mask is None else mask.to(x.dtype).expand_as(x)
    number = counts.sum(dims, keepdim=True)
    mean = (x * counts).sum(dims, keepdim=True) / number.clamp_min(1)
    variance = ((x - mean).square() * counts).sum(dims, keepdim=True) / number.clamp_min(1)
    return mean, variance, number


@torch.no_grad()
def update(running: Tensor, batch: Tensor, momentum: float) -> None:
    """running = (1 - momentum) * running + momentum * batch, averaged over samples."""
    running.copy_((1 - momentum) * running.to(batch.dtype) + momentum * batch.mean(0).flatten())


def apply(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    eps: float,
    weight: Tensor | None,
    bias: Tensor | None,
    activation: str,
    mask: Tensor | None,
    residual: Tensor | None,
) -> Tensor:
    """activation((x - mean) / sqrt(variance + eps) * weight + bias + residual), 0 where mask does not count."""
    return follow((x - mean) * torch.rsqrt(variance + eps), weight, bias, activation, mask, residual)


def follow(
    x_hat: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    activation: str,
    mask: Tensor | None,
    residual: Tensor | None,
) -> Tensor:
    """activation(x_hat * weight + bias + residual), 0 where mask does not count."""
    shape, y = (1, -1) + (1,) * (x_hat.dim() - 2), x_hat
    y = y if weight is None else y * weight.to(y.dtype).view(shape)
    y = y if bias is None else y + bias.to(y.dtype).view(shape)
    y = y if residual is None else y + residual
    y = ACTIVATIONS[activation](y)
    return y if mask is None else y.masked_fill(~mask, 0)
