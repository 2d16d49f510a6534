"""Gradients of every order in fp64, for each subset of inputs that requires one and each subset of outputs used."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from cases import LEAVES, OPS, Case, Op, evaluate, make_case
from checks import assert_bitwise
from conftest import TestBackend
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

ABSENT, CONSTANT, WANTED = "absent", "constant", "wanted"
all_ops = pytest.mark.parametrize("op", OPS, ids=str)
with_residual = pytest.mark.parametrize("op", [op for op in OPS if op.has_residual], ids=str)


def differentiable(case: Case, wanted: list[str], outputs: slice = slice(None)) -> tuple[Callable, list[Tensor]]:
    """(function of the wanted leaves alone, those leaves), for gradcheck."""
    leaves = [getattr(case, name).detach().requires_grad_() for name in wanted]

    def function(*tensors: Tensor) -> tuple[Tensor, ...]:
        arguments, keywords = case.replace(**dict(zip(wanted, tensors, strict=True))).arguments
        result = case.op.function(*arguments, **keywords)
        return (result if case.op.has_residual else (result,))[outputs]

    return function, leaves


def subsets(op: Op) -> list[dict[str, str]]:
    choices = {"x": (CONSTANT, WANTED), "weight": (ABSENT, CONSTANT, WANTED)}
    if op.has_bias:
        choices["bias"] = (ABSENT, CONSTANT, WANTED)
    if op.has_residual:
        choices["residual"] = (CONSTANT, WANTED)
    every = (dict(zip(choices, states, strict=True)) for states in itertools.product(*choices.values()))
    return [states for states in every if WANTED in states.values()]


SUBSETS = [(op, states) for op in OPS for states in subsets(op)]


@pytest.mark.backends("cpu", "cuda")
@pytest.mark.parametrize(
    "op, states", SUBSETS, ids=lambda v: str(v) if isinstance(v, Op) else "-".join(f"{k}_{s}" for k, s in v.items())
)
def test_every_subset_of_inputs(backend: TestBackend, op: Op, states: dict[str, str]) -> None:
    case = make_case(op, (2,), (3,), torch.float64, eps=1e-3, device=backend.device)
    case = case.replace(**{name: None for name, state in states.items() if state == ABSENT})
    function, leaves = differentiable(case, [name for name in LEAVES if states.get(name) == WANTED])
    assert gradcheck(function, leaves)
    assert gradgradcheck(function, leaves)


@all_ops
@pytest.mark.parametrize("lead, shape", (((3,), (5,)), ((2, 3), (4,)), ((2,), (3, 4)), ((), (6,)), ((2,), (1,))))
def test_shapes(backend: TestBackend, op: Op, lead: tuple[int, ...], shape: tuple[int, ...]) -> None:
    case = make_case(op, lead, shape, torch.float64, eps=1e-3, device=backend.device)
    function, leaves = differentiable(case, [name for name in LEAVES if getattr(case, name) is not None])
    assert gradcheck(function, leaves)
    assert gradgradcheck(function, leaves)


@with_residual
@pytest.mark.parametrize("outputs", (slice(0, 1), slice(1, 2)), ids=("y alone", "sum alone"))
def test_one_output_used(backend: TestBackend, op: Op, outputs: slice) -> None:
    case = make_case(op, (2,), (3,), torch.float64, eps=1e-3, device=backend.device)
    wanted = [name for name in LEAVES if getattr(case, name) is not None]
    function, leaves = differentiable(case, wanted, outputs)
    if outputs == slice(1, 2):  # the sum does not depend on the parameters
        case = case.replace(**{name: getattr(case, name).detach() for name in wanted})
        function, leaves = differentiable(case, ["x", "residual"], outputs)
    assert gradcheck(function, leaves)
    assert gradgradcheck(function, leaves)


@all_ops
def test_third_derivative(backend: TestBackend, op: Op) -> None:
    case = make_case(op, (2,), (4,), torch.float64, eps=1e-3, device=backend.device)
    function, leaves = differentiable(case, [name for name in LEAVES if getattr(case, name) is not None])

    def gradient(*tensors: Tensor) -> tuple[Tensor, ...]:
        loss = sum(output.pow(3).sum() for output in function(*tensors))
        return torch.autograd.grad(loss, tensors, create_graph=True)

    assert gradgradcheck(gradient, leaves)


@all_ops
def test_double_backward_in_single_precision(backend: TestBackend, op: Op) -> None:
    """A gradient penalty in fp32 and bf16, against the reference in fp64."""

    def penalty(function: Callable, case: Case) -> list[Tensor]:
        names = [name for name in LEAVES if getattr(case, name) is not None]
        leaves = {name: getattr(case, name).detach().requires_grad_() for name in names}
        arguments, keywords = case.replace(**leaves).arguments
        output = function(*arguments, **keywords)
        output = output[0] if case.op.has_residual else output
        first = torch.autograd.grad((output * case.grad_y).sum(), leaves["x"], create_graph=True)
        return list(torch.autograd.grad(first[0].square().sum(), [leaves["x"], leaves["weight"]]))

    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 6e-2)):
        case = make_case(op, 6, 40, dtype, eps=1e-3, device=backend.device)
        if op.has_residual:  # the oracle does not round the sum
            case = case.replace(residual=torch.zeros_like(case.residual))
        exact = penalty(op.reference, case.map(Tensor.double))
        for ours, theirs in zip(penalty(op.function, case), exact, strict=True):
            assert ours.dtype == dtype
            scale = theirs.abs().max().item()
            torch.testing.assert_close(ours.double(), theirs, rtol=tolerance, atol=tolerance * scale)


@with_residual
@pytest.mark.parametrize("dtype, residual_dtype", ((torch.float32, torch.float32), (torch.bfloat16, torch.float32)))
def test_unused_sum_means_no_gradient_of_it(
    backend: TestBackend, op: Op, dtype: torch.dtype, residual_dtype: torch.dtype
) -> None:
    """backward through y alone equals backward with a zero gradient of the sum."""
    case = make_case(op, 5, 65, dtype, residual_dtype=residual_dtype, device=backend.device)
    zero = evaluate(case.replace(grad_sum=torch.zeros_like(case.grad_sum)))
    names = [name for name in LEAVES if getattr(case, name) is not None]
    leaves = {name: getattr(case, name).detach().requires_grad_() for name in names}
    arguments, keywords = case.replace(**leaves).arguments
    y, total = op.function(*arguments, **keywords)
    alone = torch.autograd.grad(y, list(leaves.values()), case.grad_y, retain_graph=True)
    for name, grad in zip(names, alone, strict=True):
        torch.testing.assert_close(grad, zero[f"grad_{name}"])
    through_sum = torch.autograd.grad(total, [leaves["x"], leaves["residual"]], case.grad_sum)
    torch.testing.assert_close(through_sum[0], case.grad_sum.to(dtype), rtol=0, atol=0)
    torch.testing.assert_close(through_sum[1], case.grad_sum, rtol=0, atol=0)


@all_ops
def test_gradients_of_a_subset_are_the_same_bits(backend: TestBackend, op: Op) -> None:
    """Which other gradients are wanted does not change one."""
    case = make_case(op, 9, 65, torch.bfloat16, device=backend.device)
    full = evaluate(case)
    for name in LEAVES:
        if getattr(case, name) is None:
            continue
        function, leaves = differentiable(case, [name])
        outputs = function(*leaves)
        flowing = [case.grad_y, case.grad_sum][: len(outputs)]
        if name in ("weight", "bias"):  # the sum does not depend on them
            outputs, flowing = outputs[:1], flowing[:1]
        (grad,) = torch.autograd.grad(outputs, leaves, flowing)
        assert_bitwise(name, grad, full[f"grad_{name}"])


@all_ops
def test_gradients_are_contiguous_and_accumulate(backend: TestBackend, op: Op) -> None:
    case = make_case(op, (3, 4), 65, device=backend.device)
    once = evaluate(case)
    names = [name for name in LEAVES if getattr(case, name) is not None]
    leaves = {name: getattr(case, name).detach().requires_grad_() for name in names}
    for _ in range(2):
        arguments, keywords = case.replace(**leaves).arguments
        output = op.function(*arguments, **keywords)
        flowing = [case.grad_y, case.grad_sum] if op.has_residual else [case.grad_y]
        torch.autograd.backward(output if op.has_residual else [output], flowing)
    for name, leaf in leaves.items():
        assert leaf.grad is not None and leaf.grad.is_contiguous()
        torch.testing.assert_close(leaf.grad, 2 * once[f"grad_{name}"], rtol=0, atol=0)
