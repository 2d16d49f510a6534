"""torch.compile, export and opcheck of the plane family: one node of the graph, running statistics updated from it."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from conftest import TestBackend
from plane_cases import (
    BATCH_NORM,
    GROUP_NORM,
    INSTANCE_NORM,
    LAST,
    LAYOUTS,
    LEAVES,
    PLANE_OPS,
    PlaneCase,
    PlaneOp,
    evaluate,
    make_plane_case,
)
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounterWithBackend
from torch.library import opcheck

pytestmark = pytest.mark.backends("cpu", "cuda")
all_ops = pytest.mark.parametrize("op", PLANE_OPS, ids=str)
both_layouts = pytest.mark.parametrize("layout", LAYOUTS)
NAMESPACE = torch.ops.torchfastnorm
SETS = {BATCH_NORM: 0, GROUP_NORM: 1, INSTANCE_NORM: 2}
NO_RENORM = ("none", [0.0] * 6)  # and its bounds
NO_SWITCH = (None, None)


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert sorted(a) == sorted(b)
    for name in a:
        torch.testing.assert_close(a[name], b[name], msg=lambda m, name=name: f"{name}: {m}")
        assert a[name].stride() == b[name].stride(), name


def full_case(op: PlaneOp, backend: TestBackend, samples: int = 3, **options: Any) -> PlaneCase:
    """Everything at once: activation, mask, residual, running statistics."""
    options = {"activation": "silu", "mask": "scattered", "residual": True} | options
    return make_plane_case(op, (samples, 6, 5, 4), **options, device=backend.device)


@all_ops
@both_layouts
def test_fullgraph(backend: TestBackend, op: PlaneOp, layout: str) -> None:
    """With everything and with nothing beside the norm: forward, backward, running statistics, layout. A second number
    of samples compiles once more, others do not."""
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(op.function, backend=counter, fullgraph=True)
    counts = []
    options = {} if layout == LAST else {"activation": "none", "mask": None, "residual": False}
    for samples in (3, 4, 5, 9):
        case = full_case(op, backend, samples, layout=layout, **options)
        same(evaluate(case, compiled), evaluate(case))
        counts.append(counter.frame_count)
    assert counts[-1] == counts[1], f"recompiled for a number of samples: {counts}"


@all_ops
@pytest.mark.parametrize("shape", ((4, 6), (2, 6, 3, 2, 4), (0, 6, 4, 3)))
def test_shapes(backend: TestBackend, op: PlaneOp, shape: tuple[int, ...]) -> None:
    if op is INSTANCE_NORM and len(shape) == 2:
        pytest.skip("a plane of one element")
    compiled = torch.compile(op.function, backend="aot_eager", fullgraph=True, dynamic=True)
    case = make_plane_case(op, shape, torch.bfloat16, param_dtype=torch.float32, layout=LAST, device=backend.device)
    same(evaluate(case, compiled), evaluate(case))


@pytest.mark.parametrize("op", (BATCH_NORM, INSTANCE_NORM), ids=str)
def test_evaluation(backend: TestBackend, op: PlaneOp) -> None:
    compiled = torch.compile(op.function, backend="aot_eager", fullgraph=True)
    case = full_case(op, backend, batch_statistics=False)
    same(evaluate(case, compiled), evaluate(case))


@all_ops
@pytest.mark.parametrize("training", (True, False), ids=("train", "eval"))
def test_module(backend: TestBackend, op: PlaneOp, training: bool) -> None:
    """Two compiled steps leave the buffers of two plain steps; num_batches_tracked counts."""
    arguments = (3, 6) if op is GROUP_NORM else (6,)
    keywords = {} if op is GROUP_NORM else {"track_running_stats": True}
    modules = [op.module(4)(*arguments, **keywords).to(backend.device).train(training) for _ in range(2)]
    compiled = torch.compile(modules[0], backend="aot_eager", fullgraph=True)
    for seed in range(2):
        x = make_plane_case(op, (3, 6, 5, 4), seed=seed, device=backend.device).x
        torch.testing.assert_close(compiled(x), modules[1](x))
    same(dict(modules[0].state_dict()), dict(modules[1].state_dict()))
    if op is BATCH_NORM:
        assert modules[0].num_batches_tracked.item() == (2 if training else 0)


@pytest.mark.parametrize("momentum", (0.1, None))
def test_cumulative_average(backend: TestBackend, momentum: float | None) -> None:
    modules = [BATCH_NORM.module(4)(6, momentum=momentum).to(backend.device) for _ in range(2)]
    compiled = torch.compile(modules[0], backend="aot_eager", fullgraph=True)
    for seed in range(3):
        x = make_plane_case(BATCH_NORM, (3, 6, 5, 4), seed=seed, device=backend.device).x
        compiled(x).sum().backward(), modules[1](x)
    same(dict(modules[0].state_dict()), dict(modules[1].state_dict()))


@all_ops
@pytest.mark.parametrize("running", (True, False))
def test_the_graphs_hold_our_op(backend: TestBackend, op: PlaneOp, running: bool) -> None:
    """Nothing is decomposed: forward, backward and the call without gradient are one node each."""
    graphs: list[list[str]] = []

    def keep(module: torch.fx.GraphModule, _: Any) -> torch.fx.GraphModule:
        targets = [node.target for node in module.graph.nodes if node.op == "call_function"]
        names = [str(getattr(t, "_overloadpacket", t)) for t in targets]
        graphs.append([n for n in names if "torchfastnorm" in n or "auto_functionalized" in n])
        return module

    case = full_case(op, backend, running=running)
    compiled = torch.compile(op.function, backend=aot_autograd(fw_compiler=keep, bw_compiler=keep), fullgraph=True)
    evaluate(case, compiled)
    evaluate(case, compiled, backward=False)
    assert [len(graph) for graph in graphs] == [1, 1, 1], graphs
    assert graphs[1] == ["torchfastnorm.plane_norm_backward"]


@pytest.mark.parametrize("op", (BATCH_NORM, pytest.param(GROUP_NORM, marks=pytest.mark.slow)), ids=str)
def test_inductor(backend: TestBackend, op: PlaneOp) -> None:
    """Between pointwise ops that inductor fuses, with a dynamic batch, channels_last, forward and backward."""

    def around(x: Tensor, *arguments: Any, **keywords: Any) -> Tensor:
        return op.function(x * 2, *arguments, **keywords).relu() + 1

    compiled = torch.compile(around, fullgraph=True, dynamic=True)
    for samples in (3, 5):
        case = full_case(op, backend, samples, layout=LAST)
        ours, plain = evaluate(case, compiled), evaluate(case, around)
        for name in plain:
            torch.testing.assert_close(ours[name], plain[name], msg=lambda m, name=name: f"{name}: {m}")


@all_ops
def test_under_autocast_and_inference(backend: TestBackend, op: PlaneOp) -> None:
    compiled = torch.compile(op.function, backend="aot_eager", fullgraph=True)
    case = full_case(op, backend, running=False)
    with torch.inference_mode():
        same(evaluate(case, compiled, backward=False), evaluate(case, backward=False))
    with torch.autocast(backend.device.type, torch.bfloat16):
        same(evaluate(case, compiled), evaluate(case))


@all_ops
@pytest.mark.parametrize("training", (True, False), ids=("train", "eval"))
def test_export(backend: TestBackend, op: PlaneOp, training: bool) -> None:
    module = op.module(4)(*((3, 6) if op is GROUP_NORM else (6,))).to(backend.device).train(training)
    x = make_plane_case(op, (3, 6, 5, 4), device=backend.device).x
    program = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("samples", min=2)},))
    stored = io.BytesIO()
    torch.export.save(program, stored)
    stored.seek(0)
    longer = torch.cat([x, x.cos()])
    torch.testing.assert_close(torch.export.load(stored).module()(longer), module(longer))
    if not training:
        lowered = program.run_decompositions({})
        targets = [str(n.target) for n in lowered.graph.nodes if n.op == "call_function"]
        assert any(t.startswith("torchfastnorm.") for t in targets), targets


def opcheck_cases(op: PlaneOp, backend: TestBackend, running: bool) -> Iterator[PlaneCase]:
    """Few and different: opcheck traces each of them several times."""
    low = {"param_dtype": torch.float32, "layout": LAST, "activation": "none", "mask": None}
    for requires_grad, case in (
        (True, full_case(op, backend, running=running)),
        (False, full_case(op, backend, running=running, dtype=torch.bfloat16, **low)),
    ):
        names = [n for n in LEAVES if getattr(case, n) is not None]
        yield case.replace(**{n: getattr(case, n).detach().requires_grad_(requires_grad) for n in names})


def public_arguments(case: PlaneCase) -> tuple[Any, ...]:
    """The arguments of the public op, by position, as its schema has them."""
    own = {n: None if (t := getattr(case, n)) is None else t.clone() for n in ("running_mean", "running_var")}
    last = (case.residual, case.activation, case.mask)
    if case.op is GROUP_NORM:
        return (case.x, case.groups, case.weight, case.bias, case.eps, *last)
    tracked = (torch.tensor(3),) if case.running_mean is not None else (None,)
    rest = (case.weight, case.bias, case.batch_statistics, case.momentum, case.eps, *last)
    return (case.x, *own.values(), *rest, *(tracked if case.op is BATCH_NORM else ()))


@all_ops
@pytest.mark.parametrize("running", (False, True))
def test_opcheck(backend: TestBackend, op: PlaneOp, running: bool) -> None:
    if running and op is GROUP_NORM:
        pytest.skip("GroupNorm has no running statistics")
    function: Callable[..., Any] = getattr(NAMESPACE, op.name + ("_with_update" if running else "")).default
    for case in opcheck_cases(op, backend, running):
        opcheck(function, public_arguments(case))


@all_ops
def test_opcheck_of_the_inner_ops(backend: TestBackend, op: PlaneOp) -> None:
    wanted = ((True, True, True, True), (True, False, False, False))
    for case, mask in zip(opcheck_cases(op, backend, False), wanted, strict=True):
        detached = case.map(Tensor.detach, LEAVES)
        rest = (SETS[op], case.groups, True)
        tensors = (detached.weight, detached.bias, detached.residual, detached.mask)
        options = (0.1, case.eps, case.activation, *NO_RENORM, *NO_SWITCH, True)
        forward = (detached.x, None, None, None, *tensors, *rest, *options)
        opcheck(NAMESPACE.plane_norm_forward.default, forward)
        _, mean, rstd, signs = NAMESPACE.plane_norm_forward(*forward)
        tensors = (case.weight, case.bias, None if signs is not None else case.residual, case.mask, signs)
        grad_y = case.grad_y.detach().requires_grad_(case.x.requires_grad)
        param = torch.float32
        options = (case.eps, case.activation, NO_RENORM[0], *NO_SWITCH)
        backward = (grad_y, case.x, mean, rstd, *tensors, *rest, *options, param, [*mask, False, False])
        opcheck(NAMESPACE.plane_norm_backward.default, backward)
