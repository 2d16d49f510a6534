"""Our nodes behave in autograd's machinery as torch's own: saved tensors, threads, modes, subclasses, modules."""

from __future__ import annotations

import copy
import pickle
import threading
from typing import Any

import pytest
import torch
from cases import LEAVES, OPS, Case, Op, evaluate, make_case
from checks import assert_same_results
from conftest import TestBackend
from torch import Tensor
from torch.utils.checkpoint import checkpoint

all_ops = pytest.mark.parametrize("op", OPS, ids=str)


def call(case: Case) -> Any:
    arguments, keywords = case.arguments
    return case.op.function(*arguments, **keywords)


def first_output(case: Case) -> Tensor:
    output = call(case)
    return output[0] if case.op.has_residual else output


def requiring(case: Case, *names: str) -> Case:
    return case.replace(
        **{n: getattr(case, n).detach().requires_grad_() for n in names if getattr(case, n) is not None}
    )


@all_ops
def test_our_node_runs(backend: TestBackend, op: Op) -> None:
    """The gradient comes from our node, not from a composition of ATen ops that happens to be right."""
    case = requiring(make_case(op, 4, 16, device=backend.device), *LEAVES)
    node = first_output(case).grad_fn
    assert node is not None and node.name() == op.node
    leaves = [getattr(case, name) for name in LEAVES if getattr(case, name) is not None]
    reached = [following for following, _ in node.next_functions if following is not None]
    assert [id(following.variable) for following in reached] == [id(leaf) for leaf in leaves]


@all_ops
def test_nothing_is_recorded_without_a_reason(backend: TestBackend, op: Op) -> None:
    case = make_case(op, 4, 16, device=backend.device)
    assert first_output(case).grad_fn is None
    with torch.no_grad():
        assert first_output(requiring(case, *LEAVES)).grad_fn is None


@all_ops
def test_inference_mode(backend: TestBackend, op: Op) -> None:
    case = requiring(make_case(op, 4, 16, device=backend.device), "weight")
    expected = first_output(case).detach()
    with torch.inference_mode():
        y = first_output(case)
        assert y.is_inference() and torch.equal(y, expected)
        inside = make_case(op, 4, 16, device=backend.device)  # inference tensors as inputs
        assert torch.equal(first_output(inside), expected)


@all_ops
@pytest.mark.parametrize("reentrant", (False, True))
def test_checkpoint(backend: TestBackend, op: Op, reentrant: bool) -> None:
    case = make_case(op, 4, 16, device=backend.device)
    grads = []
    for run in (lambda x: first_output(case.replace(x=x)).relu(), None):
        x = case.x.detach().requires_grad_()
        y = first_output(case.replace(x=x)).relu() if run is None else checkpoint(run, x, use_reentrant=reentrant)
        y.sum().backward()
        grads.append(x.grad)
    assert torch.equal(*grads)


@all_ops
def test_retain_graph_and_second_backward(backend: TestBackend, op: Op) -> None:
    case = requiring(make_case(op, 4, 16, device=backend.device), *LEAVES)
    y = first_output(case)
    y.sum().backward(retain_graph=True)
    once = case.x.grad.clone()
    y.sum().backward()
    assert torch.equal(case.x.grad, 2 * once)
    with pytest.raises(RuntimeError, match="second time"):
        y.sum().backward()


@all_ops
def test_saved_tensor_hooks(backend: TestBackend, op: Op) -> None:
    """What is saved goes through the hooks: h, weight and the statistics, and no second copy of h."""
    case = requiring(make_case(op, 4, 16, device=backend.device), *LEAVES)
    plain = torch.autograd.grad(first_output(case).sum(), case.x)[0]
    packed: list[tuple[int, ...]] = []

    def pack(t: Tensor) -> Tensor:
        packed.append(tuple(t.shape))
        return t.clone()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = first_output(case)
    assert torch.equal(torch.autograd.grad(y.sum(), case.x)[0], plain)
    statistics = 2 if op.core == "layer_norm" else 1
    assert sorted(packed) == sorted([(4, 16), (16,), *[(4,)] * statistics])
    with torch.autograd.graph.save_on_cpu():
        y = first_output(case)
    assert torch.equal(torch.autograd.grad(y.sum(), case.x)[0], plain)


