"""Whitening (Huang et al. 2018, arXiv 1804.08450; 2019, arXiv 1904.03441) in plain PyTorch, differentiable by autograd
where eigenvalues do not coincide."""

from __future__ import annotations

import torch
from torch import Tensor

from ._plane_norm import follow, widen


def batch_whitening(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_wm: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    num_channels: int | None = None,
    method: str = "zca",
    iterations: int = 5,
) -> Tensor:
    """wm (x - mean) * weight + bias, computed in fp32 (fp64 for fp64): each group of num_channels is decorrelated."""
    transposed = widen(input, None).transpose(0, 1)
    x = transposed.reshape(-1, num_channels or input.shape[1], transposed[0].numel())
    if training:
        mean = x.mean(2, keepdim=True)
        covariance = (x - mean) @ (x - mean).mT / x.shape[2]
        wm = whitening_matrix(covariance + eps * torch.eye(x.shape[1]).to(x), method, iterations)
        for running, value in ((running_mean, mean), (running_wm, wm)):
            if running is not None:
                running.copy_((1 - momentum) * running.to(x.dtype) + momentum * value.detach())
    else:
        assert running_mean is not None and running_wm is not None
        mean, wm = running_mean.to(x.dtype), running_wm.to(x.dtype)
    y = (wm @ (x - mean)).view(transposed.shape).transpose(0, 1)
    return follow(y, weight, bias, "none", None, None).to(input.dtype)


def whitening_matrix(covariance: Tensor, method: str, iterations: int) -> Tensor:
    """W with W covariance W^T = I; "iternorm" nearly."""
    identity = torch.eye(covariance.shape[-1]).to(covariance)
    if method == "iternorm":
        trace = covariance.diagonal(dim1=-2, dim2=-1).sum(-1).view(-1, 1, 1)
        p = identity.expand_as(covariance)
        for _ in range(iterations):
            p = 1.5 * p - 0.5 * p @ p @ p @ (covariance / trace)
        return p / trace.sqrt()
    if method == "cholesky":
        return torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), identity, upper=False)
    values, vectors = (t.flip(-1) for t in torch.linalg.eigh(covariance))
    vectors = vectors * vectors.gather(-2, vectors.abs().argmax(-2, keepdim=True)).sign()
    scaled = values.rsqrt().unsqueeze(-1) * vectors.mT
    return vectors @ scaled if method == "zca" else scaled
