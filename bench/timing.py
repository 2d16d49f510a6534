"""Clocks, rounds and the watch for other load: how the harness times a set of functions against each other."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable

import torch

Work = Callable[[int], object]  # runs the call with this number; numbers choose among rotated buffers


class CpuTimer:
    longest_block = 1000

    def __call__(self, work: Work, first: int, calls: int) -> float:
        begin = time.perf_counter()
        for call in range(first, first + calls):
            work(call)
        return (time.perf_counter() - begin) / calls

    def wait(self) -> None:
        pass


class CudaTimer:
    """Events around a block of calls that the GPU finds queued: it first sleeps for as long as the host needs."""

    longest_block = 50  # a full launch queue would stop the host

    def __init__(self) -> None:
        self.cycles_per_second = 1e3 * getattr(torch.cuda.get_device_properties(), "clock_rate", 2_000_000)

    def __call__(self, work: Work, first: int, calls: int) -> float:
        begin = time.perf_counter()
        work(first)
        host_seconds = time.perf_counter() - begin
        torch.cuda.synchronize()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(int((1.5 * calls * host_seconds + 1e-3) * self.cycles_per_second))
        start.record()
        for call in range(first, first + calls):
            work(call)
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / calls

    def wait(self) -> None:
        torch.cuda.synchronize()


class ForeignLoad:
    """Share of one core that other processes took of this machine; Linux only, elsewhere always 0."""

    def __init__(self) -> None:
        self.begin = self._read()

    @staticmethod
    def _read() -> tuple[float, float, float]:
        own = os.times()
        try:
            with open("/proc/stat", encoding="ascii") as lines:
                user, nice, system, _, _, irq, softirq, steal = map(int, lines.readline().split()[1:9])
        except (OSError, ValueError):
            return time.perf_counter(), 0.0, 0.0
        busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
        return time.perf_counter(), busy, own.user + own.system

    def share(self) -> float:
        now, busy, own = (after - before for after, before in zip(self._read(), self.begin, strict=True))
        return max(0.0, busy - own) / max(now, 1e-9)


def interleave(
    works: dict[str, Work], timer: CpuTimer | CudaTimer, rounds: int, block_seconds: float
) -> tuple[dict[str, list[float]], list[bool]]:
    """Seconds per call of each work in each round, and which rounds were free of other processes' load."""
    calls = {}
    for name, work in works.items():
        for call in range(3):
            work(call)
        timer.wait()
        calls[name] = max(1, min(timer.longest_block, int(block_seconds / timer(work, 0, 2))))
    names, times, clean = list(works), {name: [] for name in works}, []  # type: ignore[var-annotated]
    gc.collect()
    gc.disable()
    try:
        for number in range(rounds):
            load = ForeignLoad()
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                times[name].append(timer(works[name], number * calls[name], calls[name]))
            clean.append(load.share() < 0.1)
    finally:
        gc.enable()
    return times, clean


def keep_clean(times: dict[str, list[float]], clean: list[bool]) -> dict[str, list[float]]:
    """Without the disturbed rounds, provided that a third of the rounds, and three, remain."""
    if sum(clean) < max(3, len(clean) // 3):
        return times
    return {name: [t for t, good in zip(row, clean, strict=True) if good] for name, row in times.items()}
