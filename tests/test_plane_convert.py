"""convert() on the plane family: what it replaces and keeps, and the activations that it folds into norms if asked."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import nn

import torchfastnorm
from torchfastnorm import convert

NAMES = ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "GroupNorm", "InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d")
ACTIVATIONS = {
    "relu": nn.ReLU(),
    "relu in place": nn.ReLU(inplace=True),
    "leaky_relu": nn.LeakyReLU(),
    "elu": nn.ELU(),
    "silu": nn.SiLU(),
    "gelu": nn.GELU(),
    "gelu_tanh": nn.GELU(approximate="tanh"),
}


class OwnBatchNorm(nn.BatchNorm2d):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) * 2


def small_network() -> nn.Sequential:
    layers = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3), nn.GroupNorm(2, 8), nn.SiLU(),
        nn.Conv2d(8, 8, 3), nn.InstanceNorm2d(8, affine=True, track_running_stats=True), nn.Tanh(),
        OwnBatchNorm(8), nn.ReLU(),
    )  # fmt: skip
    for parameter in layers.parameters():
        nn.init.normal_(parameter, std=0.3)
    return layers


def run(model: nn.Module, steps: int = 2) -> list[torch.Tensor]:
    """Outputs, gradients and buffers of some steps and an evaluation."""
    generator = torch.Generator().manual_seed(0)
    results = []
    for step in range(steps):
        x = torch.randn(4, 3, 12, 11, generator=generator) + step
        y = model.train()(x)
        model.zero_grad()
        y.square().mean().backward()
        results += [y.detach(), *[p.grad.clone() for p in model.parameters()], *[b.clone() for b in model.buffers()]]
    return [*results, model.eval()(x).detach()]


def assert_same(model: nn.Module, other: nn.Module) -> None:
    for a, b in zip(run(model), run(other), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_every_class_is_replaced(name: str) -> None:
    arguments = (2, 8) if name == "GroupNorm" else (8,)
    theirs = getattr(nn, name)(*arguments, eps=1e-3).eval()
    ours = convert(theirs)
    assert type(ours) is getattr(torchfastnorm, name) and type(theirs) is getattr(nn, name)
    assert repr(ours) == repr(theirs) and not ours.training and ours.eps == 1e-3
    torch.testing.assert_close(dict(ours.state_dict()), dict(theirs.state_dict()))
    x = torch.randn(2, 8, *[5] * (2 if name == "GroupNorm" else int(name[-2])))
    torch.testing.assert_close(ours.train()(x), theirs.train()(x))


@pytest.mark.parametrize("fold", (False, True))
def test_a_network_computes_the_same(fold: bool) -> None:
    model = small_network()
    report: list[Any] = []
    converted = convert(model, fold_activations=fold, report=report)
    assert [entry.name for entry in report] == ["1", "4", "7"]
    kinds = [type(module).__name__ for module in converted]
    assert kinds[1::3] == ["BatchNorm2d", "GroupNorm", "InstanceNorm2d", "ReLU"]
    assert type(converted[1]) is torchfastnorm.BatchNorm2d and type(converted[9]) is OwnBatchNorm
    assert (kinds[2], kinds[5], kinds[8], kinds[10]) == (
        ("Identity", "Identity", "Tanh", "ReLU") if fold else ("ReLU", "SiLU", "Tanh", "ReLU")
    )
    assert [m.activation for m in (converted[1], converted[4], converted[7])] == (
        ["relu", "silu", "none"] if fold else ["none"] * 3
    )
    assert list(converted.state_dict()) == list(model.state_dict())
    assert_same(converted, model)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_folds(name: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), ACTIVATIONS[name])
    converted = convert(model, fold_activations=True)
    assert converted[1].activation == name.split()[0] and type(converted[2]) is nn.Identity
    assert_same(converted, model)


@pytest.mark.parametrize(
    "activation",
    (nn.LeakyReLU(0.2), nn.ELU(0.5), nn.Sigmoid(), nn.ReLU6(), nn.Dropout(), type("Own", (nn.ReLU,), {})()),
)
def test_what_does_not_fold(activation: nn.Module) -> None:
    converted = convert(nn.Sequential(nn.BatchNorm2d(8), activation), fold_activations=True)
    assert converted[0].activation == "none" and type(converted[1]) is type(activation)


def test_a_norm_in_two_places_keeps_its_activation_apart() -> None:
    norm = nn.BatchNorm2d(8)
    for model in (
        nn.Sequential(norm, nn.ReLU(), nn.Conv2d(8, 8, 1), norm),
        nn.ModuleList([norm, nn.Sequential(norm, nn.ReLU())]),
    ):
        converted = convert(model, fold_activations=True)
        assert all(m.activation == "none" for m in converted.modules() if isinstance(m, torchfastnorm.BatchNorm2d))
        assert any(isinstance(m, nn.ReLU) for m in converted.modules())


def test_a_shared_activation_stays_for_the_others() -> None:
    relu = nn.ReLU()
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), relu, nn.Conv2d(8, 8, 3), relu)
    converted = convert(model, fold_activations=True)
    assert type(converted[2]) is nn.Identity and type(converted[4]) is nn.ReLU
    assert_same(converted, model)


def test_hooks_prevent_folding() -> None:
    """Who watches a module must see what it saw before."""
    for index in (0, 1):
        model = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU())
        seen: list[torch.Tensor] = []
        model[index].register_forward_hook(lambda module, args, output, seen=seen: seen.append(output))
        converted = convert(model, inplace=True, fold_activations=True)
        assert converted[0].activation == "none" and type(converted[1]) is nn.ReLU
        converted(torch.randn(2, 8, 3, 3))
        assert len(seen) == 1


def test_a_subclass_of_sequential_with_its_own_forward_is_left_alone() -> None:
    class Skipping(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self[0](x)

    class Plain(nn.Sequential):
        pass

    for kind, folds in ((Skipping, False), (Plain, True)):
        converted = convert(kind(nn.BatchNorm2d(8), nn.ReLU()), fold_activations=True)
        assert (converted[0].activation == "relu") == folds


def test_folding_twice_and_later_changes_nothing() -> None:
    model = convert(nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.SiLU()), fold_activations=True)
    again = convert(model, fold_activations=True)
    assert again[0].activation == "relu" and type(again[2]) is nn.SiLU
    later = convert(convert(nn.Sequential(nn.BatchNorm2d(8), nn.ReLU())), fold_activations=True)
    assert later[0].activation == "relu"


def test_folding_is_logged_and_kept_off_by_default(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="torchfastnorm"):
        convert(small_network(), fold_activations=True)
    assert "ReLU" in caplog.text and "folded" in caplog.text and "modules replaced: 3" in caplog.text


def test_sync_batch_norm_is_left_alone() -> None:
    model = nn.Sequential(nn.SyncBatchNorm(8), nn.ReLU())
    assert type(convert(model, fold_activations=True)[0]) is nn.SyncBatchNorm


def test_channels_last_models_stay_channels_last() -> None:
    model = small_network().to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 12, 12).to(memory_format=torch.channels_last)
    y = convert(model, fold_activations=True)(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, model(x), rtol=1e-4, atol=1e-4)
