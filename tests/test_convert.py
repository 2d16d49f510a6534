"""convert(): which modules it replaces, what it keeps, and that the model computes the same."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import nn

from torchfastnorm import LayerNorm, RMSNorm, convert


class OwnLayerNorm(nn.LayerNorm):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) * 2


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(16, eps=1e-6)
        self.body = nn.Sequential(nn.Linear(16, 16), nn.RMSNorm(16), nn.ReLU(), nn.LayerNorm(16, bias=False))
        self.own = OwnLayerNorm(16)
        self.shared = self.attention_norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.own(self.body(self.attention_norm(x))) + self.shared(x)


REPLACED = {"attention_norm": LayerNorm, "body.1": RMSNorm, "body.3": LayerNorm}


@pytest.fixture
def model() -> Block:
    block = Block()
    for parameter in block.parameters():
        nn.init.normal_(parameter)
    return block


def kinds(model: nn.Module) -> dict[str, type]:
    return {name: type(module) for name, module in model.named_modules() if "Norm" in type(module).__name__}


def test_what_is_replaced(model: Block) -> None:
    converted = convert(model)
    assert kinds(converted) == REPLACED | {"own": OwnLayerNorm}
    assert converted.shared is converted.attention_norm
    assert converted.attention_norm.eps == 1e-6 and converted.body[3].bias is None


def test_a_copy_by_default(model: Block) -> None:
    before = kinds(model)
    converted = convert(model)
    assert converted is not model and kinds(model) == before
    for (name, a), (other, b) in zip(model.named_parameters(), converted.named_parameters(), strict=True):
        assert name == other and a is not b and torch.equal(a, b)


def test_in_place(model: Block) -> None:
    parameters = dict(model.named_parameters())
    assert convert(model, inplace=True) is model
    assert kinds(model) == REPLACED | {"own": OwnLayerNorm}
    assert all(p is parameters[name] for name, p in model.named_parameters())


def test_the_model_itself_may_be_a_norm() -> None:
    norm = nn.LayerNorm(16)
    assert type(convert(norm)) is LayerNorm and type(norm) is nn.LayerNorm
    assert type(convert(norm, inplace=True)) is LayerNorm


def test_the_model_computes_the_same(model: Block) -> None:
    x = torch.randn(4, 16)
    results = []
    for candidate in (model, convert(model)):
        candidate.zero_grad()
        y = candidate(x)
        y.square().mean().backward()
        results.append([y, *[p.grad for p in candidate.parameters()]])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_our_code_runs_afterwards(model: Block) -> None:
    """Replaced modules lead to our node; that convert changed a name only would not be enough."""
    y = convert(model).attention_norm(torch.randn(4, 16))
    assert y.grad_fn is not None and y.grad_fn.name() == "LayerNormBackward"
    assert model.attention_norm(torch.randn(4, 16)).grad_fn.name() == "NativeLayerNormBackward0"


def test_state_is_kept(model: Block) -> None:
    model.double().eval()
    model.body[1].weight.requires_grad_(False)
    calls: list[str] = []
    model.attention_norm.register_forward_hook(lambda *_: calls.append("forward"))
    model.attention_norm.register_forward_pre_hook(lambda *_: calls.append("before"))
    model.attention_norm.register_full_backward_hook(lambda *_: calls.append("backward"))
    model.attention_norm.note = "mine"
    converted = convert(model)
    assert not any(module.training for module in converted.modules())
    assert all(p.dtype == torch.float64 for p in converted.parameters())
    assert not converted.body[1].weight.requires_grad and converted.body[3].weight.requires_grad
    assert converted.attention_norm.note == "mine"
    converted.attention_norm(torch.randn(2, 16, dtype=torch.float64, requires_grad=True)).sum().backward()
    assert sorted(calls) == ["backward", "before", "forward"]
    assert converted.state_dict().keys() == model.state_dict().keys()


def test_training_mode_of_each_module_is_kept(model: Block) -> None:
    model.train()
    model.body.eval()
    converted = convert(model)
    assert converted.attention_norm.training and not converted.body[1].training


def test_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    assert convert(model)[1].weight.is_meta and type(convert(model)[1]) is LayerNorm


def test_it_says_what_it_replaced(model: Block, caplog: pytest.LogCaptureFixture) -> None:
    report: list[Any] = []
    with caplog.at_level(logging.INFO, logger="torchfastnorm"):
        converted = convert(model, report=report)
    assert {entry.name: type(entry.module) for entry in report} == REPLACED
    assert all(entry.module is converted.get_submodule(entry.name) for entry in report)
    for name in REPLACED:
        assert name in caplog.text
    assert "own" not in caplog.text and "modules replaced: 3" in caplog.text


def test_converting_twice_changes_nothing(model: Block) -> None:
    report: list[object] = []
    once = convert(model)
    assert kinds(convert(once, report=report)) == kinds(once) and not report


def test_a_transformer_of_torch() -> None:
    """nn.TransformerEncoderLayer holds two norms; training runs ours, and the result stays."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True).train()
    converted = convert(layer)
    assert type(converted.norm1) is LayerNorm and type(converted.norm2) is LayerNorm
    x = torch.randn(2, 5, 16)
    torch.testing.assert_close(converted(x), layer(x))
    with torch.no_grad():
        torch.testing.assert_close(converted.eval()(x), layer.eval()(x))
