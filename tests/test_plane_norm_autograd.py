"""The plane family's nodes in autograd's machinery: what they save, hooks, checkpoints, threads, autocast."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from checks import assert_same_results
from conftest import TestBackend
from plane_cases import (
    BATCH_NORM,
    LEAVES,
    PLANE_OPS,
    PlaneCase,
    PlaneOp,
    evaluate,
    make_plane_case,
)
from torch import Tensor
from torch.utils.checkpoint import checkpoint

all_ops = pytest.mark.parametrize("op", PLANE_OPS, ids=str)
not_sim = pytest.mark.backends("cpu", "cuda")
SHAPE = (3, 6, 5, 4)


def call(case: PlaneCase, **changes: Any) -> Tensor:
    arguments, keywords = case.replace(**changes).arguments
    return case.op.function(*arguments, **keywords)


def case_of(op: PlaneOp, backend: TestBackend, **options: Any) -> PlaneCase:
    return make_plane_case(op, SHAPE, device=backend.device, **({"running": False} | options))


def requiring(case: PlaneCase, *names: str) -> PlaneCase:
    return case.map(lambda t: t.detach().requires_grad_(), [n for n in names if getattr(case, n) is not None])


@all_ops
def test_our_node_runs(backend: TestBackend, op: PlaneOp) -> None:
    """The gradient comes from our node, not from a composition of ATen ops that happens to be right."""
    case = requiring(case_of(op, backend, residual=True, activation="relu"), *LEAVES)
    node = call(case).grad_fn
    assert node is not None and node.name() == op.node
    reached = {id(following.variable) for following, _ in node.next_functions if following is not None}
    assert reached == {id(getattr(case, name)) for name in LEAVES}


@all_ops
def test_nothing_is_recorded_without_a_reason(backend: TestBackend, op: PlaneOp) -> None:
    case = case_of(op, backend)
    assert call(case).grad_fn is None
    with torch.no_grad():
        assert call(requiring(case, *LEAVES)).grad_fn is None
    with torch.inference_mode():
        y = call(requiring(case, "weight"))
        assert y.is_inference() and torch.equal(y, call(case))


@all_ops
@pytest.mark.parametrize("reentrant", (False, True))
def test_checkpoint(backend: TestBackend, op: PlaneOp, reentrant: bool) -> None:
    case = case_of(op, backend, activation="silu")
    grads = []
    for run in (lambda x: call(case, x=x).relu(), None):
        x = case.x.detach().requires_grad_()
        y = call(case, x=x).relu() if run is None else checkpoint(run, x, use_reentrant=reentrant)
        y.sum().backward()
        grads.append(x.grad)
    assert torch.equal(*grads)


@all_ops
def test_retain_graph_and_second_backward(backend: TestBackend, op: PlaneOp) -> None:
    case = requiring(case_of(op, backend, residual=True), *LEAVES)
    y = call(case)
    y.square().sum().backward(retain_graph=True)
    once = case.x.grad.clone()
    y.square().sum().backward()
    assert torch.equal(case.x.grad, 2 * once)
    with pytest.raises(RuntimeError, match="second time"):
        y.sum().backward()


SAVED = {  # what a call keeps between forward and backward, besides mean and rstd
    "plain": ({}, {"x", "weight"}),
    "activated": ({"activation": "relu"}, {"x", "weight", "bias"}),
    "residual": ({"residual": True}, {"x", "weight"}),
    "residual, activated": ({"residual": True, "activation": "silu"}, {"x", "weight", "bias", "residual"}),
    "residual, signs": ({"residual": True, "activation": "relu"}, {"x", "weight"}),  # a bit for each element
    "masked": ({"mask": "scattered"}, {"x", "weight", "mask"}),
}


@all_ops
@pytest.mark.parametrize("form", SAVED)
def test_saved_tensors(backend: TestBackend, op: PlaneOp, form: str) -> None:
    """What is saved goes through the hooks, and is no more than the formula needs: no copy of x, no x_hat, no y."""
    options, names = SAVED[form]
    case = requiring(case_of(op, backend, **options), *LEAVES)
    plain = torch.autograd.grad(call(case).sum(), case.x)[0]
    kept: list[Tensor] = []

    def pack(t: Tensor) -> Tensor:
        kept.append(t)
        return t.clone()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = call(case)
    assert torch.equal(torch.autograd.grad(y.sum(), case.x)[0], plain)
    inputs = {getattr(case, name).data_ptr(): name for name in (*LEAVES, "mask") if getattr(case, name) is not None}
    assert {inputs[t.data_ptr()] for t in kept if t.data_ptr() in inputs} == names
    fresh = [t for t in kept if t.data_ptr() not in inputs]
    assert [t.dtype for t in fresh if t.dtype != torch.uint8] == 2 * [torch.float32]
    signs = [t for t in fresh if t.dtype == torch.uint8]
    assert len(signs) == (form == "residual, signs") and len(fresh) == 2 + len(signs)
    assert all(t.dim() == 1 for t in fresh) and all(t.nbytes <= case.x.nbytes // 8 + 3 for t in signs)
    with torch.autograd.graph.save_on_cpu():
        y = call(case)
    assert torch.equal(torch.autograd.grad(y.sum(), case.x)[0], plain)


@all_ops
@pytest.mark.parametrize("name", ("x", "weight", "bias", "residual"))
def test_in_place_modification_is_detected(backend: TestBackend, op: PlaneOp, name: str) -> None:
    case = requiring(case_of(op, backend, residual=True, activation="silu"), *LEAVES)
    changed = getattr(case, name) * 1
    y = call(case, **{name: changed})
    changed.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@all_ops
def test_in_place_use_of_the_output(backend: TestBackend, op: PlaneOp) -> None:
    """y is not saved: a following in-place op is allowed, as after torch's norms; running statistics may move on."""
    case = requiring(case_of(op, backend, running=True, activation="relu"), *LEAVES)
    plain = torch.autograd.grad(call(case).mul(2).sum(), case.x)[0]
    y = call(case)
    if case.running_mean is not None:
        case.running_mean.add_(1), case.running_var.mul_(2)
    assert torch.equal(torch.autograd.grad(y.mul_(2).sum(), case.x)[0], plain)


