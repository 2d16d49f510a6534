"""How one cell of the benchmark is measured; README.md says why.

A cell is an op on one shape, one dtype, one direction. All candidates of a cell, and the stream kernel that sets the
roof, run in turn within each round; a candidate's figure is the median over rounds, a ratio is the median of the ratios
within each round. Data are normal random numbers. Each candidate is compared with fp64 before it is timed.
"""

from __future__ import annotations

import math
import resource
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .shapes import Shape
from .timing import CpuTimer, CudaTimer, Work, interleave, keep_clean

DIRECTIONS = ("forward", "backward", "forward+backward")

# Largest error, relative to the largest expected value, at which a candidate still counts as right: some rounding
# steps of the dtype, far below any mistake in a formula. Accuracy itself is judged by the tests, not here.
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2}
CHECKED_ELEMENTS = 1 << 25


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


@dataclass(frozen=True)
class Op:
    name: str
    inputs: tuple[str, ...]  # of x, residual (rows, cols) and weight, bias (cols)
    candidates: Callable[[Sequence[str]], list[Candidate]]  # ours first, then the named baselines
    reference: Callable[..., Tensor | tuple[Tensor, ...]]
    traffic: Callable[[str, int, int, int], Traffic]  # direction, rows, cols, bytes per element
    cpu_bars: dict[torch.dtype, float] = field(default_factory=dict)


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
    clean_rounds: int = 0
    rounds: int = 0
    page_faults: float = 0.0  # per call of ours, while it was timed

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


@dataclass
class Inputs:
    """One set of buffers: the op's inputs as leaves, and the gradients of its outputs."""

    leaves: list[Tensor]
    upstream: list[Tensor]


def make_inputs(op: Op, shape: Shape, dtype: torch.dtype, device: torch.device, seed: int) -> Inputs:
    generator = torch.Generator(device).manual_seed(seed)

    def random(*size: int) -> Tensor:
        return torch.randn(*size, dtype=torch.float32, device=device, generator=generator).to(dtype)

    def matrix() -> Tensor:
        if shape.layout == "strided":
            return random(shape.rows, 3, shape.cols)[:, 0]
        if shape.layout == "unaligned":
            return random(shape.elements() + 1)[1:].view(shape.rows, shape.cols)
        return random(shape.rows, shape.cols)

    leaves = [matrix() if name in ("x", "residual") else random(shape.cols) for name in op.inputs]
    outputs = 2 if "residual" in op.inputs else 1
    return Inputs([t.requires_grad_() for t in leaves], [random(shape.rows, shape.cols) for _ in range(outputs)])


