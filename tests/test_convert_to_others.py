"""convert() to norms of another kind, and from the classes of other packages, which these tests imitate."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchfastnorm
from torchfastnorm import convert, reference

SIZES = {1: (6, 8), 2: (6, 8, 5, 4), 3: (6, 8, 3, 2, 4)}


def batch_norm(dims: int, ours: bool = False, **options: Any) -> nn.Module:
    norm = getattr(torchfastnorm if ours else nn, f"BatchNorm{dims}d")(8, **options)
    for parameter in norm.parameters():
        nn.init.normal_(parameter, 1.0)
    norm(torch.randn(SIZES[dims]) * 2 + 1)
    return norm.eval()


@pytest.mark.parametrize("ours", (False, True))
@pytest.mark.parametrize("dims", (1, 2, 3))
def test_batch_renorm_evaluates_as_before(dims: int, ours: bool) -> None:
    norm = batch_norm(dims, ours, momentum=0.3)
    converted = convert(norm, {f"BatchNorm{dims}d": f"BatchRenorm{dims}d"})
    assert type(converted).__name__ == f"BatchRenorm{dims}d" and converted.momentum == 0.3 and not converted.training
    x = torch.randn(SIZES[dims])
    torch.testing.assert_close(converted(x), norm(x))
    assert converted.num_batches_tracked == 1


@pytest.mark.parametrize("ours", (False, True))
@pytest.mark.parametrize("dims", (1, 2, 3))
@pytest.mark.parametrize("target", ("IterNorm", "BatchWhitening"))
def test_whitening_evaluates_as_before_until_it_is_trained(target: str, dims: int, ours: bool) -> None:
    norm = batch_norm(dims, ours, momentum=0.3)
    converted = convert(norm, {f"BatchNorm{dims}d": target})
    assert type(converted) is getattr(torchfastnorm, target) and converted.momentum == 0.3 and not converted.training
    x = torch.randn(SIZES[dims])
    torch.testing.assert_close(converted(x), norm(x), rtol=1e-5, atol=1e-5)
    before = converted.running_wm.clone()
    converted.train()(x)
    assert not torch.equal(converted.running_wm, before)


@pytest.mark.parametrize("channels, width", ((8, 8), (64, 64), (80, 16), (256, 64)))
def test_groups_of_whitened_channels(channels: int, width: int) -> None:
    converted = convert(nn.BatchNorm2d(channels), {"BatchNorm2d": "IterNorm"})
    assert converted.num_channels == width and converted.weight.shape == (1, channels, 1, 1)


def test_whitening_applies_no_activation() -> None:
    with pytest.raises(ValueError, match="applies no activation"):
        convert(torchfastnorm.BatchNorm2d(8, activation="relu"), {"BatchNorm2d": "IterNorm"})


@pytest.mark.parametrize("dims", (1, 2, 3))
def test_switch_norm_that_trusts_the_batch_evaluates_as_before(dims: int) -> None:
    norm = batch_norm(dims, momentum=0.3)
    converted = convert(norm, {f"BatchNorm{dims}d": f"SwitchNorm{dims}d"})
    assert type(converted).__name__ == f"SwitchNorm{dims}d" and converted.momentum == pytest.approx(0.7)
    with torch.no_grad():
        for logits in (converted.mean_weight, converted.var_weight):
            logits[-1] = 60
    x = torch.randn(SIZES[dims])
    torch.testing.assert_close(converted(x), norm(x), rtol=1e-5, atol=1e-5)


def test_without_running_statistics_there_is_no_term_of_the_batch() -> None:
    converted = convert(nn.BatchNorm2d(8, track_running_stats=False), {"BatchNorm2d": "SwitchNorm2d"})
    assert converted.mean_weight.shape == (2,) and converted.running_mean is None


@pytest.mark.parametrize(
    "dims, target", ((1, "SwitchNorm1d"), (1, "BatchRenorm1d"), (2, "BatchRenorm2d"), (2, "IterNorm"))
)
def test_statistics_are_not_made_up(dims: int, target: str) -> None:
    norm = getattr(nn, f"BatchNorm{dims}d")(8, track_running_stats=False)
    with pytest.raises(ValueError, match="does not keep"):
        convert(norm, {f"BatchNorm{dims}d": target})


def test_backward_hooks_and_hooks_of_the_successor() -> None:
    seen: list[str] = []
    norm = nn.BatchNorm2d(8)
    norm.register_full_backward_hook(lambda *_: seen.append("backward"))

    def make(module: Any) -> nn.Module:
        successor = nn.Identity()
        successor.register_forward_hook(lambda *_: seen.append("its own"))
        return successor

    for target in ("SwitchNorm2d", make):
        convert(norm, {"BatchNorm2d": target})(torch.randn(SIZES[2], requires_grad=True)).sum().backward()
    assert seen == ["backward", "its own", "backward"]


def test_each_tensor_keeps_its_dtype() -> None:
    norm = nn.BatchNorm2d(8)
    norm.weight.data, norm.bias.data = norm.weight.data.bfloat16(), norm.bias.data.bfloat16()
    converted = convert(norm, {"BatchNorm2d": "SwitchNorm2d"})
    assert (converted.weight.dtype, converted.running_var.dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.parametrize("options", ({}, {"affine": False}))
@pytest.mark.parametrize("target, groups", (("GroupNorm", 8), ("InstanceNorm2d", None)))
def test_group_and_instance_norm_take_the_parameters(target: str, groups: int | None, options: dict[str, Any]) -> None:
    norm = batch_norm(2, **options)
    converted = convert(norm, {"BatchNorm2d": target})
    assert type(converted) is getattr(torchfastnorm, target)
    assert groups is None or converted.num_groups == groups
    for name in ("weight", "bias"):
        before, after = getattr(norm, name), getattr(converted, name)
        assert (after is None) == (before is None) and (after is None or torch.equal(after, before))


def test_a_whole_model() -> None:
    """Modules in two places stay one; hooks, mode, dtype, requires_grad and the rest of the model stay."""
    shared = nn.BatchNorm2d(8).double().eval()
    shared.bias.requires_grad_(False)
    model = nn.Sequential(shared, nn.Conv2d(8, 8, 1).double(), shared, nn.ReLU(), nn.LayerNorm(4).double())
    seen: list[str] = []
    handle = shared.register_forward_hook(lambda *_: seen.append("hook"))
    report: list[Any] = []
    converted = convert(model, {"BatchNorm2d": "SwitchNorm2d"}, report=report)
    norm = converted[0]
    assert isinstance(norm, torchfastnorm.SwitchNorm2d) and converted[2] is norm
    assert isinstance(converted[4], torchfastnorm.LayerNorm) and type(model[0]) is nn.BatchNorm2d
    assert norm.weight.dtype == torch.float64 and not norm.training
    assert norm.weight.requires_grad and not norm.bias.requires_grad
    assert [name for name, _ in report] == ["0", "4"] and report[0].module is norm
    converted(torch.randn(2, 8, 5, 4, dtype=torch.float64))
    assert seen == ["hook", "hook"]

    convert(model, {"BatchNorm2d": "SwitchNorm2d"}, inplace=True)
    assert isinstance(model[0], torchfastnorm.SwitchNorm2d) and model[2] is model[0]
    handle.remove()
    model(torch.randn(2, 8, 5, 4, dtype=torch.float64))
    assert len(seen) == 2


def test_a_function_of_the_module_and_activations() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU())
    mapping = {"BatchNorm2d": lambda norm: torchfastnorm.GroupNorm(2, norm.num_features)}
    converted = convert(model, mapping, fold_activations=True)
    assert converted[1].num_groups == 2 and converted[1].activation == "relu"
    assert isinstance(converted[2], nn.Identity)


@pytest.mark.parametrize(
    "mapping, message",
    (
        ({"LayerNorm": "GroupNorm"}, "'LayerNorm' cannot be mapped"),
        ({"BatchNorm2d": "LocalNorm"}, "become 'LocalNorm'"),
    ),
)
def test_unknown_names(mapping: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        convert(nn.BatchNorm2d(8), mapping)


# ---- classes of other packages


def imitate(path: str, name: str, module: nn.Module) -> nn.Module:
    """A module whose class seems to come from there."""
    module.__class__ = type(name, (nn.Module,), {"__module__": path})
    return module


def with_values(tensors: dict[str, Tensor], **attributes: Any) -> nn.Module:
    module = nn.Module()
    for name, t in tensors.items():
        if name in ("weight", "bias", "scale", "mean_weight", "var_weight"):
            module.register_parameter(name, nn.Parameter(t))
        else:
            module.register_buffer(name, t)
    for name, value in attributes.items():
        setattr(module, name, value)
    return module


def positive(*shape: int) -> Tensor:
    return torch.rand(shape) + 0.5


@pytest.mark.parametrize(
    "dialect, path, keys, attributes",
    (
        ("ludvb", "batchrenorm.batchrenorm", ("weight", "running_mean", "running_std", "num_batches_tracked"), {}),
        (
            "torchrl",
            "torchrl.modules.models.batchrenorm",
            ("weight", "running_mean", "running_var", "num_batches_tracked"),
            {"max_r": 2.0, "max_d": 4.0, "warmup_steps": 50, "smooth": False},
        ),
        (
            "sb3",
            "sb3_contrib.common.torch_layers",
            ("scale", "ra_mean", "ra_var", "steps"),
            {"rmax": 2.0, "dmax": 4.0, "warmup_steps": 50, "affine": True},
        ),
    ),
)
def test_batch_renorm_of_a_package(dialect: str, path: str, keys: tuple[str, ...], attributes: dict[str, Any]) -> None:
    scale, mean, spread, count = keys
    tensors = {scale: positive(8), "bias": torch.randn(8), mean: torch.randn(8), spread: positive(8)}
    theirs = with_values(tensors | {count: torch.tensor(7)}, eps=1e-3, momentum=0.02, **attributes)
    model = nn.Sequential(imitate(path, "BatchRenorm1d", theirs)).eval()
    ours = convert(model)[0]
    assert type(ours) is torchfastnorm.BatchRenorm1d and ours.dialect == dialect
    assert (ours.eps, ours.momentum, int(ours.num_batches_tracked)) == (1e-3, 0.02, 7)
    if attributes:
        first = 50 if dialect == "torchrl" else 51
        assert (ours.r_max, ours.d_max, ours.r_ramp, ours.d_ramp) == (2.0, 4.0, (first, first), (first, first))
    x = torch.randn(6, 8)
    sigma = tensors[spread] if dialect == "ludvb" else (tensors[spread] + 1e-3).sqrt()
    expected = (x - tensors[mean]) / sigma * tensors[scale] + tensors["bias"]
    torch.testing.assert_close(ours(x), expected, rtol=1e-5, atol=1e-5)
    assert set(ours.state_dict()) == {*tensors, count}


def test_a_smooth_warm_up_is_left_alone() -> None:
    model = nn.Sequential(imitate("torchrl.modules.models.batchrenorm", "BatchRenorm1d", with_values({}, smooth=True)))
    assert type(convert(model)[0]).__module__ == "torchrl.modules.models.batchrenorm"


@pytest.mark.parametrize("path", ("models.switchable_norm", "devkit.ops.switchable_norm"))
@pytest.mark.parametrize("dims, using_bn", ((1, True), (2, True), (2, False), (3, True)))
def test_switch_norm_of_its_authors(path: str, dims: int, using_bn: bool) -> None:
    shape = (1, 8, *(1,) * (len(SIZES[dims]) - 2))
    logits = 3 if using_bn and dims > 1 else 2
    tensors = {"weight": positive(*shape), "bias": torch.randn(shape)}
    tensors |= {"mean_weight": torch.randn(logits), "var_weight": torch.randn(logits)}
    if using_bn:
        tensors |= {"running_mean": torch.randn(shape[:3]), "running_var": positive(*shape[:3])}
    theirs = with_values(tensors, eps=1e-4, momentum=0.8, using_moving_average=False, using_bn=using_bn)
    model = nn.Sequential(imitate(path, f"SwitchNorm{dims}d", theirs)).eval()
    ours = convert(model)[0]
    assert type(ours) is getattr(torchfastnorm, f"SwitchNorm{dims}d")
    assert (ours.eps, ours.momentum, ours.using_moving_average) == (1e-4, 0.8, False)
    state = ours.state_dict()
    assert set(state) == set(tensors) and all(torch.equal(state[name], t) for name, t in tensors.items())
    running = [tensors[n].view(-1) if using_bn else None for n in ("running_mean", "running_var")]
    x = torch.randn(SIZES[dims])
    expected = reference.switch_norm(
        x, tensors["mean_weight"], tensors["var_weight"], *running, tensors["weight"].view(-1),
        tensors["bias"].view(-1), eps=1e-4,
    )  # fmt: skip
    torch.testing.assert_close(ours(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("path", ("iterative_normalization", "extension.normailzation.iterative_normalization"))
def test_iter_norm_of_its_authors(path: str) -> None:
    tensors = {"weight": positive(1, 8, 1, 1), "bias": torch.randn(1, 8, 1, 1)}
    tensors |= {"running_mean": torch.randn(2, 4, 1), "running_wm": torch.randn(2, 4, 4)}
    theirs = with_values(tensors, T=7, dim=4, eps=1e-4, momentum=0.2, affine=True, num_features=8, num_channels=4)
    ours = convert(nn.Sequential(imitate(path, "IterNorm", theirs)).eval())[0]
    assert type(ours) is torchfastnorm.IterNorm and (ours.T, ours.dim, ours.eps, ours.momentum) == (7, 4, 1e-4, 0.2)
    state = ours.state_dict()
    assert set(state) == set(tensors) and all(torch.equal(state[name], t) for name, t in tensors.items())
    x = torch.randn(SIZES[2])
    affine = (tensors["weight"].view(-1), tensors["bias"].view(-1))
    expected = reference.batch_whitening(x, tensors["running_mean"], tensors["running_wm"], *affine, num_channels=4)
    torch.testing.assert_close(ours(x), expected, rtol=1e-5, atol=1e-5)
