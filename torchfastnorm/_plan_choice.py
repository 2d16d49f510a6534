"""Launch plans chosen by hand: for a stretch of code, or from a tuning table made for a device."""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ._extension import _C

# csrc/bindings/plan_choice.h, PlanKernel; csrc/interface/row_plan.h, Residency; plane_plan.h, Team
KERNELS = ("row_forward", "row_backward", "plane_forward", "plane_backward")
REGIMES = {"row": ("warp", "registers", "shared", "streamed"), "plane": ("cluster", "grid")}

CPU_TENSORS = -1  # in place of a device's number
PACKAGED = Path(__file__).parent / "plans"


@dataclass(frozen=True)
class Choice:
    """What is chosen in a launch plan; None: as the plan decides. What the words mean: csrc/interface/row_plan.h and
    plane_plan.h."""

    regime: str | None = None
    threads: int | None = None
    cluster: int | None = None
    blocks: int | None = None

    def numbers(self, kernel: str) -> tuple[int, int, int, int]:
        if kernel not in KERNELS:
            raise ValueError(f"plan: unknown kernel {kernel!r}; one of {', '.join(KERNELS)}")
        regimes = REGIMES[kernel.split("_")[0]]
        if self.regime is not None and self.regime not in regimes:
            raise ValueError(f"plan: {kernel} has no regime {self.regime!r}; one of {', '.join(regimes)}")
        for name, value in asdict(self).items():
            if name != "regime" and value is not None and value < 1:
                raise ValueError(f"plan: {name} must be positive, got {value}")
        regime = -1 if self.regime is None else regimes.index(self.regime)
        return regime, self.threads or 0, self.cluster or 0, self.blocks or 0

    def __str__(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in asdict(self).items() if value is not None)


_forced: dict[str, Choice] = {}


def forced(kernel: str) -> Choice | None:
    """What :func:`plan` has chosen for a kernel at present."""
    return _forced.get(kernel)


def _force(kernel: str, choice: Choice | None) -> None:
    if choice is None:
        _forced.pop(kernel, None)
        _C.release_plan(KERNELS.index(kernel))
    else:
        numbers = choice.numbers(kernel)
        _C.force_plan(KERNELS.index(kernel), *numbers)
        _forced[kernel] = choice


@contextmanager
def plan(
    kernel: str,
    *,
    regime: str | None = None,
    threads: int | None = None,
    cluster: int | None = None,
    blocks: int | None = None,
) -> Iterator[None]:
    """Let the CUDA kernels of one kind run with a launch plan of your choice: for measurements, not for production.

    What is not given the plan decides from what is. Calls of all threads are meant, also those of a backward pass. A
    call that cannot run with the choice raises a RuntimeError that says why. On the CPU there are no plans. Results
    keep their accuracy, not their bits.

    Args:
        kernel: "row_forward", "row_backward" (layer_norm, rms_norm and their fused forms), "plane_forward" or
            "plane_backward" (the norms of feature maps).
        regime: "warp", "registers", "shared" or, in backward, "streamed" of rows; "cluster" or "grid" of feature maps.
        threads: of a block.
        cluster: blocks that share a row or a few sets.
        blocks: of the grid.

    Raises:
        ValueError: an unknown kernel or regime, or a number that is not positive.

    Example::

        with torchfastnorm.plan("row_forward", regime="registers", cluster=2):
            torchfastnorm.explain("layer_norm", (1024, 16384), torch.bfloat16)
            y = torchfastnorm.layer_norm(x, (16384,))
    """
    before = _forced.get(kernel)
    _force(kernel, Choice(regime, threads, cluster, blocks))
    try:
        yield
    finally:
        _force(kernel, before)


# ---- tuning tables


@dataclass(frozen=True)
class TunedPlan:
    """An entry of a tuning table: for these calls, this choice. ``sizes``: ``cols``; or ``sets`` ("batch", "group",
    "instance"), ``channels``, ``spatial``, ``channels_last`` and, of a batch, ``samples``, of groups ``groups``."""

    kernel: str
    dtype: str
    sizes: Mapping[str, Any]
    choice: Choice

    def key(self) -> list[int]:
        if self.kernel.startswith("row"):
            return [self.sizes["cols"]]
        sets = ("batch", "group", "instance").index(self.sizes["sets"])
        layout = int(self.sizes["channels_last"] or self.sizes["spatial"] == 1)
        return [
            sets,
            self.sizes["samples"] if sets == 0 else 0,
            self.sizes["channels"],
            self.sizes["spatial"],
            self.sizes["groups"] if sets == 1 else 0,
            layout,
        ]


def slug(device_name: str) -> str:
    """The name of a device as part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((r|tm)\)", "", device_name.lower())).strip("-")


def table_folders() -> list[Path]:
    """Where tuning tables are looked for: the folder of the user first, then what the package brings."""
    own = os.environ.get("TORCHFASTNORM_PLANS")
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return [Path(own) if own else cache / "torchfastnorm" / "plans", PACKAGED]


def save_table(path: Path, device_name: str, plans: Sequence[TunedPlan], **remarks: Any) -> None:
    """Write a tuning table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    entries = [asdict(entry) for entry in plans]
    path.write_text(json.dumps({"device": device_name, **remarks, "plans": entries}, indent=1) + "\n", encoding="utf-8")


def read_table(path: Path) -> list[TunedPlan]:
    """The entries of a tuning table.

    Raises:
        ValueError: the file is no tuning table; the message says what is wrong.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        plans = [TunedPlan(**{**entry, "choice": Choice(**entry["choice"])}) for entry in content["plans"]]
        for entry in plans:
            entry.choice.numbers(entry.kernel)
            entry.key()
            if not isinstance(getattr(torch, entry.dtype, None), torch.dtype):
                raise ValueError(f"unknown dtype {entry.dtype!r}")
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no tuning table of torchfastnorm: {error!r}") from None
    return plans


def use_plans(plans: Sequence[TunedPlan], device: int = CPU_TENSORS) -> None:
    """Let calls on a CUDA device (or, in tests, on CPU tensors) run with these plans."""
    for entry in plans:
        dtype = getattr(torch, entry.dtype)
        _C.tune_plan(KERNELS.index(entry.kernel), device, dtype, entry.key(), *entry.choice.numbers(entry.kernel))


def _load_for_devices() -> None:
    for device in range(torch.cuda.device_count()):
        name = slug(torch.cuda.get_device_name(device))
        path = next((folder / f"{name}.json" for folder in table_folders() if (folder / f"{name}.json").exists()), None)
        if path is not None:
            use_plans(read_table(path), device)


def load_when_cuda_starts() -> None:
    """Read the tables of this machine's devices when CUDA is initialized, which an import must not do itself."""
    if torch.version.cuda is not None and _C.build_info()["cuda"]:
        torch.cuda._lazy_call(_load_for_devices)


# ---- all plans of a call


def candidates(kernel: str, multiprocessors: int) -> Iterator[Choice]:
    """Choices worth asking a plan for; most are impossible for a given call."""
    regimes = REGIMES[kernel.split("_")[0]]
    threads = (None, 32, 64, 96, 128, 192, 256, 384, 512, 768)
    blocks = (None, *(multiprocessors * n for n in (1, 2, 3, 4, 5, 8, 16)))
    for regime, cluster, block, grid in itertools.product(regimes, (1, 2, 4, 8, 16), threads, blocks):
        yield Choice(regime, block, cluster, grid)
