"""The third test backend: the CUDA kernels and their launchers, executed on the CPU.

    with sim.backend():                        # CPU tensors now run csrc/cuda
        y = torchfastnorm.layer_norm(x, (64,))
    assert sim.launches()[-1].name == "..."    # which kernel ran, and how
    sim.counters()["..."].loads.bytes          # what it read from global memory

The library is compiled when it is first used, and again when a source has changed. TORCHFASTNORM_SIM=asan or tsan
chooses a build with sanitizers (tests/native/run.sh sets the environment that these need). `python tests/sim.py
[VARIANT...]` only compiles.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "native"))
import native_build

VARIANT = os.environ.get("TORCHFASTNORM_SIM", "plain")
ORDERS = ("forward", "reverse", "random")


@dataclass(frozen=True)
class Traffic:
    """Accesses to global memory. `by_width`: how many of each size in bytes; `sectors`: see backend()."""

    bytes: int
    by_width: dict[int, int]
    sectors: int


@dataclass(frozen=True)
class Counters:
    launches: int
    loads: Traffic
    stores: Traffic


@dataclass(frozen=True)
class Launch:
    name: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    cluster: int
    smem: int
    cooperative: bool


@dataclass(frozen=True)
class _Options:
    order: int = 0
    seed: int = 1
    sm_count: int = 4
    shared_bytes: int = 227 * 1024
    max_cluster: int = 16
    count_sectors: bool = False


@dataclass
class _Installed:
    address: int = 0  # the default CPU backend
    options: _Options = field(default_factory=_Options)


_installed = _Installed()


def why_not() -> str | None:
    """Why there is no sim backend on this machine; None where there is."""
    return native_build.why_not()


def build(variant: str = VARIANT) -> Path:
    sources = [*native_build.cuda_sources(), native_build.NATIVE / "sim.cpp"]
    return native_build.build("libtorchfastnorm_sim", sources, variant)


@functools.cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(build()))
    library.torchfastnorm_sim_backend.restype = ctypes.c_void_p
    library.torchfastnorm_sim_counters.restype = ctypes.c_char_p
    library.torchfastnorm_sim_configure.restype = None
    library.torchfastnorm_sim_configure.argtypes = (
        ctypes.c_int,
        ctypes.c_uint64,
        ctypes.c_int,
        ctypes.c_int64,
        ctypes.c_int,
        ctypes.c_int,
    )
    return library


def _install(installed: _Installed) -> None:
    from torchfastnorm import _C

    global _installed
    _library().torchfastnorm_sim_configure(*astuple(installed.options))
    _C._set_cpu_backend(installed.address)
    _installed = installed


@contextmanager
def backend(
    *,
    order: str = "forward",
    seed: int = 1,
    sm_count: int = 4,
    shared_bytes: int = 227 * 1024,
    max_cluster: int = 16,
    count_sectors: bool = False,
) -> Iterator[None]:
    """Run the CUDA kernels for CPU tensors, on an imitated device; what was installed before comes back afterwards.

    order, seed    in which threads, warps and blocks run: "forward", "reverse" or "random"
    sm_count       multiprocessors; few, so that persistent kernels loop
    shared_bytes   most shared memory of one block
    max_cluster    most blocks of one cluster; 0: a device without clusters
    count_sectors  also count the distinct 32-byte sectors that are read and written (slow)

    The counters start at zero.
    """
    if order not in ORDERS:
        raise ValueError(f"order is {order!r}, expected one of {ORDERS}")
    options = _Options(ORDERS.index(order), seed, sm_count, shared_bytes, max_cluster, count_sectors)
    before = _installed
    address = _library().torchfastnorm_sim_backend()
    _library().torchfastnorm_sim_reset_counters()
    _install(_Installed(address, options))
    try:
        yield
    finally:
        _install(before)


def reset_counters() -> None:
    _library().torchfastnorm_sim_reset_counters()


def _report() -> dict[str, Any]:
    return json.loads(_library().torchfastnorm_sim_counters())


def counters() -> dict[str, Counters]:
    """What each kernel did since the counters were reset, by the name given at its launch."""

    def traffic(raw: dict[str, Any]) -> Traffic:
        by_width = {int(width): count for width, count in raw["by_width"].items()}
        return Traffic(raw["bytes"], by_width, raw["sectors"])

    return {
        name: Counters(raw["launches"], traffic(raw["loads"]), traffic(raw["stores"]))
        for name, raw in _report()["kernels"].items()
    }


def launches() -> list[Launch]:
    """Every launch since the counters were reset, in order (the first 65,536)."""
    return [
        Launch(raw["name"], tuple(raw["grid"]), tuple(raw["block"]), raw["cluster"], raw["smem"], raw["cooperative"])
        for raw in _report()["launches"]
    ]


if __name__ == "__main__":
    print(*(build(variant) for variant in sys.argv[1:] or [VARIANT]), sep="\n")
