"""What ours is compared with. A peer that is not installed is left out; one that is names its version."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from functools import partial
from importlib import metadata
from typing import Any

import torch
import torch._functorch.config
from torch import Tensor

import torchfastnorm

from .cells import Candidate

PEERS = ("liger", "quack", "apex", "transformer_engine", "flash_attn", "flashinfer")
NAMES = ("aten", "cudnn", "compile", "compile_max", "unfused", "reference", *PEERS)
SLOW_TO_COMPILE = ("compile", "compile_max")


def torch_baselines(aten: Callable[..., Any], reference: Callable[..., Any]) -> list[Candidate]:
    version = torch.__version__

    # Graphs are retained to time the backward alone; inductor would otherwise reuse saved tensors as outputs.
    torch._functorch.config.donated_buffer = False
    return [
        Candidate("aten", aten, version),
        Candidate("compile", torch.compile(aten, dynamic=False), version),
        Candidate("compile_max", torch.compile(aten, dynamic=False, mode="max-autotune-no-cudagraphs"), version),
        Candidate("reference", reference, version),
    ]


def cudnn(training: bool, momentum: float, eps: float) -> list[Candidate]:
    """cuDNN's BatchNorm itself: F.batch_norm may choose it, or not. Its parameters are float32."""
    if not (training and torch.cuda.is_available() and torch.backends.cudnn.is_available()):
        return []

    def norm(x: Tensor, *parameters: Tensor) -> Tensor:
        numbers = (t.float() for t in parameters)
        return torch.ops.aten.cudnn_batch_norm(x, *numbers, True, momentum, eps)[0]

    return [Candidate("cudnn", norm, f"cuDNN {torch.backends.cudnn.version()}")]


def unfused(function: Callable[..., Any]) -> list[Candidate]:
    """Our own norm, and what the fused form has besides as calls of torch."""
    return [Candidate("unfused", function, torchfastnorm.__version__)]


def peer(
    name: str, package: str, path: str, call: Callable[..., Callable[..., Any]], has_backward: bool = True
) -> list[Candidate]:
    """[] if the package is not installed; one that is but has no `path` (module:attribute) fails when it is called.

    `call(attribute)` makes the function that is timed.
    """
    try:
        version = metadata.version(package)
    except metadata.PackageNotFoundError:
        return []
    module, attribute = path.split(":")
    try:
        function = call(getattr(importlib.import_module(module), attribute))
    except Exception as error:  # whatever an installation that does not fit the machine comes up with
        return [Candidate(name, partial(_fail, f"{path}: {error}"), f"{package} {version}", has_backward)]
    return [Candidate(name, function, f"{package} {version}", has_backward)]


def _fail(message: str, *_: object) -> Any:
    raise ImportError(message)


def chosen(candidates: list[Candidate], names: Sequence[str]) -> list[Candidate]:
    return [candidate for candidate in candidates if candidate.name in names]


def ours_and(ours: Callable[..., Any], others: list[Candidate], names: Sequence[str]) -> list[Candidate]:
    return [Candidate("torchfastnorm", ours, torchfastnorm.__version__), *chosen(others, names)]
