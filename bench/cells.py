"""What the benchmark speaks of: an op, who computes it, the bytes that it has to move, and a measured cell."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .shapes import Shape

DIRECTIONS = ("forward", "backward", "forward+backward")


@dataclass(frozen=True)
class Traffic:
    """Bytes that any implementation has to move: each input read once, each output written once."""

    reads: int
    writes: int

    @property
    def total(self) -> int:
        return self.reads + self.writes

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.reads + other.reads, self.writes + other.writes)


@dataclass(frozen=True)
class Candidate:
    """One implementation. `function` takes the op's inputs in order and returns its output or outputs."""

    name: str
    function: Callable[..., Tensor | tuple[Tensor, ...]]
    version: str
    has_backward: bool = True


Bars = dict[tuple[str, str, torch.dtype], float]  # by baseline and Shape.kind: time of the baseline / ours


def bars(baseline: str, **kinds: tuple[float, float]) -> Bars:
    """For each kind of shape the bar in float32 and the one in bfloat16."""
    dtypes = (torch.float32, torch.bfloat16)
    return {(baseline, kind, t): bar for kind, two in kinds.items() for t, bar in zip(dtypes, two, strict=True)}


@dataclass(frozen=True)
class Op:
    name: str
    # x, residual: the shape's sizes; mean_weight, var_weight: three; weight, bias and, not differentiated, running_*:
    # sizes[1]
    inputs: tuple[str, ...]
    candidates: Callable[[Sequence[str]], list[Candidate]]  # ours first, then the named baselines
    reference: Callable[..., Tensor | tuple[Tensor, ...]]
    traffic: Callable[[str, tuple[int, ...], int], Traffic]  # direction, sizes, bytes per element
    cpu_bars: Bars = field(default_factory=dict)
    outputs: tuple[str, ...] = ("y",)
    shapes: str = "rows"  # of shapes.SUITES
    independent: int | None = 0  # the dimension along which results do not depend on each other: a part can be checked
    has_kink: bool = False  # its activation's


@dataclass
class Result:
    """A candidate in a cell: its times in seconds, or why there are none."""

    name: str
    version: str
    seconds: list[float] = field(default_factory=list)
    failure: str = ""
    note: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds) if self.seconds else math.nan

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles, relative to the median."""
        if len(self.seconds) < 2:
            return math.nan
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return (high - low) / 2 / self.median


@dataclass
class Cell:
    op: str
    shape: Shape
    dtype: str
    direction: str
    traffic: Traffic
    results: list[Result]
    roof: Result
    mix: str = ""  # of roofs.MIXES, one for each part of the direction
    clean_rounds: int = 0
    rounds: int = 0
    page_faults: float = 0.0  # per call of ours, while it was timed
    sets: int = 1  # of buffers that the calls went through in turn

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What makes cells of two runs comparable."""
        return self.op, str(self.shape), self.dtype, self.direction

    @property
    def ours(self) -> Result:
        return self.results[0]

    def speedup(self, baseline: str) -> float:
        """Time of the baseline divided by ours: the median over rounds of the ratio within a round."""
        for result in self.results[1:]:
            if result.name == baseline and result.seconds and self.ours.seconds:
                return statistics.median(a / b for a, b in zip(result.seconds, self.ours.seconds, strict=True))
        return math.nan

    @property
    def roof_share(self) -> float:
        if not (self.roof.seconds and self.ours.seconds):
            return math.nan
        return statistics.median(a / b for a, b in zip(self.roof.seconds, self.ours.seconds, strict=True))
