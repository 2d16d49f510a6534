"""Strided rows: read where they lie when the last dimension is contiguous, anything else as torch does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from cases import LAYER_NORM, OPS, Case, Op, evaluate, make_case
from checks import assert_same_results, check
from conftest import TestBackend
from torch import Tensor

all_ops = pytest.mark.parametrize("op", OPS, ids=str)
View = Callable[[Tensor], Tensor]


def embed(values: Tensor, size: tuple[int, ...], view: View) -> Tensor:
    """`values` seen through `view` of a larger buffer, whose other elements are NaN: reading one shows."""
    buffer = values.new_full(size, torch.nan)
    window = view(buffer)
    assert window.shape == values.shape
    window.copy_(values)
    return window


# Name -> (shape, normalized dims, size of the buffer, view of it). Strides of the rows: one, two or three levels.
NOT_COPIED: dict[str, tuple[tuple[int, ...], int, tuple[int, ...], View]] = {
    "slice of a fused QKV": ((2, 5, 64), 1, (2, 5, 192), lambda t: t[..., 64:128]),
    "heads of a fused QKV": ((2, 5, 3, 16), 1, (2, 5, 3 * 3 * 16), lambda t: t[..., 48:96].unflatten(-1, (3, 16))),
    "transposed heads": ((2, 3, 5, 16), 1, (2, 5, 3, 16), lambda t: t.transpose(1, 2)),
    "transposed heads of QKV": (
        (2, 3, 5, 16),
        1,
        (2, 5, 144),
        lambda t: t[..., 96:].unflatten(-1, (3, 16)).transpose(1, 2),
    ),
    "sequence first": ((5, 2, 33), 1, (2, 5, 33), lambda t: t.transpose(0, 1)),
    "odd row stride": ((7, 65), 1, (7, 71), lambda t: t[:, 3:68]),
    "every other row": ((5, 40), 1, (10, 40), lambda t: t[::2]),
    "one row of each": ((6, 8), 1, (6, 4, 8), lambda t: t[:, 2]),
    "two normalised dimensions": ((3, 4, 8), 2, (3, 6, 8), lambda t: t[:, 1:5]),
    "size one in front": ((1, 4, 1, 24), 1, (1, 4, 2, 30), lambda t: t[:, :, :1, 3:27]),
    "unaligned storage": ((3, 37), 1, (3 * 37 + 5,), lambda t: t[5:].view(3, 37)),
}
COPIED: dict[str, tuple[tuple[int, ...], int, tuple[int, ...], View]] = {
    "transposed matrix": ((6, 40), 1, (40, 6), lambda t: t.t()),
    "strided last dimension": ((6, 20), 1, (6, 40), lambda t: t[:, ::2]),
    "normalised dimensions apart": ((3, 4, 8), 2, (3, 4, 16), lambda t: t[..., :8]),
    "channels last": ((2, 3, 4, 5), 3, (2, 4, 5, 3), lambda t: t.permute(0, 3, 1, 2)),
}


def strided(case: Case, names: tuple[str, ...], size: tuple[int, ...], view: View) -> Case:
    return case.replace(**{n: embed(getattr(case, n), size, view) for n in names if getattr(case, n) is not None})


def split(shape: tuple[int, ...], dims: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return shape[: len(shape) - dims], shape[len(shape) - dims :]


@pytest.mark.tsan
@all_ops
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=("float32", "bfloat16"))
@pytest.mark.parametrize("name", [*NOT_COPIED, *COPIED])
def test_strided_equals_contiguous(backend: TestBackend, op: Op, dtype: torch.dtype, name: str) -> None:
    """Input, residual and incoming gradients strided, together and one by one: the same bits, contiguous outputs."""
    shape, dims, size, view = (NOT_COPIED | COPIED)[name]
    case = make_case(op, *split(shape, dims), dtype, device=backend.device)
    plain = check(case)
    for names in (("x", "residual", "grad_y", "grad_sum"), ("x",), ("residual",), ("grad_y",), ("grad_sum",)):
        results = evaluate(strided(case, names, size, view))
        assert_same_results(results, plain)
        assert all(tensor.is_contiguous() for tensor in results.values())


@all_ops
@pytest.mark.parametrize("offset", range(1, 9))
@pytest.mark.parametrize("cols", (16, 40, 520, 5001))
def test_unaligned_views(backend: TestBackend, op: Op, offset: int, cols: int) -> None:
    """Every distance from a 16-byte boundary, another one for each tensor; parameters too."""
    case = make_case(op, 4, cols, torch.bfloat16, device=backend.device)
    plain = evaluate(case)
    shift = iter(range(offset, offset + 6))

    def moved(t: Tensor) -> Tensor:
        start = next(shift)
        return embed(t, (t.numel() + start,), lambda b: b[start:].view(t.shape))

    assert_same_results(evaluate(case.map(moved)), plain)


@all_ops
def test_expanded(backend: TestBackend, op: Op) -> None:
    """Stride zero: rows that share memory, and the gradient of a sum, which is one expanded number."""
    case = make_case(op, (3, 4), 65, device=backend.device)
    x = case.x[:, :1]
    assert_same_results(
        evaluate(case.replace(x=x.expand(3, 4, 65))), evaluate(case.replace(x=x.expand(3, 4, 65).contiguous()))
    )
    ones = {n: torch.ones((), device=backend.device).expand(3, 4, 65) for n in ("grad_y", "grad_sum")}
    expanded = case.replace(**{n: t for n, t in ones.items() if getattr(case, n) is not None})
    assert_same_results(evaluate(expanded), evaluate(expanded.map(Tensor.contiguous)))


@all_ops
def test_strided_parameters(backend: TestBackend, op: Op) -> None:
    case = make_case(op, 3, 65, device=backend.device)
    names = ("weight", "bias")
    assert_same_results(evaluate(strided(case, names, (65, 3), lambda t: t[:, 1])), evaluate(case))


@all_ops
def test_four_levels_of_strides(backend: TestBackend, op: Op) -> None:
    """More levels than the kernels address: right all the same."""
    case = make_case(op, (2, 3, 2, 3), 16, device=backend.device)
    names = ("x", "residual", "grad_y", "grad_sum")
    view = lambda t: t[:, :3, :2, :3, :16]  # noqa: E731
    assert_same_results(evaluate(strided(case, names, (2, 4, 5, 6, 20), view)), check(case))


def copies(function: Callable[[], object]) -> list[str]:
    """Names of the copying ops that ran, below the dispatcher too."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        function()
    copying = ("aten::copy_", "aten::clone", "aten::contiguous", "aten::_to_copy", "aten::cat")
    return [event.key for event in profile.key_averages() if event.key in copying]


