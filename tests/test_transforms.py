"""torch.func and forward-mode AD run the composite formula; it agrees with the kernels and with the reference.

That the kernels run again afterwards is tested too: a transform used once must not slow down the rest of a program.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from cases import LAYER_NORM, LEAVES, OPS, Case, Op, make_case
from conftest import TestBackend
from torch import Tensor
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

pytestmark = pytest.mark.backends("cpu", "cuda")
all_ops = pytest.mark.parametrize("op", OPS, ids=str)


@pytest.fixture
def small(backend: TestBackend, op: Op) -> Case:
    return make_case(op, 3, 6, torch.float64, eps=1e-3, device=backend.device)


def of_leaves(case: Case, function: Callable[..., Any]) -> tuple[Callable[..., Tensor], list[Tensor]]:
    """(outputs as one tensor, as a function of the leaves; the leaves)."""
    names = [name for name in LEAVES if getattr(case, name) is not None]

    def run(*tensors: Tensor) -> Tensor:
        arguments, keywords = case.replace(**dict(zip(names, tensors, strict=True))).arguments
        output = function(*arguments, **keywords)
        return torch.stack(output) if case.op.has_residual else output

    return run, [getattr(case, name) for name in names]


def compare(case: Case, transformed: Callable[[Callable[..., Tensor], list[Tensor]], Any]) -> None:
    """`transformed` of our function against the same of the reference; a call afterwards still records our node.

    (Not against torch's function: in torch 2.13 the hessian of its layer_norm is wrong in the block of weight and x.)
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # vmap warns where it falls back to a loop
        ours = transformed(*of_leaves(case, case.op.function))
    torch.testing.assert_close(ours, transformed(*of_leaves(case, case.op.reference)))
    run, leaves = of_leaves(case, case.op.function)
    name = run(*[t.detach().requires_grad_() for t in leaves]).grad_fn.name()
    assert name == ("StackBackward0" if case.op.has_residual else case.op.node)


def loss(run: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *leaves: run(*leaves).pow(3).sum()


@all_ops
def test_grad(small: Case) -> None:
    compare(small, lambda run, leaves: grad(loss(run), tuple(range(len(leaves))))(*leaves))


@all_ops
def test_grad_of_grad(small: Case) -> None:
    def second(run: Callable[..., Tensor], leaves: list[Tensor]) -> Tensor:
        first = grad(loss(run))
        return grad(lambda *tensors: first(*tensors).square().sum())(*leaves)

    compare(small, second)


@all_ops
def test_vjp(small: Case) -> None:
    compare(small, lambda run, leaves: vjp(run, *leaves)[1](torch.ones_like(run(*leaves))))


@all_ops
def test_jvp(small: Case) -> None:
    compare(small, lambda run, leaves: jvp(run, tuple(leaves), tuple(t.cos() for t in leaves)))


@all_ops
@pytest.mark.parametrize("jacobian", (jacrev, jacfwd), ids=("jacrev", "jacfwd"))
def test_jacobians(small: Case, jacobian: Callable[..., Any]) -> None:
    compare(small, lambda run, leaves: jacobian(run, tuple(range(len(leaves))))(*leaves))


@all_ops
def test_hessian(small: Case) -> None:
    compare(small, lambda run, leaves: hessian(loss(run), tuple(range(len(leaves))))(*leaves))


@all_ops
def test_vmap_over_the_batch(small: Case) -> None:
    """The rows mapped over, the parameters shared."""

    def mapped(run: Callable[..., Tensor], leaves: list[Tensor]) -> Tensor:
        return vmap(run, tuple(0 if t.dim() == 2 else None for t in leaves))(*leaves)

    compare(small, mapped)


@all_ops
def test_vmap_over_everything(small: Case) -> None:
    """An ensemble: every input and every parameter has a dimension of its own, not the first one for x."""

    def mapped(run: Callable[..., Tensor], leaves: list[Tensor]) -> Tensor:
        stacked = [torch.stack([t, 2 * t, t - 1], 1 if i == 0 else 0) for i, t in enumerate(leaves)]
        return vmap(run, (1, *[0] * (len(leaves) - 1)))(*stacked)

    compare(small, mapped)


@all_ops
def test_per_sample_gradients(small: Case) -> None:
    def mapped(run: Callable[..., Tensor], leaves: list[Tensor]) -> Any:
        every = tuple(range(len(leaves)))
        return vmap(grad(loss(run), every), tuple(0 if t.dim() == 2 else None for t in leaves))(*leaves)

    compare(small, mapped)


@all_ops
def test_backward_through_vmap(small: Case) -> None:
    def through(run: Callable[..., Tensor], leaves: list[Tensor]) -> Any:
        required = [t.detach().requires_grad_() for t in leaves]
        y = vmap(run, tuple(0 if t.dim() == 2 else None for t in required))(*required)
        return torch.autograd.grad(y.pow(3).sum(), required)

    compare(small, through)


@all_ops
def test_batched_gradients(small: Case) -> None:
    """is_grads_batched: vmap over the backward of our node."""

    def batched(run: Callable[..., Tensor], leaves: list[Tensor]) -> Any:
        required = [t.detach().requires_grad_() for t in leaves]
        y = run(*required)
        flowing = torch.stack([torch.ones_like(y), y.detach(), y.detach().cos()])
        return torch.autograd.grad(y, required, flowing, is_grads_batched=True)

    compare(small, batched)


@all_ops
def test_dual_numbers(small: Case) -> None:
    def tangent(run: Callable[..., Tensor], leaves: list[Tensor]) -> Tensor:
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(t, t.cos()) for t in leaves]
            result = forward_ad.unpack_dual(run(*duals)).tangent
            assert result is not None and result.abs().sum() > 0
            return result

    compare(small, tangent)


@all_ops
def test_a_tangent_of_one_leaf_alone(small: Case) -> None:
    """Each leaf in turn carries the only tangent: none of them may be overlooked."""
    _, leaves = of_leaves(small, small.op.function)
    for index in range(len(leaves)):

        def tangent(run: Callable[..., Tensor], leaves: list[Tensor], index: int = index) -> Tensor:
            with forward_ad.dual_level():
                duals = [forward_ad.make_dual(t, t.cos()) if i == index else t for i, t in enumerate(leaves)]
                return forward_ad.unpack_dual(run(*duals)).tangent

        compare(small, tangent)


@all_ops
def test_gradcheck_forward_mode_and_batched(small: Case) -> None:
    run, leaves = of_leaves(small, small.op.function)
    required = [t.detach().requires_grad_() for t in leaves]
    assert torch.autograd.gradcheck(run, required, check_forward_ad=True, check_batched_grad=True)


@all_ops
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_composite_agrees_with_the_kernel(backend: TestBackend, op: Op, dtype: torch.dtype) -> None:
    """vmap computes as the kernels do: fp32 inside, rounded once, the sum rounded before it is normalised."""
    case = make_case(op, 8, 40, dtype, param_dtype=torch.float32, residual_dtype=torch.float32, device=backend.device)

    def wide(*arguments: Any, **keywords: Any) -> Any:
        output = op.function(*arguments, **keywords)
        return tuple(t.float() for t in output) if op.has_residual else output.float()

    run, leaves = of_leaves(case, wide)
    mapped = vmap(run, tuple(0 if t.dim() == 2 else None for t in leaves))(*leaves)
    direct = torch.stack([run(*[t[i] if t.dim() == 2 else t for t in leaves]) for i in range(8)])
    torch.testing.assert_close(mapped, direct, rtol=torch.finfo(dtype).eps, atol=1e-5)


def test_compiled_transform(backend: TestBackend) -> None:
    torch._dynamo.reset()
    case = make_case(LAYER_NORM, 3, 6, torch.float64, device=backend.device)

    def mapped(run: Callable[..., Tensor], leaves: list[Tensor]) -> Any:
        function = vmap(grad(loss(run), (0, 1)), (0, None, None))
        return torch.compile(function, backend="aot_eager", fullgraph=True)(*leaves)

    compare(case, mapped)
