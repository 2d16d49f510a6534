"""Inputs on which norms go wrong: large means, constant rows, huge and tiny values, outliers, NaN and infinities."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from cases import DTYPES, LAYER_NORM, OPS, RMS_NORM, Case, Op, accumulator, dtype_id, evaluate, make_case
from checks import check, check_not_worse
from conftest import TestBackend
from torch import Tensor


def alternating(t: Tensor) -> Tensor:
    return torch.ones_like(t).where(torch.arange(t.shape[-1], device=t.device) % 2 == 0, -1.0)


def outlier(t: Tensor) -> Tensor:
    t = t.clone()
    t[..., t.shape[-1] // 2] = 3e4
    return t


def step(t: Tensor) -> Tensor:
    """The second half of each row lies elsewhere: a shift by the first tile's mean is of no use there."""
    return t + 1e4 * (torch.arange(t.shape[-1], device=t.device) >= t.shape[-1] // 2)


HARD: dict[str, Callable[[Tensor], Tensor]] = {  # from standard normal values, in fp64
    "mean 1e4": lambda t: t + 1e4,
    "mean -3e4": lambda t: t - 3e4,
    "mean 1e4, deviation 1e-2": lambda t: 1e-2 * t + 1e4,
    "constant 1e4": lambda t: torch.full_like(t, 1e4 + 1 / 3),
    "constant 1/3": lambda t: torch.full_like(t, 1 / 3),
    "zeros": torch.zeros_like,
    "outlier": outlier,
    "step": step,
    "alternating 3e4": lambda t: 3e4 * alternating(t),
    "ramp": lambda t: torch.arange(t.shape[-1], device=t.device).expand_as(t) * 1.0,
    "1e-6": lambda t: 1e-6 * t,
    "1e-18": lambda t: 1e-18 * t,
    "1e-30": lambda t: 1e-30 * t,
    "alternating 1e12": lambda t: 1e12 * (alternating(t) + 1e-3 * t),
    "1e15": lambda t: 1e15 * t,
    "1e18": lambda t: 1e18 * t,
    "1e30": lambda t: 1e30 * t,
    "mean 1e15": lambda t: 1e15 * (1 + t),
}

all_ops = pytest.mark.parametrize("op", OPS, ids=str)
all_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)


def hard_case(op: Op, name: str, dtype: torch.dtype, rows: int, cols: int, backend: TestBackend) -> Case:
    case = make_case(op, rows, cols, dtype, device=backend.device)
    hard = HARD[name](torch.randn(rows, cols, dtype=torch.float64)).to(dtype).to(backend.device)
    if not bool(hard.isfinite().all()):
        pytest.skip(f"{name} does not exist in {dtype}")
    # The residual form normalises x + residual: the hard values come in through the residual.
    return case.replace(x=hard) if case.residual is None else case.replace(residual=hard, x=torch.zeros_like(case.x))


def squares_fit(case: Case) -> bool:
    """Whether the sum of squares of a row exists in the accumulator: beyond it no bound is promised."""
    h = (case.x if case.residual is None else case.residual).double()
    return bool(h.square().sum(-1).max() < torch.finfo(accumulator(case.x.dtype)).max / 8)


@all_ops
@all_dtypes
@pytest.mark.parametrize("cols", (65, 1024, 5000))
@pytest.mark.parametrize("name", HARD)
def test_hard_inputs(backend: TestBackend, op: Op, dtype: torch.dtype, cols: int, name: str) -> None:
    case = hard_case(op, name, dtype, 5, cols, backend)
    if not squares_fit(case):
        pytest.skip(f"{name}: the squares of a row overflow the accumulator")
    check(case)


@pytest.mark.parametrize("op", (LAYER_NORM, RMS_NORM), ids=str)
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=dtype_id)
@pytest.mark.parametrize("cols", (65, 1024))
@pytest.mark.parametrize("name", HARD)
def test_not_worse_than_torch(backend: TestBackend, op: Op, dtype: torch.dtype, cols: int, name: str) -> None:
    """Many rows: where the error of a row's mean decides, a row is one draw."""
    check_not_worse(hard_case(op, name, dtype, 256, cols, backend))


@all_ops
@pytest.mark.parametrize("name", ("mean 1e4", "constant 1e4", "step", "ramp"))
@pytest.mark.parametrize("cols", (20_000, 300_001))
def test_hard_long_rows(backend: TestBackend, op: Op, name: str, cols: int) -> None:
    """Rows that no on-chip memory holds: their statistics are merged from blocks."""
    if backend.name == "sim" and cols > 100_000 and op.has_residual:
        pytest.skip("in the simulated machine the longest rows run without residual")
    check(hard_case(op, name, torch.float32, 2, cols, backend))


@all_ops
@all_dtypes
@pytest.mark.parametrize("cols", (8, 65, 1000, 5000))
@pytest.mark.parametrize("special", (torch.nan, torch.inf, -torch.inf))
def test_nan_and_infinity_stay_visible(
    backend: TestBackend, op: Op, dtype: torch.dtype, cols: int, special: float
) -> None:
    """They spread over their own row as in torch, and into no other row."""
    case = make_case(op, 5, cols, dtype, device=backend.device)
    case.x[2, cols // 3] = special
    case.grad_y[4, cols // 2] = special
    ours, theirs = evaluate(case), evaluate(case, case.op.torch)
    for name in ("y", "grad_x", "grad_weight"):
        assert torch.equal(ours[name].isfinite(), theirs[name].isfinite()), name
    # Which elements of a row's gradient are NaN and which infinite depends on the order of its additions.
    assert torch.equal(ours["y"].isnan(), theirs["y"].isnan())
    assert ours["y"][2].isnan().any() and ours["grad_x"][4].isnan().any()
    others = [0, 1, 3]
    assert ours["y"][others].isfinite().all() and ours["grad_x"][others].isfinite().all()


@all_ops
def test_overflow_of_the_output_is_infinite(backend: TestBackend, op: Op) -> None:
    case = make_case(op, 3, 64, torch.float16, device=backend.device)
    results = check(case.replace(weight=torch.full_like(case.weight, 6e4)))
    assert results["y"].isinf().any()
