"""What memory gives without arithmetic: the stream mixes by size, from the first cache to DRAM, and by threads."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import torch

from . import machine
from .cells import Result
from .roofs import MIXES, stream
from .tables import Table, percent
from .timing import CpuTimer, CudaTimer, interleave, keep_clean

SMALLEST, LARGEST = 16 << 10, {"cpu": 512 << 20, "cuda": 2 << 30}  # bytes that a call moves


def large(device: torch.device) -> int:
    """Surely from DRAM: eight times the last level, as far as that is reasonable."""
    return min(LARGEST[device.type], max(64 << 20, 8 * machine.last_level_cache(device)))


def sizes(device: torch.device) -> list[int]:
    """In steps of four, the last one from DRAM."""
    smallest = SMALLEST if device.type == "cpu" else 1 << 20
    found = []
    while smallest < large(device):
        found.append(smallest)
        smallest *= 4
    return [*found, large(device)]


def level(total: int, threads: int, device: torch.device) -> str:
    """The cache that holds so many bytes. L1 and L2 belong to a core, so threads share the bytes among theirs."""
    if device.type == "cuda":
        return "L2" if total <= machine.last_level_cache(device) else "DRAM"
    caches = sorted(machine.cache_bytes().items())
    return next((n for n, size in caches if (total / threads if n in ("L1", "L2") else total) <= size), "DRAM")


def thread_counts(device: torch.device) -> list[int]:
    """1, 2, 4, ... and all of them; on a GPU they do not matter."""
    most = torch.get_num_threads()
    powers = [1 << i for i in range(most.bit_length()) if 1 << i < most]
    return [most] if device.type == "cuda" else [*powers, most]


def measure(
    device: torch.device,
    totals: Sequence[int],
    threads: Sequence[int] = (),
    rounds: int = 9,
    block_seconds: float = 0.01,
) -> list[dict[str, Any]]:
    timer: CpuTimer | CudaTimer = CudaTimer() if device.type == "cuda" else CpuTimer()
    before, found = torch.get_num_threads(), []
    try:
        for count in threads or [before]:
            torch.set_num_threads(count)
            for total in totals:
                works = {mix: stream(mix, total, device) for mix in MIXES}
                times = keep_clean(*interleave(works, timer, rounds, block_seconds))
                found += [{"mix": mix, "bytes": total, "threads": count, "level": level(total, count, device),
                           "seconds": seconds} for mix, seconds in times.items()]  # fmt: skip
    finally:
        torch.set_num_threads(before)
    return found


def gigabytes(record: dict[str, Any]) -> float:
    return record["bytes"] / statistics.median(record["seconds"]) / 1e9


def table(streams: list[dict[str, Any]]) -> Table:
    rows = []
    for total, threads in dict.fromkeys((s["bytes"], s["threads"]) for s in streams):
        chosen = {s["mix"]: s for s in streams if (s["bytes"], s["threads"]) == (total, threads)}
        spread = max(Result("", "", s["seconds"]).spread for s in chosen.values())
        size = f"{total / (1 << 20):,.2f} MB" if total < 1 << 20 else f"{total / (1 << 20):,.0f} MB"
        row = [size, next(iter(chosen.values()))["level"], str(threads)]
        rows.append([*row, *(f"{gigabytes(s):,.1f}" for s in chosen.values()), percent(spread)])
    mixes = list(dict.fromkeys(s["mix"] for s in streams))
    return Table("Roofs, GB/s", ["bytes moved", "from", "threads", *mixes, "largest ±"], rows)
