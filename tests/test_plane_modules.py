"""The seven modules of the plane family: torch.nn's surface, and what is added to it."""

from __future__ import annotations

import copy
import inspect
import pickle
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import TestBackend
from plane_cases import LAST, LAYOUTS, in_layout
from torch import Tensor, nn

import torchfastnorm
from torchfastnorm.reference._plane_norm import ACTIVATIONS

BATCH = ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d")
INSTANCE = ("InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d")
NAMES = (*BATCH, *INSTANCE, "GroupNorm")
all_names = pytest.mark.parametrize("name", NAMES)
SIZES = (5, 4, 3)
OPTIONS = (
    {},
    {"eps": 1e-3},
    {"affine": False},
    {"affine": True},
    {"momentum": 0.3},
    {"momentum": None},
    {"track_running_stats": False},
    {"track_running_stats": True, "affine": True},
    {"dtype": torch.float64, "device": "cpu"},
    {"device": "meta"},
)


def arguments_of(name: str) -> tuple[int, ...]:
    return (3, 6) if name == "GroupNorm" else (6,)


def usable(name: str, options: dict[str, Any]) -> bool:
    return name != "GroupNorm" or not {"momentum", "track_running_stats"} & set(options)


def shape_of(name: str, samples: int = 3) -> tuple[int, ...]:
    return (samples, 6, *SIZES[: 2 if name == "GroupNorm" else int(name[-2])])


def pair(name: str, **options: Any) -> tuple[nn.Module, nn.Module]:
    """(ours, torch's), with the same parameters, none of them trivial."""
    ours, theirs = (getattr(space, name)(*arguments_of(name), **options) for space in (torchfastnorm, nn))
    for parameter in theirs.parameters():
        nn.init.normal_(parameter)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


CONSTRUCTIONS = [(name, options) for name in NAMES for options in OPTIONS if usable(name, options)]


@pytest.mark.parametrize("name, options", CONSTRUCTIONS, ids=lambda v: v if isinstance(v, str) else "-".join(v))
def test_construction_is_that_of_torch(name: str, options: dict[str, Any]) -> None:
    ours_class, theirs_class = getattr(torchfastnorm, name), getattr(nn, name)
    ours, theirs = (c(*arguments_of(name), **options) for c in (ours_class, theirs_class))
    assert isinstance(ours, theirs_class) and repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for key, tensor in theirs.state_dict().items():
        mine = ours.state_dict()[key]
        assert (mine.shape, mine.dtype, mine.device) == (tensor.shape, tensor.dtype, tensor.device), key
        assert mine.is_meta or torch.equal(mine, tensor), key
    for attribute, value in vars(theirs).items():
        if not attribute.startswith("_"):
            assert getattr(ours, attribute) == value, attribute


@all_names
def test_signature_is_that_of_torch(name: str) -> None:
    """With `activation` as the one addition, and `bias`, which newer releases of torch have, on every release."""
    ours = inspect.signature(getattr(torchfastnorm, name)).parameters
    theirs = inspect.signature(getattr(nn, name)).parameters
    added = [parameter for parameter in ours.values() if parameter.name not in theirs]
    assert {p.name for p in added} - {"bias"} == {"activation"}
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in added) and ours["activation"].default == "none"
    for parameter, other in zip(ours.values(), theirs.values(), strict=False):
        assert (parameter.name, parameter.default, parameter.kind) == (other.name, other.default, other.kind)
    forward = inspect.signature(getattr(torchfastnorm, name).forward).parameters
    assert list(forward)[:3] == ["self", "input", "residual"] and forward["residual"].default is None


@all_names
def test_bias_alone_can_be_left_out(backend: TestBackend, name: str) -> None:
    affine = {} if name == "GroupNorm" else {"affine": True}
    module = getattr(torchfastnorm, name)(*arguments_of(name), **affine, bias=False).to(backend.device)
    assert module.bias is None and [key for key, _ in module.named_parameters()] == ["weight"]
    nn.init.normal_(module.weight)
    x = torch.randn(shape_of(name), device=backend.device)
    plain = getattr(nn, name)(*arguments_of(name), **affine).to(backend.device)
    plain.weight = module.weight
    torch.testing.assert_close(module(x), plain(x))
    module.reset_parameters()
    assert torch.equal(module.weight, torch.ones_like(module.weight)) and module.bias is None


