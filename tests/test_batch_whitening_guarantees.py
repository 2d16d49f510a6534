"""Whitening on hard inputs, and its promises: finite where the covariance has no inverse, gradients where eigenvalues
coincide, a NaN that stays visible in its group, the same bits from run to run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from cases import dtype_id
from checks import assert_same_results
from conftest import TestBackend, open_backend
from plane_cases import in_layout
from tolerances import WHITENING
from torch import Tensor
from whitening_cases import (
    METHODS,
    all_layouts,
    all_methods,
    covariance_of,
    error_of,
    exact,
    make,
    orthogonal,
    results_of,
)

from torchfastnorm import batch_whitening, reference

both_precisions = pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=dtype_id)
low_and_single = pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=dtype_id)


@pytest.fixture
def threads() -> Iterator[None]:
    """Restores the number of threads that a test changes."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def one_constant(x: Tensor) -> Tensor:
    x[:, 1] = 3.0
    return x


def two_equal(x: Tensor) -> Tensor:
    x[:, 2] = x[:, 0]
    return x


def outlier(x: Tensor) -> Tensor:
    x[1, 2, 0, 0] = 1e4
    return x


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "mean 1e4": lambda x: x + 1e4,
    "scale 1e4": lambda x: x * 1e4,
    "scale 1e-4": lambda x: x * 1e-4,
    "scale 1e-10": lambda x: x * 1e-10,
    "outlier": outlier,
    "constant channel": one_constant,
    "equal channels": two_equal,
    "constant": lambda x: torch.full_like(x, 1 / 3),
    "zeros": torch.zeros_like,
    "two samples": lambda x: x[:2, :, :1, :1],
    "one position": lambda x: x[:1, :, :1, :1],
}
# How far fp32 goes: half a unit of a mean of 1e4 is 5e-4; what a mean errs in a direction without variance is magnified
# by 1 / sqrt(eps) = 316; eps is a rounding beside a large covariance. What is not named is finite and no more is asked:
# pca's axes, an outlier of 1e4 in a covariance.
IN_FLOAT = dict.fromkeys(("scale 1e4", "scale 1e-4", "scale 1e-10"), 1e-4)
IN_FLOAT |= dict.fromkeys(("constant", "constant channel", "two samples"), 1e-3)
IN_FLOAT |= {"mean 1e4": 5e-3, "equal channels": 2e-2}


@all_layouts
@all_methods
@both_precisions
@pytest.mark.parametrize("name", CHANGES)
def test_hard_inputs(backend: TestBackend, layout: str, method: str, dtype: torch.dtype, name: str) -> None:
    """Finite always; right in fp64 where the reference is, in fp32 as far as fp32 goes."""
    for width, shape in ((4, (5, 8, 6, 7)),) + (((20, (3, 20, 5, 4)),) if backend.name != "sim" else ()):
        arguments = make(shape, width, dtype, backend)
        arguments["input"] = in_layout(CHANGES[name](arguments["input"]), layout)
        options = {"training": True, "num_channels": width, "method": method}
        results = results_of(batch_whitening, arguments, **options)
        for result, found in results.items():
            assert found.isfinite().all(), result
        expected = results_of(reference.batch_whitening, exact(arguments), **options)
        names = list(expected)
        if alike(arguments["input"], width):  # eigh has no gradient, pca no axes
            names = ["running_mean", "grad_bias", *["y"] * (method != "pca")]
        elif method == "pca" and name == "equal channels":  # an axis (1, -1) has two largest entries, and so no sign
            names = ["y", "running_mean", "grad_weight"]
        tolerance = 1e-6 if dtype == torch.float64 else IN_FLOAT.get(name) if method != "pca" else None
        for result in names if tolerance else ():
            assert error_of(results[result], expected[result], 1e-8) < tolerance, result


def alike(x: Tensor, width: int) -> bool:
    """Whether two eigenvalues of the covariance with eps are the same, nearly: eigh's derivative divides by the gap."""
    values = torch.linalg.eigvalsh(covariance_of(x.cpu().double(), width)) + 1e-5
    return bool((values.diff(dim=-1) < 1e-6 * values[:, 1:]).any())


def directional(x: Tensor, grad_y: Tensor, direction: Tensor, step: float, **options: Any) -> float:
    """d/dt of sum(grad_y * y(x + t direction)) by central differences of the formula in fp64, of fourth order."""
    loss = [(reference.batch_whitening(x + k * step * direction, **options) * grad_y).sum() for k in (-2, -1, 1, 2)]
    return ((8 * (loss[2] - loss[1]) - (loss[3] - loss[0])) / (12 * step)).item()


