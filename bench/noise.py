"""Is the machine quiet enough to measure on? One second of a plain copy tells, before anything is timed."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from .cells import Result
from .errors import TooNoisy
from .roofs import stream
from .timing import CpuTimer, CudaTimer, ForeignLoad

BLOCKS, BLOCK_SECONDS = 40, 0.025
BYTES = {"cpu": 4 << 20, "cuda": 256 << 20}  # from a core's own cache; from memory
MOST_SPREAD = 0.15  # half the distance of the quartiles; 0.01 to 0.04 on a quiet machine
MOST_LOAD = 0.25  # of one core, by other processes; of no matter to a GPU


@dataclass(frozen=True)
class Noise:
    spread: float
    foreign_load: float

    def complaint(self, device: torch.device) -> str:
        found = []
        if device.type == "cpu" and self.foreign_load > MOST_LOAD:
            found.append(f"other processes take {self.foreign_load:.2f} of a core (at most {MOST_LOAD})")
        if self.spread > MOST_SPREAD:
            found.append(f"a plain copy varies by {100 * self.spread:.0f} % (at most {100 * MOST_SPREAD:.0f} %)")
        return " and ".join(found)

    def record(self, device: torch.device) -> dict[str, Any]:
        return {**asdict(self), "too_noisy": bool(self.complaint(device))}


def listen(device: torch.device, blocks: int = BLOCKS) -> Noise:
    timer: CpuTimer | CudaTimer = CudaTimer() if device.type == "cuda" else CpuTimer()
    work = stream("1R1W", BYTES[device.type], device)
    timer(work, 0, 10)
    calls = max(1, min(timer.longest_block, int(BLOCK_SECONDS / timer(work, 0, 10))))
    load = ForeignLoad()
    seconds = [timer(work, 0, calls) for _ in range(blocks)]
    return Noise(Result("copy", "", seconds).spread, load.share())


def refuse_if_noisy(device: torch.device, force: bool) -> dict[str, Any]:
    """What was heard, for the record; raises TooNoisy unless told to go on."""
    noise = listen(device)
    complaint = noise.complaint(device)
    if complaint and not force:
        raise TooNoisy(f"the machine is too noisy to tell: {complaint}; --force measures all the same")
    return noise.record(device)
