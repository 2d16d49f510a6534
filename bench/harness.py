"""How one cell of the benchmark is measured; README.md says why.

A cell is an op on one shape, one dtype, one direction. All candidates of a cell, and the stream kernel that sets the
roof, run in turn within each round; a candidate's figure is the median over rounds, a ratio is the median of the ratios
within each round. Data are normal random numbers. Each candidate is compared with fp64 before it is timed.
"""

from __future__ import annotations

import math
import resource
from collections.abc import Sequence

import torch

from .cells import DIRECTIONS, Candidate, Cell, Op, Result
from .check import check
from .inputs import Inputs, as_tuple, backward, make_inputs
from .machine import last_level_cache
from .roofs import roof_of
from .shapes import Shape
from .timing import CpuTimer, CudaTimer, Work, interleave, keep_clean


def works_of(candidate: Candidate, sets: list[Inputs], direction: str) -> Work:
    # What a call changes (running statistics) must not stand in another candidate's retained graph.
    sets = [Inputs([t if t.requires_grad else t.clone() for t in one.inputs], one.upstream) for one in sets]
    # Outputs stay alive for one turn through the sets, so that they are rotated as the inputs are.
    alive: list[object] = [None] * len(sets)
    if direction == "forward":

        def forward(call: int) -> None:
            alive[call % len(sets)] = candidate.function(*sets[call % len(sets)].inputs)

        return forward
    if direction == "backward":
        outputs = [as_tuple(candidate.function(*inputs.inputs)) for inputs in sets]

        def backward_alone(call: int) -> None:
            index = call % len(sets)
            alive[index] = None
            alive[index] = backward(outputs[index], sets[index], True)

        return backward_alone

    def both(call: int) -> None:
        index = call % len(sets)
        alive[index] = None
        alive[index] = backward(as_tuple(candidate.function(*sets[index].inputs)), sets[index], False)

    return both


def buffer_sets(op: Op, shape: Shape, dtype: torch.dtype, device: torch.device) -> int:
    """How many sets of buffers to go through so that none is found in a cache: three times the last level's size."""
    one = op.traffic("forward", shape.sizes, dtype.itemsize).total
    return max(1, min(64, math.ceil(3 * last_level_cache(device) / one)))


def failure_of(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"failed: {type(error).__name__}: {lines[0][:80]}"


def page_faults(work: Work) -> float:
    """Per call: near zero where the allocator keeps its memory (allocator.py)."""
    calls = 3
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for call in range(calls):
        work(call)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / calls


def measure(
    op: Op,
    shape: Shape,
    dtype: torch.dtype,
    device: torch.device,
    candidates: list[Candidate],
    directions: Sequence[str] = DIRECTIONS,
    rounds: int = 9,
    block_seconds: float = 0.02,
    rotate: bool | None = None,
) -> list[Cell]:
    """The cells of one op, shape and dtype: one for each direction. `rotate`: see buffer_sets; None: on GPUs alone."""
    timer: CpuTimer | CudaTimer = CudaTimer() if device.type == "cuda" else CpuTimer()
    count = buffer_sets(op, shape, dtype, device) if (device.type == "cuda" if rotate is None else rotate) else 1
    sets = [make_inputs(op, shape, dtype, device, seed) for seed in range(count)]

    failures, notes = {}, {}
    for candidate in candidates:
        try:
            failures[candidate.name], notes[candidate.name] = check(op, candidate, sets[0])
        except Exception as error:  # a baseline may fail in any way; its cell says how
            failures[candidate.name] = failure_of(error)

    cells = []
    for direction in directions:
        results = [Result(c.name, c.version, failure=failures[c.name], note=notes.get(c.name, "")) for c in candidates]
        works = {}
        for candidate, result in zip(candidates, results, strict=True):
            if not result.failure and direction != "forward" and not candidate.has_backward:
                result.failure = "no backward"
            if not result.failure:
                try:
                    works[candidate.name] = works_of(candidate, sets, direction)
                except Exception as error:
                    result.failure = failure_of(error)
        traffic, mix, works["roof"] = roof_of(op, shape, dtype.itemsize, direction, device, len(sets))
        times, clean = interleave(works, timer, rounds, block_seconds)
        faults = page_faults(works[candidates[0].name]) if candidates[0].name in works else 0.0
        times = keep_clean(times, clean)
        for result in results:
            result.seconds = times.get(result.name, [])
        roof = Result("roof", torch.__version__, times["roof"])
        name = str(dtype).removeprefix("torch.")
        cell = Cell(op.name, shape, name, direction, traffic, results, roof, mix, sum(clean), len(clean), faults, count)
        cells.append(cell)
    return cells
