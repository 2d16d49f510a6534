"""torch.func and forward-mode AD on the plane family: the composite formula, against the reference, and afterwards the
kernels again."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from cases import dtype_id
from conftest import TestBackend
from plane_cases import BATCH_NORM, INSTANCE_NORM, LAYOUTS, LEAVES, PLANE_OPS, PlaneCase, PlaneOp, make_plane_case
from torch import Tensor
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

pytestmark = pytest.mark.backends("cpu", "cuda")
all_ops = pytest.mark.parametrize("op", PLANE_OPS, ids=str)
FORMS = {  # what the composite formula must know
    "plain": {},
    "activated": {"activation": "gelu"},
    "masked": {"mask": "scattered", "activation": "silu"},
    "evaluation": {"batch_statistics": False, "running": True, "activation": "gelu_tanh"},
}
all_forms = pytest.mark.parametrize("form", FORMS)
Run = Callable[..., Tensor]


@pytest.fixture
def small(backend: TestBackend, op: PlaneOp, form: str) -> PlaneCase:
    if form == "evaluation" and op not in (BATCH_NORM, INSTANCE_NORM):
        pytest.skip("GroupNorm has no evaluation")
    options = {"eps": 1e-3, "running": False, "residual": True} | FORMS[form]
    return make_plane_case(op, (3, 4, 2, 3), torch.float64, **options, device=backend.device)


def of_leaves(case: PlaneCase, function: Callable[..., Any]) -> tuple[Run, list[Tensor]]:
    names = [name for name in LEAVES if getattr(case, name) is not None]

    def run(*tensors: Tensor) -> Tensor:
        arguments, keywords = case.replace(**dict(zip(names, tensors, strict=True))).arguments
        return function(*arguments, **keywords)

    return run, [getattr(case, name) for name in names]


def compare(case: PlaneCase, transformed: Callable[[Run, list[Tensor]], Any]) -> None:
    """`transformed` of our function against the same of the reference; a call afterwards still records our node."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # vmap warns where it falls back to a loop
        ours = transformed(*of_leaves(case, case.op.function))
    torch.testing.assert_close(ours, transformed(*of_leaves(case, case.op.reference)))
    run, leaves = of_leaves(case, case.op.function)
    assert run(*[t.detach().requires_grad_() for t in leaves]).grad_fn.name() == case.op.node


def loss(run: Run) -> Run:
    return lambda *leaves: run(*leaves).pow(3).sum()


@all_ops
@all_forms
def test_grad(small: PlaneCase) -> None:
    compare(small, lambda run, leaves: grad(loss(run), tuple(range(len(leaves))))(*leaves))


@all_ops
@all_forms
def test_vjp_and_jvp(small: PlaneCase) -> None:
    compare(small, lambda run, leaves: vjp(run, *leaves)[1](torch.ones_like(run(*leaves))))
    compare(small, lambda run, leaves: jvp(run, tuple(leaves), tuple(t.cos() for t in leaves)))


@all_ops
@pytest.mark.parametrize("form", ("activated", "masked"))
def test_jacobians_and_hessian(small: PlaneCase) -> None:
    every = lambda leaves: tuple(range(len(leaves)))  # noqa: E731
    compare(small, lambda run, leaves: jacrev(run, every(leaves))(*leaves))
    compare(small, lambda run, leaves: jacfwd(run, every(leaves))(*leaves))
    compare(small, lambda run, leaves: hessian(loss(run), every(leaves))(*leaves))


@all_ops
@all_forms
def test_vmap_over_everything(small: PlaneCase) -> None:
    """An ensemble: every input and every parameter has a dimension of its own, not the first one for x."""

    def mapped(run: Run, leaves: list[Tensor]) -> Tensor:
        stacked = [torch.stack([t, 2 * t, t - 1], 1 if i == 0 else 0) for i, t in enumerate(leaves)]
        return vmap(run, (1, *[0] * (len(leaves) - 1)))(*stacked)

    compare(small, mapped)


@all_ops
@all_forms
def test_per_sample_gradients(small: PlaneCase) -> None:
    """Batches mapped over, parameters shared."""

    def mapped(run: Run, leaves: list[Tensor]) -> Any:
        maps = [t.dim() == 4 for t in leaves]
        several = [torch.stack([t, t.cos()]) if map_it else t for t, map_it in zip(leaves, maps, strict=True)]
        dims = tuple(0 if map_it else None for map_it in maps)
        return vmap(grad(loss(run), tuple(range(len(leaves)))), dims)(*several)

    compare(small, mapped)