@all_names
@pytest.mark.parametrize("layout", LAYOUTS)
def test_training_and_evaluation(backend: TestBackend, name: str, layout: str) -> None:
    """Three steps and an evaluation, buffers included, as torch's module in fp64."""
    tracks = {} if name == "GroupNorm" else {"affine": True, "track_running_stats": True}
    ours, theirs = (module.to(backend.device) for module in pair(name, **tracks))
    theirs.double()
    for step in range(4):
        ours.train(step < 3), theirs.train(step < 3)
        x = in_layout(torch.randn(shape_of(name), device=backend.device) * (1 + step) + step, layout)
        y = ours(x)
        torch.testing.assert_close(y.double(), theirs(x.double()), rtol=1e-5, atol=1e-5)
        assert y.stride() == x.stride()
        for (key, a), (_, b) in zip(ours.named_buffers(), theirs.named_buffers(), strict=True):
            torch.testing.assert_close(a.double(), b.double(), rtol=1e-5, atol=1e-6, msg=key)


@pytest.mark.parametrize("name", BATCH)
@pytest.mark.parametrize(
    "options", ({"momentum": None}, {"track_running_stats": False}, {"affine": False}), ids="-".join
)
def test_modes_of_batch_norm(backend: TestBackend, name: str, options: dict[str, Any]) -> None:
    ours, theirs = (module.to(backend.device) for module in pair(name, **options))
    for training in (True, True, False, True, False):
        ours.train(training), theirs.train(training)
        x = torch.randn(shape_of(name), device=backend.device) + 3
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(dict(ours.state_dict()), dict(theirs.state_dict()), rtol=1e-5, atol=1e-5)


def test_statistics_are_kept_without_being_used(backend: TestBackend) -> None:
    """track_running_stats switched off afterwards, as users do: training no longer updates, evaluation still uses."""
    ours, theirs = (module.to(backend.device) for module in pair("BatchNorm2d"))
    for module in (ours, theirs):
        module.track_running_stats = False
    x = torch.randn(3, 6, 5, 4, device=backend.device)
    for training in (True, False):
        torch.testing.assert_close(ours.train(training)(x), theirs.train(training)(x))
        torch.testing.assert_close(dict(ours.state_dict()), dict(theirs.state_dict()))


