"""Random shapes, strides, dtypes and parameters (hypothesis), always against the fp64 oracle.

The examples are derandomised: a run is repeatable, and a failure prints the case that it was shrunk to.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import DTYPES, OPS, Case, Op, evaluate, make_case
from checks import assert_bitwise, assert_same_results, check
from conftest import TestBackend
from torch import Tensor

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

SETTINGS = settings(
    deadline=None,
    derandomize=True,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
all_ops = pytest.mark.parametrize("op", OPS, ids=str)

sizes = st.one_of(st.integers(1, 9), st.sampled_from((16, 31, 33, 64, 65, 100, 129, 257)))
columns = st.one_of(sizes, st.integers(1, 1500), st.sampled_from((2048, 4097, 8200)))


@st.composite
def cases(draw: st.DrawFn, op: Op, backend: TestBackend) -> Case:
    shape: tuple[int, ...] = (draw(columns),)
    if draw(st.booleans()):
        for size in draw(st.lists(sizes, min_size=1, max_size=2)):
            if torch.Size((*shape, size)).numel() <= backend.limit:
                shape = (*shape, size)
    cols = torch.Size(shape).numel()
    lead: list[int] = []
    for size in draw(st.lists(sizes, max_size=3)):
        if torch.Size((*lead, size)).numel() * cols <= backend.limit:
            lead.append(size)
    dtype, residual_dtype = draw(st.sampled_from(DTYPES)), draw(st.sampled_from(DTYPES))
    if (dtype == torch.float64) != (residual_dtype == torch.float64):
        residual_dtype = dtype
    case = make_case(
        op,
        lead,
        shape,
        dtype,
        residual_dtype=residual_dtype,
        param_dtype=draw(st.sampled_from(DTYPES)),
        out_dtype=draw(st.sampled_from((None, *DTYPES))),
        eps=draw(st.sampled_from((None, 1e-6, 1e-3, 1.0))),
        device=backend.device,
        seed=draw(st.integers(0, 2**16)),
    )
    absent = [name for name in ("weight", "bias") if draw(st.booleans()) and draw(st.booleans())]
    return case.replace(**dict.fromkeys(absent))


@st.composite
def strided(draw: st.DrawFn, t: Tensor) -> Tensor:
    """The same values in another place: an offset, gaps between any dimensions, the leading ones in any order."""
    order = [*draw(st.permutations(range(t.dim() - 1))), t.dim() - 1] if t.dim() > 1 else list(range(t.dim()))
    stored = t.permute(order)
    gaps = [draw(st.sampled_from((0, 0, 1, 3))) for _ in range(t.dim())]
    buffer = t.new_full([size + gap for size, gap in zip(stored.shape, gaps, strict=True)], torch.nan)
    if draw(st.booleans()):
        start = draw(st.integers(1, 7))
        buffer = t.new_full((buffer.numel() + start,), torch.nan)[start:].view(buffer.shape)
    window = buffer[tuple(slice(0, size) for size in stored.shape)]
    window.copy_(stored)
    return window.permute([order.index(d) for d in range(t.dim())])


@all_ops
@SETTINGS
@given(data=st.data())
def test_any_case_is_right(backend: TestBackend, op: Op, data: Any) -> None:
    check(data.draw(cases(op, backend)))


@all_ops
@SETTINGS
@given(data=st.data())
def test_strides_do_not_matter(backend: TestBackend, op: Op, data: Any) -> None:
    case = data.draw(cases(op, backend))
    names = [n for n in ("x", "residual", "grad_y", "grad_sum") if getattr(case, n) is not None]
    elsewhere = case.replace(**{n: data.draw(strided(getattr(case, n))) for n in names})
    assert_same_results(evaluate(elsewhere), evaluate(case))


@all_ops
@SETTINGS
@given(data=st.data())
def test_a_row_does_not_depend_on_its_batch(backend: TestBackend, op: Op, data: Any) -> None:
    case = data.draw(cases(op, backend))
    if case.x.dim() == len(case.normalized_shape):
        return
    start = data.draw(st.integers(0, case.x.shape[0] - 1))
    stop = data.draw(st.integers(start + 1, case.x.shape[0]))
    whole, part = evaluate(case), evaluate(case.rows(slice(start, stop)))
    for name in ("y", "sum", "grad_x", "grad_residual"):
        if name in whole:
            assert_bitwise(name, part[name], whole[name][start:stop])


@all_ops
@SETTINGS
@given(scale=st.integers(-20, 20), data=st.data())
def test_scaling_by_a_power_of_two(backend: TestBackend, op: Op, scale: int, data: Any) -> None:
    """norm(2^k x) with eps 4^k eps is norm(x), to the last bit: no constant hides anywhere in the formula."""
    case = make_case(op, 3, data.draw(columns), eps=1e-3, device=backend.device)
    factor = 2.0**scale
    scaled = case.replace(
        x=case.x * factor, residual=None if case.residual is None else case.residual * factor, eps=1e-3 * factor**2
    )
    assert_bitwise("y", evaluate(scaled, backward=False)["y"], evaluate(case, backward=False)["y"])
