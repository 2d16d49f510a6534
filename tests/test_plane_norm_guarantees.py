"""The promises of the plane family: the same bits from run to run, whatever else is in the batch (where the maths
allows it), wherever the tensors lie, whatever order the hardware chooses."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from cases import dtype_id
from checks import assert_bitwise, assert_same_results
from conftest import TestBackend, open_backend
from plane_cases import (
    BATCH_NORM,
    LAYOUTS,
    PER_SAMPLE,
    PLANE_OPS,
    PlaneCase,
    PlaneOp,
    cut,
    evaluate,
    make_plane_case,
)
from plane_checks import check
from torch import Tensor

all_ops = pytest.mark.parametrize("op", PLANE_OPS, ids=str)
per_sample_ops = pytest.mark.parametrize("op", PER_SAMPLE, ids=str)
both_layouts = pytest.mark.parametrize("layout", LAYOUTS)
two_dtypes = pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=dtype_id)
PER_ELEMENT = ("y", "grad_x", "grad_residual")
# Small and odd planes, many channels, many samples, sets of every size up to what no on-chip memory holds.
SHAPES = ((5, 6, 7, 7), (3, 130, 5, 3), (70, 12, 3), (4, 32, 28, 28), (3, 4, 9001), (3, 2, 240, 241), (600, 8, 2))


def shaped(backend: TestBackend, shape: tuple[int, ...]) -> tuple[int, ...]:
    """At least three samples; fewer of them and fewer positions where the backend is slow, by set and by element."""
    shape = (min(shape[0], 60 if backend.name == "sim" else shape[0]), *shape[1:])
    while torch.Size(shape).numel() > 4 * backend.limit:
        shape = (max(5, shape[0] // 2), *shape[1:]) if shape[0] > 5 else (*shape[:-1], shape[-1] // 2)
    return shape


@pytest.fixture
def threads() -> Iterator[None]:
    """Restores the number of threads that a test changes."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@all_ops
@both_layouts
@pytest.mark.parametrize("shape", SHAPES)
@two_dtypes
def test_deterministic_from_run_to_run(
    backend: TestBackend, op: PlaneOp, layout: str, shape: tuple[int, ...], dtype: torch.dtype, threads: None
) -> None:
    torch.set_num_threads(3)
    options = {"activation": "silu", "residual": True, "layout": layout}
    case = make_plane_case(op, shaped(backend, shape), dtype, **options, device=backend.device)
    first = evaluate(case)
    for _ in range(2):
        rubbish = [torch.full_like(t, torch.nan) for t in first.values()]  # what freed memory then holds
        del rubbish
        assert_same_results(evaluate(case), first)