@pytest.mark.parametrize("name", ("BatchNorm2d", "InstanceNorm2d", "GroupNorm"))
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation_and_residual(backend: TestBackend, name: str, activation: str) -> None:
    ours, theirs = (m.to(backend.device) for m in pair(name))
    fused = getattr(torchfastnorm, name)(*arguments_of(name), activation=activation).to(backend.device)
    fused.load_state_dict(ours.state_dict())
    x, residual = (torch.randn(shape_of(name), device=backend.device) for _ in range(2))
    function = ACTIVATIONS[activation]
    torch.testing.assert_close(fused(x), function(theirs(x)), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(fused(x, residual), function(theirs(x) + residual), rtol=1e-5, atol=1e-5)
    assert list(fused.state_dict()) == list(theirs.state_dict())
    assert (f"activation={activation}" in repr(fused)) == (activation != "none")
    other = pickle.loads(pickle.dumps(fused))
    torch.testing.assert_close(other(x), fused(x), rtol=0, atol=0)
    assert repr(other) == repr(copy.deepcopy(fused)) == repr(fused)


@all_names
def test_mask(backend: TestBackend, name: str) -> None:
    """Padding in a module: the samples' own values, the counted elements in the running statistics."""
    module = getattr(torchfastnorm, name)(*arguments_of(name)).to(backend.device)
    x = torch.randn(shape_of(name), device=backend.device)
    padded = F.pad(x, (0, 2), value=1e4)
    mask = F.pad(torch.ones_like(x[:, :1], dtype=torch.bool), (0, 2))
    other = copy.deepcopy(module)
    y = module(padded, mask=mask)
    torch.testing.assert_close(y[..., :-2], other(x), rtol=1e-5, atol=1e-5)
    assert not y[..., -2:].any()
    torch.testing.assert_close(dict(module.state_dict()), dict(other.state_dict()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", INSTANCE)
@pytest.mark.parametrize("tracks", (False, True))
def test_instance_norm_without_a_batch(backend: TestBackend, name: str, tracks: bool) -> None:
    """(C, *) in, (C, *) out; a number of features that does not matter is only warned about."""
    ours, theirs = (m.to(backend.device) for m in pair(name, track_running_stats=tracks, affine=tracks))
    x = torch.randn(shape_of(name)[1:], device=backend.device)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(dict(ours.state_dict()), dict(theirs.state_dict()))
    if not tracks:
        with pytest.warns(UserWarning, match="num_features"):
            ours(torch.randn(3, 7, *shape_of(name)[2:], device=backend.device))


@all_names
def test_state_dict_goes_both_ways(backend: TestBackend, name: str) -> None:
    ours, theirs = pair(name)
    x = torch.randn(shape_of(name))
    ours(x)
    theirs.load_state_dict(ours.state_dict())
    fresh = getattr(torchfastnorm, name)(*arguments_of(name))
    fresh.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(dict(fresh.state_dict()), dict(ours.state_dict()), rtol=0, atol=0)


def test_state_of_an_old_version_loads() -> None:
    """State from before num_batches_tracked, as torch's module accepts it."""
    state = {key: t for key, t in nn.BatchNorm2d(6).state_dict().items() if key != "num_batches_tracked"}
    ours = torchfastnorm.BatchNorm2d(6)
    ours.load_state_dict(state)
    assert ours.num_batches_tracked.item() == 0 and ours.state_dict()._metadata[""]["version"] == 2


@all_names
def test_copies_are_independent(backend: TestBackend, name: str) -> None:
    ours, _ = (m.to(backend.device) for m in pair(name))
    x = torch.randn(shape_of(name), device=backend.device)
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert type(other) is type(ours)
        torch.testing.assert_close(other(x), copy.deepcopy(ours)(x), rtol=0, atol=0)
        assert all(a is not b for a, b in zip(other.parameters(), ours.parameters(), strict=True))


@pytest.mark.parametrize("name", (*BATCH, *INSTANCE))
def test_wrong_dimensions(backend: TestBackend, name: str) -> None:
    for shape in ((6,), (3, 6), (3, 6, 5), (3, 6, 5, 4), (3, 6, 5, 4, 3), (2, 3, 6, 5, 4, 3)):
        x = torch.randn(shape, device=backend.device)
        outcomes = []
        for module in pair(name):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                try:
                    module.to(backend.device)(x)
                    outcomes.append(None)
                except Exception as error:
                    outcomes.append((type(error), str(error)))
        assert outcomes[0] == outcomes[1]


def test_wrong_number_of_features(backend: TestBackend) -> None:
    for name in NAMES:
        affine = {"affine": True} if name in INSTANCE else {}
        x = torch.randn(3, 7, *shape_of(name)[2:], device=backend.device)
        for module in pair(name, **affine):
            with pytest.raises((RuntimeError, ValueError), match=r"7|divisible|elements"):
                module.to(backend.device)(x)


@all_names
def test_an_unknown_activation(name: str) -> None:
    with pytest.raises(ValueError, match=r"activation.*softplus.*relu"):
        getattr(torchfastnorm, name)(*arguments_of(name), activation="softplus")


def test_bad_group_counts() -> None:
    for space in (torchfastnorm, nn):
        with pytest.raises(ValueError, match="divisible"):
            space.GroupNorm(4, 6)


def test_channels_last_model(backend: TestBackend) -> None:
    """model.to(memory_format=channels_last) with convolutions around: formats pass through, losses agree."""
    losses: list[list[float]] = []
    for space in (torchfastnorm, nn):
        torch.manual_seed(0)
        norms = [space.BatchNorm2d(8), space.GroupNorm(2, 8), space.InstanceNorm2d(8, affine=True)]
        layers: list[nn.Module] = [nn.Conv2d(3, 8, 3)]
        for norm in norms:
            layers += [norm, nn.ReLU(), nn.Conv2d(8, 8, 3)]
        model = nn.Sequential(*layers).to(backend.device, memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        x = torch.randn(4, 3, 12, 12).to(backend.device, memory_format=torch.channels_last)
        losses.append([])
        for _ in range(5):
            optimizer.zero_grad()
            y: Tensor = model(x)
            assert y.is_contiguous(memory_format=torch.channels_last) and in_layout(y, LAST).stride() == y.stride()
            loss = y.square().mean()
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
