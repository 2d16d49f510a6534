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
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from .shapes import Shape
from .timing import CpuTimer, CudaTimer, Work, interleave, keep_clean

DIRECTIONS = ("forward", "backward", "forward+backward")

# Largest error, relative to the largest expected value, at which a candidate still counts as right: some rounding
# steps of the dtype, far below any mistake in a formula. Accuracy itself is judged by the tests, not here.
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2}
CHECKED_ELEMENTS = 1 << 25
AT_KINKS = 0.01  # share of a gradient's elements that rounding may put on the other side of an activation's kink


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
    """One set of buffers: the op's inputs, and the gradients of its outputs."""

    inputs: list[Tensor]
    upstream: list[Tensor]

    @property
    def leaves(self) -> list[Tensor]:
        return [t for t in self.inputs if t.requires_grad]


def make_inputs(op: Op, shape: Shape, dtype: torch.dtype, device: torch.device, seed: int) -> Inputs:
    generator = torch.Generator(device).manual_seed(seed)

    def random(*size: int) -> Tensor:
        return torch.randn(*size, dtype=torch.float32, device=device, generator=generator).to(dtype)

    def like_x() -> Tensor:
        samples, *others = shape.sizes
        if shape.layout == "channels_last":
            return random(samples, *others[1:], others[0]).movedim(-1, 1)
        if shape.layout == "strided":
            return random(samples, 3, *others)[:, 0]
        if shape.layout == "unaligned":
            return random(shape.elements() + 1)[1:].view(shape.sizes)
        return random(*shape.sizes)

    def make(name: str) -> Tensor:
        if name == "running_var":
            return random(shape.sizes[1]).square_().add_(0.5)
        if name in ("x", "residual"):
            values = like_x()
        else:
            values = random(3 if name in ("mean_weight", "var_weight") else shape.sizes[1])
        return values.requires_grad_(not name.startswith("running"))

    inputs = [make(name) for name in op.inputs]
    if shape.kind == "rows":
        shape = replace(shape, layout="contiguous")  # as the outputs are
    return Inputs(inputs, [like_x() for _ in op.outputs])


def as_tuple(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(outputs) if isinstance(outputs, tuple | list) else (outputs,)


def backward(outputs: tuple[Tensor, ...], inputs: Inputs, retain_graph: bool) -> tuple[Tensor, ...]:
    return torch.autograd.grad(outputs, inputs.leaves, inputs.upstream, retain_graph=retain_graph)


def check(op: Op, candidate: Candidate, inputs: Inputs) -> tuple[str, str]:
    """(why the candidate is wrong, or ""; a remark on its parameter gradients, or "")."""
    x, dtype = inputs.inputs[0], inputs.upstream[0].dtype
    along = op.independent or 0
    whole = x.shape[along]
    checked = whole if op.independent is None else max(1, min(whole, CHECKED_ELEMENTS * whole // x.numel()))

    def part(t: Tensor) -> Tensor:
        if t.dim() == 1:
            return t.detach()[: checked if along == 1 else None]
        return t.detach().narrow(along, 0, checked)

    names = list(op.outputs)
    # What a call changes (running statistics) may be what another begins with.
    got = list(as_tuple(candidate.function(*(t if t.requires_grad else t.clone() for t in inputs.inputs))))
    exact = Inputs(
        [part(t).to(torch.float64, copy=True).requires_grad_(t.requires_grad) for t in inputs.inputs],
        [part(t).double() for t in inputs.upstream],
    )
    expected = list(as_tuple(op.reference(*exact.inputs)))
    if candidate.has_backward:
        names += [f"gradient of {name}" for name in op.inputs if not name.startswith("running")]
        got += backward(tuple(got), inputs, False)
        expected += backward(tuple(expected), exact, False)
    notes = []
    for name, ours, truth in zip(names, got, expected, strict=True):
        parameter = truth.dim() == 1
        if parameter and along == 0 and checked < whole:
            continue  # a sum over all, of which only some were computed
        error = (part(ours).double() - truth.detach()).abs_() / truth.detach().abs().max()
        right = (error <= TOLERANCES[dtype]).double().mean()  # a NaN is an error, too
        if right < (1 - AT_KINKS if op.has_kink and name.startswith("gradient") else 1):
            text = f"{name} off by {100 * error.max().item():.2g} % of the largest value"
            if not parameter:
                return f"wrong: {text}", ""
            notes.append(text)
    return "", "; ".join(notes)


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
    parts = [op.traffic(part, shape.sizes, size) for part in direction.split("+")]
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
        one = op.traffic("forward", shape.sizes, dtype.itemsize).total
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
