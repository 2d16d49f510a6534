"""What ours is compared with. A peer that is not installed is left out; one that is names its version."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

import torch
import torch._functorch.config

import torchfastnorm

from .harness import Candidate

NAMES = ("aten", "compile", "unfused", "reference", "liger", "quack", "apex", "transformer_engine", "flashinfer")


def torch_baselines(aten: Callable[..., Any], reference: Callable[..., Any]) -> list[Candidate]:
    version = torch.__version__

    # Graphs are retained to time the backward alone; inductor would otherwise reuse saved tensors as outputs.
    torch._functorch.config.donated_buffer = False
    return [
        Candidate("aten", aten, version),
        Candidate("compile", torch.compile(aten, dynamic=False), version),
        Candidate("reference", reference, version),
    ]


def unfused(function: Callable[..., Any]) -> list[Candidate]:
    """Our own norm, and what the fused form has besides as calls of torch."""
    return [Candidate("unfused", function, torchfastnorm.__version__)]


def peer(
    name: str, package: str, path: str, call: Callable[..., Callable[..., Any]], has_backward: bool = True
) -> list[Candidate]:
    """[] if `path` (module:attribute) cannot be imported; `call(attribute)` makes the function that is timed."""
    module, attribute = path.split(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
        version = metadata.version(package)
    except (ImportError, AttributeError, OSError, RuntimeError, metadata.PackageNotFoundError):
        return []
    return [Candidate(name, call(found), f"{package} {version}", has_backward)]


def chosen(candidates: list[Candidate], names: Sequence[str]) -> list[Candidate]:
    return [candidate for candidate in candidates if candidate.name in names]


def ours_and(ours: Callable[..., Any], others: list[Candidate], names: Sequence[str]) -> list[Candidate]:
    return [Candidate("torchfastnorm", ours, torchfastnorm.__version__), *chosen(others, names)]
