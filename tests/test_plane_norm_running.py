"""Running statistics of BatchNorm and InstanceNorm: how they follow the batches, evaluation; errors write nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from cases import DTYPES, dtype_id
from checks import assert_bitwise, assert_same_results
from conftest import TestBackend
from plane_cases import (
    BATCH_NORM,
    INSTANCE_NORM,
    LAYOUTS,
    PlaneCase,
    PlaneOp,
    cut,
    evaluate,
    make_plane_case,
)
from plane_checks import check, check_layout
from torch import Tensor

RUNNING = ("running_mean", "running_var")
with_running = pytest.mark.parametrize("op", (BATCH_NORM, INSTANCE_NORM), ids=str)
both_layouts = pytest.mark.parametrize("layout", LAYOUTS)


def call(case: PlaneCase, **changes: object) -> Tensor:
    arguments, keywords = case.replace(**changes).arguments
    return case.op.function(*arguments, **keywords)


@with_running
@both_layouts
@pytest.mark.parametrize("momentum", (0.0, 0.1, 0.5, 1.0))
def test_momentum(backend: TestBackend, op: PlaneOp, layout: str, momentum: float) -> None:
    for shape in ((4, 6, 5, 7), (2, 3, 40), (3, 5, 2, 3, 2)):
        case = make_plane_case(op, shape, layout=layout, momentum=momentum, device=backend.device)
        results = check(case)
        if momentum == 0:
            for name in RUNNING:
                assert_bitwise(name, results[name], getattr(case, name))


@with_running
def test_unbiased_factor(backend: TestBackend, op: PlaneOp) -> None:
    """On paper: 1 and 3 have the biased variance 1 and the unbiased 2; the output uses the biased one."""
    x = torch.tensor([[[1.0, 3.0]]], device=backend.device)
    running = [torch.full((1,), value, device=backend.device) for value in (5.0, 6.0)]
    y = op.function(x, *running, None, None, True, 0.25, 3.0)  # 1 + 3 = 4: rstd is 1/2
    assert y.tolist() == [[[-0.5, 0.5]]]
    assert [t.item() for t in running] == [0.75 * 5 + 0.25 * 2, 0.75 * 6 + 0.25 * 2]


def test_instance_norm_averages_over_samples(backend: TestBackend) -> None:
    x = torch.tensor([[[1.0, 3.0]], [[0.0, 8.0]]], device=backend.device)
    running = [torch.zeros(1, device=backend.device) for _ in range(2)]
    INSTANCE_NORM.function(x, *running, momentum=1.0)
    assert [t.item() for t in running] == [(2 + 4) / 2, (2 + 32) / 2]


@with_running
@both_layouts
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("activation", ("none", "relu", "gelu"))
def test_evaluation(backend: TestBackend, op: PlaneOp, layout: str, dtype: torch.dtype, activation: str) -> None:
    """Constants in forward and backward: the gradient has no mean terms; nothing is written."""
    for shape in ((3, 6, 5, 7), (2, 130, 3), (5, 7, 1, 1), (2, 3, 2, 3, 4), (1, 5, 61)):
        options = {"activation": activation, "batch_statistics": False, "layout": layout}
        case = make_plane_case(op, shape, dtype, param_dtype=torch.float32, **options, device=backend.device)
        before = [getattr(case, name).clone() for name in RUNNING]
        check_layout(case, check(case))
        for name, value in zip(RUNNING, before, strict=True):
            assert_bitwise(name, getattr(case, name), value)


@both_layouts
def test_evaluation_of_large_maps(backend: TestBackend, layout: str) -> None:
    options = {"batch_statistics": False, "layout": layout, "activation": "silu"}
    for shape in ((4, 96, 28, 28), (2, 16, 4001), (2000, 65), (1, 700, 7, 7)):
        check(make_plane_case(BATCH_NORM, cut(shape, backend.limit), torch.bfloat16, **options, device=backend.device))


@both_layouts
def test_evaluation_of_single_values(backend: TestBackend, layout: str) -> None:
    """What training rejects, one value for a channel, is a normal thing in evaluation."""
    for op, shape in ((BATCH_NORM, (1, 6)), (BATCH_NORM, (1, 6, 1, 1)), (INSTANCE_NORM, (3, 6, 1))):
        check(make_plane_case(op, shape, layout=layout, batch_statistics=False, device=backend.device))


def test_evaluation_is_one_formula(backend: TestBackend) -> None:
    case = make_plane_case(INSTANCE_NORM, (3, 6, 5, 7), batch_statistics=False, device=backend.device)
    assert_same_results(evaluate(case), evaluate(case.replace(op=BATCH_NORM)))


@with_running
@pytest.mark.parametrize("running_dtype", DTYPES, ids=dtype_id)
def test_dtype_of_the_running_statistics(backend: TestBackend, op: PlaneOp, running_dtype: torch.dtype) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        for batch_statistics in (True, False):
            options = {"running_dtype": running_dtype, "batch_statistics": batch_statistics, "momentum": 0.3}
            check(make_plane_case(op, (3, 6, 5, 7), dtype, **options, device=backend.device))


@with_running
def test_strided_running_statistics(backend: TestBackend, op: PlaneOp) -> None:
    """Views of a larger buffer are updated where they lie; their neighbours stay."""
    case = make_plane_case(op, (3, 6, 5, 7), device=backend.device)
    buffers = [torch.full((6, 3), torch.nan, device=backend.device) for _ in RUNNING]
    for name, buffer in zip(RUNNING, buffers, strict=True):
        buffer[:, 1] = getattr(case, name)
    call(case, running_mean=buffers[0][:, 1], running_var=buffers[1][:, 1])
    expected = evaluate(case)
    for name, buffer in zip(RUNNING, buffers, strict=True):
        assert_bitwise(name, buffer[:, 1], expected[name])
        assert buffer[:, [0, 2]].isnan().all()


@with_running
def test_the_update_is_in_place(backend: TestBackend, op: PlaneOp) -> None:
    """The same storage, a new version for autograd, and no gradient through it; with and without a graph."""
    case = make_plane_case(op, (3, 6, 5, 7), device=backend.device)
    expected = evaluate(case, backward=False)
    for grad_mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        running = {name: getattr(case, name).clone() for name in RUNNING}
        places = [t.data_ptr() for t in running.values()]
        with grad_mode():
            call(case, x=case.x.clone().requires_grad_(), **running)
        assert [t.data_ptr() for t in running.values()] == places
        for name, t in running.items():
            assert_bitwise(name, t, expected[name])
            assert not t.requires_grad and (t.is_inference() or t._version == 1)


@with_running
def test_only_forward_in_training_writes(backend: TestBackend, op: PlaneOp) -> None:
    case = make_plane_case(op, (3, 6, 5, 7), device=backend.device)
    running = {name: getattr(case, name).clone() for name in RUNNING}
    x = case.x.clone().requires_grad_()
    y = call(case, x=x, **running)
    after = {name: t.clone() for name, t in running.items()}
    y.sum().backward(retain_graph=True)
    y.sum().backward()
    call(case, batch_statistics=False, x=x, **running).sum().backward()
    for name, t in running.items():
        assert_bitwise(name, t, after[name])


@with_running
def test_without_running_statistics(backend: TestBackend, op: PlaneOp) -> None:
    """None is allowed with the batch's own statistics, and changes nothing else."""
    case = make_plane_case(op, (3, 6, 5, 7), device=backend.device)
    without = evaluate(case.replace(running_mean=None, running_var=None))
    assert_same_results(without, {n: t for n, t in evaluate(case).items() if n not in RUNNING})