@per_sample_ops
@both_layouts
@pytest.mark.parametrize("shape", SHAPES)
@two_dtypes
def test_a_sample_does_not_depend_on_its_batch(
    backend: TestBackend, op: PlaneOp, layout: str, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    """A sample alone, in the batch, and elsewhere in another batch: the same bits of y and grad_x."""
    case = make_plane_case(op, shaped(backend, shape), dtype, layout=layout, activation="gelu", device=backend.device)
    samples = len(case.x)
    whole = evaluate(case)
    order = torch.randperm(samples)
    parts = {"shuffled": order, "the first": [0], "the last": [samples - 1], "some": list(range(1, samples, 2))}
    for what, part in parts.items():
        results = evaluate(case.samples(torch.as_tensor(part)).in_layout(layout))
        for name in ("y", "grad_x"):
            assert_bitwise(f"{name}, {what}", results[name], whole[name][torch.as_tensor(part)])


@per_sample_ops
@both_layouts
def test_a_masked_sample_does_not_depend_on_its_batch(backend: TestBackend, op: PlaneOp, layout: str) -> None:
    case = make_plane_case(op, (5, 6, 9, 11), mask="scattered", layout=layout, device=backend.device)
    whole = evaluate(case)
    for sample in range(5):
        alone = evaluate(case.samples(slice(sample, sample + 1)).in_layout(layout))
        for name in ("y", "grad_x"):
            assert_bitwise(name, alone[name], whole[name][sample : sample + 1])


@both_layouts
@two_dtypes
def test_evaluation_is_a_function_of_the_element(backend: TestBackend, layout: str, dtype: torch.dtype) -> None:
    """With running statistics each element stands for itself, in BatchNorm too."""
    options = {"batch_statistics": False, "residual": True, "activation": "relu", "layout": layout}
    case = make_plane_case(BATCH_NORM, (5, 34, 9, 7), dtype, **options, device=backend.device)
    whole = evaluate(case)
    part = evaluate(case.map(lambda t: t[1:4, :, 2:, :5], ("x", "residual", "grad_y")).in_layout(layout))
    for name in PER_ELEMENT:
        assert_bitwise(name, part[name], whole[name][1:4, :, 2:, :5])


@pytest.mark.backends("cpu")
@all_ops
@both_layouts
@pytest.mark.parametrize("shape", SHAPES)
@two_dtypes
@pytest.mark.parametrize("activation", ("relu", "silu"))  # of the backward's g: formed twice; kept
def test_the_number_of_threads_does_not_matter(
    backend: TestBackend, op: PlaneOp, layout: str, shape: tuple[int, ...], dtype: torch.dtype, activation: str,
    threads: None,
) -> None:  # fmt: skip
    case = make_plane_case(op, shape, dtype, layout=layout, activation=activation, device=backend.device)
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(evaluate(case))
    for other in results[1:]:
        assert_same_results(other, results[0])


@all_ops
@both_layouts
@two_dtypes
def test_addresses_do_not_matter(backend: TestBackend, op: PlaneOp, layout: str, dtype: torch.dtype) -> None:
    """Every distance from a 16-byte boundary, another one for each tensor; parameters and statistics too."""
    for shape in ((3, 6, 5, 7), (2, 24, 4, 4), (2, 3, 300)):
        options = {"layout": layout, "residual": True, "activation": "silu"}
        case = make_plane_case(op, shape, dtype, **options, device=backend.device)
        whole = evaluate(case)
        for offset in (1, 2, 3, 5, 8):
            shift = iter(range(offset, offset + 9))

            def moved(t: Tensor, shift: Iterator[int] = shift) -> Tensor:
                start = next(shift)
                buffer = t.new_full((t.numel() + start,), torch.nan)[start:]
                return buffer.as_strided(t.shape, t.stride()).copy_(t)

            assert_same_results(evaluate(case.map(moved)), whole)


@pytest.mark.tsan
@pytest.mark.backends("sim")
@all_ops
@both_layouts
@pytest.mark.parametrize("shape", SHAPES)
def test_the_order_of_threads_and_blocks_does_not_matter(
    backend: TestBackend, op: PlaneOp, layout: str, shape: tuple[int, ...]
) -> None:
    """Warps and blocks run in whatever order the hardware likes: all results keep their bits."""
    options = {"layout": layout, "residual": True, "activation": "relu"}
    case = make_plane_case(op, shaped(backend, shape), torch.bfloat16, **options, device=backend.device)
    forward = evaluate(case)
    for order, seed in (("reverse", 0), ("random", 1)):
        with open_backend("sim", order=order, seed=seed):
            assert_same_results(evaluate(case), forward)


@pytest.mark.backends("cuda")
@all_ops
@both_layouts
def test_cuda_graph(backend: TestBackend, op: PlaneOp, layout: str) -> None:
    """Captured once, replayed with other values: the bits of plain calls, running statistics moved by every replay."""
    options = {"layout": layout, "residual": True, "activation": "relu"}
    case = make_plane_case(op, (4, 32, 28, 28), torch.bfloat16, **options, device=backend.device)
    other = make_plane_case(op, (4, 32, 28, 28), torch.bfloat16, seed=1, **options, device=backend.device)
    static = case.map(torch.clone)
    names = [n for n in ("running_mean", "running_var") if getattr(case, n) is not None]

    def step() -> list[Tensor]:
        leaves = with_leaves(static, "x", "weight", "bias")
        arguments, keywords = static.replace(**leaves).arguments
        y = op.function(*arguments, **keywords)
        return [y, *torch.autograd.grad(y, list(leaves.values()), static.grad_y)]

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = step()
    for now in (case, other, case):
        for name in ("x", "residual", "grad_y", *names):
            getattr(static, name).copy_(getattr(now, name))
        graph.replay()
        expected = evaluate(now.replace(weight=case.weight, bias=case.bias))
        for name, tensor in zip(("y", "grad_x", "grad_weight", "grad_bias"), outputs, strict=True):
            assert_bitwise(name, tensor, expected[name])
        for name in names:
            assert_bitwise(name, getattr(static, name), expected[name])


# The simulated machine as various GPUs: what decides which kernel runs. (Not more multiprocessors: the threads of a
# cooperative grid all exist at once, and their stacks are limited.)
MACHINES = {
    "no clusters (sm_80)": {"max_cluster": 0, "shared_bytes": 163 * 1024},
    "little shared memory (sm_120)": {"max_cluster": 8, "shared_bytes": 99 * 1024},
    "one multiprocessor": {"sm_count": 1},
    "many multiprocessors": {"sm_count": 16},
}


@pytest.mark.backends("sim")
@all_ops
@both_layouts
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("machine", MACHINES)
def test_right_on_every_machine(
    backend: TestBackend, op: PlaneOp, layout: str, shape: tuple[int, ...], machine: str
) -> None:
    case = make_plane_case(op, shaped(backend, shape), layout=layout, activation="relu", device=backend.device)
    with open_backend("sim", **MACHINES[machine]):
        check(case)


@pytest.mark.backends("sim")
@per_sample_ops
@both_layouts
@pytest.mark.parametrize("shape", SHAPES)
def test_the_number_of_multiprocessors_does_not_matter(
    backend: TestBackend, op: PlaneOp, layout: str, shape: tuple[int, ...]
) -> None:
    """A sample's result is that of the same sample on a larger GPU."""
    case = make_plane_case(op, shaped(backend, shape), torch.bfloat16, layout=layout, device=backend.device)
    base = evaluate(case)
    for count in (1, 16):
        with open_backend("sim", sm_count=count):
            other = evaluate(case)
        for name in ("y", "grad_x"):
            assert_bitwise(name, other[name], base[name])


@all_ops
@both_layouts
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=dtype_id)
def test_low_precision_parameters_of_many_samples(
    backend: TestBackend, op: PlaneOp, layout: str, dtype: torch.dtype
) -> None:
    """Half a million terms: within 0.5 % of the largest element. Sums kept in bf16 are off by a quarter of it."""
    shape = cut((256, 8, 16, 16), 4 * backend.limit)
    case = make_plane_case(op, shape, dtype, layout=layout, device=backend.device)
    results = check(case)
    exact = evaluate(case.map(Tensor.double), op.reference)
    for name in ("grad_weight", "grad_bias"):
        error = (results[name].double() - exact[name]).abs().max() / exact[name].abs().max()
        assert error < 0.005, f"{name} is off by {error:.2%}"


def with_leaves(case: PlaneCase, *names: str) -> dict[str, Tensor]:
    return {name: getattr(case, name).detach().requires_grad_() for name in names}


@all_ops
@both_layouts
def test_gradients_of_a_subset_are_the_same_bits(backend: TestBackend, op: PlaneOp, layout: str) -> None:
    """Which other gradients are wanted does not change one."""
    for activation, dtype in (("none", torch.bfloat16), ("relu", torch.float32), ("silu", torch.float32)):
        options = {"layout": layout, "residual": True, "activation": activation}
        case = make_plane_case(op, (3, 20, 7, 7), dtype, **options, device=backend.device)
        full = evaluate(case)
        for names in (("x",), ("weight",), ("bias",), ("residual",), ("x", "bias"), ("residual", "weight")):
            leaves = with_leaves(case, *names)
            arguments, keywords = case.replace(**leaves).arguments
            grads = torch.autograd.grad(op.function(*arguments, **keywords), list(leaves.values()), case.grad_y)
            for name, grad in zip(names, grads, strict=True):
                assert_bitwise(name, grad, full[f"grad_{name}"])
