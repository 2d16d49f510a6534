"""SwitchNorm's modules: the authors' constructors, state dicts and formulas, both averages, copies, errors."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import pytest
import torch
from conftest import TestBackend
from torch import Tensor, nn

import torchfastnorm
from torchfastnorm import SwitchNorm1d, SwitchNorm2d, SwitchNorm3d, switch_norm

KINDS = (SwitchNorm1d, SwitchNorm2d, SwitchNorm3d)
all_kinds = pytest.mark.parametrize("kind", KINDS)
NAMES = ("weight", "bias", "mean_weight", "var_weight", "running_mean", "running_var")
# Of one with C features: what the authors' modules have.
SHAPES = {
    SwitchNorm1d: ((1, 7), (1, 7), (2,), (2,), (1, 7), (1, 7)),
    SwitchNorm2d: ((1, 7, 1, 1), (1, 7, 1, 1), (3,), (3,), (1, 7, 1), (1, 7, 1)),
    SwitchNorm3d: ((1, 7, 1, 1, 1), (1, 7, 1, 1, 1), (3,), (3,), (1, 7, 1), (1, 7, 1)),
}
DEFAULTS = {"eps": 1e-5, "momentum": 0.9, "using_moving_average": True, "using_bn": True, "last_gamma": False}
CONSTRUCTORS = {
    SwitchNorm1d: {"eps": 1e-5, "momentum": 0.997, "using_moving_average": True},
    SwitchNorm2d: DEFAULTS,
    SwitchNorm3d: DEFAULTS | {"momentum": 0.997},
}


def input_of(
    kind: Any, backend: TestBackend, samples: int = 5, channels: int = 7, dtype: Any = torch.float32
) -> Tensor:
    shape = (samples, channels, 4, 3, 2)[: kind.input_dims]
    offsets = torch.randn(samples, channels, *[1] * (kind.input_dims - 2))
    return (torch.randn(shape) + offsets).to(backend.device, dtype)


def checkpoint(kind: Any) -> dict[str, Tensor]:
    state = {name: torch.randn(shape) for name, shape in zip(NAMES, SHAPES[kind], strict=True)}
    state["running_var"] = state["running_var"].abs() + 0.5
    return state


def plain(module: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """y, and mean and variance of the batch, in the form of the paper: E[x^2] - E[x]^2."""
    p, q = module.mean_weight.softmax(0), module.var_weight.softmax(0)
    if x.dim() == 2:
        moments = [(x.mean(d, keepdim=True), x.var(d, keepdim=True)) for d in (1, 0)]
    else:
        planes = x.flatten(2)
        mean, var = planes.mean(2, keepdim=True), planes.var(2, keepdim=True)
        second = var + mean.square()
        moments = [(mean, var)]
        for d in (1, 0)[: len(p) - 1]:
            center = mean.mean(d, keepdim=True)
            moments.append((center, second.mean(d, keepdim=True) - center.square()))
    batch = moments[-1]
    if not module.training and module.using_bn:
        moments[-1] = tuple(t if x.dim() > 2 else t.view(1, -1) for t in (module.running_mean, module.running_var))
    mean = sum(a * m for a, (m, _) in zip(p, moments, strict=True))
    var = sum(a * v for a, (_, v) in zip(q, moments, strict=True))
    z = x if x.dim() == 2 else x.flatten(2)
    x_hat = ((z - mean) / (var + module.eps).sqrt()).view(x.shape)
    return x_hat * module.weight + module.bias, *batch


@all_kinds
def test_constructor(kind: Any) -> None:
    module = kind(7)
    assert {name: getattr(module, name) for name in CONSTRUCTORS[kind]} == CONSTRUCTORS[kind]
    values = (7, 1e-3, 0.5, False, False, True)[: 1 + len(CONSTRUCTORS[kind])]  # by position
    module = kind(*values)
    assert tuple(getattr(module, name) for name in ("num_features", *CONSTRUCTORS[kind])) == values
    assert list(inspect.signature(kind).parameters)[:3] == ["num_features", "eps", "momentum"]
    assert kind(7, dtype=torch.bfloat16, device="meta").running_var.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="unknown activation 'tanh'"):
        kind(7, activation="tanh")
    with pytest.raises(TypeError):
        kind(7, affine=True)
    if kind is SwitchNorm1d:
        with pytest.raises(TypeError):
            kind(7, using_bn=False)


@all_kinds
def test_state_dict(backend: TestBackend, kind: Any) -> None:
    """The authors' names, shapes and order, and what a new module holds."""
    for average in (True, False):
        module = kind(7, using_moving_average=average)
        state = module.state_dict()
        assert tuple(state) == NAMES and tuple(tuple(t.shape) for t in state.values()) == SHAPES[kind]
        assert [name for name, _ in module.named_parameters()] == list(NAMES[:4])
        assert [t.unique().tolist() for t in state.values()] == [[1], [0], [1], [1], [0], [0]]
        state = checkpoint(kind)
        wrapped = nn.Sequential(module)
        wrapped.load_state_dict({f"0.{name}": t for name, t in state.items()})
        x = input_of(kind, backend)
        wrapped.to(backend.device).eval()
        torch.testing.assert_close(wrapped(x), plain(module, x)[0], rtol=1e-4, atol=1e-4)
        assert all(torch.equal(t.cpu(), state[name]) for name, t in module.state_dict().items())


