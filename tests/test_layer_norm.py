"""LayerNorm by hand: numbers that can be checked on paper, and the surface of torch.nn.LayerNorm."""

from __future__ import annotations

import inspect

import pytest
import torch
import torch.nn.functional as F
from conftest import TestBackend
from torch import nn

import torchfastnorm
from torchfastnorm import AddLayerNorm, LayerNorm, add_layer_norm, layer_norm

CONSTRUCTIONS = (
    ((16,), {}),
    (([3, 4],), {}),
    ((torch.Size([3, 4]), 1e-3), {}),
    ((16, 1e-6, False), {}),
    ((16,), {"bias": False}),
    ((16,), {"elementwise_affine": False, "bias": True}),
    ((16,), {"dtype": torch.float64, "device": "cpu"}),
    ((16,), {"device": "meta"}),
)


def test_on_paper(backend: TestBackend) -> None:
    """Mean 2.5 and variance 1.25; eps is chosen so that rstd is exactly 1/2."""
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0]], device=backend.device, requires_grad=True)
    weight = torch.tensor([1.0, 2.0, 4.0, 8.0], device=backend.device, requires_grad=True)
    bias = torch.tensor([0.5, 0.0, -0.5, 1.0], device=backend.device, requires_grad=True)
    y = layer_norm(x, (4,), weight, bias, eps=2.75)  # 1.25 + 2.75 = 4
    assert y.tolist() == [[-0.75 + 0.5, -0.5, 1.0 - 0.5, 6.0 + 1.0]]
    y.backward(torch.tensor([[1.0, 0.0, 0.0, 0.0]], device=backend.device))
    # x_hat = (-3, -1, 1, 3) / 4, g = (1, 0, 0, 0): mean(g) = 1/4, mean(g x_hat) = -3/16
    assert weight.grad.tolist() == [-0.75, 0.0, 0.0, 0.0]
    assert bias.grad.tolist() == [1.0, 0.0, 0.0, 0.0]
    x_hat = (-0.75, -0.25, 0.25, 0.75)
    expected = [0.5 * (g - 0.25 + 3 / 16 * h) for g, h in zip((1, 0, 0, 0), x_hat, strict=True)]
    assert x.grad.tolist() == [expected]


def test_add_on_paper(backend: TestBackend) -> None:
    x = torch.tensor([[1.0, 1.0, 1.0, 1.0]], device=backend.device)
    residual = torch.tensor([[0.0, 1.0, 2.0, 3.0]], device=backend.device)
    y, total = add_layer_norm(x, residual, (4,), eps=2.75)
    assert total.tolist() == [[1.0, 2.0, 3.0, 4.0]]
    assert y.tolist() == [[-0.75, -0.25, 0.25, 0.75]]


@pytest.mark.parametrize("module_class", (LayerNorm, AddLayerNorm))
@pytest.mark.parametrize("args, kwargs", CONSTRUCTIONS)
def test_construction_is_that_of_torch(module_class: type[nn.Module], args: tuple, kwargs: dict) -> None:
    ours, theirs = module_class(*args, **kwargs), nn.LayerNorm(*args, **kwargs)
    assert isinstance(ours, nn.LayerNorm)
    assert repr(ours) == repr(theirs).replace("LayerNorm(", f"{module_class.__name__}(")
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for name, parameter in theirs.named_parameters():
        mine = ours.get_parameter(name)
        assert (mine.shape, mine.dtype, mine.device) == (parameter.shape, parameter.dtype, parameter.device)
        assert mine.is_meta or torch.equal(mine, parameter)
    for attribute in ("normalized_shape", "eps", "elementwise_affine"):
        assert getattr(ours, attribute) == getattr(theirs, attribute)


def test_signatures_are_those_of_torch() -> None:
    parameters = list(inspect.signature(layer_norm).parameters.values())
    theirs = list(inspect.signature(F.layer_norm).parameters.values())
    assert [(p.name, p.default) for p in parameters[:-1]] == [(p.name, p.default) for p in theirs]
    assert parameters[-1].name == "out_dtype" and parameters[-1].kind is inspect.Parameter.KEYWORD_ONLY
    assert list(inspect.signature(add_layer_norm).parameters)[:2] == ["input", "residual"]
    assert inspect.signature(LayerNorm) == inspect.signature(nn.LayerNorm)


def test_state_dict_goes_both_ways(backend: TestBackend) -> None:
    theirs, ours = nn.LayerNorm(16), LayerNorm(16)
    nn.init.normal_(theirs.weight), nn.init.normal_(theirs.bias)
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(4, 16, device=backend.device)
    torch.testing.assert_close(ours.to(backend.device)(x), theirs.to(backend.device)(x))


def test_reset_parameters() -> None:
    module = LayerNorm(16)
    nn.init.normal_(module.weight), nn.init.normal_(module.bias)
    module.reset_parameters()
    assert torch.equal(module.weight, torch.ones(16)) and torch.equal(module.bias, torch.zeros(16))


@pytest.mark.parametrize("size", (15, 17))
def test_module_error_is_that_of_torch(backend: TestBackend, size: int) -> None:
    x = torch.randn(4, size, device=backend.device)
    errors = []
    for module in (LayerNorm(16).to(backend.device), nn.LayerNorm(16).to(backend.device)):
        with pytest.raises(RuntimeError, match="normalized_shape") as error:
            module(x)
        errors.append(error.value)
    assert type(errors[0]) is type(errors[1])


def test_add_module(backend: TestBackend) -> None:
    module = AddLayerNorm((4, 5), eps=1e-3).to(backend.device)
    nn.init.normal_(module.weight), nn.init.normal_(module.bias)
    x, residual = torch.randn(2, 3, 4, 5, device=backend.device), torch.randn(2, 3, 4, 5, device=backend.device)
    y, total = module(x, residual)
    assert torch.equal(total, x + residual)
    torch.testing.assert_close(y, F.layer_norm(total, (4, 5), module.weight, module.bias, 1e-3))


def test_a_training_step(backend: TestBackend) -> None:
    """A module inside a model: parameters get their gradients, an optimizer moves them, as with torch's."""
    losses = []
    for norm in (torchfastnorm.LayerNorm, nn.LayerNorm):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16), norm(16), nn.ReLU(), nn.Linear(16, 1)).to(backend.device)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        x, target = torch.randn(32, 8).to(backend.device), torch.randn(32, 1).to(backend.device)
        for _ in range(5):
            optimizer.zero_grad()
            loss = F.mse_loss(model(x), target)
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
