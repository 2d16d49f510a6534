"""Moves a model over to this library's norms."""

from __future__ import annotations

import copy
import logging
from typing import NamedTuple, TypeVar

from torch import nn

from .ops.layer_norm import LayerNorm
from .ops.rms_norm import RMSNorm

logger = logging.getLogger(__name__)

Model = TypeVar("Model", bound=nn.Module)

REPLACEMENTS: dict[type[nn.Module], type[nn.Module]] = {nn.LayerNorm: LayerNorm, nn.RMSNorm: RMSNorm}


class Replacement(NamedTuple):
    """One module that :func:`convert` replaced: its qualified name ("" for the model itself) and what it became."""

    name: str
    module: nn.Module


def convert(model: Model, inplace: bool = False, *, report: list[Replacement] | None = None) -> Model:
    """Replace torch.nn's norms in a model by this library's.

    Replaced are modules whose type is exactly ``torch.nn.LayerNorm`` or ``torch.nn.RMSNorm``; subclasses, whose
    forward may differ, are left alone. A replaced module keeps its parameters (the same objects), hooks, training
    mode, dtype and device; a module used in several places stays one module. The model itself may be a norm.

    Args:
        model: any module.
        inplace: change ``model`` itself. Default: False, convert a deep copy.
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
    logger.info("modules replaced: %d", count)
    return model
