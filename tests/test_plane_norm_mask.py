"""Masked statistics: a padded batch gives what the unpadded one gives; the contents of the padding do not matter."""

from __future__ import annotations

import pytest
import torch
from cases import dtype_id
from checks import assert_bitwise, assert_same_results
from conftest import TestBackend
from plane_cases import (
    BATCH_NORM,
    GROUP_NORM,
    INSTANCE_NORM,
    LAYOUTS,
    OF_X,
    PLANE_OPS,
    PlaneCase,
    PlaneOp,
    cut,
    evaluate,
    in_layout,
    make_plane_case,
    scattered_mask,
)
from plane_checks import check, check_layout, layout_of, oracle
from torch import Tensor

all_ops = pytest.mark.parametrize("op", PLANE_OPS, ids=str)
both_layouts = pytest.mark.parametrize("layout", LAYOUTS)
# Shape, kind of mask, dtype, activation: pairwise.
CASES = (
    ((3, 6, 5, 7), "scattered", torch.float32, "none"),
    ((3, 6, 5, 7), "padding", torch.bfloat16, "relu"),
    ((4, 130, 9), "padding", torch.float32, "silu"),
    ((2, 7, 301), "scattered", torch.float16, "gelu"),
    ((2, 4, 3, 5, 4), "padding", torch.float64, "elu"),
    ((2, 33, 17, 19), "scattered", torch.bfloat16, "none"),
    ((5, 3, 64, 3), "padding", torch.float32, "leaky_relu"),
    ((1, 64, 8, 8), "scattered", torch.float32, "gelu_tanh"),
    ((2, 2, 150, 151), "scattered", torch.float32, "relu"),
    ((1, 260, 40), "padding", torch.float64, "none"),
)


def masked_values(case: PlaneCase, value: float) -> PlaneCase:
    """`value` in every tensor where the mask does not count."""
    layout = layout_of(case.x)
    return case.map(lambda t: in_layout(t.masked_fill(~case.mask, value), layout), OF_X)


def assert_nothing_at_masked(case: PlaneCase, results: dict[str, Tensor]) -> None:
    for name in ("y", "grad_x", "grad_residual"):
        if name in results:
            assert not results[name].masked_select(~case.mask).any(), name


@all_ops
@both_layouts
@pytest.mark.parametrize("shape, mask, dtype, activation", CASES)
def test_values(
    backend: TestBackend,
    op: PlaneOp,
    layout: str,
    shape: tuple[int, ...],
    mask: str,
    dtype: torch.dtype,
    activation: str,
) -> None:
    """Against the oracle; then the same bits with NaN in the padding, of the incoming gradient too."""
    options = {"mask": mask, "activation": activation, "layout": layout, "residual": True}
    case = make_plane_case(op, cut(shape, backend.limit), dtype, **options, device=backend.device)
    results = check(case)
    check_layout(case, results)
    assert_nothing_at_masked(case, results)
    assert_same_results(evaluate(masked_values(case, torch.nan)), results)
    assert_same_results(evaluate(masked_values(case, torch.inf)), results)


@pytest.mark.parametrize("op", (BATCH_NORM, INSTANCE_NORM), ids=str)
@both_layouts
def test_evaluation(backend: TestBackend, op: PlaneOp, layout: str) -> None:
    options = {"mask": "scattered", "layout": layout, "batch_statistics": False, "activation": "silu"}
    case = make_plane_case(op, (3, 6, 5, 7), **options, residual=True, device=backend.device)
    results = check(case)
    assert_nothing_at_masked(case, results)
    assert_same_results(evaluate(masked_values(case, torch.nan)), results)


@both_layouts
def test_rows_of_a_matrix(backend: TestBackend, layout: str) -> None:
    """2-D input, one row in three not counted."""
    case = make_plane_case(BATCH_NORM, (40, 6), layout=layout, device=backend.device)
    mask = (torch.arange(40, device=backend.device) % 3 > 0)[:, None]
    results = check(case.replace(mask=mask))
    counted = evaluate(case.samples(mask[:, 0]))
    torch.testing.assert_close(results["y"][mask[:, 0]], counted["y"], rtol=1e-5, atol=1e-5)


def ragged(op: PlaneOp, backend: TestBackend, layout: str) -> tuple[PlaneCase, list[int]]:
    lengths = [9, 1 + (op is not BATCH_NORM), 30, 17]
    shape = (len(lengths), 6, max(lengths))
    mask = (torch.arange(shape[2]) < torch.tensor(lengths)[:, None])[:, None]
    case = make_plane_case(op, shape, mask=mask, layout=layout, activation="silu", running=False, device=backend.device)
    return masked_values(case, 1e30), lengths


