"""SwitchNorm (Luo, Ren, Peng, Zhang, Li 2018, arXiv 1806.10779) in plain PyTorch, differentiable by autograd."""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor

from ._plane_norm import follow, update, widen


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
    activation: str = "none",
) -> Tensor:
    """activation((x - mean) / sqrt(var + eps) * weight + bias + residual), computed in fp32 (fp64 for fp64).

    mean and var are mixed from those of planes, samples and channels; without ``training`` the last are running ones.
    """
    x = widen(input, None)
    planes = x.flatten(2) if x.dim() > 2 else x.unsqueeze(2)
    residual = None if residual is None else widen(residual.to(input.dtype), None)
    means, variances = statistics(planes, x.dim() > 2, len(mean_weight))
    if not training and (len(mean_weight) == 3 or x.dim() == 2):
        assert running_mean is not None and running_var is not None
        means[-1], variances[-1] = (t.detach().to(x.dtype).view(1, -1, 1) for t in (running_mean, running_var))
    elif running_mean is not None and running_var is not None:
        track(running_mean, running_var, means[-1], variances[-1], momentum, moving_average)
    x_hat = (planes - mix(mean_weight, means)) * torch.rsqrt(mix(var_weight, variances) + eps)
    return follow(x_hat.reshape(x.shape), weight, bias, activation, None, residual).to(input.dtype)


def mix(logits: Tensor, terms: list[Tensor]) -> Tensor:
    """The average of terms with the softmax of logits for weights."""
    weights = logits.to(terms[0].dtype).softmax(0)
    return reduce(torch.add, (weight * term for weight, term in zip(weights, terms, strict=True)))


def statistics(planes: Tensor, spatial: bool, terms: int) -> tuple[list[Tensor], list[Tensor]]:
    """Means, and variances, of planes, samples and channels; of two the first, or, without spatial, the last.

    Unbiased within a plane (0 of one element) and, of two without spatial, within samples and channels.
    """
    among, center = torch.var_mean(planes, 2, correction=min(1, max(planes.shape[2] - 1, 0)), keepdim=True)
    means, variances = [center], [among]
    for dim in (1, 0):
        n = planes.shape[dim]
        among, center = torch.var_mean(means[0], dim, correction=0, keepdim=True)
        factor = 1.0 if spatial or terms == 3 else n / max(n - 1, 1)
        means.append(center)
        variances.append((variances[0].mean(dim, keepdim=True) + among) * factor)
    kept = slice(terms) if spatial else slice(3 - terms, 3)
    return means[kept], variances[kept]


def track(
    running_mean: Tensor, running_var: Tensor, mean: Tensor, var: Tensor, momentum: float, moving_average: bool
) -> None:
    """running = momentum * running + (1 - momentum) * batch, or sums of mean and of mean^2 + var."""
    # detach, not no_grad: forward-mode AD heeds only the former.
    mean, var = mean.detach(), var.detach()
    if moving_average:
        update(running_mean, mean, 1 - momentum)
        update(running_var, var, 1 - momentum)
    else:
        running_mean += mean.flatten()
        running_var += (mean.square() + var).flatten()
