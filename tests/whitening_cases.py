"""What the tests of whitening run: arguments of one call, its results forward and backward, and how they are judged."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from conftest import TestBackend
from plane_cases import LAYOUTS, in_layout
from tolerances import WHITENING
from torch import Tensor

from torchfastnorm import batch_whitening, reference

METHODS = ("zca", "pca", "iternorm", "cholesky")
LEAVES = ("input", "weight", "bias")
RUNNING = ("running_mean", "running_wm")
Arguments = dict[str, Any]
all_layouts = pytest.mark.parametrize("layout", LAYOUTS)
all_methods = pytest.mark.parametrize("method", METHODS)
both_modes = pytest.mark.parametrize("training", (True, False), ids=("training", "eval"))


def spread(groups: int, width: int, positions: int, generator: torch.Generator) -> Tensor:
    """(groups, width, positions) whose covariances have eigenvalues from 1/4 to 4, evenly apart as their roots: neither
    what is divided by an eigenvalue nor what is divided by a difference of two magnifies rounding by much."""
    x = torch.randn(groups, width, positions, generator=generator, dtype=torch.float64)
    if positions <= width:  # not of full rank: as it is
        return x
    x = x - x.mean(-1, keepdim=True)
    x = torch.linalg.solve_triangular(torch.linalg.cholesky(x @ x.mT / positions), x, upper=False)
    axes = torch.linalg.qr(torch.randn(groups, width, width, generator=generator, dtype=torch.float64))[0]
    return axes * torch.linspace(0.5, 2, width, dtype=torch.float64) @ x


def make(
    shape: tuple[int, ...],
    width: int,
    dtype: torch.dtype,
    backend: TestBackend,
    layout: str = LAYOUTS[0],
    other: dict[str, torch.dtype] | None = None,
    seed: int = 0,
) -> Arguments:
    """Tensor arguments. `other`: dtypes of those that have one of their own."""
    generator = torch.Generator().manual_seed(seed)
    samples, channels = shape[:2]
    groups, own = channels // width, torch.float64 if dtype == torch.float64 else torch.float32

    def randn(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    x = spread(groups, width, samples * torch.Size(shape[2:]).numel(), generator) + randn(groups, width, 1)
    arguments = {
        "input": in_layout(x.view(channels, samples, *shape[2:]).transpose(0, 1).to(dtype), layout),
        "running_mean": (randn(groups, width, 1) * 0.5).to(own),
        "running_wm": (torch.eye(width) + randn(groups, width, width) * 0.5 / width**0.5).to(own),
        "weight": (randn(channels) * 0.5 + 1).to(dtype),
        "bias": randn(channels).to(dtype),
    }
    return {name: t.to(backend.device, (other or {}).get(name, t.dtype)) for name, t in arguments.items()}


def results_of(
    function: Any, arguments: Arguments, grad_y: Tensor | None = None, wanted: Iterable[str] = LEAVES, **options: Any
) -> dict[str, Tensor]:
    """y, the running statistics that the call leaves, and the gradients of everything wanted."""
    own = {name: t.detach().clone() if name in RUNNING else t.detach() for name, t in arguments.items()}
    leaves = {name: own[name].requires_grad_() for name in wanted if name in own}
    y = function(**own, **options)
    if grad_y is None:
        generator = torch.Generator().manual_seed(1)
        grad_y = torch.randn(y.shape, generator=generator, dtype=torch.float64)
    found = {"y": y.detach()} | {name: own[name] for name in RUNNING if name in own}
    if leaves:
        grads = torch.autograd.grad(y, list(leaves.values()), grad_y.to(y.device, y.dtype))
        found |= {f"grad_{name}": g for name, g in zip(leaves, grads, strict=True)}
    return found


def error_of(found: Tensor, expected: Tensor, least: float = 1.0) -> float:
    """Largest error, relative to the largest element expected, or to `least` if that is more."""
    if found.numel() == 0:
        return 0.0
    error = (found.cpu().double() - expected.cpu().double()).abs().max() / expected.abs().max().clamp_min(least).cpu()
    return error.nan_to_num(nan=torch.inf).item()


def exact(arguments: Arguments) -> Arguments:
    return {name: t.detach().cpu().double() for name, t in arguments.items()}


def assert_right(
    arguments: Arguments, tolerance: float | None = None, grad_y: Tensor | None = None, **options: Any
) -> dict[str, Tensor]:
    """Every result against autograd of the reference in fp64, within the tolerance of input's dtype."""
    x = arguments["input"]
    tolerance = tolerance or WHITENING[x.dtype].error
    if grad_y is None:  # rounded first: both get the same one
        generator = torch.Generator().manual_seed(1)
        grad_y = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype)
    expected = results_of(reference.batch_whitening, exact(arguments), grad_y.double(), **options)
    results = results_of(batch_whitening, arguments, grad_y, **options)
    assert results.keys() == expected.keys()
    for name, found in results.items():
        like = arguments.get(name.removeprefix("grad_"), x)
        assert (found.dtype, found.shape) == (like.dtype, like.shape), name
        assert error_of(found, expected[name]) <= tolerance, f"{name}: {error_of(found, expected[name]):.1e}"
    return results


def batch_matrix(x: Tensor, width: int, **options: Any) -> Tensor:
    """W of the batch: what running_wm becomes with momentum 1."""
    groups, dtype = x.shape[1] // width, torch.float64 if x.dtype == torch.float64 else torch.float32
    running = [torch.zeros(groups, width, columns, dtype=dtype, device=x.device) for columns in (1, width)]
    batch_whitening(x, *running, training=True, momentum=1.0, num_channels=width, **options)
    return running[1]


def columns_of(x: Tensor, width: int) -> Tensor:
    """(groups, width, positions)"""
    return x.transpose(0, 1).reshape(x.shape[1] // width, width, -1)


def covariance_of(x: Tensor, width: int) -> Tensor:
    x = columns_of(x, width)
    x = x - x.mean(-1, keepdim=True)
    return x @ x.mT / x.shape[-1]


def orthogonal(backend: TestBackend, dtype: torch.dtype = torch.float64, scale: float = 1.0) -> Tensor:
    """(8, 4) with a covariance of exactly scale^2 I: four columns of a Hadamard matrix."""
    signs = torch.ones(1, 1, dtype=dtype)
    for _ in range(3):
        signs = torch.cat([torch.cat([signs, signs], 1), torch.cat([signs, -signs], 1)])
    return (scale * signs[:, 1:5]).contiguous().to(backend.device)
