"""BatchRenorm: what it makes of a set's statistics. The kernels that it shares are tested with BatchNorm."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import TestBackend
from plane_cases import LAYOUTS, in_layout
from torch import Tensor

from torchfastnorm import batch_norm, batch_renorm, reference
from torchfastnorm.ops.batch_renorm import RAMPS

DIALECTS = tuple(RAMPS)
all_dialects = pytest.mark.parametrize("dialect", DIALECTS)
all_layouts = pytest.mark.parametrize("layout", LAYOUTS)
# Regimes of the kernels: planes of a few elements, one block, a cluster, the grid; a channel tile that is not full.
SHAPES = ((6, 5), (4, 3, 7), (5, 7, 4, 4), (3, 40, 9, 7), (8, 2, 40, 50), (2, 3, 3, 4, 5))
BOUNDS = ((3.0, 5.0), (1.2, 0.25), (1.0, 0.0))  # free, clamped, batch norm
LEAVES = ("input", "weight", "bias", "residual")


def make(
    shape: tuple[int, ...], dtype: torch.dtype, backend: TestBackend, layout: str = LAYOUTS[0], residual: bool = False
) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)

    def randn(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    channels = shape[1]
    arguments = {
        "input": in_layout((randn(*shape) * 1.5 + 0.5).to(dtype), layout),
        "running_mean": (randn(channels) * 0.5).to(torch.float64 if dtype == torch.float64 else torch.float32),
        "running_var": (randn(channels).square() + 0.5).to(torch.float64 if dtype == torch.float64 else torch.float32),
        "weight": (randn(channels) * 0.5 + 1).to(dtype),
        "bias": randn(channels).to(dtype),
    }
    if residual:
        arguments["residual"] = in_layout(randn(*shape).to(dtype), layout)
    return {name: t.to(backend.device) for name, t in arguments.items()}


def results_of(function: Any, arguments: dict[str, Any], **options: Any) -> dict[str, Tensor]:
    """y, the running statistics that the call leaves, and the gradients of everything."""
    own = {name: t.clone() for name, t in arguments.items()}
    leaves = {name: own[name].requires_grad_() for name in LEAVES if name in own}
    y = function(**own, training=True, **options)
    generator = torch.Generator().manual_seed(1)
    grad = torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.device, y.dtype)
    grads = torch.autograd.grad(y, list(leaves.values()), grad)
    found = {"y": y.detach(), "running_mean": own["running_mean"], "running_var": own["running_var"]}
    return found | {f"grad_{name}": g for name, g in zip(leaves, grads, strict=True)}


def assert_right(arguments: dict[str, Any], tolerance: float, **options: Any) -> None:
    expected = results_of(reference.batch_renorm, {n: t.cpu().double() for n, t in arguments.items()}, **options)
    for name, found in results_of(batch_renorm, arguments, **options).items():
        scale = expected[name].abs().max().clamp_min(1)
        error = ((found.cpu().double() - expected[name]) / scale).abs().max()
        assert error <= tolerance, f"{name}: {error:.1e}"


@all_dialects
@all_layouts
@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_exact(
    backend: TestBackend, dialect: str, layout: str, bounds: tuple[float, float], shape: tuple[int, ...]
) -> None:
    """fp64 against autograd of the formula: 1e-8 is what the mission asks for, this is closer."""
    arguments = make(shape, torch.float64, backend, layout)
    assert_right(arguments, 1e-11, dialect=dialect, r_max=bounds[0], d_max=bounds[1])


@all_dialects
@all_layouts
@pytest.mark.parametrize("dtype, tolerance", ((torch.float32, 1e-5), (torch.bfloat16, 2**-7), (torch.float16, 2**-9)))
def test_dtypes(backend: TestBackend, dialect: str, layout: str, dtype: torch.dtype, tolerance: float) -> None:
    arguments = make((8, 16, 9, 10), dtype, backend, layout, residual=True)
    assert_right(arguments, tolerance, dialect=dialect, r_max=1.2, d_max=0.25)


@all_dialects
@all_layouts
@pytest.mark.parametrize("activation", ("relu", "silu"))
def test_fused(backend: TestBackend, dialect: str, layout: str, activation: str) -> None:
    arguments = make((4, 6, 5, 7), torch.float64, backend, layout, residual=True)
    mask = (torch.rand(4, 1, 5, 7, generator=torch.Generator().manual_seed(2)) < 2 / 3).to(backend.device)
    for more in ({}, {"mask": mask}):
        expected = results_of(
            reference.batch_renorm,
            {n: t.cpu() for n, t in arguments.items()},
            dialect=dialect,
            activation=activation,
            **{n: m.cpu() for n, m in more.items()},
        )
        found = results_of(batch_renorm, arguments, dialect=dialect, activation=activation, **more)
        for name in found:
            torch.testing.assert_close(
                found[name].cpu(), expected[name], rtol=1e-9, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}"
            )


@all_dialects
def test_evaluation(backend: TestBackend, dialect: str) -> None:
    arguments = make((4, 6, 5, 7), torch.float64, backend)
    y = batch_renorm(**arguments, dialect=dialect)
    torch.testing.assert_close(y, reference.batch_renorm(**arguments, dialect=dialect), rtol=1e-12, atol=1e-12)


def test_is_batch_norm_without_room(backend: TestBackend) -> None:
    """r_max = 1, d_max = 0; and in evaluation, with the same eps, whatever they are."""
    arguments = make((4, 6, 5, 7), torch.float32, backend)
    expected = results_of(lambda **a: batch_norm(**a, eps=1e-3, momentum=0.01), arguments)
    found = results_of(batch_renorm, arguments, r_max=1.0, d_max=0.0)
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-5)
    assert torch.equal(batch_renorm(**arguments), batch_norm(**arguments, eps=1e-3))


@pytest.mark.backends("cpu", "cuda")
@all_dialects
def test_gradients_of_gradients(backend: TestBackend, dialect: str) -> None:
    arguments = make((4, 3, 2, 3), torch.float64, backend)
    leaves = [arguments[name].requires_grad_() for name in LEAVES[:3]]

    def function(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        running = arguments["running_mean"].clone(), arguments["running_var"].clone()
        return batch_renorm(x, *running, weight, bias, True, r_max=1.2, d_max=0.25, dialect=dialect)

    def gradients(function: Any) -> Any:
        y = function(*leaves)
        seed = torch.linspace(-1, 1, y.numel(), dtype=y.dtype, device=y.device).view(y.shape)
        first = torch.autograd.grad((y * seed).sum() + y.square().sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), leaves)

    def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        running = arguments["running_mean"].clone(), arguments["running_var"].clone()
        return reference.batch_renorm(x, *running, weight, bias, True, r_max=1.2, d_max=0.25, dialect=dialect)

    for ours, theirs in zip(gradients(function), gradients(plain), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.backends("cpu", "cuda")
@all_dialects
def test_transforms(backend: TestBackend, dialect: str) -> None:
    """jvp goes through the composite formula: against the reference's."""
    arguments = make((4, 3, 2, 3), torch.float64, backend)
    x, tangent = arguments.pop("input"), torch.randn(4, 3, 2, 3, dtype=torch.float64, device=backend.device)

    # Also over the running statistics, with tangents of zero: what a transform's function changes must be its argument.
    names = [name for name in arguments if name.startswith("running")]

    def derivative(function: Any) -> Any:
        def of_tensors(x: Tensor, *running: Tensor) -> Tensor:
            own = arguments | dict(zip(names, running, strict=True))
            return function(x, **own, training=True, r_max=1.2, d_max=0.25, dialect=dialect)

        running = [arguments[name].clone() for name in names]
        tangents = (tangent, *map(torch.zeros_like, running))
        return torch.func.jvp(of_tensors, (x, *running), tangents)

    for ours, theirs in zip(derivative(batch_renorm), derivative(reference.batch_renorm), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", ((64, 4, 28, 28), (256, 3, 8, 8)))
def test_every_block_corrects_by_the_same_statistics(backend: TestBackend, layout: str, shape: tuple[int, ...]) -> None:
    """The running statistics move in the same launch; whoever reads them must have read them before."""
    arguments = make(shape, torch.float32, backend, layout)
    assert_right(arguments, 1e-5, momentum=1.0)


@all_layouts
def test_deterministic(backend: TestBackend, layout: str) -> None:
    arguments = make((16, 12, 14, 14), torch.bfloat16, backend, layout)
    first = results_of(batch_renorm, arguments)
    for name, t in results_of(batch_renorm, arguments).items():
        assert torch.equal(t, first[name]), name


def test_hard_inputs(backend: TestBackend) -> None:
    """A mean of 1e4, a constant channel, one element far out."""
    arguments = make((8, 4, 6, 6), torch.float32, backend)
    x = arguments["input"]
    x[:, 0] += 1e4
    x[:, 1] = 3.0
    x[0, 2, 0, 0] = 1e5
    for dialect in DIALECTS:
        found = results_of(batch_renorm, arguments, dialect=dialect)
        assert all(t.isfinite().all() for t in found.values()), dialect
        expected = results_of(
            reference.batch_renorm, {n: t.cpu().double() for n, t in arguments.items()}, dialect=dialect
        )
        torch.testing.assert_close(found["y"].cpu().double(), expected["y"], rtol=1e-4, atol=2e-2)
