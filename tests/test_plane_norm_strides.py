"""Layouts and strides: channels_last in, channels_last out; both read where they lie; anything else as torch does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from cases import dtype_id
from checks import assert_same_results
from conftest import TestBackend
from plane_cases import (
    BATCH_NORM,
    FIRST,
    LAST,
    LAYOUTS,
    OF_X,
    PLANE_OPS,
    PlaneCase,
    PlaneOp,
    evaluate,
    in_layout,
    make_plane_case,
)
from plane_checks import check, check_layout, layout_of
from torch import Tensor

all_ops = pytest.mark.parametrize("op", PLANE_OPS, ids=str)
both_layouts = pytest.mark.parametrize("layout", LAYOUTS)
View = Callable[[Tensor], Tensor]


def embed(values: Tensor, size: tuple[int, ...], view: View) -> Tensor:
    """`values` seen through `view` of a larger buffer, whose other elements are NaN: reading one shows."""
    window = view(values.new_full(size, torch.nan))
    assert window.shape == values.shape
    window.copy_(values)
    return window


def case_of(op: PlaneOp, shape: tuple[int, ...], backend: TestBackend, dtype: torch.dtype = torch.float32) -> PlaneCase:
    options = {"residual": True, "activation": "relu"}
    return make_plane_case(op, shape, dtype, **options, device=backend.device)


# Name -> (shape, size of the buffer, view of it, layout that the result has)
STRIDED: dict[str, tuple[tuple[int, ...], tuple[int, ...], View, str]] = {
    "some channels": ((2, 3, 5, 4), (2, 9, 5, 4), lambda t: t[:, 3:6], FIRST),
    "every other channel": ((2, 3, 5, 4), (2, 6, 5, 4), lambda t: t[:, ::2], FIRST),
    "every other sample": ((2, 3, 5, 4), (4, 3, 5, 4), lambda t: t[::2], FIRST),
    "a crop": ((2, 3, 5, 4), (2, 3, 8, 7), lambda t: t[:, :, 2:7, 1:5], FIRST),
    "every other column": ((2, 3, 5, 4), (2, 3, 5, 8), lambda t: t[..., ::2], FIRST),
    "transposed image": ((2, 3, 5, 4), (2, 3, 4, 5), lambda t: t.transpose(2, 3), FIRST),
    "samples last": ((2, 3, 5, 4), (3, 5, 4, 2), lambda t: t.movedim(-1, 0), FIRST),
    "a crop of channels last": ((2, 3, 5, 4), (2, 8, 7, 3), lambda t: t.movedim(-1, 1)[:, :, 2:7, 1:5], LAST),
    "some of channels last": ((2, 3, 5, 4), (2, 5, 4, 9), lambda t: t.movedim(-1, 1)[:, 3:6], LAST),
    "channels of a sequence": ((2, 6, 7), (2, 7, 9), lambda t: t.movedim(-1, 1)[:, :6], FIRST),
    "rows of a matrix": ((6, 5), (6, 9), lambda t: t[:, 2:7], FIRST),
    "transposed matrix": ((6, 5), (5, 6), lambda t: t.t(), FIRST),
    "a crop of a volume": ((2, 3, 2, 3, 4), (2, 3, 4, 4, 5), lambda t: t[:, :, 1:3, :3, 1:], FIRST),
    "unaligned storage": ((3, 5, 7), (3 * 35 + 5,), lambda t: t[5:].view(3, 5, 7), FIRST),
}
USABLE = [(op, name) for op in PLANE_OPS for name in STRIDED if op.name != "instance_norm" or len(STRIDED[name][0]) > 2]


@pytest.mark.parametrize("op, name", USABLE)
def test_strided_equals_contiguous(backend: TestBackend, op: PlaneOp, name: str) -> None:
    """Input, residual and incoming gradient strided, together and one by one: right, and laid out as torch suggests."""
    shape, size, view, layout = STRIDED[name]
    case = case_of(op, shape, backend)
    plain = check(case.in_layout(layout))
    together = case.map(lambda t: embed(t, size, view), OF_X)
    results = evaluate(together)
    assert_same_results(results, plain)
    for result in ("y", "grad_x"):
        assert results[result].stride() == in_layout(case.x, layout).stride(), result
    for one in ("residual", "grad_y"):
        if getattr(case, one) is not None:
            mixed = case.in_layout(layout).map(lambda t: embed(t, size, view), [one])
            assert_same_results(evaluate(mixed), plain)


@all_ops
@pytest.mark.parametrize("shape", ((3, 6, 5, 7), (2, 5, 9), (2, 4, 3, 2, 5), (1, 3, 4, 4), (2, 64, 7, 7)))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=dtype_id)
def test_the_input_decides_the_layout(
    backend: TestBackend, op: PlaneOp, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    """Residual and incoming gradient of the other layout: the same bits, in input's layout."""
    case = case_of(op, shape, backend, dtype)
    for layout, other in ((FIRST, LAST), (LAST, FIRST)):
        same = case.in_layout(layout)
        expected = evaluate(same)
        check_layout(same, expected)
        for names in (("grad_y",), ("residual",), ("residual", "grad_y")):
            results = evaluate(same.map(lambda t, other=other: in_layout(t, other), names))
            assert_same_results(results, expected)
            assert results["y"].stride() == same.x.stride() == results["grad_x"].stride()


