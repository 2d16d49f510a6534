"""IterNorm and BatchWhitening as modules: constructors, state dicts, the authors' formulas written out, copies."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import pytest
import torch
from conftest import TestBackend
from torch import Tensor, nn
from whitening_cases import METHODS, make

from torchfastnorm import BatchWhitening, IterNorm, batch_whitening

NAMES = ["weight", "bias", "running_mean", "running_wm"]
# (C, num_groups, num_channels) -> channels of a group
WIDTHS = {
    (80, 1, 64): 16,  # halved until it divides C
    (64, 1, None): 64,
    (64, 2, None): 32,
    (64, 3, None): 2,  # 22, 11, 5, 2
    (6, 4, None): 2,
    (7, 2, None): 1,  # 4, 2, 1
    (6, 100, None): 1,
    (6, 5, 3): 3,  # num_channels decides
    (6, 1, 8): 2,  # 8, 4, 2
}


def plain_newton(module: IterNorm, x: Tensor, training: bool) -> tuple[Tensor, Tensor, Tensor]:
    """y, mean and W in torch operations, as the authors write them: groups of vectors, then T steps."""
    samples, channels = x.shape[:2]
    width = module.num_channels
    groups = channels // width
    vectors = x.transpose(0, 1).contiguous().view(groups, width, -1)
    if training:
        count = vectors.shape[-1]
        mean = vectors.mean(-1, keepdim=True)
        centred = vectors - mean
        covariance = module.eps * torch.eye(width).to(x) + centred.matmul(centred.transpose(1, 2)) / count
        trace = torch.stack([c.trace() for c in covariance]).view(groups, 1, 1)
        step = torch.eye(width).to(x).expand(groups, width, width)
        for _ in range(module.T):
            step = 1.5 * step - 0.5 * torch.matrix_power(step, 3).matmul(covariance / trace)
        wm = step / trace.sqrt()
    else:
        mean, wm = module.running_mean, module.running_wm
        centred = vectors - mean
    white = wm.matmul(centred).view(channels, samples, *x.shape[2:]).transpose(0, 1)
    return white * module.weight + module.bias, mean, wm


def by_hand(module: IterNorm, x: Tensor, grad_y: Tensor) -> Tensor:
    """The gradient of a batch of one group, as the paper derives it: W' for W, where W is symmetric anyway."""
    vectors, grad = (t.transpose(0, 1).reshape(t.shape[1], -1) for t in (x, grad_y * module.weight))
    count, identity = vectors.shape[1], torch.eye(len(vectors)).to(x)
    centred = vectors - vectors.mean(1, keepdim=True)
    covariance = module.eps * identity + centred @ centred.T / count
    trace = covariance.trace()
    s, steps = covariance / trace, [identity]
    for _ in range(module.T):
        steps.append(1.5 * steps[-1] - 0.5 * steps[-1] @ steps[-1] @ steps[-1] @ s)
    wm, grad_wm = steps[-1] / trace.sqrt(), grad @ centred.T
    grad_p, grad_s = grad_wm / trace.sqrt(), torch.zeros_like(s)
    for p in reversed(steps[:-1]):
        grad_s = grad_s - 0.5 * (p @ p @ p).T @ grad_p
        h = grad_p @ s.T
        grad_p = 1.5 * grad_p - 0.5 * (h @ (p @ p).T + p.T @ h @ p.T + (p @ p).T @ h)
    of_trace = (grad_s * covariance).sum() / trace**2 + (grad_wm * steps[-1]).sum() / (2 * trace**1.5)
    grad_c = grad_s / trace - of_trace * identity
    result = wm.T @ (grad - grad.mean(1, keepdim=True)) + (grad_c + grad_c.T) @ centred / count
    return result.view(x.shape[1], len(x), *x.shape[2:]).transpose(0, 1)


def test_iter_norm_constructor() -> None:
    module = IterNorm(6)
    assert (module.T, module.dim, module.eps, module.momentum, module.affine) == (5, 4, 1e-5, 0.1, True)
    assert (module.num_features, module.num_channels, module.iterations) == (6, 6, 5)
    names = ["num_features", "num_groups", "num_channels", "T", "dim", "eps", "momentum", "affine", "device", "dtype"]
    assert list(inspect.signature(IterNorm).parameters) == names
    module = IterNorm(6, 2, 2, 7, 3, 1e-3, 0.5, False)  # by position
    assert (module.num_channels, module.T, module.dim, module.eps, module.momentum) == (2, 7, 3, 1e-3, 0.5)
    assert module.weight is None and module.bias is None and not module.affine


@pytest.mark.parametrize("arguments, width", WIDTHS.items(), ids=str)
def test_channels_of_a_group(arguments: tuple[int, int, int | None], width: int) -> None:
    module = IterNorm(*arguments)
    groups = arguments[0] // width
    assert module.num_channels == width
    assert module.running_mean.shape == (groups, width, 1) and module.running_wm.shape == (groups, width, width)


