"""BatchRenorm (Ioffe 2017, arXiv 1702.03275) and its dialects in plain PyTorch, differentiable by autograd."""

from __future__ import annotations

from torch import Tensor

from ._plane_norm import follow, moments, update, widen


def batch_renorm(
    input: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.01,
    eps: float = 1e-3,
    *,
    r_max: float = 3.0,
    d_max: float = 5.0,
    dialect: str = "paper",
    residual: Tensor | None = None,
    activation: str = "none",
    mask: Tensor | None = None,
) -> Tensor:
    """activation(x_hat * weight + bias + residual), computed in fp32 (fp64 for fp64), with

    x_hat = (x - mean) / sigma * r + d in training, r and d constants; (x - running_mean) / sigma_run otherwise.
    """
    x = widen(input, mask)
    residual = None if residual is None else widen(residual.to(input.dtype), mask)
    shape = (1, -1) + (1,) * (x.dim() - 2)
    center, spread = running_mean.to(x.dtype).view(shape), running_var.to(x.dtype).view(shape)
    sigma_run = spread if dialect == "ludvb" else (spread + eps).sqrt()
    if not training:
        return follow((x - center) / sigma_run, weight, bias, activation, mask, residual).to(input.dtype)
    mean, var, number = moments(x, [0, *range(2, x.dim())], mask)
    x_hat, target = renormalize(x, mean, var, number, center, sigma_run, eps, r_max, d_max, dialect)
    update(running_mean, mean.detach(), momentum)
    update(running_var, target.detach(), momentum)
    return follow(x_hat, weight, bias, activation, mask, residual).to(input.dtype)


def renormalize(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    number: Tensor,
    center: Tensor,
    sigma_run: Tensor,
    eps: float,
    r_max: float,
    d_max: float,
    dialect: str,
) -> tuple[Tensor, Tensor]:
    """x_hat of `number` elements with mean and biased var, and what running_var moves to."""
    unbiased = var * number / (number - 1).clamp_min(1)
    deviation = (unbiased if dialect == "sb3" else var).sqrt()
    sigma = deviation + eps if dialect == "ludvb" else (deviation.square() + eps).sqrt()
    # detach, not no_grad: forward-mode AD heeds only the former.
    r = (sigma / sigma_run).detach().clamp(1 / r_max, r_max)
    d = ((mean - center) / sigma_run).detach().clamp(-d_max, d_max)
    target = {"ludvb": sigma, "torchrl": var * len(x) / max(len(x) - 1, 1)}.get(dialect, unbiased)
    if dialect == "sb3":
        return (x - mean + d * deviation / r) / ((deviation / r).square() + eps).sqrt(), target
    return (x - mean) / sigma * r + d, target