@both_precisions
def test_coinciding_eigenvalues(backend: TestBackend, dtype: torch.dtype) -> None:
    """autograd through eigh has no gradient there; zca's is that of Newton's iteration, which converges, and of
    differences."""
    x, generator = orthogonal(backend, dtype), torch.Generator().manual_seed(4)
    assert torch.equal(covariance_of(x, 4)[0], torch.eye(4, dtype=dtype, device=x.device))
    grad_y, direction = (torch.randn(8, 4, generator=generator, dtype=dtype) for _ in range(2))
    inputs, options = {"input": x}, {"training": True}
    through_eigh = results_of(reference.batch_whitening, exact(inputs), grad_y.double(), **options)["grad_input"]
    assert not through_eigh.isfinite().all()
    ours = results_of(batch_whitening, inputs, grad_y, **options)["grad_input"].cpu().double()
    newton = {"method": "iternorm", "iterations": 20}
    expected = results_of(reference.batch_whitening, exact(inputs), grad_y.double(), **newton, **options)["grad_input"]
    tolerance = WHITENING[dtype].error
    assert error_of(ours, expected) < tolerance
    slope = directional(x.cpu().double(), grad_y.double(), direction.double(), 1e-3, **options)
    assert abs((ours * direction).sum().item() - slope) < tolerance
    for method in METHODS:  # and no other method fails
        assert results_of(batch_whitening, inputs, grad_y, method=method, **options)["grad_input"].isfinite().all()
    scaled = results_of(batch_whitening, {"input": 1e-4 * x}, grad_y, **options)["grad_input"]
    assert scaled.isfinite().all() and scaled.abs().max() > 1


@pytest.mark.parametrize("shape", ((3, 6), (2, 6, 1, 2), (1, 6, 3)))
def test_fewer_samples_than_channels(backend: TestBackend, shape: tuple[int, ...]) -> None:
    """Several eigenvalues are eps: zca's and cholesky's gradients against differences, all of them finite."""
    arguments = make(shape, 6, torch.float64, backend)
    x, generator = arguments["input"].cpu(), torch.Generator().manual_seed(4)
    grad_y, direction = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    for method in ("zca", "cholesky"):
        options = {"training": True, "method": method, "eps": 1e-3}
        ours = results_of(batch_whitening, {"input": arguments["input"]}, grad_y, **options)["grad_input"].cpu()
        slope = directional(x, grad_y, direction, 2e-4, **options)
        assert (ours * direction).sum().item() == pytest.approx(slope, rel=1e-6)


@all_methods
@both_precisions
def test_eigenvalues_below_eps(backend: TestBackend, method: str, dtype: torch.dtype) -> None:
    """A large covariance without full rank: rounding leaves some of its eigenvalues far below zero."""
    for shape in ((3, 24), (2, 24, 3), (9, 24)):
        arguments = make(shape, 12, dtype, backend)
        arguments["input"] = arguments["input"] * (1e6 if dtype == torch.float64 else 1e3)
        rounded = covariance_of(arguments["input"].cpu(), 12).double()
        assert torch.linalg.eigvalsh(rounded).min() < -1e-5
        results = results_of(batch_whitening, arguments, training=True, num_channels=12, method=method)
        assert all(t.isfinite().all() for t in results.values())


