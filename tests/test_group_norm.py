"""GroupNorm by hand: numbers that can be checked on paper, and the surface of torch.nn.functional.group_norm."""

from __future__ import annotations

import inspect

import pytest
import torch
import torch.nn.functional as F
from conftest import TestBackend
from torch import nn

from torchfastnorm import GroupNorm, group_norm, layer_norm


def test_on_paper(backend: TestBackend) -> None:
    """Two groups of two channels, 1, 2, 3, 4 and their tenfold; eps is chosen so that the first rstd is 1/2."""
    x = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [10.0, 20.0], [30.0, 40.0]]], device=backend.device, requires_grad=True)
    weight = torch.tensor([1.0, 2.0, 1.0, 1.0], device=backend.device, requires_grad=True)
    bias = torch.tensor([0.0, 0.5, 0.0, 0.0], device=backend.device, requires_grad=True)
    y = group_norm(x, 2, weight, bias, eps=2.75)  # 1.25 + 2.75 = 4, 125 + 2.75
    assert y[0, :2].tolist() == [[-0.75, -0.25], [1.0, 2.0]]
    other = [v / 127.75**0.5 for v in (-15.0, -5.0, 5.0, 15.0)]
    assert y[0, 2:].flatten().tolist() == pytest.approx(other, rel=1e-6)
    grad_y = torch.zeros(1, 4, 2, device=backend.device)
    grad_y[0, 1, 0] = 1
    y.backward(grad_y)
    assert weight.grad.tolist() == [0.0, 0.25, 0.0, 0.0] and bias.grad.tolist() == [0.0, 1.0, 0.0, 0.0]
    # g = (0, 0, 2, 0): mean(g) = 1/2, mean(g x_hat) = 1/8; the other group has none
    expected = [0.5 * (g - 0.5 - h / 8) for g, h in zip((0, 0, 2, 0), (-0.75, -0.25, 0.25, 0.75), strict=True)]
    assert x.grad[0, :2].flatten().tolist() == expected and not x.grad[0, 2:].any()


def test_activation_and_mask_on_paper(backend: TestBackend) -> None:
    x = torch.tensor([[[1.0, torch.inf, 3.0]]], device=backend.device)
    mask = torch.tensor([[[True, False, True]]], device=backend.device)
    assert group_norm(x, 1, eps=3.0, activation="relu", mask=mask).tolist() == [[[0.0, 0.0, 0.5]]]


def test_one_group_is_layer_norm(backend: TestBackend) -> None:
    x = torch.randn(3, 6, 5, 4, device=backend.device)
    torch.testing.assert_close(group_norm(x, 1), layer_norm(x, (6, 5, 4)))


def test_signatures_are_those_of_torch() -> None:
    ours, theirs = inspect.signature(group_norm).parameters, inspect.signature(F.group_norm).parameters
    added = [p for p in ours.values() if p.name not in theirs]
    assert [(p.name, p.default) for p in list(ours.values())[: len(theirs)]] == [
        (p.name, p.default) for p in theirs.values()
    ]
    assert {p.name: p.default for p in added} == {"residual": None, "activation": "none", "mask": None}
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in added)


@pytest.mark.parametrize("shape", ((4, 6), (1, 6, 2), (0, 6, 3)))
def test_small_inputs_of_the_module(backend: TestBackend, shape: tuple[int, ...]) -> None:
    ours, theirs = GroupNorm(3, 6).to(backend.device), nn.GroupNorm(3, 6).to(backend.device)
    x = torch.randn(shape, device=backend.device)
    torch.testing.assert_close(ours(x), theirs(x))


def test_a_single_value_for_each_group(backend: TestBackend) -> None:
    """torch looks at the batch too: one sample is an error, several are zeros."""
    for size, space in ((1, group_norm), (1, F.group_norm)):
        with pytest.raises(ValueError, match="more than 1 value"):
            space(torch.randn(size, 6, device=backend.device), 6)
    x = torch.randn(3, 6, device=backend.device)
    assert torch.equal(group_norm(x, 6), torch.zeros_like(x)) and torch.equal(F.group_norm(x, 6), torch.zeros_like(x))


def test_channels_last_at_a_large_mean(backend: TestBackend) -> None:
    """Where torch's CPU code in channels_last is wrong by 1.5e3: a mean of 1e4 in fp32."""
    x = torch.randn(2, 32, 14, 14, device=backend.device) + 1e4
    exact = F.group_norm(x.double(), 8)
    for layout in (torch.contiguous_format, torch.channels_last):
        error = (group_norm(x.to(memory_format=layout), 8).double() - exact).abs().max()
        assert error < 1e-3, f"{layout}: {error}"


def test_a_training_step(backend: TestBackend) -> None:
    losses = []
    for norm in (GroupNorm, nn.GroupNorm):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 8, 3), norm(2, 8), nn.SiLU(), nn.Conv2d(8, 1, 3)).to(backend.device)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        x = torch.randn(4, 3, 8, 8).to(backend.device)
        for _ in range(5):
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