def no_grad_call(case: Case) -> None:
    arguments, keywords = case.arguments
    with torch.no_grad():
        case.op.function(*arguments, **keywords)


@all_ops
@pytest.mark.parametrize("name", NOT_COPIED)
def test_strided_rows_are_not_copied(backend: TestBackend, op: Op, name: str) -> None:
    shape, dims, size, view = NOT_COPIED[name]
    case = make_case(op, *split(shape, dims), torch.bfloat16, param_dtype=torch.float32, device=backend.device)
    case = strided(case, ("x", "residual", "grad_y", "grad_sum"), size, view)
    assert copies(lambda: no_grad_call(case)) == []
    assert copies(lambda: evaluate(case)) == []


@pytest.mark.parametrize("name", COPIED)
def test_the_check_for_copies_sees_them(backend: TestBackend, name: str) -> None:
    shape, dims, size, view = COPIED[name]
    case = strided(make_case(LAYER_NORM, *split(shape, dims), device=backend.device), ("x",), size, view)
    assert copies(lambda: no_grad_call(case))


@all_ops
def test_inputs_are_left_alone(backend: TestBackend, op: Op) -> None:
    case = make_case(op, (2, 3), 65, torch.bfloat16, device=backend.device)
    before = case.map(Tensor.clone)
    evaluate(case)
    for name in ("x", "residual", "weight", "bias", "grad_y", "grad_sum"):
        if getattr(case, name) is not None:
            assert torch.equal(getattr(case, name), getattr(before, name)), name


@all_ops
def test_outputs_share_no_memory_with_inputs(backend: TestBackend, op: Op) -> None:
    case = make_case(op, 3, 65, device=backend.device)
    results = evaluate(case)
    inputs = [t for n in ("x", "residual", "grad_y", "grad_sum") if (t := getattr(case, n)) is not None]
    pointers = [t.untyped_storage().data_ptr() for t in (*results.values(), *inputs)]
    if op.has_residual:  # of one dtype, the two gradients may be one tensor
        pointers.remove(results["grad_residual"].untyped_storage().data_ptr())
    assert len(set(pointers)) == len(pointers)