@all_ops
@both_layouts
@pytest.mark.parametrize("shape", ((3, 1, 5, 7), (1, 6, 5, 7), (3, 6, 5, 1), (3, 6, 1, 7), (3, 1, 1, 7)))
def test_dimensions_of_size_one(backend: TestBackend, op: PlaneOp, layout: str, shape: tuple[int, ...]) -> None:
    """Where a size of one leaves the layout open: right, and still dense."""
    case = case_of(op, shape, backend).in_layout(layout)
    results = check(case)
    for name in ("y", "grad_x"):
        assert in_layout(results[name], FIRST).is_contiguous()
        dense = results[name].is_contiguous() or results[name].is_contiguous(memory_format=torch.channels_last)
        assert dense and results[name].stride() == torch.empty_like(case.x).stride()


@all_ops
@both_layouts
def test_memory_format_of_torch(backend: TestBackend, op: PlaneOp, layout: str) -> None:
    """What is_contiguous says about the result, as a convolution that follows will ask it."""
    for dims, memory_format in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        case = case_of(op, (2, 6, 3, 5, 2)[:dims], backend).in_layout(layout)
        assert case.x.is_contiguous(memory_format=memory_format) == (layout == LAST)
        for name, result in evaluate(case).items():
            if result.dim() == dims:
                assert result.is_contiguous(memory_format=memory_format) == (layout == LAST), name
                assert result.is_contiguous() == (layout == FIRST), name


@all_ops
@both_layouts
def test_expanded(backend: TestBackend, op: PlaneOp, layout: str) -> None:
    """Stride zero: samples that share memory, and the gradient of a sum, which is one expanded number."""
    case = case_of(op, (3, 6, 5, 7), backend).in_layout(layout)
    one = torch.full((), 0.5, device=backend.device).expand(3, 6, 5, 7)
    assert_same_results(evaluate(case.replace(grad_y=one)), check(case.replace(grad_y=in_layout(one, layout))))
    shared = case.x[:1].expand(3, 6, 5, 7)
    results = evaluate(case.replace(x=shared))  # whose layout torch decides by its strides
    assert_same_results(results, check(case.replace(x=in_layout(shared, layout_of(results["y"])))))
    channels = case.grad_y[:, :1].expand(3, 6, 5, 7)
    assert_same_results(evaluate(case.replace(grad_y=channels)), evaluate(case.replace(grad_y=channels.contiguous())))


@all_ops
def test_strided_parameters(backend: TestBackend, op: PlaneOp) -> None:
    case = case_of(op, (3, 6, 5, 7), backend)
    strided = case.map(lambda t: embed(t, (6, 3), lambda b: b[:, 1]), ("weight", "bias"))
    assert_same_results(evaluate(strided), evaluate(case))
    expanded = {n: torch.full((), 0.5, device=backend.device).expand(6) for n in ("weight", "bias")}
    assert_same_results(
        evaluate(case.replace(**expanded)), evaluate(case.replace(**{n: t.clone() for n, t in expanded.items()}))
    )


def copies(function: Callable[[], object]) -> list[str]:
    """Names of the copying ops that ran, below the dispatcher too."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        function()
    copying = ("aten::copy_", "aten::clone", "aten::contiguous", "aten::_to_copy", "aten::cat")
    return [event.key for event in profile.key_averages() if event.key in copying]


def no_grad_call(case: PlaneCase) -> None:
    arguments, keywords = case.arguments
    with torch.no_grad():
        case.op.function(*arguments, **keywords)


def with_backward(case: PlaneCase) -> Callable[[], object]:
    """Everything but making the arguments."""
    leaves = {n: getattr(case, n).detach().requires_grad_() for n in ("x", "weight", "bias")}
    arguments, keywords = case.replace(**leaves).arguments
    return lambda: torch.autograd.grad(case.op.function(*arguments, **keywords), list(leaves.values()), case.grad_y)


@all_ops
@both_layouts
@pytest.mark.parametrize("shape", ((3, 6, 5, 7), (2, 6, 9), (2, 4, 3, 2, 5), (2, 6, 1, 5)))
def test_both_layouts_are_not_copied(backend: TestBackend, op: PlaneOp, layout: str, shape: tuple[int, ...]) -> None:
    options = {"param_dtype": torch.float32, "residual": True, "activation": "relu", "layout": layout}
    case = make_plane_case(op, shape, torch.bfloat16, **options, device=backend.device)
    assert copies(lambda: no_grad_call(case)) == []
    assert copies(with_backward(case)) == []


def test_the_check_for_copies_sees_them(backend: TestBackend) -> None:
    shape, size, view, _ = STRIDED["a crop"]
    case = case_of(BATCH_NORM, shape, backend).map(lambda t: embed(t, size, view), ["x"])
    assert copies(lambda: no_grad_call(case))


@all_ops
@both_layouts
def test_inputs_are_left_alone(backend: TestBackend, op: PlaneOp, layout: str) -> None:
    case = case_of(op, (3, 6, 5, 7), backend, torch.bfloat16).in_layout(layout)
    before = case.map(Tensor.clone)
    evaluate(case)
    for name in ("x", "residual", "weight", "bias", "grad_y", "running_mean", "running_var"):
        if getattr(case, name) is not None:
            assert torch.equal(getattr(case, name), getattr(before, name)), name


@all_ops
@both_layouts
def test_results_have_their_own_memory(backend: TestBackend, op: PlaneOp, layout: str) -> None:
    """No output lies in an input, and no result lies in another."""
    case = make_plane_case(op, (3, 6, 5, 7), layout=layout, device=backend.device)
    results = evaluate(case)
    inputs = [t for t in (case.x, case.weight, case.bias, case.grad_y) if t is not None]
    places = [t.untyped_storage().data_ptr() for t in (*results.values(), *inputs)]
    assert len(set(places)) == len(places)
