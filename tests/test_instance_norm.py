"""InstanceNorm by hand: numbers that can be checked on paper, and the surface of torch.nn.functional.instance_norm."""

from __future__ import annotations

import inspect

import pytest
import torch
import torch.nn.functional as F
from conftest import TestBackend
from torch import nn

from torchfastnorm import InstanceNorm2d, batch_norm, instance_norm


def test_on_paper(backend: TestBackend) -> None:
    """Planes 1, 2, 3, 4 and 5, 5, 5, 5; eps is chosen so that the first rstd is 1/2."""
    x = torch.tensor([[[1.0, 2.0, 3.0, 4.0], [5.0, 5.0, 5.0, 5.0]]], device=backend.device, requires_grad=True)
    weight = torch.tensor([2.0, 3.0], device=backend.device, requires_grad=True)
    bias = torch.tensor([0.5, -1.0], device=backend.device, requires_grad=True)
    running = [torch.tensor([10.0, 10.0], device=backend.device), torch.tensor([1.0, 1.0], device=backend.device)]
    y = instance_norm(x, *running, weight, bias, True, 0.5, 2.75)  # 1.25 + 2.75 = 4
    assert y.tolist() == [[[-1.0, 0.0, 1.0, 2.0], [-1.0] * 4]]
    assert running[0].tolist() == [6.25, 7.5]
    assert running[1].tolist() == [pytest.approx(0.5 + 0.5 * 5 / 3, rel=1e-6), 0.5]
    y.backward(torch.tensor([[[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 1.0, 0.0]]], device=backend.device))
    assert weight.grad.tolist() == [-0.75, 0.0] and bias.grad.tolist() == [1.0, 2.0]
    expected = [0.5 * (g - 0.5 + 3 / 8 * h) for g, h in zip((2, 0, 0, 0), (-0.75, -0.25, 0.25, 0.75), strict=True)]
    assert x.grad[0, 0].tolist() == expected
    # rstd = 1 / sqrt(2.75), x_hat = 0: what remains is g - mean(g)
    slope = 3 / 2.75**0.5
    assert x.grad[0, 1].tolist() == pytest.approx([-slope / 2, slope / 2, slope / 2, -slope / 2], rel=1e-6)


def test_activation_and_mask_on_paper(backend: TestBackend) -> None:
    x = torch.tensor([[[1.0, torch.inf, 3.0]]], device=backend.device)
    mask = torch.tensor([True, False, True], device=backend.device)
    assert instance_norm(x, eps=3.0, activation="relu", mask=mask).tolist() == [[[0.0, 0.0, 0.5]]]


def test_it_is_batch_norm_of_single_samples(backend: TestBackend) -> None:
    x = torch.randn(3, 6, 5, 4, device=backend.device)
    alone = torch.cat([batch_norm(sample[None], None, None, training=True) for sample in x])
    torch.testing.assert_close(instance_norm(x), alone)


def test_signature_is_that_of_torch() -> None:
    ours, theirs = inspect.signature(instance_norm).parameters, inspect.signature(F.instance_norm).parameters
    added = [p for p in ours.values() if p.name not in theirs]
    assert [(p.name, p.default) for p in list(ours.values())[: len(theirs)]] == [
        (p.name, p.default) for p in theirs.values()
    ]
    assert {p.name: p.default for p in added} == {"residual": None, "activation": "none", "mask": None}
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in added)


def test_one_position_is_rejected_with_the_input_s_statistics_alone(backend: TestBackend) -> None:
    x = torch.randn(3, 6, 1, 1, device=backend.device)
    for space in (instance_norm, F.instance_norm):
        with pytest.raises(ValueError, match="more than 1 spatial element"):
            space(x)
    running = [torch.zeros(6, device=backend.device), torch.ones(6, device=backend.device)]
    torch.testing.assert_close(instance_norm(x, *running, use_input_stats=False), x, rtol=1e-4, atol=1e-4)


def test_channels_last_stays_channels_last(backend: TestBackend) -> None:
    """torch's instance_norm returns a contiguous tensor; ours does not undo the user's layout."""
    x = torch.randn(2, 6, 5, 4, device=backend.device).to(memory_format=torch.channels_last)
    y = InstanceNorm2d(6)(x)
    assert y.is_contiguous(memory_format=torch.channels_last) and not y.is_contiguous()
    torch.testing.assert_close(y, F.instance_norm(x))


def test_a_training_step(backend: TestBackend) -> None:
    losses = []
    for norm in (InstanceNorm2d, nn.InstanceNorm2d):
        torch.manual_seed(0)
        layers = (nn.Conv2d(3, 8, 3), norm(8, affine=True, track_running_stats=True), nn.ReLU(), nn.Conv2d(8, 1, 3))
        model = nn.Sequential(*layers).to(backend.device)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        x = torch.randn(4, 3, 8, 8).to(backend.device)
        for _ in range(5):
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            optimizer.step()
        losses += [loss.item(), model.eval()(x).square().mean().item()]
    assert losses[:2] == pytest.approx(losses[2:], rel=1e-4)
