"""torch.compile, export and opcheck: our op stays one node of the graph, with static and with dynamic shapes."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cases import ADD_LAYER_NORM, ADD_RMS_NORM, LAYER_NORM, LEAVES, OPS, Case, Op, evaluate, make_case
from conftest import TestBackend
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounterWithBackend
from torch.library import opcheck

pytestmark = pytest.mark.backends("cpu", "cuda")
all_ops = pytest.mark.parametrize("op", OPS, ids=str)


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def module_and_inputs(op: Op, backend: TestBackend, rows: int = 4) -> tuple[torch.nn.Module, tuple[Tensor, ...]]:
    case = make_case(op, rows, 16, device=backend.device)
    return op.module(16).to(backend.device), (case.x, case.residual) if op.has_residual else (case.x,)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    for name in a:
        torch.testing.assert_close(a[name], b[name], msg=lambda m, name=name: f"{name}: {m}")


@all_ops
@pytest.mark.parametrize("affine", (True, False))
@pytest.mark.parametrize("dynamic", (None, True))
def test_fullgraph(backend: TestBackend, op: Op, affine: bool, dynamic: bool | None) -> None:
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(op.function, backend=counter, fullgraph=True, dynamic=dynamic)
    counts = []
    for rows in (4, 8, 9, 33):
        case = make_case(op, rows, 16, affine=affine, device=backend.device)
        same(evaluate(case, compiled), evaluate(case))
        counts.append(counter.frame_count)
    assert counts[-1] == counts[0 if dynamic else 1], f"recompiled for a number of rows: {counts}"


@all_ops
def test_dynamic_columns(backend: TestBackend, op: Op) -> None:
    counter = CompileCounterWithBackend("aot_eager")

    def run(x: Tensor, *rest: Tensor) -> Any:
        return op.function(x, *rest[:-1], x.shape[1:], rest[-1])

    compiled = torch.compile(run, backend=counter, fullgraph=True, dynamic=True)
    first = 0
    for cols in (8, 9, 31):
        case = make_case(op, 4, cols, device=backend.device).replace(bias=None)
        tensors = [t for t in (case.x, case.residual, case.weight) if t is not None]
        torch.testing.assert_close(compiled(*tensors), run(*tensors))
        first = counter.frame_count if cols == 8 else first
    assert counter.frame_count == first, "recompiled for a number of columns"


@all_ops
@pytest.mark.parametrize("lead, shape", (((2, 3), (4, 5)), ((), (7,)), ((3, 0), (4,))))
def test_shapes(backend: TestBackend, op: Op, lead: tuple[int, ...], shape: tuple[int, ...]) -> None:
    case = make_case(op, lead, shape, torch.bfloat16, param_dtype=torch.float32, device=backend.device)
    compiled = torch.compile(op.function, backend="aot_eager", fullgraph=True, dynamic=True)
    same(evaluate(case, compiled), evaluate(case))


@pytest.mark.parametrize("op", [op for op in OPS if op.has_residual], ids=str)
def test_mixed_dtypes(backend: TestBackend, op: Op) -> None:
    dtypes = {"param_dtype": torch.float16, "residual_dtype": torch.float32, "out_dtype": torch.float64}
    case = make_case(op, 4, 16, torch.bfloat16, **dtypes, device=backend.device)
    same(evaluate(case, torch.compile(op.function, backend="aot_eager", fullgraph=True)), evaluate(case))


@all_ops
def test_the_graphs_hold_our_op(backend: TestBackend, op: Op) -> None:
    """Nothing is decomposed: forward, backward and the call without gradient are one node each."""
    graphs: list[list[str]] = []

    def keep(module: torch.fx.GraphModule, _: Any) -> torch.fx.GraphModule:
        targets = [str(node.target) for node in module.graph.nodes if node.op == "call_function"]
        graphs.append([t for t in targets if "torchfastnorm" in t])
        return module

    case = make_case(op, 4, 16, device=backend.device)
    compiled = torch.compile(op.function, backend=aot_autograd(fw_compiler=keep, bw_compiler=keep), fullgraph=True)
    evaluate(case, compiled)
    evaluate(case, compiled, backward=False)
    core, name = f"torchfastnorm.{op.core}", f"torchfastnorm.{op.name}"
    assert graphs == [[f"{core}_forward.default"], [f"{core}_backward.default"], [f"{name}.default"]]


@pytest.mark.parametrize("op", [ADD_LAYER_NORM, pytest.param(ADD_RMS_NORM, marks=pytest.mark.slow)], ids=str)
def test_inductor(backend: TestBackend, op: Op) -> None:
    """Between pointwise ops that inductor fuses, with a dynamic batch, forward and backward."""

    def around(x: Tensor, residual: Tensor, *arguments: Any, **keywords: Any) -> tuple[Tensor, Tensor]:
        y, total = op.function(x * 2, residual.sin(), *arguments, **keywords)
        return y.relu(), total + 1

    compiled = torch.compile(around, fullgraph=True, dynamic=True)
    for rows in (4, 9):
        case = make_case(op, rows, 16, device=backend.device)
        same(evaluate(case, compiled), evaluate(case, around))


@all_ops
def test_module_under_no_grad_and_inference(backend: TestBackend, op: Op) -> None:
    module, inputs = module_and_inputs(op, backend)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    expected = module(*inputs)
    torch.testing.assert_close(compiled(*inputs), expected)
    with torch.no_grad():
        torch.testing.assert_close(compiled(*inputs), expected)
    with torch.inference_mode():
        torch.testing.assert_close(compiled(*inputs), expected)


@all_ops
def test_compiled_under_autocast(backend: TestBackend, op: Op) -> None:
    module, inputs = module_and_inputs(op, backend)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    with torch.autocast(backend.device.type, torch.bfloat16):
        torch.testing.assert_close(compiled(*inputs), module(*inputs))
        low = tuple(t.bfloat16() for t in inputs)
        torch.testing.assert_close(compiled(*low), module(*low))


@all_ops
def test_compiled_autograd(backend: TestBackend, op: Op) -> None:
    from torch._dynamo import compiled_autograd

    case = make_case(op, 4, 16, device=backend.device)
    expected = evaluate(case)
    leaves = {n: getattr(case, n).detach().requires_grad_() for n in LEAVES if getattr(case, n) is not None}
    arguments, keywords = case.replace(**leaves).arguments
    output = op.function(*arguments, **keywords)
    outputs, flowing = (output, [case.grad_y, case.grad_sum]) if op.has_residual else ([output], [case.grad_y])
    with compiled_autograd._enable(torch.compile(backend="aot_eager", fullgraph=True)):
        torch.autograd.backward(outputs, flowing)
    same({f"grad_{n}": t.grad for n, t in leaves.items()}, expected)


@all_ops
def test_export(backend: TestBackend, op: Op) -> None:
    module, inputs = module_and_inputs(op, backend)
    rows = torch.export.Dim("rows", min=2)
    program = torch.export.export(module, inputs, dynamic_shapes=tuple({0: rows} for _ in inputs))
    lowered = program.run_decompositions({})
    for graph in (program.graph, lowered.graph):
        targets = [str(node.target) for node in graph.nodes if node.op == "call_function"]
        assert f"torchfastnorm.{op.name}.default" in targets
    stored = io.BytesIO()
    torch.export.save(lowered, stored)
    stored.seek(0)
    longer = tuple(t.repeat(2, 1)[:7] for t in inputs)
    torch.testing.assert_close(torch.export.load(stored).module()(*longer), module(*longer))


@all_ops
def test_training_of_an_exported_module(backend: TestBackend, op: Op) -> None:
    module, inputs = module_and_inputs(op, backend)
    exported = torch.export.export(module.train(), inputs).module()
    output = exported(*inputs)
    (output[0] if op.has_residual else output).square().sum().backward()
    output = module(*inputs)
    (output[0] if op.has_residual else output).square().sum().backward()
    torch.testing.assert_close(exported.weight.grad, module.weight.grad)


def opcheck_cases(op: Op, backend: TestBackend) -> Iterator[Case]:
    """Few and different: opcheck traces each of them several times."""
    low = {"param_dtype": torch.float32, "out_dtype": torch.float16}
    for requires_grad, case in (
        (True, make_case(op, 3, 5, device=backend.device)),
        (False, make_case(op, (2, 3), (4, 5), torch.bfloat16, **low, device=backend.device)),
        (True, make_case(op, 0, 5, affine=False, device=backend.device)),
    ):
        names = [n for n in LEAVES if getattr(case, n) is not None]
        yield case.replace(**{n: getattr(case, n).detach().requires_grad_(requires_grad) for n in names}, eps=1e-5)


@all_ops
def test_opcheck(backend: TestBackend, op: Op) -> None:
    for case in opcheck_cases(op, backend):
        arguments, _ = case.arguments
        opcheck(getattr(torch.ops.torchfastnorm, op.name).default, (*arguments, 1e-5, case.out_dtype))


@all_ops
def test_opcheck_of_the_inner_ops(backend: TestBackend, op: Op) -> None:
    namespace = torch.ops.torchfastnorm
    forward, backward = (getattr(namespace, f"{op.core}_{way}").default for way in ("forward", "backward"))
    masks = ((True, False, True, op.has_bias), (True, False, False, False), (False, False, True, False))
    for case, mask in zip(opcheck_cases(op, backend), masks, strict=True):
        tensors = {n: t.detach() if (t := getattr(case, n)) is not None else None for n in LEAVES}
        x, residual, weight, bias = tensors.values()
        arguments = (x, residual, case.normalized_shape, weight, bias, 1e-5, case.out_dtype)
        opcheck(forward, arguments)
        _, total, mean, rstd = forward(*arguments)
        h = x if total is None else total
        param = x.dtype if weight is None else weight.dtype
        requires_grad = case.x.requires_grad
        grad_y, grad_sum, h = (
            None if t is None else t.detach().requires_grad_(requires_grad) for t in (case.grad_y, case.grad_sum, h)
        )
        shape = case.normalized_shape
        opcheck(backward, (grad_y, grad_sum, h, shape, weight, mean, rstd, 1e-5, x.dtype, param, list(mask)))


def test_opcheck_sees_a_wrong_fake_kernel(backend: TestBackend) -> None:
    """The check itself: an op whose fake kernel forgets out_dtype is found."""
    with torch.library._scoped_library("torchfastnorm_planted", "DEF") as library:
        library.define("op(Tensor x) -> Tensor")
        library.impl("op", lambda x: x.double(), "CompositeExplicitAutograd")
        torch.library.register_fake("torchfastnorm_planted::op", torch.empty_like, lib=library)
        with pytest.raises(Exception, match="Dtypes"):
            opcheck(torch.ops.torchfastnorm_planted.op.default, (make_case(LAYER_NORM, 3, 5).x,))
