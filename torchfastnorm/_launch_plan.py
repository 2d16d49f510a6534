"""The vocabulary of launch plans: a GPU, and one direction of an op on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class GPU:
    """What a launch plan depends on, and the memory bandwidth of the data sheet in bytes per second."""

    name: str
    multiprocessors: int
    shared_bytes: int
    cluster_blocks: int
    bandwidth: float
    threads: int = 2048  # that a multiprocessor holds


GPUS = {
    gpu.name: gpu
    for gpu in (
        GPU("A100", 108, 166912, 1, 2.039e12),
        GPU("H100", 132, 232448, 16, 3.35e12),
        GPU("H200", 132, 232448, 16, 4.8e12),
        GPU("B200", 148, 232448, 16, 8.0e12),
        GPU("RTX 5090", 170, 101376, 8, 1.792e12, threads=1536),
    )
}


@dataclass(frozen=True)
class KernelPlan:
    """One direction of an op. ``bytes``: what must cross the memory bus if everything is read and written once where
    the plan says so; ``reread_bytes`` of them are read a second time because a row does not fit on the chip.
    ``occupancy``: share of a multiprocessor's threads that are resident at least, by launch bounds and shared memory;
    the registers that the compiler saves may allow more. ``chosen``: by hand or by a tuning table, in words."""

    direction: str
    kernel: str
    regime: str
    grid: int
    block: int
    cluster: int
    shared_bytes: int
    cooperative: bool
    bytes: int
    reread_bytes: int
    occupancy: float
    reason: str
    chosen: str = ""

    def text(self, rate: float) -> str:
        """Four lines; ``rate``: bytes a second."""
        launch = f"grid {self.grid}, block {self.block}"
        launch += f", cluster {self.cluster}" * (self.cluster > 1)
        launch += f", {self.shared_bytes} bytes of shared memory" * (self.shared_bytes > 0)
        launch += ", cooperative" * self.cooperative
        again = f", {self.reread_bytes:,} of them read again" if self.reread_bytes else ""
        lines = [self.reason + f"; chosen by hand: {self.chosen}" * bool(self.chosen)]
        lines += [f"occupancy at least {self.occupancy:.0%}"]
        lines += [f"{self.bytes:,} bytes{again}: {self.bytes / rate * 1e6:.2f} us"]
        return f"  {self.direction:8}  {self.kernel}: {launch}" + "".join(f"\n{' ' * 12}{line}" for line in lines)


def occupancy(plan: dict[str, Any], gpu: GPU) -> float:
    """Of the kernel that ``plan`` (a dict of ``_C.row_plan`` or ``plane_plan``) launches."""
    threads = plan["threads"]
    # Each block also takes 1 KB for the system, which a multiprocessor has more than one block may use.
    by_shared = (gpu.shared_bytes + 1024) // (plan["shared_bytes"] + plan["static_bytes"] + 1024)
    warps = (threads + 31) // 32
    by_registers = 65536 // (plan["registers"] * 32 * warps)
    return threads * min(gpu.threads // threads, by_shared, by_registers) / gpu.threads
