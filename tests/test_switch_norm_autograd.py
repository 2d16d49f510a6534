"""SwitchNorm under differentiation, transforms and compilers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from conftest import TestBackend
from test_switch_norm import LEAVES, LOGITS, both_averages, both_modes, make
from torch import Tensor

from torchfastnorm import SwitchNorm1d, SwitchNorm2d, SwitchNorm3d, reference, switch_norm

pytestmark = pytest.mark.backends("cpu", "cuda")
some_shapes = pytest.mark.parametrize(
    "shape, terms", (((4, 3, 2, 3), 3), ((4, 3, 5), 2), ((4, 3), 2), ((4, 3, 1, 1), 3))
)


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch._dynamo.reset()


@both_modes
@some_shapes
@pytest.mark.parametrize("activation", ("none", "silu"))
def test_gradients_of_gradients(
    backend: TestBackend, shape: tuple[int, ...], terms: int, training: bool, activation: str
) -> None:
    arguments = make(shape, torch.float64, backend, terms=terms, residual=True)
    leaves = [arguments[name].requires_grad_() for name in LEAVES]

    def gradients(function: Any) -> Any:
        running = {name: t.clone() for name, t in arguments.items() if name.startswith("running")}
        y = function(**(arguments | running), training=training, activation=activation)
        seed = torch.linspace(-1, 1, y.numel(), dtype=y.dtype, device=y.device).view(y.shape).requires_grad_()
        first = torch.autograd.grad((y * seed).sum() + y.square().sum(), leaves, create_graph=True)
        return first + torch.autograd.grad(sum(g.square().sum() for g in first), [*leaves, seed])

    for ours, theirs in zip(gradients(switch_norm), gradients(reference.switch_norm), strict=True):
        scale = theirs.abs().max().clamp_min(1)
        torch.testing.assert_close(ours / scale, theirs / scale, rtol=0, atol=1e-8)


def test_every_subset_of_gradients(backend: TestBackend) -> None:
    """What is not asked for is not computed, and changes nothing else."""
    arguments = make((4, 3, 2, 3), torch.float64, backend, residual=True)
    every = dict(zip(LEAVES, gradients_of(arguments, LEAVES), strict=True))
    for name in LEAVES:
        others = tuple(other for other in LEAVES if other != name)
        for wanted in ((name,), others):
            for found, leaf in zip(gradients_of(arguments, wanted), wanted, strict=True):
                torch.testing.assert_close(found, every[leaf], rtol=1e-12, atol=1e-12)


def gradients_of(arguments: dict[str, Any], wanted: tuple[str, ...]) -> tuple[Tensor, ...]:
    own = {name: t.clone().requires_grad_(name in wanted) for name, t in arguments.items()}
    y = switch_norm(**own, training=True, activation="silu")
    return torch.autograd.grad(y.square().sum(), [own[name] for name in wanted])


@both_modes
@some_shapes
def test_forward_mode(backend: TestBackend, shape: tuple[int, ...], terms: int, training: bool) -> None:
    """jvp goes through the composite formula: against the reference's."""
    arguments = make(shape, torch.float64, backend, terms=terms)
    # Also over the running statistics, with tangents of zero: what a transform's function changes must be its argument.
    names = list(arguments)
    tangents = tuple(
        torch.zeros_like(t) if n.startswith("running") else torch.randn_like(t) for n, t in arguments.items()
    )

    def derivative(function: Any) -> Any:
        def of_tensors(*values: Tensor) -> Tensor:
            return function(**dict(zip(names, values, strict=True)), training=training)

        return torch.func.jvp(of_tensors, tuple(t.clone() for t in arguments.values()), tangents)

    for ours, theirs in zip(derivative(switch_norm), derivative(reference.switch_norm), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_reverse_mode_transform(backend: TestBackend) -> None:
    arguments = make((4, 3, 2, 3), torch.float64, backend, terms=2)

    def loss(function: Any) -> Any:
        return lambda own: function(**own, training=True, activation="silu").square().sum()

    ours, theirs = (torch.func.grad(loss(f))(arguments) for f in (switch_norm, reference.switch_norm))
    for name in arguments:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-9, atol=1e-9)


@both_modes
@both_averages
@some_shapes
def test_opcheck(
    backend: TestBackend, shape: tuple[int, ...], terms: int, training: bool, moving_average: bool
) -> None:
    """Schemas, fake kernels and autograd registrations."""
    own = make(shape, torch.float32, backend, terms=terms, residual=True)
    for name in LEAVES:
        own[name].requires_grad_()
    running = [own.get("running_mean"), own.get("running_var")]
    updates = training and running[0] is not None
    op = getattr(torch.ops.torchfastnorm, "switch_norm_with_update" if updates else "switch_norm")
    tensors = (own["input"], *(own[name] for name in LOGITS), *running, own["weight"], own["bias"])
    torch.library.opcheck(op, (*tensors, training, 0.9, 1e-5, moving_average, own["residual"], "silu"))


@both_averages
@pytest.mark.parametrize("kind", (SwitchNorm1d, SwitchNorm2d, SwitchNorm3d))
def test_fullgraph(backend: TestBackend, kind: Any, moving_average: bool) -> None:
    """In training and in evaluation: values, gradients, running statistics, and the number of batches."""
    module = kind(6, using_moving_average=moving_average, activation="silu").to(backend.device)
    module.mean_weight.data = module.mean_weight.data.half()  # each gradient has its own dtype
    twin = copy.deepcopy(module)
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    x = torch.randn(4, 6, *(3,) * (module.input_dims - 2), device=backend.device)
    for training in (True, True, True, False):
        module.train(training), twin.train(training)
        leaves = [x.clone().requires_grad_() for _ in range(2)]
        results = [f(leaf) for f, leaf in zip((module, compiled), leaves, strict=True)]
        for y in results:
            y.square().sum().backward()
        torch.testing.assert_close(*results)
        torch.testing.assert_close(*(leaf.grad for leaf in leaves))
    for (name, ours), theirs in zip(module.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=lambda m, name=name: f"{name}: {m}")
    for ours, theirs in zip(module.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_meta_tensors(backend: TestBackend) -> None:
    """Shapes and dtypes without values, forward and backward."""
    for shape, terms in (((4, 3, 2, 3), 3), ((4, 3, 5), 2), ((4, 3), 2)):
        own = make(shape, torch.bfloat16, backend, terms=terms, residual=True, other={"mean_weight": torch.float32})
        fake = {name: t.to("meta").requires_grad_(name in LEAVES) for name, t in own.items()}
        y = switch_norm(**fake, training=True)
        leaves = [fake[name] for name in LEAVES]
        for grad, leaf in zip(torch.autograd.grad(y, leaves, torch.empty_like(y)), leaves, strict=True):
            assert (grad.device.type, grad.shape, grad.dtype) == ("meta", leaf.shape, leaf.dtype)


def test_autocast_keeps_the_dtype(backend: TestBackend) -> None:
    module = SwitchNorm2d(6).to(backend.device)
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(4, 6, 5, 5, device=backend.device, dtype=dtype, requires_grad=True)
        with torch.autocast(backend.device.type, torch.bfloat16):
            y = module(x)
        y.float().sum().backward()
        assert y.dtype == x.grad.dtype == dtype and module.mean_weight.grad.dtype == torch.float32