@all_kinds
@pytest.mark.parametrize("average", (True, False), ids=("moving", "sums"))
def test_training(backend: TestBackend, kind: Any, average: bool) -> None:
    """Values, gradients and running statistics of three steps against the formulas as they are written."""
    module = kind(7, using_moving_average=average).to(backend.device, torch.float64)
    module.load_state_dict(checkpoint(kind))
    expected = {name: t.clone().flatten() for name, t in module.named_buffers() if name.startswith("running")}
    for _ in range(3):
        x = input_of(kind, backend, dtype=torch.float64).requires_grad_()
        leaves = (x, *module.parameters())
        y, (theirs, mean, var) = module(x), plain(module, x)
        torch.testing.assert_close(y, theirs, rtol=1e-9, atol=1e-9)
        upstream = torch.randn_like(y)
        ours, theirs = (torch.autograd.grad(result, leaves, upstream) for result in (y, theirs))
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)
        mean, var = mean.detach().flatten(), var.detach().flatten()
        batch = {"running_mean": mean, "running_var": var if average else var + mean.square()}
        old, new = (module.momentum, 1 - module.momentum) if average else (1, 1)
        expected = {name: old * expected[name] + new * batch[name] for name in expected}
    for name in expected:
        torch.testing.assert_close(getattr(module, name).flatten(), expected[name], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_batch_average(backend: TestBackend, kind: Any) -> None:
    """The statistics of all batches pooled, as if they were one."""
    module = kind(7, using_moving_average=False).to(backend.device)
    batches = [input_of(kind, backend) * scale + scale for scale in (1, 2, 3)]
    for x in batches:
        module(x)
    assert module.num_batches_summed == 3
    loaded = kind(7, using_moving_average=False).to(backend.device)
    loaded.load_state_dict(module.state_dict())
    with pytest.raises(RuntimeError, match="num_batches="):
        loaded.finalize_batch_average()
    loaded.finalize_batch_average(3)
    module.finalize_batch_average()
    _, mean, var = plain(kind(7).to(backend.device, torch.float64), torch.cat(batches).double())
    for one in (module, loaded):
        torch.testing.assert_close(one.running_mean, mean.float(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(one.running_var, var.float(), rtol=1e-5, atol=1e-5)
    with pytest.raises(RuntimeError, match="there are 0"):
        module.finalize_batch_average()
    module.reset_running_stats()
    module(batches[0]), module.eval()(batches[1])
    assert module.num_batches_summed == 1


def test_batch_average_of_vectors(backend: TestBackend) -> None:
    """Unbiased variances of the batches, and what is between them; of equal batches exactly none."""
    module = SwitchNorm1d(7, using_moving_average=False).to(backend.device)
    x = input_of(SwitchNorm1d, backend) + 100
    for _ in range(4):
        module(x)
    module.finalize_batch_average()
    torch.testing.assert_close(module.running_mean, x.mean(0, keepdim=True))
    torch.testing.assert_close(module.running_var, x.var(0, keepdim=True), rtol=1e-2, atol=1e-2)  # 1e4 + 1 - 1e4
    x[:] = 100.1
    module.reset_running_stats()
    module(x)
    module.finalize_batch_average()
    assert (module.running_var >= 0).all()


def test_batch_average_needs_sums(backend: TestBackend) -> None:
    for module in (SwitchNorm2d(7), SwitchNorm2d(7, using_bn=False), SwitchNorm1d(7, using_moving_average=False)):
        with pytest.raises(RuntimeError, match="finalize_batch_average"):
            module.finalize_batch_average()
    with pytest.raises(RuntimeError, match="finalize_batch_average"):
        SwitchNorm2d(7, using_moving_average=False).finalize_batch_average(0)


@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize("average", (True, False))
def test_without_batch(backend: TestBackend, kind: Any, average: bool) -> None:
    module = kind(7, using_moving_average=average, using_bn=False).to(backend.device)
    assert tuple(module.state_dict()) == NAMES[:4] and module.mean_weight.shape == (2,)
    x = input_of(kind, backend)
    for training in (True, False):
        torch.testing.assert_close(module.train(training)(x), plain(module, x)[0], rtol=1e-4, atol=1e-4)
    # A sample's result does not depend on its batch.
    torch.testing.assert_close(module(x)[:1], module(x[:1]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_last_gamma(backend: TestBackend, kind: Any) -> None:
    module = kind(7, last_gamma=True).to(backend.device)
    residual = input_of(kind, backend)
    assert torch.equal(module(input_of(kind, backend), residual), residual)
    assert module.weight.count_nonzero() == 0


@all_kinds
def test_reset(backend: TestBackend, kind: Any) -> None:
    """From any state, and from a module without storage."""
    fresh = kind(7, using_moving_average=False)
    used, empty = kind(7, using_moving_average=False), kind(7, using_moving_average=False, device="meta")
    used.load_state_dict(checkpoint(kind))
    used(input_of(kind, TestBackend("cpu", torch.device("cpu"), 0)))
    empty.to_empty(device="cpu")
    for module in (used, empty):
        module.reset_parameters()
        assert all(torch.equal(t, fresh.state_dict()[name]) for name, t in module.state_dict().items())
        assert module.num_batches_summed == 0


@all_kinds
def test_copies(backend: TestBackend, kind: Any) -> None:
    module = kind(7, using_moving_average=False, activation="relu").to(backend.device)
    module(input_of(kind, backend))
    x = input_of(kind, backend)
    copies = [copy.deepcopy(module), pickle.loads(pickle.dumps(module))]
    y = module(x)
    for one in copies:
        assert torch.equal(one(x), y) and one.num_batches_summed == 2
        assert repr(one) == repr(module)
    # One made by other code than this constructor: no count.
    del module._buffers["num_batches_summed"]
    module(x)
    module.finalize_batch_average(3)


def test_representation() -> None:
    options = "1e-05, momentum=0.9, using_moving_average=True, using_bn=True, last_gamma=False"
    assert repr(SwitchNorm2d(7, activation="silu")) == f"SwitchNorm2d(7, eps={options}, activation=silu)"
    assert repr(SwitchNorm1d(7)) == "SwitchNorm1d(7, eps=1e-05, momentum=0.997, using_moving_average=True)"


@all_kinds
def test_errors(backend: TestBackend, kind: Any) -> None:
    module = kind(7, using_moving_average=False).to(backend.device)
    for x in (input_of(KINDS[KINDS.index(kind) - 1], backend), input_of(kind, backend)[0]):
        with pytest.raises(ValueError, match=f"expected {kind.input_dims}D input"):
            module(x)
    with pytest.raises(RuntimeError, match="7"):
        module(input_of(kind, backend, channels=6))
    assert all(t.count_nonzero() == 0 for t in module.buffers())


def test_a_following_activation_folds(backend: TestBackend) -> None:
    model = nn.Sequential(SwitchNorm2d(7), nn.SiLU()).to(backend.device)
    x = input_of(SwitchNorm2d, backend)
    expected = model(x)
    converted = torchfastnorm.convert(model, fold_activations=True)
    assert converted[0].activation == "silu" and type(converted[1]) is nn.Identity
    torch.testing.assert_close(converted(x), expected, rtol=1e-5, atol=1e-5)


def test_is_the_function(backend: TestBackend) -> None:
    module, x = SwitchNorm2d(7).to(backend.device), input_of(SwitchNorm2d, backend)
    logits, running = (module.mean_weight, module.var_weight), [torch.zeros(7, device=x.device) for _ in range(2)]
    y = switch_norm(x, *logits, *running, module.weight.view(-1), module.bias.view(-1), True)
    assert torch.equal(module(x), y) and torch.equal(module.running_var.flatten(), running[1])


def test_an_empty_batch_is_not_counted(backend: TestBackend) -> None:
    module = SwitchNorm2d(6, using_moving_average=False).to(backend.device)
    module(torch.randn(4, 6, 3, 3, device=backend.device) + 2)
    expected = module.running_mean.clone()
    module(torch.empty(0, 6, 3, 3, device=backend.device))
    module.finalize_batch_average()
    torch.testing.assert_close(module.running_mean, expected)
