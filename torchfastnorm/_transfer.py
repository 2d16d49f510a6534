"""What :func:`convert` makes of a norm by which it is not simply replaced: a module of another class, with the values
of the old one's parameters and statistics where they mean the same."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from .ops._iter_norm import IterNorm
from .ops.batch_norm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from .ops.batch_renorm import KEYS, BatchRenorm1d, BatchRenorm2d, BatchRenorm3d
from .ops.batch_whitening import BatchWhitening
from .ops.group_norm import GroupNorm
from .ops.instance_norm import InstanceNorm1d, InstanceNorm2d, InstanceNorm3d
from .ops.switch_norm import SwitchNorm1d, SwitchNorm2d, SwitchNorm3d

Make = Callable[[Any], nn.Module]

BATCH_NORMS = {
    f"BatchNorm{dims}d": kinds
    for dims, kinds in enumerate(
        ((nn.BatchNorm1d, BatchNorm1d), (nn.BatchNorm2d, BatchNorm2d), (nn.BatchNorm3d, BatchNorm3d)), start=1
    )
}


def _needs_statistics(module: Any, kind: type[nn.Module]) -> None:
    if not module.track_running_stats:
        raise ValueError(
            f"convert: a {kind.__name__} evaluates with running statistics, which {module} does not keep; map it to "
            "another norm, or leave it out"
        )


def _options(module: nn.Module, like: Tensor | None = None) -> dict[str, Any]:
    """Device and dtype of ``module``, or of ``like``, and the activation that it applies."""
    tensors = (t for t in (like, *module.parameters(), *module.buffers()) if t is not None and t.is_floating_point())
    example = next(tensors, None)
    options: dict[str, Any] = {} if example is None else {"device": example.device, "dtype": example.dtype}
    return options | {"activation": getattr(module, "activation", "none")}


def _copy(values: dict[str, Tensor | None], module: nn.Module) -> nn.Module:
    """``module`` with these values, where it has such tensors."""
    for name, value in values.items():
        own = getattr(module, name, None)
        if own is not None and value is not None:
            own.data = value.detach().clone().view(own.shape)  # with its dtype
            own.requires_grad_(value.requires_grad)
    return module


def _of_norm(module: nn.Module, *names: str) -> dict[str, Tensor | None]:
    return {name: getattr(module, name, None) for name in ("weight", "bias", *names)}


STATISTICS = ("running_mean", "running_var")


def _to_batch_renorm(kind: type[nn.Module]) -> Make:
    def make(module: nn.BatchNorm2d) -> nn.Module:
        _needs_statistics(module, kind)
        momentum = {} if module.momentum is None else {"momentum": module.momentum}
        bias = module.bias is not None
        new = kind(module.num_features, module.eps, affine=module.affine, bias=bias, **momentum, **_options(module))
        return _copy(_of_norm(module, *STATISTICS, "num_batches_tracked"), new)

    return make


def _to_switch_norm(kind: type[nn.Module]) -> Make:
    def make(module: nn.BatchNorm2d) -> nn.Module:
        options = _options(module)
        if module.momentum is not None:
            options["momentum"] = 1 - module.momentum
        # Without running statistics to evaluate with there can be no term of the batch.
        if kind is SwitchNorm1d:
            _needs_statistics(module, kind)
        else:
            options["using_bn"] = module.track_running_stats
        return _copy(_of_norm(module, *STATISTICS), kind(module.num_features, module.eps, **options))

    return make


def _to_group_norm(module: nn.BatchNorm2d) -> nn.Module:
    groups, bias = math.gcd(32, module.num_features), module.bias is not None
    new = GroupNorm(groups, module.num_features, module.eps, module.affine, bias=bias, **_options(module))
    return _copy(_of_norm(module), new)


def _to_instance_norm(kind: type[nn.Module]) -> Make:
    def make(module: nn.BatchNorm2d) -> nn.Module:
        bias = module.bias is not None
        new = kind(module.num_features, module.eps, affine=module.affine, bias=bias, **_options(module))
        return _copy(_of_norm(module), new)

    return make


WHITENED_TOGETHER = 64  # channels of a group, at most


def _to_whitening(kind: type[nn.Module]) -> Make:
    def make(module: nn.BatchNorm2d) -> nn.Module:
        _needs_statistics(module, kind)
        options = _options(module)
        if options.pop("activation") != "none":
            raise ValueError(f"convert: a {kind.__name__} applies no activation, {module} does; take it out first")
        momentum = 0.1 if module.momentum is None else module.momentum
        dim = 2 if isinstance(module, nn.BatchNorm1d) else 5 if isinstance(module, nn.BatchNorm3d) else 4
        channels = module.num_features
        common: dict[str, Any] = {"eps": module.eps, "momentum": momentum, "affine": module.affine}
        new: Any = IterNorm(channels, num_channels=min(WHITENED_TOGETHER, channels), dim=dim, **common, **options)
        if kind is BatchWhitening:
            new = BatchWhitening(channels, new.num_channels, **common, **options)
        # Scaling alone, as a diagonal matrix: until it is trained it evaluates as before.
        groups, width = channels // new.num_channels, new.num_channels
        scale = None if module.running_var is None else (module.running_var + module.eps).rsqrt().view(groups, width)
        wm = None if scale is None else scale.diag_embed()
        return _copy(_of_norm(module, "running_mean") | {"running_wm": wm}, new)

    return make


# What a BatchNorm can become, by name.
FROM_BATCH_NORM: dict[str, Make] = {
    "GroupNorm": _to_group_norm,
    "IterNorm": _to_whitening(IterNorm),
    "BatchWhitening": _to_whitening(BatchWhitening),
    **{kind.__name__: _to_batch_renorm(kind) for kind in (BatchRenorm1d, BatchRenorm2d, BatchRenorm3d)},
    **{kind.__name__: _to_instance_norm(kind) for kind in (InstanceNorm1d, InstanceNorm2d, InstanceNorm3d)},
    **{kind.__name__: _to_switch_norm(kind) for kind in (SwitchNorm1d, SwitchNorm2d, SwitchNorm3d)},
}


def _from_switch_norm(kind: type[nn.Module]) -> Make:
    """Of the authors' module."""

    def make(module: Any) -> nn.Module:
        options = _options(module)
        if kind is not SwitchNorm1d:
            options |= {"using_bn": module.using_bn, "last_gamma": getattr(module, "last_gamma", False)}
        new = kind(module.weight.numel(), module.eps, module.momentum, module.using_moving_average, **options)
        return _copy(_of_norm(module, "mean_weight", "var_weight", *STATISTICS), new)

    return make


