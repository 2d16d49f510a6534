"""Moves a model over to this library's norms."""

from __future__ import annotations

import copy
import logging
from collections import Counter
from itertools import pairwise
from typing import NamedTuple, TypeVar

from torch import nn

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


def convert(
    model: Model,
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

    Args:
        model: any module.
        inplace: change ``model`` itself. Default: False, convert a deep copy.
        fold_activations: let a BatchNorm, GroupNorm or InstanceNorm apply the ReLU, LeakyReLU (slope 0.01), ELU (alpha
            1), SiLU or GELU that directly follows it in an ``nn.Sequential``; ``nn.Identity`` takes its place. Left
            alone are modules with hooks, and norms that stand in a second place. Code that takes single modules out of
            a Sequential sees the difference, hence: Default: False.
        report: a list that receives one :class:`Replacement` for each module replaced. The same is logged at level
            INFO to the logger ``torchfastnorm.convert``.

    Returns:
        The converted model: ``model`` itself if ``inplace``.

    Example::

        report = []
        model = torchfastnorm.convert(model, report=report)
        print([f"{name}: {module}" for name, module in report])
    """
    if not inplace:
        model = copy.deepcopy(model)
    count = 0
    for name, module in model.named_modules():
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
    if fold_activations:
        _fold(model)
    logger.info("modules replaced: %d", count)
    return model
