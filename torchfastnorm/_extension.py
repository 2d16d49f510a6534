"""Loads the compiled module ``torchfastnorm._C``, or says in one message why it cannot be used and what to do."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

REBUILD = "pip install --no-build-isolation --no-deps --force-reinstall ."


def _import() -> ModuleType:
    if os.environ.get("TORCHFASTNORM_JIT") == "1":
        from . import _jit

        return _jit.load()
    return importlib.import_module("torchfastnorm._C")


def _release(version: str) -> str:
    """``2.13.0+cpu`` -> ``2.13.0``: builds of one release share their binary interface."""
    return version.split("+")[0]


def load() -> ModuleType:
    """Import the compiled module and check that it was built for the torch that runs.

    Raises:
        ImportError: it was never built, or was built for another Python or torch; the message holds the remedy.
    """
    # The message is the whole story here, so the original error is quoted in it, not chained to it.
    try:
        module = _import()
    except ModuleNotFoundError as error:
        if error.name != "torchfastnorm._C":
            raise
        raise ImportError(
            f"torchfastnorm is not built: {Path(__file__).parent} holds no compiled module _C for this Python. "
            f"In the source directory, with torch installed, run: {REBUILD} "
            "(or `python setup.py build_ext --inplace` to use the source directory itself)"
        ) from None
    except ImportError as error:
        raise ImportError(
            f"torchfastnorm's compiled module does not load into torch {torch.__version__}: {error}. "
            f"It was built for another torch or Python. In the source directory, run: {REBUILD}"
        ) from None
    built_for = module.build_info()["torch"]
    if _release(built_for) != _release(torch.__version__):
        raise ImportError(
            f"torchfastnorm was built for torch {built_for}, but torch {torch.__version__} is running; compiled "
            f"modules do not carry over. In the source directory, run: {REBUILD}"
        )
    return module


_C: Any = load()


def build_info() -> dict[str, Any]:
    """How the compiled module was built, for bug reports.

    Returns:
        dict with ``version``; ``torch``, the version it was built for; ``cuda`` (bool), ``cuda_version`` and
        ``cuda_archs`` (empty without CUDA); ``compiler``; ``cpu_capability``, the instruction set that the CPU
        kernels chose on this machine (``"AVX512"``, ``"AVX2"`` or ``"DEFAULT"``).
    """
    info: dict[str, Any] = _C.build_info()
    return info