def as_tuple(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(outputs) if isinstance(outputs, tuple | list) else (outputs,)


def backward(outputs: tuple[Tensor, ...], inputs: Inputs, retain_graph: bool) -> tuple[Tensor, ...]:
    return torch.autograd.grad(outputs, inputs.leaves, inputs.upstream, retain_graph=retain_graph)


def check(op: Op, candidate: Candidate, inputs: Inputs) -> tuple[str, str]:
    """(why the candidate is wrong, or ""; a remark on its parameter gradients, or "")."""
    dtype = inputs.upstream[0].dtype
    rows, cols = inputs.upstream[0].shape
    checked = max(1, min(rows, CHECKED_ELEMENTS // cols))  # rows do not depend on each other
    names = [*("y", "sum")[: len(inputs.upstream)]]
    got = list(as_tuple(candidate.function(*inputs.leaves)))
    some = [t.detach()[:checked] if t.dim() == 2 else t.detach() for t in inputs.leaves]
    exact = Inputs([t.double().requires_grad_() for t in some], [t[:checked].double() for t in inputs.upstream])
    expected = list(as_tuple(op.reference(*exact.leaves)))
    if candidate.has_backward:
        names += [f"gradient of {name}" for name in op.inputs]
        got += backward(tuple(got), inputs, False)
        expected += backward(tuple(expected), exact, False)
    notes = []
    for name, ours, truth in zip(names, got, expected, strict=True):
        per_row = truth.dim() == 2
        if not per_row and checked < rows:
            continue  # a sum over all rows, of which only some were computed
        difference = (ours.detach()[:checked] if per_row else ours.detach()).double() - truth.detach()
        error = (difference.abs().max() / truth.detach().abs().max()).item()
        if not error <= TOLERANCES[dtype]:  # a NaN is an error, too
            text = f"{name} off by {100 * error:.2g} % of the largest value"
            if per_row:
                return f"wrong: {text}", ""
            notes.append(text)
    return "", "; ".join(notes)


def works_of(candidate: Candidate, sets: list[Inputs], direction: str) -> Work:
    # Outputs stay alive for one turn through the sets, so that they are rotated as the inputs are.
    alive: list[object] = [None] * len(sets)
    if direction == "forward":

        def forward(call: int) -> None:
            alive[call % len(sets)] = candidate.function(*sets[call % len(sets)].leaves)

        return forward
    if direction == "backward":
        outputs = [as_tuple(candidate.function(*inputs.leaves)) for inputs in sets]

        def backward_alone(call: int) -> None:
            index = call % len(sets)
            alive[index] = None
            alive[index] = backward(outputs[index], sets[index], True)

        return backward_alone

    def both(call: int) -> None:
        index = call % len(sets)
        alive[index] = None
        alive[index] = backward(as_tuple(candidate.function(*sets[index].leaves)), sets[index], False)

    return both


def stream(traffic: Traffic, device: torch.device, sets: int) -> Work:
    """A plain kernel that moves as many bytes with (nearly) the same mix of reads and writes: the roof."""
    reads = max(1, min(3, round(traffic.reads / traffic.writes)))
    numbers = max(1, traffic.total // (reads + 1) // 4)
    buffers = [[torch.randn(numbers, device=device) for _ in range(reads + 1)] for _ in range(sets)]

    def run(call: int) -> None:
        out, *streams = buffers[call % sets]
        if reads == 1:
            out.copy_(streams[0])
        elif reads == 2:
            torch.add(*streams, out=out)
        else:
            torch.addcmul(*streams, out=out)

    return run


def roof_of(op: Op, shape: Shape, size: int, direction: str, device: torch.device, sets: int) -> tuple[Traffic, Work]:
    parts = [op.traffic(part, shape.rows, shape.cols, size) for part in direction.split("+")]
    streams = [stream(part, device, sets) for part in parts]

    def run(call: int) -> None:
        for work in streams:
            work(call)

    return sum(parts[1:], parts[0]), run


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
) -> list[Cell]:
    """The cells of one op, shape and dtype: one for each direction."""
    timer: CpuTimer | CudaTimer = CudaTimer() if device.type == "cuda" else CpuTimer()
    sets = [make_inputs(op, shape, dtype, device, seed=0)]
    if device.type == "cuda":
        cache = torch.cuda.get_device_properties(device).L2_cache_size
        one = op.traffic("forward", shape.rows, shape.cols, dtype.itemsize).total
        count = max(1, min(64, math.ceil(3 * cache / one)))
        sets += [make_inputs(op, shape, dtype, device, seed) for seed in range(1, count)]

    failures, notes = {}, {}
    for candidate in candidates:
        try:
            failures[candidate.name], notes[candidate.name] = check(op, candidate, sets[0])
        except Exception as error:  # a baseline may fail in any way; its cell says how
            failures[candidate.name] = f"failed: {type(error).__name__}: {str(error).strip().splitlines()[0][:80]}"

    cells = []
    for direction in directions:
        results = [Result(c.name, c.version, failure=failures[c.name], note=notes.get(c.name, "")) for c in candidates]
        works = {}
        for candidate, result in zip(candidates, results, strict=True):
            if not result.failure and direction != "forward" and not candidate.has_backward:
                result.failure = "no backward"
            if not result.failure:
                works[candidate.name] = works_of(candidate, sets, direction)
        traffic, works["roof"] = roof_of(op, shape, dtype.itemsize, direction, device, len(sets))
        times, clean = interleave(works, timer, rounds, block_seconds)
        faults = page_faults(works[candidates[0].name]) if candidates[0].name in works else 0.0
        times = keep_clean(times, clean)
        for result in results:
            result.seconds = times.get(result.name, [])
        roof = Result("roof", torch.__version__, times["roof"])
        name = str(dtype).removeprefix("torch.")
        cells.append(Cell(op.name, shape, name, direction, traffic, results, roof, sum(clean), len(clean), faults))
    return cells
