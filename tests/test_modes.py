"""Subclasses, modes, functional tracing: the fast entry steps aside, and the dispatcher sees our op by its name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import OPS, Case, Op, make_case
from conftest import TestBackend
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

pytestmark = pytest.mark.backends("cpu", "cuda")
all_ops = pytest.mark.parametrize("op", OPS, ids=str)


def call(case: Case) -> Any:
    arguments, keywords = case.arguments
    return case.op.function(*arguments, **keywords)


def as_list(output: Any) -> list[Tensor]:
    return [output] if isinstance(output, Tensor) else list(output)


@all_ops
def test_dispatch_mode_sees_one_op(backend: TestBackend, op: Op) -> None:
    seen: list[str] = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    case = make_case(op, 4, 16, device=backend.device)
    plain = as_list(call(case))
    with Recorder():
        outputs = as_list(call(case))
    assert seen == [f"torchfastnorm.{op.name}.default"]
    assert all(torch.equal(a, b) for a, b in zip(outputs, plain, strict=True))
    seen.clear()
    x = case.x.clone().requires_grad_()
    with Recorder():
        as_list(call(case.replace(x=x)))[0].backward(case.grad_y)
    ours = [name for name in seen if name.startswith("torchfastnorm")]
    assert ours == [f"torchfastnorm.{op.core}_forward.default", f"torchfastnorm.{op.core}_backward.default"]


@all_ops
def test_function_mode_is_called(backend: TestBackend, op: Op) -> None:
    seen: list[str] = []

    class Recorder(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    case = make_case(op, 4, 16, device=backend.device)
    with Recorder():
        call(case)
    assert any(f"torchfastnorm.{op.name}" in name for name in seen)


@all_ops
def test_subclass_is_kept(backend: TestBackend, op: Op) -> None:
    class Tagged(Tensor):
        pass

    case = make_case(op, 4, 16, device=backend.device)
    plain = as_list(call(case))
    for output, expected in zip(as_list(call(case.replace(x=case.x.as_subclass(Tagged)))), plain, strict=True):
        assert type(output) is Tagged and torch.equal(output.as_subclass(Tensor), expected)


@all_ops
def test_fake_tensors(backend: TestBackend, op: Op) -> None:
    case = make_case(op, (2, 3), 16, torch.bfloat16, residual_dtype=torch.float32, device=backend.device)
    plain = as_list(call(case))
    with FakeTensorMode() as mode:
        outputs = as_list(call(case.map(mode.from_tensor)))
    for output, expected in zip(outputs, plain, strict=True):
        assert isinstance(output, FakeTensor) and output.device == expected.device
        assert (output.shape, output.dtype, output.stride()) == (expected.shape, expected.dtype, expected.stride())


@all_ops
def test_make_fx_keeps_the_op(backend: TestBackend, op: Op) -> None:
    case = make_case(op, 4, 16, device=backend.device)
    graph = make_fx(lambda x: call(case.replace(x=x)))(case.x)
    targets = [str(n.target) for n in graph.graph.nodes if n.op == "call_function" and "torchfastnorm" in str(n.target)]
    assert targets == [f"torchfastnorm.{op.name}.default"]


@all_ops
def test_symbolic_trace_of_a_module(backend: TestBackend, op: Op) -> None:
    module = op.module(16).to(backend.device)
    case = make_case(op, 4, 16, device=backend.device)
    inputs = (case.x, case.residual) if op.has_residual else (case.x,)
    traced = torch.fx.symbolic_trace(module)
    torch.testing.assert_close(traced(*inputs), module(*inputs), rtol=0, atol=0)


@all_ops
def test_jit_trace(backend: TestBackend, op: Op) -> None:
    module = op.module(16).to(backend.device)
    case = make_case(op, 4, 16, device=backend.device)
    inputs = (case.x, case.residual) if op.has_residual else (case.x,)
    traced = torch.jit.trace(module, inputs)
    longer = tuple(t.repeat(2, 1) for t in inputs)
    torch.testing.assert_close(traced(*longer), module(*longer), rtol=0, atol=0)


@all_ops
@pytest.mark.parametrize("form", (list, tuple, torch.Size))
def test_forms_of_normalized_shape(backend: TestBackend, op: Op, form: type) -> None:
    case = make_case(op, 3, (4, 5), device=backend.device)
    expected = as_list(call(case))
    for output, plain in zip(as_list(call(case.replace(normalized_shape=form((4, 5))))), expected, strict=True):
        assert torch.equal(output, plain)


@all_ops
def test_forms_of_arguments(backend: TestBackend, op: Op) -> None:
    """By position, by name, and as torch.ops: one op, the same bits."""
    case = make_case(op, 3, 5, eps=1e-3, device=backend.device)
    positional, keywords = case.arguments
    expected = as_list(op.function(*positional, **keywords))
    names = ["input", "residual", "normalized_shape", "weight", "bias"]
    names = [n for n in names if (n != "residual" or op.has_residual) and (n != "bias" or op.has_bias)]
    forms = (
        op.function(*positional, 1e-3),
        op.function(**dict(zip(names, positional, strict=True)), eps=1e-3),
        op.function(*positional, 1e-3, out_dtype=torch.float32),
        getattr(torch.ops.torchfastnorm, op.name)(*positional, 1e-3, None),
        op.function(*(torch.nn.Parameter(t) if isinstance(t, Tensor) else t for t in positional), 1e-3),
    )
    for form in forms:
        for output, plain in zip(as_list(form), expected, strict=True):
            assert torch.equal(output, plain)