def test_values_of_deficient_batches(backend: TestBackend) -> None:
    """What the samples span is whitened: with two samples every method but iternorm gives them +-1 there."""
    for method in ("zca", "pca", "cholesky"):
        x = torch.tensor([[3.0, 1.0, -2.0], [1.0, 2.0, 4.0]], device=backend.device)
        y = batch_whitening(x, training=True, method=method)
        torch.testing.assert_close(y.norm(dim=1), torch.ones(2, device=y.device), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(y[0], -y[1], rtol=1e-4, atol=1e-4)


@all_layouts
@all_methods
@pytest.mark.parametrize("special", (torch.nan, torch.inf, -torch.inf))
def test_nan_and_infinity_stay_in_their_group(backend: TestBackend, layout: str, method: str, special: float) -> None:
    """All of the group is NaN, forward and backward, and its running statistics; other groups keep their values.

    On the CPU their bits, too. On CUDA groups of few channels share a tile of the multiplication; a position at which
    one of them is not finite is computed again for each group by itself, in another order."""
    arguments = make((3, 9, 5, 4), 3, torch.float32, backend, layout)
    options = {"training": True, "num_channels": 3, "method": method}
    plain = results_of(batch_whitening, arguments, **options)
    arguments["input"][1, 4, 2, 1] = special
    results = results_of(batch_whitening, arguments, **options)
    for name, found in results.items():
        axis = 1 if name in ("y", "grad_input") else 0
        (first, second, last), before = found.chunk(3, axis), plain[name].chunk(3, axis)
        if backend.name == "cpu":
            assert torch.equal(first, before[0]) and torch.equal(last, before[2]), name
        torch.testing.assert_close((first, last), (before[0], before[2]), rtol=1e-5, atol=1e-6)
        if name == "grad_bias":  # does not know x
            assert torch.equal(second, before[1])
        elif name == "running_mean":
            assert second.isfinite().flatten().tolist() == [True, False, True]
        else:
            assert second.isnan().all(), name


def test_a_nan_in_the_gradient(backend: TestBackend) -> None:
    arguments = make((3, 6, 5, 4), 3, torch.float32, backend)
    grad_y = torch.ones_like(arguments["input"])
    plain = results_of(batch_whitening, arguments, grad_y, training=True, num_channels=3)
    grad_y[1, 4, 2, 1] = torch.nan
    results = results_of(batch_whitening, arguments, grad_y, training=True, num_channels=3)
    torch.testing.assert_close(results["grad_input"][:, :3], plain["grad_input"][:, :3], rtol=1e-5, atol=1e-6)
    assert results["grad_input"][:, 3:].isnan().all()
    assert results["grad_bias"].isnan().tolist() == [False] * 4 + [True, False]


@all_layouts
def test_evaluation_of_one_element(backend: TestBackend, layout: str) -> None:
    """A NaN reaches its group at its place alone, and a sample's result does not depend on its batch."""
    for shape, width in (((3, 6, 5, 4), 3), ((5, 34, 4, 3), 17)):
        arguments = make(shape, width, torch.bfloat16, backend, layout)
        plain = results_of(batch_whitening, arguments, num_channels=width)["y"]
        alone = arguments | {"input": in_layout(arguments["input"][1:2], layout)}
        assert torch.equal(results_of(batch_whitening, alone, num_channels=width)["y"], plain[1:2])
        arguments["input"][1, 1, 2, 1] = torch.nan
        y = batch_whitening(**arguments, num_channels=width)
        expected = torch.zeros_like(y, dtype=torch.bool)
        expected[1, :width, 2, 1] = True
        assert torch.equal(y.isnan(), expected) and torch.equal(y[~expected], plain[~expected])


# Narrow and wide groups, few positions and many, more than one block of them.
BITS = ((3, (16, 12, 14, 14)), (8, (70, 16, 3)), (17, (3, 34, 9, 7)), (64, (5, 64, 5, 6)), (2, (2, 4, 121, 120)))
all_bits = pytest.mark.parametrize("width, shape", BITS, ids=str)


def of_bits(backend: TestBackend, width: int, shape: tuple[int, ...], dtype: torch.dtype, layout: str) -> Any:
    shape = (min(shape[0], 3 if width > 8 else 7), *shape[1:]) if backend.name == "sim" else shape
    arguments = make(shape, width, dtype, backend, layout)
    return lambda method="zca": results_of(batch_whitening, arguments, training=True, num_channels=width, method=method)


@all_layouts
@all_bits
@low_and_single
def test_deterministic_from_run_to_run(
    backend: TestBackend, layout: str, width: int, shape: tuple[int, ...], dtype: torch.dtype, threads: None
) -> None:
    torch.set_num_threads(3)
    run = of_bits(backend, width, shape, dtype, layout)
    for method in METHODS if width == 3 and backend.name != "sim" else ("zca",):
        first = run(method)
        for _ in range(2):
            rubbish = [torch.full_like(t, torch.nan) for t in first.values()]  # what freed memory then holds
            del rubbish
            assert_same_results(run(method), first)


@pytest.mark.backends("cpu")
@all_layouts
@all_bits
@low_and_single
def test_the_number_of_threads_does_not_matter(
    backend: TestBackend, layout: str, width: int, shape: tuple[int, ...], dtype: torch.dtype, threads: None
) -> None:
    run = of_bits(backend, width, shape, dtype, layout)
    for method in METHODS if width <= 17 else ("zca",):
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(run(method))
        for other in results[1:]:
            assert_same_results(other, results[0])


@pytest.mark.tsan
@pytest.mark.backends("sim")
@all_layouts
@all_bits
def test_the_order_of_threads_and_blocks_does_not_matter(
    backend: TestBackend, layout: str, width: int, shape: tuple[int, ...]
) -> None:
    run = of_bits(backend, width, shape, torch.bfloat16, layout)
    forward = run()
    for order, seed in (("reverse", 0), ("random", 1)):
        with open_backend("sim", order=order, seed=seed):
            assert_same_results(run(), forward)
