"""BatchNorm by hand: numbers that can be checked on paper, and the surface of torch.nn.functional.batch_norm."""

from __future__ import annotations

import inspect

import pytest
import torch
import torch.nn.functional as F
from conftest import TestBackend
from torch import nn

import torchfastnorm
from torchfastnorm import BatchNorm1d, BatchNorm2d, batch_norm


def test_on_paper(backend: TestBackend) -> None:
    """One channel 1, 2, 3, 4: mean 2.5, variance 1.25; eps is chosen so that rstd is exactly 1/2."""
    x = torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]], device=backend.device, requires_grad=True)
    weight = torch.tensor([2.0], device=backend.device, requires_grad=True)
    bias = torch.tensor([0.5], device=backend.device, requires_grad=True)
    running = [torch.tensor([10.0], device=backend.device), torch.tensor([1.0], device=backend.device)]
    y = batch_norm(x, *running, weight, bias, True, 0.5, 2.75)  # 1.25 + 2.75 = 4
    assert y.tolist() == [[[-1.0, 0.0]], [[1.0, 2.0]]]  # x_hat = (-3, -1, 1, 3) / 4
    assert running[0].tolist() == [6.25] and running[1].tolist() == [pytest.approx(0.5 + 0.5 * 5 / 3, rel=1e-6)]
    y.backward(torch.tensor([[[1.0, 0.0]], [[0.0, 0.0]]], device=backend.device))
    assert weight.grad.tolist() == [-0.75] and bias.grad.tolist() == [1.0]
    # g = (2, 0, 0, 0): mean(g) = 1/2, mean(g x_hat) = -3/8
    expected = [0.5 * (g - 0.5 + 3 / 8 * h) for g, h in zip((2, 0, 0, 0), (-0.75, -0.25, 0.25, 0.75), strict=True)]
    assert x.grad.flatten().tolist() == expected


def test_evaluation_on_paper(backend: TestBackend) -> None:
    """(x - 3) / sqrt(3 + 1) * 8 - 1, the slope a constant; nothing is written."""
    x = torch.tensor([[1.0], [5.0]], device=backend.device, requires_grad=True)
    parameters = [torch.tensor([value], device=backend.device) for value in (3.0, 3.0, 8.0, -1.0)]
    y = batch_norm(x, *parameters, eps=1.0)
    assert y.tolist() == [[-9.0], [7.0]]
    y.backward(torch.tensor([[1.0], [2.0]], device=backend.device))
    assert x.grad.tolist() == [[4.0], [8.0]]
    assert [p.item() for p in parameters] == [3.0, 3.0, 8.0, -1.0]


def test_residual_and_activation_on_paper(backend: TestBackend) -> None:
    """relu(x_hat + residual); the gradient passes where the sum is positive."""
    x = torch.tensor([[1.0], [3.0]], device=backend.device)  # x_hat = (-1, 1) / 2
    residual = torch.tensor([[0.25], [0.25]], device=backend.device, requires_grad=True)
    y = batch_norm(x, None, None, training=True, eps=3.0, residual=residual, activation="relu")
    assert y.tolist() == [[0.0], [0.75]]
    y.backward(torch.tensor([[5.0], [7.0]], device=backend.device))
    assert residual.grad.tolist() == [[0.0], [7.0]]


def test_mask_on_paper(backend: TestBackend) -> None:
    """Two of three count: mean 2, variance 1, unbiased 2."""
    x = torch.tensor([[1.0], [torch.nan], [3.0]], device=backend.device)
    running = [torch.zeros(1, device=backend.device), torch.zeros(1, device=backend.device)]
    mask = torch.tensor([[True], [False], [True]], device=backend.device)
    y = batch_norm(x, *running, training=True, momentum=1.0, eps=3.0, mask=mask)
    assert y.tolist() == [[-0.5], [0.0], [0.5]]
    assert [t.item() for t in running] == [2.0, 2.0]


def test_signature_is_that_of_torch() -> None:
    ours, theirs = inspect.signature(batch_norm).parameters, inspect.signature(F.batch_norm).parameters
    added = [p for p in ours.values() if p.name not in theirs]
    assert [(p.name, p.default) for p in list(ours.values())[: len(theirs)]] == [
        (p.name, p.default) for p in theirs.values()
    ]
    assert {p.name: p.default for p in added} == {"residual": None, "activation": "none", "mask": None}
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in added)


def test_a_batch_of_one_is_rejected_in_training_alone(backend: TestBackend) -> None:
    for module_class, shape in ((BatchNorm1d, (1, 4)), (BatchNorm2d, (1, 4, 1, 1))):
        module, x = module_class(4).to(backend.device), torch.randn(shape, device=backend.device)
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            module(x)
        assert module.num_batches_tracked == 0
        torch.testing.assert_close(module.eval()(x), x, rtol=1e-4, atol=1e-4)


def test_a_training_step(backend: TestBackend) -> None:
    """A block of a ResNet in a model: parameters and buffers move as with torch's."""
    results = []
    for ours in (True, False):
        torch.manual_seed(0)
        conv, head = nn.Conv2d(3, 3, 3, padding=1).to(backend.device), nn.Linear(3, 2).to(backend.device)
        norm = BatchNorm2d(3, activation="relu") if ours else nn.BatchNorm2d(3)
        norm.to(backend.device)
        optimizer = torch.optim.SGD([*conv.parameters(), *norm.parameters(), *head.parameters()], 0.1, momentum=0.9)
        x, target = torch.randn(8, 3, 6, 6).to(backend.device), torch.randn(8, 2).to(backend.device)
        for _ in range(5):
            optimizer.zero_grad()
            h = norm(conv(x), x) if ours else F.relu(norm(conv(x)) + x)
            loss = F.mse_loss(head(h.mean((2, 3))), target)
            loss.backward()
            optimizer.step()
        results.append([loss.detach(), *[b.double() for b in norm.buffers()]])
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)


def test_modules_are_torch_s_for_isinstance() -> None:
    """Tools that look for batch norms (weight decay, freezing, SyncBatchNorm) find ours."""
    module = torchfastnorm.BatchNorm2d(4)
    assert isinstance(module, nn.BatchNorm2d) and isinstance(module, nn.modules.batchnorm._BatchNorm)
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(module))
    assert type(synced[0]) is nn.SyncBatchNorm