@pytest.mark.parametrize("op", (GROUP_NORM, INSTANCE_NORM), ids=str)
@both_layouts
def test_a_padded_sample_is_the_sample(backend: TestBackend, op: PlaneOp, layout: str) -> None:
    """Each sample of a padded batch against the oracle of that sample alone, without padding and without a mask."""
    case, lengths = ragged(op, backend, layout)
    results = evaluate(case)
    totals = {"grad_weight": 0.0, "grad_bias": 0.0}
    for index, length in enumerate(lengths):
        alone = case.samples(slice(index, index + 1)).replace(mask=None)
        alone = alone.map(lambda t, length=length: t[..., :length].contiguous(), ("x", "grad_y"))
        part = {n: results[n][index : index + 1, :, :length] for n in ("y", "grad_x")}
        expected = oracle(alone)
        check(alone, part | {n: e.value.to(e.dtype) for n, e in expected.items() if n not in part})
        totals = {name: total + expected[name].value for name, total in totals.items()}
    for name, total in totals.items():
        torch.testing.assert_close(results[name].cpu().double(), total, rtol=1e-5, atol=1e-5)


@pytest.mark.tsan
@both_layouts
def test_a_padded_batch_is_the_batch(backend: TestBackend, layout: str) -> None:
    """BatchNorm of a padded batch: the rows that count, as a matrix; with running statistics, whose factor is n - 1 of
    what counts."""
    case, _ = ragged(BATCH_NORM, backend, layout)
    running = [torch.randn(6), torch.rand(6)]
    case = case.replace(running_mean=running[0].to(backend.device), running_var=running[1].to(backend.device))
    results = evaluate(case)
    rows = case.mask[:, 0]
    matrix = case.map(lambda t: t.movedim(1, -1)[rows], ("x", "grad_y")).replace(mask=None)
    parts = {n: results[n].movedim(1, -1)[rows] for n in ("y", "grad_x")}
    check(matrix, results | parts)


@all_ops
@both_layouts
@pytest.mark.parametrize("activation", ("none", "gelu"))
def test_nothing_counted(backend: TestBackend, op: PlaneOp, layout: str, activation: str) -> None:
    """A set without counted elements has mean and variance 0: zeros everywhere, finite, whatever the padding holds."""
    case = make_plane_case(op, (3, 6, 5, 7), layout=layout, activation=activation, device=backend.device)
    one = torch.ones(3, 1, 5, 7, dtype=torch.bool, device=backend.device)
    one[1] = False
    for mask in (one, torch.zeros_like(one)):
        masked = case.replace(mask=mask)
        results = check(masked)
        assert all(t.isfinite().all() for t in results.values())
        assert_nothing_at_masked(masked, results)
        assert_same_results(evaluate(masked_values(masked, torch.nan)), results)


@all_ops
@both_layouts
def test_one_element_counted(backend: TestBackend, op: PlaneOp, layout: str) -> None:
    """Its own mean, no variance: y is the bias, and the gradient stops."""
    mask = torch.zeros(2, 1, 4, 5, dtype=torch.bool)
    mask[:, :, 1, 2] = True
    case = make_plane_case(op, (2, 6, 4, 5), layout=layout, mask=mask, groups=6, device=backend.device)
    results = check(case)
    if op is not BATCH_NORM:
        torch.testing.assert_close(results["y"][:, :, 1, 2], case.bias.expand(2, 6))


@all_ops
@both_layouts
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=dtype_id)
def test_a_mask_of_ones(backend: TestBackend, op: PlaneOp, layout: str, dtype: torch.dtype) -> None:
    case = make_plane_case(op, (3, 6, 5, 7), dtype, layout=layout, device=backend.device)
    everything = case.replace(mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=backend.device))
    check(case, evaluate(everything))


@all_ops
def test_forms_of_a_mask(backend: TestBackend, op: PlaneOp) -> None:
    """Whatever broadcasts to (N, 1, spatial...), of any strides: the same bits."""
    case = make_plane_case(op, (3, 6, 5, 7), device=backend.device)
    columns = torch.tensor([True, True, False, True, False, True, True], device=backend.device)
    full = columns.expand(3, 1, 5, 7)
    expected = check(case.replace(mask=full.contiguous()))
    wide = torch.zeros(3, 1, 7, 10, dtype=torch.bool, device=backend.device).transpose(2, 3)
    wide[:, :, :7, :5] = full.transpose(2, 3)
    forms = (full, columns, columns.view(1, 7), columns.view(1, 1, 1, 7), full[:1], full[:, :, :1])
    for form in (*forms, wide[:, :, :7, :5].transpose(2, 3), full.contiguous(memory_format=torch.channels_last)):
        assert_same_results(evaluate(case.replace(mask=form)), expected)


@all_ops
def test_the_mask_is_left_alone(backend: TestBackend, op: PlaneOp) -> None:
    mask = scattered_mask((3, 6, 5, 7)).to(backend.device)
    before = mask.clone()
    evaluate(make_plane_case(op, (3, 6, 5, 7), mask=mask, activation="relu", device=backend.device))
    assert torch.equal(mask, before)


@all_ops
def test_no_gradient_comes_from_the_padding(backend: TestBackend, op: PlaneOp) -> None:
    """A loss over masked positions alone has no gradient at all."""
    case = make_plane_case(op, (3, 6, 5, 7), mask="scattered", activation="silu", device=backend.device)
    results = evaluate(case.replace(grad_y=case.grad_y.masked_fill(case.mask, 0)))
    for name in ("grad_x", "grad_weight", "grad_bias"):
        assert_bitwise(name, results[name].abs(), torch.zeros_like(results[name]))
