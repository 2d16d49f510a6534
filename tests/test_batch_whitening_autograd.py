"""Whitening under differentiation, transforms and autograd's machinery."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from checks import assert_bitwise, assert_same_results
from conftest import TestBackend
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from whitening_cases import LEAVES, RUNNING, Arguments, all_methods, both_modes, make, orthogonal, results_of

from torchfastnorm import BatchWhitening, IterNorm, batch_whitening, reference

not_sim = pytest.mark.backends("cpu", "cuda")
NODE = "BatchWhiteningBackward"
Run = Callable[..., Tensor]


def small(backend: TestBackend, dtype: torch.dtype = torch.float64) -> Arguments:
    """Two groups of three channels, six positions."""
    return make((3, 6, 2), 3, dtype, backend)


def of_leaves(function: Any, arguments: Arguments, **options: Any) -> tuple[Run, list[Tensor]]:
    """A function of input, weight and bias, without updates in training, and these."""
    running = {name: arguments[name] for name in RUNNING} if not options.get("training") else {}

    def run(*leaves: Tensor) -> Tensor:
        return function(**dict(zip(LEAVES, leaves, strict=True)), **running, num_channels=3, eps=1e-3, **options)

    return run, [arguments[name].clone() for name in LEAVES]


def both(backend: TestBackend, transformed: Callable[[Run, list[Tensor]], Any], **options: Any) -> None:
    """`transformed` of our function against the same of the reference; a call afterwards still records our node."""
    arguments = small(backend)
    ours, theirs = (
        transformed(*of_leaves(f, arguments, **options)) for f in (batch_whitening, reference.batch_whitening)
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-8)
    run, leaves = of_leaves(batch_whitening, arguments, **options)
    assert run(*[t.requires_grad_() for t in leaves]).grad_fn.name() == NODE


class Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "torchfastnorm":
            self.seen.append(func._schema.name.removeprefix("torchfastnorm::"))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("running", (False, True))
def test_which_ops_run(backend: TestBackend, running: bool) -> None:
    """One op without a gradient, forward and backward ops with one; again these and no formula where torch asks for no
    second derivative; running statistics go to the op that says that it writes."""
    arguments = {n: t for n, t in small(backend).items() if running or n not in RUNNING}
    suffix = "_with_update" if running else ""
    with Recorder() as recorder:
        plain = batch_whitening(**{n: t.clone() for n, t in arguments.items()}, training=True, num_channels=3)
    assert recorder.seen == [f"batch_whitening{suffix}"]
    with Recorder() as recorder:
        results = results_of(batch_whitening, arguments, training=True, num_channels=3)
    assert recorder.seen == [f"whitening_forward{suffix}", "whitening_backward"]
    assert_bitwise("y", results["y"], plain)
    x = arguments["input"].clone().requires_grad_()
    with Recorder() as recorder:
        y = batch_whitening(x, training=True, num_channels=3)
        (first,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    assert (
        recorder.seen == ["whitening_forward"] and first.requires_grad
    )  # and the formula, which can be differentiated
    torch.testing.assert_close(
        first, results_of(batch_whitening, {"input": x}, 2 * y.detach(), training=True, num_channels=3)["grad_input"]
    )


@not_sim
@all_methods
@both_modes
def test_gradcheck(backend: TestBackend, method: str, training: bool) -> None:
    """First and second derivatives, in reverse, in forward mode, batched."""
    run, leaves = of_leaves(batch_whitening, small(backend), training=training, method=method)
    required = [t.requires_grad_() for t in leaves]
    assert gradcheck(run, required, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True)
    assert gradgradcheck(run, required, check_batched_grad=True)


@not_sim
def test_forward_over_reverse(backend: TestBackend) -> None:
    run, leaves = of_leaves(batch_whitening, small(backend), training=True)
    options = {"check_fwd_over_rev": True, "check_undefined_grad": False, "fast_mode": True}
    assert gradgradcheck(run, [t.requires_grad_() for t in leaves], check_rev_over_rev=False, **options)


@not_sim
@pytest.mark.parametrize("method", ("zca", "iternorm", "cholesky"))
def test_second_derivative_at_coinciding_eigenvalues(backend: TestBackend, method: str) -> None:
    x = orthogonal(backend).requires_grad_()
    run = lambda t: batch_whitening(t, training=True, method=method)  # noqa: E731
    assert gradcheck(run, x) and gradgradcheck(run, x)


def derivatives(run: Run, leaves: list[Tensor], order: int) -> list[Tensor]:
    """Gradients of a scalar, then of a scalar of these, and so on."""
    required = [t.clone().requires_grad_() for t in leaves]
    y = run(*required)
    value = (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype, device=y.device).view(y.shape)).sum() + y.pow(3).sum()
    for at in range(order):
        grads = torch.autograd.grad(value, required, create_graph=at < order - 1)
        value = sum(g.square().sum() for g in grads)
    return [g / g.abs().max().clamp_min(1) for g in grads]


@not_sim
@all_methods
@both_modes
def test_further_derivatives(backend: TestBackend, method: str, training: bool) -> None:
    """The fourth is the last one that is promised for zca."""
    for order in (2, 3, 4) if method == "zca" else (2, 3):
        both(backend, lambda run, leaves, n=order: derivatives(run, leaves, n), training=training, method=method)


def loss(run: Run) -> Run:
    return lambda *leaves: run(*leaves).pow(3).sum()


@not_sim
@all_methods
@both_modes
def test_transforms(backend: TestBackend, method: str, training: bool) -> None:
    options = {"training": training, "method": method}
    every = (0, 1, 2)
    both(backend, lambda run, leaves: grad(loss(run), every)(*leaves), **options)
    both(backend, lambda run, leaves: jvp(run, tuple(leaves), tuple(t.cos() for t in leaves)), **options)
    both(backend, lambda run, leaves: vmap(run)(*[torch.stack([t, 2 * t, t - 1]) for t in leaves]), **options)
    both(backend, lambda run, leaves: vmap(grad(loss(run)), (1, None, None))(
        torch.stack([leaves[0], leaves[0].cos()], 1), *leaves[1:]), **options)  # fmt: skip
    both(backend, lambda run, leaves: jacrev(run, every)(*leaves), **options)
    if method in ("zca", "iternorm"):
        both(backend, lambda run, leaves: jacfwd(run, every)(*leaves), **options)
        both(backend, lambda run, leaves: hessian(loss(run), every)(*leaves), **options)


@not_sim
def test_a_tangent_of_one_leaf_alone(backend: TestBackend) -> None:
    for index in range(3):

        def tangent(run: Run, leaves: list[Tensor], index: int = index) -> Tensor:
            with forward_ad.dual_level():
                duals = [forward_ad.make_dual(t, t.cos()) if i == index else t for i, t in enumerate(leaves)]
                result = forward_ad.unpack_dual(run(*duals)).tangent
                assert result is not None and result.abs().sum() > 0
                return result

        both(backend, tangent, training=True)


@not_sim
def test_vmap_does_not_share_running_statistics(backend: TestBackend) -> None:
    own = small(backend)
    before = {name: own[name].clone() for name in RUNNING}
    xs = torch.stack([own["input"], own["input"].cos()])

    def one(x: Tensor, mean: Tensor, wm: Tensor) -> Tensor:
        return batch_whitening(x, mean, wm, training=True, num_channels=3)

    with pytest.raises(RuntimeError, match=r"under vmap.*running_mean and running_wm"):
        vmap(one, (0, None, None))(xs, own["running_mean"], own["running_wm"])
    assert all(torch.equal(own[name], before[name]) for name in RUNNING)
    several = [torch.stack([own[name]] * 2) for name in RUNNING]  # each its own: allowed
    y = vmap(one)(xs, *several)
    for at in range(2):
        single = [own[name].clone() for name in RUNNING]
        torch.testing.assert_close(y[at], one(xs[at], *single))
        torch.testing.assert_close([t[at] for t in several], single)
    evaluated = vmap(lambda x: batch_whitening(x, own["running_mean"], own["running_wm"], num_channels=3))(xs)
    assert evaluated.shape == xs.shape


@not_sim
def test_running_statistics_under_grad(backend: TestBackend) -> None:
    """torch.func.grad of a call in training: the running statistics follow."""
    own = small(backend)
    ones = torch.ones_like(own["input"])
    expected = results_of(reference.batch_whitening, own, ones, ("input",), training=True, num_channels=3)
    found = grad(lambda x: batch_whitening(**(own | {"input": x}), training=True, num_channels=3).sum())(own["input"])
    for name, t in {"grad_input": found, **{name: own[name] for name in RUNNING}}.items():
        torch.testing.assert_close(t, expected[name], rtol=1e-8, atol=1e-8)


@all_methods
@both_modes
def test_every_subset_of_gradients(backend: TestBackend, method: str, training: bool) -> None:
    """What is not asked for is not computed, and changes no bit of what is."""
    arguments = small(backend, torch.float32)
    options = {"training": training, "num_channels": 3, "method": method}
    every = results_of(batch_whitening, arguments, **options)
    for count in (1, 2):
        for wanted in combinations(LEAVES, count):
            found = results_of(batch_whitening, arguments, wanted=wanted, **options)
            assert_same_results(found, {name: every[name] for name in found})


@both_modes
def test_saved_tensors(backend: TestBackend, training: bool) -> None:
    """No copy of x and no y: mean, W and what its derivative needs."""
    arguments = small(backend, torch.float32)
    x, weight = (arguments[name].requires_grad_() for name in ("input", "weight"))
    for method, rows in (("zca", 4), ("pca", 4), ("iternorm", 3), ("cholesky", 0)):
        kept: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t) or t.clone(), lambda t: t):
            y = batch_whitening(**arguments, training=training, num_channels=3, method=method)
        assert {t.data_ptr() for t in kept} >= {x.data_ptr(), weight.data_ptr()}
        fresh = sorted(tuple(t.shape) for t in kept if t.data_ptr() not in (x.data_ptr(), weight.data_ptr()))
        assert fresh == sorted([(6,), (2, 3, 3), (2, rows if training else 0, 3)]), method
        y.sum().backward()


def test_in_place_modification_is_detected(backend: TestBackend) -> None:
    for name in ("input", "weight"):
        arguments = {n: t.requires_grad_(n in LEAVES) for n, t in small(backend).items()}
        changed = arguments[name] * 1
        y = batch_whitening(**(arguments | {name: changed}), training=True, num_channels=3)
        changed.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


@both_modes
def test_what_may_change_between_forward_and_backward(backend: TestBackend, training: bool) -> None:
    """y, bias and the running statistics, also in evaluation, are not saved."""
    own = small(backend)
    x = own.pop("input").requires_grad_()
    plain, changed = (batch_whitening(x, **own, training=training, num_channels=3) for _ in range(2))
    expected = torch.autograd.grad(plain.mul(2).sum(), x)[0]
    for name in (*RUNNING, "bias"):
        own[name].add_(1)
    assert torch.equal(torch.autograd.grad(changed.mul_(2).sum(), x)[0], expected)


def test_retain_graph(backend: TestBackend) -> None:
    module = IterNorm(6, num_groups=2).to(backend.device)
    x = small(backend, torch.float32)["input"].requires_grad_()
    y = module(x)
    first = torch.autograd.grad(y.square().sum(), x, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(y.square().sum(), x, retain_graph=True)[0], first)
    y.square().sum().backward()
    assert torch.equal(x.grad, first)
    with pytest.raises(RuntimeError, match="second time"):
        y.sum().backward()


@not_sim
@pytest.mark.parametrize("method", ("zca", "iternorm"))
def test_double_backward_through_a_module(backend: TestBackend, method: str) -> None:
    """A penalty on the gradient, as a user writes it: the parameters' gradients against the reference's."""
    module = BatchWhitening(6, 3, method, eps=1e-3).to(backend.device, torch.float64)
    x, grads = small(backend)["input"].requires_grad_(), []
    whiten = {"training": True, "eps": 1e-3, "num_channels": 3, "method": method}
    for run in (module, lambda x: reference.batch_whitening(x, weight=module.weight, bias=module.bias, **whiten)):
        (first,) = torch.autograd.grad(run(x).pow(3).sum(), x, create_graph=True)
        grads.append(torch.autograd.grad((first.norm() - 1).square(), (x, module.weight, module.bias)))
    torch.testing.assert_close(*grads, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("reentrant", (False, True))
def test_checkpoint(backend: TestBackend, reentrant: bool) -> None:
    own, grads = small(backend, torch.float32), []
    run = lambda x: batch_whitening(x, training=True, num_channels=3).relu()  # noqa: E731
    for form in (run, lambda x: checkpoint(run, x, use_reentrant=reentrant)):
        x = own["input"].clone().requires_grad_()
        form(x).sum().backward()
        grads.append(x.grad)
    assert torch.equal(*grads)


@not_sim
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_composite_agrees_with_the_kernel(backend: TestBackend, dtype: torch.dtype) -> None:
    """vmap computes as the kernels do: fp32 inside, rounded once."""
    arguments = small(backend, dtype)
    for method in ("zca", "iternorm", "cholesky"):
        run, leaves = of_leaves(batch_whitening, arguments, training=True, method=method)
        mapped = vmap(run)(*[torch.stack([t, t / 2]) for t in leaves])
        direct = torch.stack([run(*leaves), run(*[t / 2 for t in leaves])])
        torch.testing.assert_close(mapped, direct, rtol=torch.finfo(dtype).eps, atol=1e-5)