@with_running
def test_nan_reaches_the_running_statistics(backend: TestBackend, op: PlaneOp) -> None:
    """As in torch: the channel that holds it, and no other one."""
    case = make_plane_case(op, (3, 6, 5, 7), device=backend.device)
    case.x[1, 2, 3, 3] = torch.nan
    ours, theirs = evaluate(case), evaluate(case, op.torch)
    for name in RUNNING:
        assert ours[name].isnan().tolist() == theirs[name].isnan().tolist() == [i == 2 for i in range(6)]


FAILING: dict[str, Callable[[PlaneCase], PlaneCase]] = {
    "integer input": lambda c: c.replace(x=c.x.int()),
    "weight too short": lambda c: c.replace(weight=c.weight[:-1]),
    "bias too short": lambda c: c.replace(bias=c.bias[:-1]),
    "weight on another device": lambda c: c.replace(weight=c.weight.to("meta")),
    "running_var too short": lambda c: c.replace(running_var=c.running_var[:-1]),
    "running_mean too short": lambda c: c.replace(running_mean=c.running_mean[:-1]),
    "integer running_var": lambda c: c.replace(running_var=c.running_var.int()),
    "running_var on another device": lambda c: c.replace(running_var=c.running_var.to("meta")),
    "mask of floats": lambda c: c.replace(mask=torch.ones(3, 1, 5, 7, device=c.x.device)),
    "mask of another size": lambda c: c.replace(mask=torch.ones(3, 1, 5, 6, device=c.x.device).bool()),
    "unknown activation": lambda c: c.replace(activation="softplus"),
}