@all_ops
def test_saved_memory(backend: TestBackend, op: Op) -> None:
    """Between forward and backward a node holds what it needs: with frozen parameters and input, nothing at all."""
    case = requiring(make_case(op, 4, 16, device=backend.device), "weight")
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        first_output(case)
    inputs = {t.data_ptr() for t in (case.x, case.weight, case.residual) if t is not None}
    fresh = [t for t in kept if t.data_ptr() not in inputs and t.numel() > 4]
    assert len(fresh) == (1 if op.has_residual else 0)  # the sum is an output of the user's anyway


@all_ops
@pytest.mark.parametrize("name", ("x", "weight"))
def test_in_place_modification_is_detected(backend: TestBackend, op: Op, name: str) -> None:
    if op.has_residual and name == "x":
        pytest.skip("the sum is saved, not x")
    case = requiring(make_case(op, 4, 16, device=backend.device), *LEAVES)
    changed = getattr(case, name) * 1
    y = first_output(case.replace(**{name: changed}))
    changed.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("op", [op for op in OPS if op.has_residual], ids=str)
def test_in_place_modification_of_the_sum(backend: TestBackend, op: Op) -> None:
    """The sum is saved for backward: changing it is detected; changing x and residual afterwards is harmless."""
    case = requiring(make_case(op, 4, 16, device=backend.device), *LEAVES)
    y, total = call(case)
    total.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
    x, residual = case.x * 1, case.residual * 1
    plain = torch.autograd.grad(first_output(case).sum(), case.x)[0]
    y = first_output(case.replace(x=x, residual=residual))
    x.add_(1), residual.add_(1)
    assert torch.equal(torch.autograd.grad(y.sum(), case.x)[0], plain)


@all_ops
def test_in_place_use_of_the_output(backend: TestBackend, op: Op) -> None:
    """y is not saved: a following in-place op is allowed, as after torch's own norms."""
    case = requiring(make_case(op, 4, 16, device=backend.device), *LEAVES)
    plain = torch.autograd.grad(first_output(case).relu().sum(), case.x)[0]
    assert torch.equal(torch.autograd.grad(first_output(case).relu_().sum(), case.x)[0], plain)


@all_ops
def test_eight_threads(backend: TestBackend, op: Op) -> None:
    """One graph run backward by many threads at once, each also with a graph of its own."""
    case = requiring(make_case(op, 64, 48, torch.float64, device=backend.device), *LEAVES)
    y = first_output(case)
    expected = torch.autograd.grad(y.sum(), case.x, retain_graph=True)[0]
    wrong: list[object] = []

    def work() -> None:
        try:
            for _ in range(5):
                own = requiring(case, *LEAVES)
                grads = torch.autograd.grad(y.sum(), case.x, retain_graph=True)
                grads += torch.autograd.grad(first_output(own).sum(), own.x)
                wrong.extend(g for g in grads if not torch.equal(g, expected))
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)] if backend.name != "sim" else []
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if not threads:
        work()
    assert not wrong


@pytest.mark.backends("cpu", "cuda")
@all_ops
def test_autocast_keeps_the_dtype(backend: TestBackend, op: Op) -> None:
    """Output has the input's dtype, and nothing is cast: bf16 activations with fp32 parameters are one kernel."""
    case = make_case(op, 4, 16, torch.bfloat16, param_dtype=torch.float32, device=backend.device)
    outside = evaluate(case)
    with torch.autocast(backend.device.type, torch.bfloat16):
        inside = evaluate(case)
        assert first_output(make_case(op, 4, 16, device=backend.device)).dtype == torch.float32
    assert_same_results(inside, outside)
    assert inside["grad_weight"].dtype == torch.float32


@all_ops
def test_modules_copy_and_pickle(backend: TestBackend, op: Op) -> None:
    case = make_case(op, 4, 16, device=backend.device)
    module = op.module(16).to(backend.device)
    torch.nn.init.normal_(module.weight)
    inputs = (case.x, case.residual) if op.has_residual else (case.x,)
    expected = module(*inputs)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert type(other) is type(module) and other.weight is not module.weight
        torch.testing.assert_close(other(*inputs), expected, rtol=0, atol=0)


@pytest.mark.backends("cpu")
@all_ops
@pytest.mark.parametrize("requires_grad", (False, True))
def test_meta_tensors(backend: TestBackend, op: Op, requires_grad: bool) -> None:
    case = make_case(op, (2, 3), 16, torch.bfloat16, residual_dtype=torch.float32, device=backend.device)
    meta = case.map(lambda t: t.to("meta"))
    real = evaluate(case, backward=requires_grad)
    for name, t in evaluate(meta, backward=requires_grad).items():
        assert t.is_meta and t.shape == real[name].shape and t.dtype == real[name].dtype, name
        assert t.stride() == real[name].stride(), name
