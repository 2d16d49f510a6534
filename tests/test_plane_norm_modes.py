"""The plane family under modes, subclasses and functional tracing: one op by its name, shapes without values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import TestBackend
from plane_cases import BATCH_NORM, GROUP_NORM, LAST, LAYOUTS, PLANE_OPS, PlaneCase, PlaneOp, evaluate, make_plane_case
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

pytestmark = pytest.mark.backends("cpu", "cuda")
all_ops = pytest.mark.parametrize("op", PLANE_OPS, ids=str)
SHAPE = (3, 6, 5, 4)


def call(case: PlaneCase, **changes: Any) -> Tensor:
    arguments, keywords = case.replace(**changes).arguments
    return case.op.function(*arguments, **keywords)


def case_of(op: PlaneOp, backend: TestBackend, **options: Any) -> PlaneCase:
    return make_plane_case(op, SHAPE, device=backend.device, **({"running": False} | options))


@all_ops
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("batch_statistics", (True, False), ids=("training", "eval"))
def test_meta_and_fake_tensors(backend: TestBackend, op: PlaneOp, layout: str, batch_statistics: bool) -> None:
    """Shapes, dtypes and strides without values, of forward and backward."""
    if op is GROUP_NORM and not batch_statistics:
        pytest.skip("GroupNorm has no evaluation")
    for shape in (SHAPE, (3, 6, 5), (2, 6, 1, 3), (3, 6, 1, 1), (2, 4, 3, 2, 5), (4, 6)):
        options = {"layout": layout, "batch_statistics": batch_statistics, "residual": torch.float32}
        if op.name == "instance_norm" and (len(shape) == 2 or shape[2:] == (1, 1)):
            continue
        case = make_plane_case(op, shape, torch.bfloat16, param_dtype=torch.float32, **options, device=backend.device)
        real = evaluate(case)
        with FakeTensorMode() as mode:
            fake = evaluate(case.map(mode.from_tensor))
        assert all(isinstance(t, FakeTensor) for t in fake.values())
        for results in (evaluate(case.to("meta")), fake):
            for name, t in results.items():
                assert (t.shape, t.dtype, t.stride()) == (real[name].shape, real[name].dtype, real[name].stride()), name


class DispatchRecorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "torchfastnorm":
            self.seen.append(func._schema.name.removeprefix("torchfastnorm::"))
        return func(*args, **(kwargs or {}))


@all_ops
@pytest.mark.parametrize("running", (False, True))
def test_dispatch_mode_sees_one_op(backend: TestBackend, op: PlaneOp, running: bool) -> None:
    case = case_of(op, backend, running=running, activation="relu")
    plain = call(case.map(Tensor.clone))
    suffix = "_with_update" if running and op is not GROUP_NORM else ""
    with DispatchRecorder() as recorder:
        y = call(case.map(Tensor.clone))
    assert recorder.seen == [op.name + suffix] and torch.equal(y, plain)
    x = case.x.clone().requires_grad_()
    with DispatchRecorder() as recorder:
        call(case, x=x).backward(case.grad_y)
    assert recorder.seen == [f"plane_norm_forward{suffix}", "plane_norm_backward"]


@all_ops
def test_function_mode_and_subclasses(backend: TestBackend, op: PlaneOp) -> None:
    seen: list[str] = []

    class Recorder(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    class Tagged(Tensor):
        pass

    case = case_of(op, backend)
    plain = call(case)
    with Recorder():
        call(case)
    assert any(f"torchfastnorm.{op.name}" in name for name in seen)
    y = call(case, x=case.x.as_subclass(Tagged))
    assert type(y) is Tagged and torch.equal(y.as_subclass(Tensor), plain)


@all_ops
def test_make_fx_keeps_the_op(backend: TestBackend, op: PlaneOp) -> None:
    case = case_of(op, backend, layout=LAST, activation="relu", mask="scattered")
    graph = make_fx(lambda x: call(case, x=x))(case.x)
    targets = [str(n.target) for n in graph.graph.nodes if n.op == "call_function" and "torchfastnorm" in str(n.target)]
    assert targets == [f"torchfastnorm.{op.name}.default"]


@all_ops
def test_forms_of_arguments(backend: TestBackend, op: PlaneOp) -> None:
    """By position, by name, with numbers of other kinds, as parameters: one op, the same bits."""
    case = case_of(op, backend, eps=1.0)
    arguments, keywords = case.arguments
    expected = call(case)
    names = ["input", "running_mean", "running_var", "weight", "bias", "", "momentum", "eps"]
    names[5] = "training" if op is BATCH_NORM else "use_input_stats"
    if op is GROUP_NORM:
        names = ["input", "num_groups", "weight", "bias", "eps"]
    named = dict(zip(names, arguments, strict=True))
    forms = (
        op.function(**named, **keywords),
        op.function(**named),
        op.function(*arguments[:-1], 1, activation="none", mask=None, residual=None),
        op.function(*[torch.nn.Parameter(t) if isinstance(t, Tensor) else t for t in arguments]),
    )
    for form in forms:
        assert torch.equal(form, expected)
