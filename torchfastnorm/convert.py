"""Moves a model over to this library's norms."""

from __future__ import annotations

import copy
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar, cast

from torch import nn

from . import _transfer
from .ops._plane_norm import Activation, PlaneNorm
from .ops.batch_norm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from .ops.group_norm import GroupNorm
from .ops.instance_norm import InstanceNorm1d, InstanceNorm2d, InstanceNorm3d
from .ops.layer_norm import LayerNorm
from .ops.rms_norm import RMSNorm

logger = logging.getLogger(__name__)

Model = TypeVar("Model", bound=nn.Module)

REPLACEMENTS: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: BatchNorm1d,
    nn.BatchNorm2d: BatchNorm2d,
    nn.BatchNorm3d: BatchNorm3d,
    nn.GroupNorm: GroupNorm,
    nn.InstanceNorm1d: InstanceNorm1d,
    nn.InstanceNorm2d: InstanceNorm2d,
    nn.InstanceNorm3d: InstanceNorm3d,
    nn.LayerNorm: LayerNorm,
    nn.RMSNorm: RMSNorm,
}


class Replacement(NamedTuple):
    """One module that :func:`convert` replaced: its qualified name ("" for the model itself) and what it became."""

    name: str
    module: nn.Module


def _has_hooks(module: nn.Module) -> bool:
    return any(value for name, value in vars(module).items() if name.endswith("_hooks") and "state_dict" not in name)


def _activation_of(module: nn.Module) -> Activation | None:
    """What a norm has to apply in place of ``module``; None if it cannot."""
    kind = type(module)
    if kind is nn.ReLU:
        return "relu"
    if kind is nn.LeakyReLU and module.negative_slope == 0.01:
        return "leaky_relu"
    if kind is nn.ELU and module.alpha == 1:
        return "elu"
    if kind is nn.SiLU:
        return "silu"
    if kind is nn.GELU:
        return "gelu_tanh" if module.approximate == "tanh" else "gelu"
    return None


def _fold(model: nn.Module) -> None:
    """Let each norm apply the activation that follows it in an ``nn.Sequential``."""
    uses = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    for sequential in model.modules():
        # A subclass may do something else with its modules.
        if type(sequential).forward is not nn.Sequential.forward:
            continue
        names = list(sequential._modules)
        for norm_name, name in pairwise(names):
            norm, follower = sequential._modules[norm_name], sequential._modules[name]
            if not isinstance(norm, PlaneNorm) or norm.activation != "none" or follower is None:
                continue
            activation = _activation_of(follower)
            # A norm that stands elsewhere too must not apply this place's activation there.
            if activation is None or uses[id(norm)] != uses[id(sequential)] or _has_hooks(norm) or _has_hooks(follower):
                continue
            norm.activation = activation
            sequential._modules[name] = nn.Identity().train(follower.training)
            logger.info("%s after %s folded into it", type(follower).__name__, norm)


def _replace(model: nn.Module, successors: dict[int, nn.Module]) -> nn.Module:
    """Put the successors, by the identity of the old modules, into every place where these stand."""
    for module in model.modules():
        for name, child in module._modules.items():
            if child is not None and id(child) in successors:
                module._modules[name] = successors[id(child)]
    return successors.get(id(model), model)


def _take_over(module: nn.Module, successor: nn.Module) -> nn.Module:
    """Hooks and mode. Hooks on state_dicts stay behind: the keys may be others."""
    for name, value in vars(module).items():
        if "_hooks" in name and "state_dict" not in name and value:
            value.update(getattr(successor, name))
            setattr(successor, name, value)  # the same dict, from which handles remove their hooks
    if module._is_full_backward_hook is not None:
        successor._is_full_backward_hook = module._is_full_backward_hook
    return successor.train(module.training)