def _from_batch_renorm(kind: type[nn.Module], dialect: str) -> Make:
    def make(module: Any) -> nn.Module:
        theirs = KEYS.get(dialect, {})
        names = {name: theirs.get(name, name) for name in ("weight", "bias", *STATISTICS, "num_batches_tracked")}
        values = {ours: getattr(module, name) for ours, name in names.items()}
        affine = getattr(module, "affine", True)
        options = _options(module, values["weight"])
        if dialect != "ludvb":
            first = module.warmup_steps + (dialect == "sb3")
            options |= {"r_ramp": (first, first), "d_ramp": (first, first)}
            bounds = ("max_r", "max_d") if dialect == "torchrl" else ("rmax", "dmax")
            options |= {"r_max": getattr(module, bounds[0]), "d_max": getattr(module, bounds[1])}
        arguments = (values["weight"].numel(), module.eps, module.momentum, affine)
        return _copy(values, kind(*arguments, dialect=dialect, **options))

    return make


def _from_iter_norm(module: Any) -> nn.Module:
    """Of the authors' module."""
    options = _options(module)
    options.pop("activation")
    groups, width = module.running_wm.shape[:2]
    affine = getattr(module, "weight", None) is not None
    arguments: dict[str, Any] = {
        "T": module.T,
        "dim": module.dim,
        "eps": module.eps,
        "momentum": module.momentum,
        "affine": affine,
    }
    new = IterNorm(groups * width, num_channels=width, **arguments, **options)
    return _copy(_of_norm(module, "running_mean", "running_wm"), new)


# Classes of other packages: how their module's name ends, their name, what becomes of them.
FOREIGN: tuple[tuple[str, str, Make], ...] = (
    *(
        ("switchable_norm", kind.__name__, _from_switch_norm(kind))
        for kind in (SwitchNorm1d, SwitchNorm2d, SwitchNorm3d)
    ),
    ("iterative_normalization", "IterNorm", _from_iter_norm),
    *(
        ("batchrenorm.batchrenorm", kind.__name__, _from_batch_renorm(kind, "ludvb"))
        for kind in (BatchRenorm1d, BatchRenorm2d, BatchRenorm3d)
    ),
    ("torchrl.modules.models.batchrenorm", "BatchRenorm1d", _from_batch_renorm(BatchRenorm1d, "torchrl")),
    ("sb3_contrib.common.torch_layers", "BatchRenorm1d", _from_batch_renorm(BatchRenorm1d, "sb3")),
)


def foreign(module: nn.Module) -> Make | None:
    """What to make of a module of another package, which is not imported for this; None: nothing."""
    kind = type(module)
    for path, name, make in FOREIGN:
        known = kind.__module__ == path or kind.__module__.endswith(f".{path}")
        # TorchRL's smooth warm-up weighs r and d themselves, ours their bounds.
        if known and kind.__name__ == name and not getattr(module, "smooth", False):
            return make
    return None


def chosen(mapping: dict[str, str | Make]) -> dict[type[nn.Module], Make]:
    """From the names of BatchNorm's classes to what makes their successors.

    Raises:
        ValueError: a name is unknown.
    """
    found: dict[type[nn.Module], Make] = {}
    for name, target in mapping.items():
        if name not in BATCH_NORMS:
            raise ValueError(f"convert: {name!r} cannot be mapped, only {', '.join(BATCH_NORMS)}")
        if isinstance(target, str) and target not in FROM_BATCH_NORM:
            raise ValueError(
                f"convert: {name} cannot become {target!r}, only {', '.join(FROM_BATCH_NORM)}, or what a "
                "function of the module returns"
            )
        make = FROM_BATCH_NORM[target] if isinstance(target, str) else target
        found.update(dict.fromkeys(BATCH_NORMS[name], make))
    return found
