"""Gradients of every order in fp64, against numerical ones: subsets of inputs, activations, masks, layouts."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from conftest import TestBackend
from plane_cases import (
    BATCH_NORM,
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
from torch.autograd import gradcheck, gradgradcheck

from torchfastnorm.reference._plane_norm import ACTIVATIONS

ABSENT, CONSTANT, WANTED = "absent", "constant", "wanted"
all_ops = pytest.mark.parametrize("op", PLANE_OPS, ids=str)
SMOOTH = ("none", "silu", "gelu", "gelu_tanh")  # the others have a kink, where a numerical second derivative is no use


def small(op: PlaneOp, backend: TestBackend, shape: tuple[int, ...] = (2, 4, 3), **options: object) -> PlaneCase:
    options = {"eps": 1e-2, "running": False, "residual": True} | options
    return make_plane_case(op, shape, torch.float64, **options, device=backend.device)


def differentiable(case: PlaneCase, wanted: list[str] | None = None) -> tuple[Callable, list[Tensor]]:
    """(function of the wanted leaves alone, those leaves), for gradcheck."""
    wanted = wanted or [name for name in LEAVES if getattr(case, name) is not None]

    def function(*tensors: Tensor) -> Tensor:
        arguments, keywords = case.replace(**dict(zip(wanted, tensors, strict=True))).arguments
        return case.op.function(*arguments, **keywords)

    return function, [getattr(case, name).detach().requires_grad_() for name in wanted]


def check_both(case: PlaneCase, wanted: list[str] | None = None) -> None:
    function, leaves = differentiable(case, wanted)
    assert gradcheck(function, leaves)
    assert gradgradcheck(function, leaves)


def subsets(op: PlaneOp) -> list[dict[str, str]]:
    choices = {"x": (CONSTANT, WANTED), "weight": (ABSENT, CONSTANT, WANTED), "bias": (ABSENT, CONSTANT, WANTED)}
    choices["residual"] = (ABSENT, CONSTANT, WANTED) if op is BATCH_NORM else (CONSTANT, WANTED)
    every = (dict(zip(choices, states, strict=True)) for states in itertools.product(*choices.values()))
    return [states for states in every if WANTED in states.values()]


@pytest.mark.backends("cpu", "cuda")
@all_ops
@pytest.mark.parametrize("activation", ("none", "silu"))
def test_every_subset_of_inputs(backend: TestBackend, op: PlaneOp, activation: str) -> None:
    for index, states in enumerate(subsets(op)):
        options = {"batch_statistics": False, "running": True} if op is BATCH_NORM and index % 3 == 1 else {}
        mask = "scattered" if index % 2 else None
        case = small(op, backend, (2, 2, 3), activation=activation, mask=mask, **options)
        case = case.replace(**{name: None for name, state in states.items() if state == ABSENT})
        check_both(case, [name for name in LEAVES if states.get(name) == WANTED])


@all_ops
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", ((4, 2), (2, 4, 3), (2, 4, 2, 2), (2, 2, 1, 2, 2), (1, 4, 3)))
def test_shapes(backend: TestBackend, op: PlaneOp, layout: str, shape: tuple[int, ...]) -> None:
    if op.name == "instance_norm" and len(shape) == 2:
        pytest.skip("a plane of one element")
    check_both(small(op, backend, shape, layout=layout, activation="gelu"))


@all_ops
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("mask", (None, "padding"))
def test_activations(backend: TestBackend, op: PlaneOp, activation: str, mask: str | None) -> None:
    layout = LAYOUTS[(list(ACTIVATIONS).index(activation) + (mask is None)) % 2]
    case = small(op, backend, activation=activation, mask=mask, layout=layout)
    function, leaves = differentiable(case)
    y = function(*leaves).detach()
    assert not ((y != 0) & (y.abs() < 1e-4)).any(), "a value next to the kink: choose another seed"
    assert gradcheck(function, leaves)
    if activation in SMOOTH:
        assert gradgradcheck(function, leaves)


@pytest.mark.parametrize("activation", ("none", "elu", "silu"))
@pytest.mark.parametrize("mask", (None, "scattered"))
def test_evaluation(backend: TestBackend, activation: str, mask: str | None) -> None:
    options = {"batch_statistics": False, "running": True, "activation": activation, "mask": mask}
    check_both(small(BATCH_NORM, backend, (2, 3, 2, 2), layout=LAST, **options))


@all_ops
@pytest.mark.parametrize("groups", (1, 2, 4))
def test_groups(backend: TestBackend, op: PlaneOp, groups: int) -> None:
    if op.name != "group_norm" and groups > 1:
        pytest.skip("no groups")
    check_both(small(op, backend, groups=groups, layout=LAYOUTS[groups % 2]))


@pytest.mark.backends("cpu", "cuda")
@all_ops
@pytest.mark.parametrize("activation", (*SMOOTH, "elu"))
def test_third_derivative(backend: TestBackend, op: PlaneOp, activation: str) -> None:
    """Of activations too whose second derivative torch computes by a function of its own."""
    mask = "scattered" if activation in ("silu", "gelu_tanh") else None
    function, leaves = differentiable(small(op, backend, (2, 2, 2), activation=activation, mask=mask))

    def gradient(*tensors: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(function(*tensors).pow(3).sum(), tensors, create_graph=True)

    assert gradgradcheck(gradient, leaves)


def penalty(function: Callable, case: PlaneCase) -> list[Tensor]:
    leaves = {n: getattr(case, n).detach().requires_grad_() for n in ("x", "weight", "bias")}
    arguments, keywords = case.replace(**leaves).arguments
    y = function(*arguments, **keywords)
    (first,) = torch.autograd.grad((y * case.grad_y).sum(), leaves["x"], create_graph=True)
    return list(torch.autograd.grad(first.square().sum(), [leaves["x"], leaves["weight"]]))


@all_ops
@pytest.mark.parametrize("dtype, tolerance", ((torch.float32, 1e-4), (torch.bfloat16, 6e-2)))
@pytest.mark.parametrize("mask", (None, "padding"))
def test_double_backward_in_low_precision(
    backend: TestBackend, op: PlaneOp, dtype: torch.dtype, tolerance: float, mask: str | None
) -> None:
    """A gradient penalty in fp32 and bf16, both layouts, against the reference in fp64."""
    for layout in LAYOUTS:
        options = {"eps": 1e-3, "running": False, "activation": "silu", "mask": mask, "layout": layout}
        case = make_plane_case(op, (3, 6, 5, 4), dtype, **options, device=backend.device)
        exact = penalty(op.reference, case.map(Tensor.double))
        for ours, theirs in zip(penalty(op.function, case), exact, strict=True):
            assert ours.dtype == dtype
            scale = theirs.abs().max().item()
            torch.testing.assert_close(ours.double(), theirs, rtol=tolerance, atol=tolerance * scale)


@all_ops
def test_double_backward_does_not_touch_running_statistics(backend: TestBackend, op: PlaneOp) -> None:
    """The composite formula of the second derivative must not take part in the update again."""
    case = small(op, backend, (2, 4, 3, 2), running=True, activation="silu")
    if case.running_mean is None:
        pytest.skip("GroupNorm has none")
    expected = evaluate(case, backward=False)
    own = {n: getattr(case, n).clone() for n in ("running_mean", "running_var")}
    penalty(op.function, case.replace(**own))
    for name, t in own.items():
        assert torch.equal(t, expected[name])


@all_ops
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_accumulate(backend: TestBackend, op: PlaneOp, layout: str) -> None:
    case = make_plane_case(op, (3, 6, 5, 7), layout=layout, activation="relu", device=backend.device)
    once = evaluate(case)
    leaves = {n: getattr(case, n).detach().requires_grad_() for n in ("x", "weight", "bias")}
    for _ in range(2):
        arguments, keywords = case.replace(**leaves).arguments
        op.function(*arguments, **keywords).backward(case.grad_y)
    for name, leaf in leaves.items():
        assert leaf.grad is not None and leaf.grad.stride() == leaf.stride()
        torch.testing.assert_close(leaf.grad, 2 * once[f"grad_{name}"], rtol=0, atol=0)


@all_ops
def test_a_resnet_block(backend: TestBackend, op: PlaneOp) -> None:
    """relu(norm(x) + x): both gradients flow into one x."""
    case = make_plane_case(op, (3, 6, 5, 7), activation="relu", device=backend.device)
    grads = []
    for function in (op.function, op.torch):
        x = case.x.detach().requires_grad_()
        arguments, keywords = case.replace(x=x, residual=x, running_mean=None, running_var=None).arguments
        (grad,) = torch.autograd.grad(function(*arguments, **keywords), x, case.grad_y)
        grads.append(grad)
    torch.testing.assert_close(*grads)
