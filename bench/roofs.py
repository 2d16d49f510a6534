"""The roof over a cell: a plain stream kernel with the same mix of reads and writes, run in the same rounds.

A mix is named by its tensors: 3R1W reads three and writes one. Each is a kernel of torch with hardly any arithmetic
(within a core's own caches that of 4R1W shows).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .cells import Op, Traffic
from .shapes import Shape
from .timing import Work


@dataclass(frozen=True)
class Mix:
    reads: int
    writes: int
    make: Callable[[int, torch.device], Callable[[], object]]  # float32 numbers per tensor, device -> one pass

    @property
    def tensors(self) -> int:
        return self.reads + self.writes


def _random(device: torch.device, *size: int) -> Tensor:
    return torch.randn(*size, device=device)


def _copy(numbers: int, device: torch.device) -> Callable[[], object]:
    x, out = _random(device, numbers), torch.zeros(numbers, device=device)
    return lambda: out.copy_(x)


def _add(numbers: int, device: torch.device) -> Callable[[], object]:
    (a, b), out = _random(device, 2, numbers), torch.zeros(numbers, device=device)
    return lambda: torch.add(a, b, out=out)


def _multiply_add(numbers: int, device: torch.device) -> Callable[[], object]:
    (a, b, c), out = _random(device, 3, numbers), torch.zeros(numbers, device=device)
    return lambda: torch.addcmul(a, b, c, out=out)


def _sum_of_four(numbers: int, device: torch.device) -> Callable[[], object]:
    x, out = _random(device, 4, numbers), torch.zeros(numbers, device=device)
    return lambda: torch.sum(x, 0, out=out)


def _copy_two(numbers: int, device: torch.device) -> Callable[[], object]:
    """One kernel on a GPU, one after the other on a CPU."""
    sources, outputs = (list(_random(device, 2, numbers).unbind()) for _ in range(2))
    return lambda: torch._foreach_copy_(outputs, sources)


MIXES = {
    "1R1W": Mix(1, 1, _copy),
    "2R1W": Mix(2, 1, _add),
    "3R1W": Mix(3, 1, _multiply_add),
    "4R1W": Mix(4, 1, _sum_of_four),
    "2R2W": Mix(2, 2, _copy_two),
}


def mix_of(traffic: Traffic, tensor_bytes: float) -> str:
    """The mix of that traffic, whose large tensors have so many bytes; where none fits, the nearest ratio."""
    if round(traffic.reads / tensor_bytes) == round(traffic.writes / tensor_bytes) == 2:
        return "2R2W"
    return f"{max(1, min(4, round(traffic.reads / traffic.writes)))}R1W"


def stream(name: str, total_bytes: int, device: torch.device, sets: int = 1) -> Work:
    """Moves so many bytes in each call, through the sets of buffers in turn."""
    mix = MIXES[name]
    passes = [mix.make(max(1, total_bytes // mix.tensors // 4), device) for _ in range(sets)]
    return lambda call: passes[call % sets]()


def roof_of(
    op: Op, shape: Shape, size: int, direction: str, device: torch.device, sets: int
) -> tuple[Traffic, str, Work]:
    """A cell's traffic, the names of its mixes, and the streams that move as much: one for each part of a direction."""
    parts = [op.traffic(part, shape.sizes, size) for part in direction.split("+")]
    names = [mix_of(part, math.prod(shape.sizes) * size) for part in parts]
    streams = [stream(name, part.total, device, sets) for name, part in zip(names, parts, strict=True)]

    def run(call: int) -> None:
        for work in streams:
            work(call)

    return sum(parts[1:], parts[0]), "+".join(names), run