@pytest.mark.parametrize("dim", (2, 3, 4, 5))
def test_iter_norm_state(dim: int) -> None:
    """The authors' names, order, shapes and first values; buffers of their own memory, so that .to() is not needed."""
    module = IterNorm(12, num_groups=3, dim=dim)
    state = module.state_dict()
    ones = (1, 12, *[1] * (dim - 2))
    assert list(state) == NAMES and [tuple(t.shape) for t in state.values()] == [ones, ones, (3, 4, 1), (3, 4, 4)]
    assert [name for name, _ in module.named_parameters()] == NAMES[:2]
    assert (module.weight == 1).all() and not module.bias.any() and not module.running_mean.any()
    assert torch.equal(module.running_wm, torch.eye(4).expand(3, 4, 4)) and module.running_wm.is_contiguous()


@pytest.mark.parametrize("dim", (2, 3, 4, 5))
@pytest.mark.parametrize("options", ({}, {"num_groups": 3}, {"num_channels": 2, "T": 3}, {"T": 1, "momentum": 1.0}))
def test_iter_norm_is_the_authors(backend: TestBackend, dim: int, options: dict[str, Any]) -> None:
    """Values, gradients and updates of two steps and an evaluation, against the formulas as they are written."""
    module = IterNorm(6, dim=dim, **options).to(backend.device, torch.float64)
    nn.init.normal_(module.weight), nn.init.normal_(module.bias)
    running = [module.running_mean.clone(), module.running_wm.clone()]
    for step, training in enumerate((True, True, False)):
        module.train(training)
        x = make((8, 6, 3, 2, 2)[:dim], 6, torch.float64, backend, seed=step)["input"].requires_grad_()
        leaves = (x, module.weight, module.bias)
        theirs, *new = plain_newton(module, x, training)
        y = module(x)
        torch.testing.assert_close(y, theirs, rtol=1e-9, atol=1e-9)
        upstream = torch.randn_like(y)
        ours, theirs = (torch.autograd.grad(t, leaves, upstream) for t in (y, theirs))
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)
        if training:
            for buffer, value in zip(running, new, strict=True):
                buffer.mul_(1 - module.momentum).add_(value.detach(), alpha=module.momentum)
        torch.testing.assert_close([module.running_mean, module.running_wm], running, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("steps", (1, 2, 3, 5, 7))
def test_backward_as_the_paper_derives_it(backend: TestBackend, steps: int) -> None:
    module = IterNorm(5, T=steps).to(backend.device, torch.float64)
    nn.init.normal_(module.weight)
    x = make((4, 5, 3, 2), 5, torch.float64, backend)["input"].requires_grad_()
    grad_y = torch.randn_like(x)
    (grad_x,) = torch.autograd.grad(module(x), x, grad_y)
    with torch.no_grad():
        torch.testing.assert_close(grad_x, by_hand(module, x, grad_y), rtol=1e-9, atol=1e-9)


def test_batch_whitening_constructor() -> None:
    module = BatchWhitening(6)
    assert (module.num_features, module.num_channels, module.method) == (6, 6, "zca")
    assert (module.eps, module.momentum, module.affine, module.iterations) == (1e-5, 0.1, True, 5)
    module = BatchWhitening(6, 3, "pca", 1e-3, 0.5, False, iterations=7)
    assert (module.num_channels, module.method, module.eps, module.momentum) == (3, "pca", 1e-3, 0.5)
    assert module.weight is None and module.bias is None and list(module.state_dict()) == NAMES[2:]
    state = BatchWhitening(6, 3).state_dict()
    assert list(state) == NAMES and [tuple(t.shape) for t in state.values()] == [(6,), (6,), (2, 3, 1), (2, 3, 3)]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("affine", (True, False))
def test_is_the_function(backend: TestBackend, method: str, affine: bool) -> None:
    """A module is one call of the function, in training and in evaluation."""
    module = BatchWhitening(6, 3, method, affine=affine, eps=1e-3, momentum=0.3, iterations=3).to(backend.device)
    if affine:
        nn.init.normal_(module.weight), nn.init.normal_(module.bias)
    own = make((8, 6, 3, 2), 3, torch.float32, backend)
    running = [module.running_mean.clone(), module.running_wm.clone()]
    options = {"num_channels": 3, "method": method, "iterations": 3}
    for training in (True, True, False):
        y = batch_whitening(own["input"], *running, module.weight, module.bias, training, 0.3, 1e-3, **options)
        assert torch.equal(module.train(training)(own["input"]), y)
        assert torch.equal(module.running_mean, running[0]) and torch.equal(module.running_wm, running[1])


def modules(backend: TestBackend) -> list[Any]:
    """One of each kind that has seen a batch."""
    made = [IterNorm(6, num_groups=2), BatchWhitening(6, 3, "cholesky"), BatchWhitening(6, affine=False)]
    for module in made:
        module.to(backend.device)(make((8, 6, 3, 2), 3, torch.float32, backend)["input"])
    return made


def test_copies_and_state(backend: TestBackend) -> None:
    x = make((8, 6, 3, 2), 3, torch.float32, backend, seed=1)["input"]
    for module in modules(backend):
        loaded = type(module)(6, num_channels=module.num_channels, affine=module.affine).to(backend.device)
        assert not torch.equal(loaded.running_wm, module.running_wm)
        loaded.load_state_dict(copy.deepcopy(module.state_dict()))
        others = [copy.deepcopy(module), pickle.loads(pickle.dumps(module)), loaded]
        assert all(repr(other) == repr(module) for other in others[:2])
        for other in others:
            assert other.running_wm.data_ptr() != module.running_wm.data_ptr()
            assert torch.equal(other.eval()(x), module.eval()(x))
        assert torch.equal(others[0].train()(x), module.train()(x))
        assert torch.equal(others[0].running_wm, module.running_wm)


def test_dtypes_and_devices(backend: TestBackend) -> None:
    x = make((8, 6, 3, 2), 3, torch.float32, backend)["input"]
    for module in modules(backend):
        expected = copy.deepcopy(module).eval()(x)
        for dtype in (torch.float64, torch.bfloat16, torch.float16):
            cast = copy.deepcopy(module).to(dtype)
            assert all(t.dtype == dtype for t in cast.state_dict().values())
            for training in (True, False):
                assert cast.train(training)(x.to(dtype)).dtype == dtype
            assert all(t.dtype == dtype for t in cast.state_dict().values())
        assert module.half().running_wm.dtype == torch.float16 and module.double().running_wm.dtype == torch.float64
        assert module.float().eval()(x).dtype == expected.dtype
    for kind in (IterNorm, BatchWhitening):
        there = kind(6, device="meta", dtype=torch.bfloat16)
        assert all(t.is_meta and t.dtype == torch.bfloat16 for t in there.state_dict().values())
        assert there(torch.empty(2, 6, 3, 3, device="meta")).is_meta


def test_reset(backend: TestBackend) -> None:
    """From any state, and from a module without storage."""
    for module in modules(backend):
        kind, options = type(module), {"num_channels": module.num_channels, "affine": module.affine}
        fresh, empty = kind(6, **options).state_dict(), kind(6, **options, device="meta").to_empty(device="cpu")
        module.reset_running_stats()
        assert torch.equal(module.running_wm.cpu(), fresh["running_wm"]) and not module.running_mean.any()
        for parameter in module.parameters():
            nn.init.normal_(parameter)
        for one in (module, empty):
            one.reset_parameters()
            assert all(torch.equal(t.cpu(), fresh[name]) for name, t in one.state_dict().items())


def test_training_and_evaluation(backend: TestBackend) -> None:
    """Evaluation moves nothing; an empty batch neither; momentum is torch's."""
    x = make((8, 6, 3, 2), 3, torch.float32, backend)["input"]
    for module in modules(backend):
        before = {name: t.clone() for name, t in module.named_buffers()}
        module.eval()(x)
        module.train()(x[:0])
        assert all(torch.equal(t, before[name]) for name, t in module.named_buffers())
        module.momentum = 1.0
        y = module(x)
        torch.testing.assert_close(module.eval()(x), y, rtol=1e-5, atol=1e-5)


def test_learns(backend: TestBackend) -> None:
    """Optimizers move the parameters, and no buffer holds a graph."""
    x = make((8, 6, 3, 2), 3, torch.float32, backend)["input"]
    for module in modules(backend)[:2]:
        optimizer = torch.optim.SGD(module.parameters(), 0.1)
        losses = []
        for _ in range(5):
            optimizer.zero_grad()
            loss = (module(x) - 2).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses == sorted(losses, reverse=True) and losses[-1] < 0.9 * losses[0]
        assert not any(t.requires_grad for t in module.buffers())


def test_representation() -> None:
    assert (
        repr(IterNorm(80, num_channels=64))
        == "IterNorm(80, num_channels=16, T=5, eps=1e-05, momentum=0.1, affine=True)"
    )
    options = "eps=1e-05, momentum=0.1, affine=True"
    assert repr(BatchWhitening(6, 3)) == f"BatchWhitening(6, num_channels=3, method=zca, {options})"
    shown = f"BatchWhitening(6, num_channels=6, method=iternorm, iterations=7, {options})"
    assert repr(BatchWhitening(6, method="iternorm", iterations=7)) == shown