def convert(
    model: Model,
    mapping: Mapping[str, str | Callable[[Any], nn.Module]] | None = None,
    inplace: bool = False,
    *,
    fold_activations: bool = False,
    report: list[Replacement] | None = None,
) -> Model:
    """Replace torch.nn's norms in a model by this library's.

    Replaced are modules whose type is exactly one of torch.nn's ``BatchNorm1d/2d/3d``, ``GroupNorm``,
    ``InstanceNorm1d/2d/3d``, ``LayerNorm`` and ``RMSNorm``; subclasses, whose forward may differ, are left alone. A
    replaced module keeps its parameters and buffers (the same objects), hooks, training mode, dtype and device; a
    module used in several places stays one module. The model itself may be a norm.

    Replaced as well, by new modules with the same values, are the BatchRenorm of TorchRL (without ``smooth``), of
    Stable-Baselines3 Contrib and of the package batch_renorm (imported as batchrenorm), and the SwitchNorm and IterNorm
    of their authors' repositories. They are known by the name of their class and of its module; nothing is imported.
    Make optimizers after the conversion. (The mask of batchrenorm's modules marks what does not count, and comes where
    ours take the residual.)

    Args:
        model: any module.
        inplace: change ``model`` itself, not a copy of it. Default: False.
        mapping: what else than a BatchNorm each ``BatchNorm1d/2d/3d``, torch.nn's or ours, becomes:
            ``{"BatchNorm2d": "SwitchNorm2d"}``. By name a ``BatchRenorm1d/2d/3d``, ``SwitchNorm1d/2d/3d``,
            ``GroupNorm`` (of 32 groups, or as many of these as divide the channels), ``InstanceNorm1d/2d/3d``,
            ``IterNorm`` or ``BatchWhitening`` (groups of 64 channels, halved until they divide the channels): a new
            module with the old one's eps, momentum (in the new one's convention), weight and bias (a SwitchNorm always
            has both) and, where there are such, running statistics (of whitening a diagonal matrix: it evaluates as
            before). Or a function from the old module to the new one. Default: None, nothing else.
        fold_activations: let a norm of feature maps apply the ReLU, LeakyReLU (slope 0.01), ELU (alpha
            1), SiLU or GELU that directly follows it in an ``nn.Sequential``; ``nn.Identity`` takes its place. Left
            alone are modules with hooks, and norms that stand in a second place. Code that takes single modules out of
            a Sequential sees the difference, hence: Default: False.
        report: a list that receives one :class:`Replacement` for each module replaced. The same is logged at level
            INFO to the logger ``torchfastnorm.convert``. Default: None.

    Returns:
        The converted model: ``model`` itself if ``inplace``, unless it is itself such a norm of another class.

    Raises:
        ValueError: ``mapping`` names a class that it cannot, or a norm that needs running statistics to evaluate with
            is to follow one without.

    Example::

        report = []
        model = torchfastnorm.convert(model, report=report)
        print([f"{name}: {module}" for name, module in report])
    """
    if not inplace:
        model = copy.deepcopy(model)
    chosen = _transfer.chosen(dict(mapping or {}))
    count = 0
    successors: dict[int, nn.Module] = {}
    for name, module in model.named_modules():
        make = chosen.get(type(module)) or _transfer.foreign(module)
        if make is not None:
            successor = successors[id(module)] = _take_over(module, make(module))
            count += 1
            logger.info("%s: %s -> %s", name or "(model)", type(module).__name__, successor)
            if report is not None:
                report.append(Replacement(name, successor))
            continue
        replacement = REPLACEMENTS.get(type(module))
        if replacement is None:
            continue
        # The replacement is the same class but for forward, so a change of class keeps everything else: identity,
        # parameters, hooks, and whatever refers to the module from elsewhere.
        module.__class__ = replacement
        count += 1
        logger.info("%s: torch.nn.%s -> torchfastnorm.%s", name or "(model)", replacement.__name__, module)
        if report is not None:
            report.append(Replacement(name, module))
    model = cast(Model, _replace(model, successors))
    if fold_activations:
        _fold(model)
    logger.info("modules replaced: %d", count)
    return model