@with_running
@pytest.mark.parametrize("name", FAILING)
def test_a_failed_call_writes_nothing(backend: TestBackend, op: PlaneOp, name: str) -> None:
    case = make_plane_case(op, (3, 6, 5, 7), device=backend.device)
    broken = FAILING[name](case)
    running = {n: getattr(broken, n) for n in RUNNING}
    before = {n: t.clone() for n, t in running.items()}
    batches = torch.tensor(7, device=backend.device)
    with pytest.raises((RuntimeError, ValueError, TypeError)):
        call(broken)
    if op is BATCH_NORM:
        with pytest.raises((RuntimeError, ValueError, TypeError)):
            broken.with_update(batches)
    for n, t in running.items():
        assert t.is_meta or torch.equal(t, before[n])
    assert batches.item() == 7


@pytest.mark.tsan
@both_layouts
def test_cumulative_average(backend: TestBackend, layout: str) -> None:
    """momentum=None: after k batches the mean of their means and the mean of their unbiased variances."""
    batches = torch.tensor(0, device=backend.device)
    running = {"running_mean": torch.full((6,), 9.0), "running_var": torch.full((6,), 9.0)}
    running = {name: t.to(backend.device) for name, t in running.items()}
    seen = []
    for seed in range(4):
        case = make_plane_case(BATCH_NORM, (3, 6, 5, 7), layout=layout, seed=seed, device=backend.device)
        case.replace(**running).with_update(batches)
        channels = case.x.double().transpose(0, 1).flatten(1)
        seen.append((channels.mean(1), channels.var(1)))
        assert batches.item() == seed + 1 and batches.dtype == torch.int64
        for name, statistics in zip(RUNNING, zip(*seen, strict=True), strict=True):
            expected = torch.stack(statistics).mean(0)
            torch.testing.assert_close(running[name].double(), expected, rtol=1e-6, atol=1e-6, msg=name)


def test_batches_are_counted(backend: TestBackend) -> None:
    """With a momentum too, once for each call in training, and not in evaluation."""
    case = make_plane_case(BATCH_NORM, (3, 6, 5, 7), device=backend.device)
    batches = torch.tensor(41, device=backend.device)
    for count in (42, 43):
        case.with_update(batches, momentum=0.1)
        assert batches.item() == count
    case.replace(batch_statistics=False).with_update(batches)
    assert batches.item() == 43


@with_running
@both_layouts
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=dtype_id)
def test_many_steps(backend: TestBackend, op: PlaneOp, layout: str, dtype: torch.dtype) -> None:
    """Twenty batches, then evaluation: as torch in fp64 on the same rounded inputs."""
    running = {p: [torch.zeros(6, dtype=p), torch.ones(6, dtype=p)] for p in (torch.float32, torch.float64)}
    ours, exact = ([t.to(backend.device) for t in running[p]] for p in running)
    for seed in range(20):
        case = make_plane_case(op, (3, 6, 4, 5), dtype, layout=layout, seed=seed, device=backend.device)
        op.function(case.x, *ours, momentum=0.2, **{"training": True} if op is BATCH_NORM else {})
        op.torch(case.x.double(), *exact, momentum=0.2, **{"training": True} if op is BATCH_NORM else {})
    for a, b in zip(ours, exact, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=2e-6, atol=2e-6)
    case = case.replace(running_mean=ours[0], running_var=ours[1], batch_statistics=False)
    check(case)