@all_ops
def test_vmap_of_a_mask(backend: TestBackend, op: PlaneOp) -> None:
    """Masks that differ from map to map."""
    case = make_plane_case(op, (3, 4, 2, 3), torch.float64, running=False, device=backend.device)
    masks = torch.rand(5, 3, 1, 2, 3, device=backend.device) < 0.7

    def run(function: Callable[..., Any]) -> Tensor:
        def one(mask: Tensor) -> Tensor:
            arguments, keywords = case.replace(mask=mask).arguments
            return function(*arguments, **keywords)

        return vmap(one)(masks)

    torch.testing.assert_close(run(op.function), run(op.reference))


@all_ops
@pytest.mark.parametrize("form", ("plain", "masked"))
def test_batched_gradients(small: PlaneCase) -> None:
    """is_grads_batched: vmap over the backward of our node."""

    def batched(run: Run, leaves: list[Tensor]) -> Any:
        required = [t.detach().requires_grad_() for t in leaves]
        y = run(*required)
        flowing = torch.stack([torch.ones_like(y), y.detach(), y.detach().cos()])
        return torch.autograd.grad(y, required, flowing, is_grads_batched=True)

    compare(small, batched)


@all_ops
@all_forms
def test_a_tangent_of_one_leaf_alone(small: PlaneCase) -> None:
    """Each leaf in turn carries the only tangent: none of them may be overlooked."""
    _, leaves = of_leaves(small, small.op.function)
    for index in range(len(leaves)):

        def tangent(run: Run, leaves: list[Tensor], index: int = index) -> Tensor:
            with forward_ad.dual_level():
                duals = [forward_ad.make_dual(t, t.cos()) if i == index else t for i, t in enumerate(leaves)]
                result = forward_ad.unpack_dual(run(*duals)).tangent
                assert result is not None and result.abs().sum() > 0
                return result

        compare(small, tangent)


@all_ops
@pytest.mark.parametrize("form", ("plain", "activated"))
def test_gradcheck_forward_mode_and_batched(small: PlaneCase) -> None:
    run, leaves = of_leaves(small, small.op.function)
    required = [t.detach().requires_grad_() for t in leaves]
    assert torch.autograd.gradcheck(run, required, check_forward_ad=True, check_batched_grad=True)


@all_ops
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=dtype_id)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_composite_agrees_with_the_kernel(backend: TestBackend, op: PlaneOp, dtype: torch.dtype, layout: str) -> None:
    """vmap computes as the kernels do: fp32 inside, rounded once at the end."""
    options = {"param_dtype": torch.float32, "running": False, "activation": "silu", "residual": True}
    case = make_plane_case(op, (3, 6, 5, 4), dtype, layout=layout, **options, device=backend.device)
    run, leaves = of_leaves(case, op.function)
    mapped = vmap(run)(*[torch.stack([t, t / 2]) for t in leaves])
    direct = torch.stack([run(*leaves), run(*[t / 2 for t in leaves])])
    assert mapped.dtype == dtype
    torch.testing.assert_close(mapped, direct, rtol=torch.finfo(dtype).eps, atol=1e-5)


@pytest.mark.parametrize("op", (BATCH_NORM, INSTANCE_NORM), ids=str)
def test_running_statistics_under_grad(backend: TestBackend, op: PlaneOp) -> None:
    """torch.func.grad of a module in training: its buffers follow, as with torch's own module."""
    case = make_plane_case(op, (3, 4, 5, 2), torch.float64, momentum=0.3, device=backend.device)
    results = []
    for function in (op.function, op.torch):
        own = {n: getattr(case, n).clone() for n in ("running_mean", "running_var")}

        def objective(x: Tensor, function: Callable = function, own: dict[str, Tensor] = own) -> Tensor:
            arguments, keywords = case.replace(x=x, **own).arguments
            return function(*arguments, **keywords).pow(3).sum()

        results.append([grad(objective)(case.x), *own.values()])
    torch.testing.assert_close(*results)


@all_ops
@pytest.mark.parametrize("form", ("activated",))
def test_compiled_transform(small: PlaneCase) -> None:
    torch._dynamo.reset()

    def mapped(run: Run, leaves: list[Tensor]) -> Any:
        function = vmap(grad(loss(run)), (0, *[None] * (len(leaves) - 1)))
        several = torch.stack([leaves[0], leaves[0].cos()])
        return torch.compile(function, backend="aot_eager", fullgraph=True)(several, *leaves[1:])

    compare(small, mapped)
    torch._dynamo.reset()
