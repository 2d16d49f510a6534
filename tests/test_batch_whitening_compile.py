"""Whitening under torch.compile, export, opcheck and modes: one node of the graph, buffers updated from it."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from checks import assert_same_results
from conftest import TestBackend
from plane_cases import in_layout
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.library import opcheck
from torch.overrides import TorchFunctionMode
from whitening_cases import LEAVES, METHODS, RUNNING, Arguments, all_layouts, all_methods, both_modes, make, results_of

from torchfastnorm import BatchWhitening, IterNorm, batch_whitening

pytestmark = pytest.mark.backends("cpu", "cuda")
NAMESPACE = torch.ops.torchfastnorm


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], msg=lambda m, name=name: f"{name}: {m}")
        assert a[name].stride() == b[name].stride(), name


def case(backend: TestBackend, samples: int = 3, dtype: torch.dtype = torch.float32, **keywords: Any) -> Arguments:
    return make((samples, 6, 5, 4), 3, dtype, backend, **keywords)


@all_layouts
@both_modes
def test_fullgraph(backend: TestBackend, layout: str, training: bool) -> None:
    """Forward, backward, running statistics, layout. A second number of samples compiles once more, others do not."""
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(batch_whitening, backend=counter, fullgraph=True)
    options, counts = {"training": training, "num_channels": 3}, []
    for samples in (3, 4, 5, 9):
        arguments = case(backend, samples, layout=layout)
        same(results_of(compiled, arguments, **options), results_of(batch_whitening, arguments, **options))
        counts.append(counter.frame_count)
    assert counts[-1] == counts[1], f"recompiled for a number of samples: {counts}"


@all_methods
@pytest.mark.parametrize("shape", ((8, 6), (2, 6, 3, 2, 4), (0, 6, 4, 3), (1, 6, 3)))
def test_shapes(backend: TestBackend, method: str, shape: tuple[int, ...]) -> None:
    compiled = torch.compile(batch_whitening, backend="aot_eager", fullgraph=True, dynamic=True)
    arguments = make((max(shape[0], 1), *shape[1:]), 3, torch.bfloat16, backend, other={"weight": torch.float32})
    arguments["input"] = arguments["input"][: shape[0]].clone()
    options = {"training": True, "num_channels": 3, "method": method}
    same(results_of(compiled, arguments, **options), results_of(batch_whitening, arguments, **options))


@all_methods
def test_modules(backend: TestBackend, method: str) -> None:
    """In training and in evaluation: values, gradients, and the buffers that the steps leave."""
    module = (IterNorm(6, num_groups=2) if method == "iternorm" else BatchWhitening(6, 3, method)).to(backend.device)
    twin = copy.deepcopy(module)
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    for step, training in enumerate((True, True, False)):
        module.train(training), twin.train(training)
        x = make((4, 6, 5, 4), 3, torch.float32, backend, seed=step)["input"]
        leaves = [x.clone().requires_grad_() for _ in range(2)]
        for run, leaf in zip((module, compiled), leaves, strict=True):
            run(leaf).pow(3).sum().backward()
        torch.testing.assert_close(*(leaf.grad for leaf in leaves))
        same(dict(module.state_dict()), dict(twin.state_dict()))
    assert not torch.equal(module.running_mean, torch.zeros_like(module.running_mean))
    for ours, theirs in zip(module.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("running", (True, False))
def test_the_graphs_hold_our_op(backend: TestBackend, running: bool) -> None:
    """Nothing is decomposed: forward, backward and the call without gradient are one node each."""
    graphs: list[list[str]] = []

    def keep(module: torch.fx.GraphModule, _: Any) -> torch.fx.GraphModule:
        targets = [node.target for node in module.graph.nodes if node.op == "call_function"]
        names = [str(getattr(t, "_overloadpacket", t)) for t in targets]
        graphs.append([n for n in names if "torchfastnorm" in n or "auto_functionalized" in n or "linalg" in n])
        return module

    arguments = {n: t for n, t in case(backend).items() if running or n not in RUNNING}
    compiled = torch.compile(batch_whitening, backend=aot_autograd(fw_compiler=keep, bw_compiler=keep), fullgraph=True)
    results_of(compiled, arguments, training=True, num_channels=3)
    results_of(compiled, arguments, wanted=(), training=True, num_channels=3)
    assert [len(graph) for graph in graphs] == [1, 1, 1], graphs
    assert graphs[1] == ["torchfastnorm.whitening_backward"]


@pytest.mark.slow
def test_inductor(backend: TestBackend) -> None:
    """Between pointwise ops that inductor fuses, with a dynamic batch, forward and backward."""

    def around(input: Tensor, **keywords: Any) -> Tensor:
        return batch_whitening(input * 2, **keywords).relu() + 1

    compiled = torch.compile(around, fullgraph=True, dynamic=True)
    for samples in (3, 5):
        arguments = case(backend, samples, layout="channels_last")
        options = {"training": True, "num_channels": 3}
        ours, plain = results_of(compiled, arguments, **options), results_of(around, arguments, **options)
        for name in plain:
            torch.testing.assert_close(ours[name], plain[name], msg=lambda m, name=name: f"{name}: {m}")


def test_compiled_transform(backend: TestBackend) -> None:
    x = torch.stack([case(backend)["input"], case(backend)["input"].cos()])
    function = torch.func.vmap(
        torch.func.grad(lambda t: batch_whitening(t, training=True, num_channels=3).pow(3).sum())
    )
    torch.testing.assert_close(torch.compile(function, backend="aot_eager", fullgraph=True)(x), function(x))


@all_methods
@both_modes
def test_export(backend: TestBackend, method: str, training: bool) -> None:
    """Saved, loaded, with another number of samples; in evaluation the op stays one."""
    module = BatchWhitening(6, 3, method).to(backend.device).train(training)
    x = case(backend)["input"]
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


@both_modes
def test_opcheck(backend: TestBackend, training: bool) -> None:
    """Schemas, fake kernels and autograd registrations of the public ops."""
    for requires_grad, method, dtype in ((True, "zca", torch.float32), (False, "iternorm", torch.bfloat16)):
        own = case(backend, dtype=dtype, other={"weight": torch.float32})
        for name in LEAVES:
            own[name].requires_grad_(requires_grad)
        rest = (own["weight"], own["bias"], training, 0.1, 1e-3, 3, method, 5)
        running = [own[name] for name in RUNNING]
        opcheck(NAMESPACE.batch_whitening.default, (own["input"], *(running if not training else [None] * 2), *rest))
        if training:
            opcheck(NAMESPACE.batch_whitening_with_update.default, (own["input"], *running, *rest))


def test_opcheck_of_the_inner_ops(backend: TestBackend) -> None:
    """Backward with a graph of its own is a formula, which is not traced here: it takes long."""
    checks = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    for method, twice in (("zca", False), ("iternorm", True)):
        own = case(backend)
        tensors = (own["input"], None, None, own["weight"], own["bias"])
        options = (True, 0.1, 1e-3, 3, method, 5)
        opcheck(NAMESPACE.whitening_forward.default, (*tensors, *options))
        opcheck(NAMESPACE.whitening_forward_with_update.default, (*own.values(), *options))
        y, *saved = NAMESPACE.whitening_forward(*tensors, *options)
        grad_y, x = torch.ones_like(y).requires_grad_(twice), own["input"].requires_grad_(twice)
        arguments = (grad_y, x, *saved, own["weight"], True, 1e-3, 3, method, 5, torch.float32, (True, twice, twice))
        opcheck(NAMESPACE.whitening_backward.default, arguments, test_utils=checks[: 3 if twice else 4])


@all_layouts
@both_modes
def test_meta_and_fake_tensors(backend: TestBackend, layout: str, training: bool) -> None:
    """Shapes, dtypes and strides without values, of forward and backward, and of what is saved."""
    for shape in ((3, 6, 5, 4), (8, 6), (2, 6, 7), (2, 6, 3, 2, 2), (0, 6, 4, 3)):
        for method in METHODS:
            options = {"training": training, "num_channels": 3, "method": method}
            own = make((max(shape[0], 1), *shape[1:]), 3, torch.bfloat16, backend, layout, {"weight": torch.float32})
            if shape[0] == 0:
                own["input"] = in_layout(torch.empty(shape, dtype=torch.bfloat16, device=backend.device), layout)
            real = results_of(batch_whitening, own, **options)
            with FakeTensorMode() as mode:
                fake = results_of(batch_whitening, {name: mode.from_tensor(t) for name, t in own.items()}, **options)
            assert all(isinstance(t, FakeTensor) for t in fake.values())
            meta = results_of(batch_whitening, {name: t.to("meta") for name, t in own.items()}, **options)
            for results in (fake, meta):
                for name, t in results.items():
                    assert (t.shape, t.dtype, t.stride()) == (real[name].shape, real[name].dtype, real[name].stride())
            inner = (*options.values(),)
            running = (None, None) if training else tuple(own[name] for name in RUNNING)
            given = (own["input"], *running, None, None, inner[0], 0.1, 1e-5, *inner[1:], 5)
            there = [t.to("meta") if isinstance(t, Tensor) else t for t in given]
            for one, other in zip(
                NAMESPACE.whitening_forward(*given), NAMESPACE.whitening_forward(*there), strict=True
            ):
                assert (one.shape, one.dtype) == (other.shape, other.dtype)


@all_methods
def test_autocast_keeps_the_dtype(backend: TestBackend, method: str) -> None:
    """Nothing is cast, inside neither: no product of the iteration runs in bf16."""
    options = {"training": True, "num_channels": 3, "method": method}
    arguments = case(backend, dtype=torch.bfloat16, other={"weight": torch.float32})
    single = case(backend)
    outside = [results_of(batch_whitening, given, **options) for given in (arguments, single)]
    with torch.autocast(backend.device.type, torch.bfloat16):
        inside = [results_of(batch_whitening, given, **options) for given in (arguments, single)]
        y = torch.func.vmap(lambda x: batch_whitening(x, **options))(single["input"][None])
        assert y.dtype == torch.float32
    for one, other in zip(inside, outside, strict=True):
        assert_same_results(one, other)
    assert outside[0]["grad_weight"].dtype == torch.float32
    plain = {name: t for name, t in single.items() if name == "input"}
    torch.testing.assert_close(y[0], batch_whitening(**plain, **options), rtol=1e-5, atol=1e-5)


def test_inference_mode(backend: TestBackend) -> None:
    module = BatchWhitening(6, 3).to(backend.device)
    x = case(backend)["input"]
    expected = copy.deepcopy(module)(x)
    with torch.inference_mode():
        y = module(x)
        inside = torch.randn(3, 6, device=backend.device)
        assert module.eval()(inside).shape == (3, 6)
    assert y.is_inference() and torch.equal(y, expected)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    with torch.inference_mode():
        torch.testing.assert_close(compiled(x), module(x))


def test_function_mode_and_subclasses(backend: TestBackend) -> None:
    seen: list[str] = []

    class Recorder(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    class Tagged(Tensor):
        pass

    x = case(backend)["input"]
    plain = batch_whitening(x, training=True)
    with Recorder():
        batch_whitening(x, training=True)
    assert any("torchfastnorm.batch_whitening" in name for name in seen)
    y = batch_whitening(x.as_subclass(Tagged), training=True)
    assert type(y) is Tagged and torch.equal(y.as_subclass(Tensor), plain)


@pytest.mark.backends("cuda")
@all_layouts
def test_cuda_graph(backend: TestBackend, layout: str) -> None:
    """iternorm waits for nothing: captured once, replayed, the bits of plain calls."""
    arguments = make((4, 32, 14, 14), 16, torch.float32, backend, layout)
    options = {"training": True, "num_channels": 16, "method": "iternorm"}
    static = {name: t.clone() for name, t in arguments.items()}
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        batch_whitening(**static, **options)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = batch_whitening(**static, **options)
    for seed in (1, 2):
        now = make((4, 32, 14, 14), 16, torch.float32, backend, layout, seed=seed)
        for name, t in now.items():
            static[name].copy_(t)
        graph.replay()
        assert torch.equal(y, batch_whitening(**now, **options))
        assert torch.equal(static["running_wm"], now["running_wm"])