def test_evaluation_keeps_its_statistics(backend: TestBackend) -> None:
    """Between forward and backward in evaluation the running statistics may change: backward has its own."""
    case = requiring(case_of(BATCH_NORM, backend, running=True, batch_statistics=False), *LEAVES)
    plain = torch.autograd.grad(call(case).square().sum(), case.x)[0]
    y = call(case)
    case.running_mean.add_(1), case.running_var.mul_(2)
    assert torch.equal(torch.autograd.grad(y.square().sum(), case.x)[0], plain)


@all_ops
def test_eight_threads(backend: TestBackend, op: PlaneOp) -> None:
    """One graph run backward by many threads at once, each also with a graph of its own."""
    case = make_plane_case(op, (6, 8, 9, 7), running=False, activation="silu", device=backend.device)
    case = requiring(case, *LEAVES)
    y = call(case)
    expected = torch.autograd.grad(y.square().sum(), case.x, retain_graph=True)[0]
    wrong: list[object] = []

    def work() -> None:
        try:
            for _ in range(5):
                own = requiring(case, *LEAVES)
                grads = torch.autograd.grad(y.square().sum(), case.x, retain_graph=True)
                grads += torch.autograd.grad(call(own).square().sum(), own.x)
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


@not_sim
@all_ops
def test_autocast_keeps_the_dtype(backend: TestBackend, op: PlaneOp) -> None:
    """Output has the input's dtype, and nothing is cast: bf16 activations with fp32 parameters are one kernel."""
    options = {"param_dtype": torch.float32, "activation": "relu", "residual": True}
    case = make_plane_case(op, SHAPE, torch.bfloat16, **options, device=backend.device)
    outside = evaluate(case)
    with torch.autocast(backend.device.type, torch.bfloat16):
        assert_same_results(evaluate(case), outside)
        assert call(case_of(op, backend)).dtype == torch.float32
    assert outside["grad_weight"].dtype == torch.float32
