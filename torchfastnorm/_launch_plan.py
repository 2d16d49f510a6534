"""The vocabulary of launch plans: a GPU, and one direction of an op on it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GPU:
    """What a launch plan depends on, and the memory bandwidth of the data sheet in bytes per second."""

    name: str
    multiprocessors: int
    shared_bytes: int
    cluster_blocks: int
    bandwidth: float


GPUS = {
    gpu.name: gpu
    for gpu in (
        GPU("A100", 108, 166912, 1, 2.039e12),
        GPU("H100", 132, 232448, 16, 3.35e12),
        GPU("H200", 132, 232448, 16, 4.8e12),
        GPU("B200", 148, 232448, 16, 8.0e12),
        GPU("RTX 5090", 170, 101376, 8, 1.792e12),
    )
}


@dataclass(frozen=True)
class KernelPlan:
    """One direction of an op. ``bytes``: what must cross the memory bus if everything is read and written once where
    the plan says so; ``reread_bytes`` of them are read a second time because a row does not fit on the chip."""

    direction: str
    kernel: str
    grid: int
    block: int
    cluster: int
    shared_bytes: int
    cooperative: bool
    bytes: int
    reread_bytes: int
    reason: str
