"""`python -m bench run`: all cells that were asked for, as a table and a document."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import rich.progress
import torch

from . import harness, machine, model_shapes, plots, registry, results, roofline, shapes, tables
from .cells import DIRECTIONS, Cell, Op
from .errors import BadInput
from .noise import refuse_if_noisy

SUITES = ("quick", "models", "full")


@dataclass(frozen=True)
class Request:
    ops: list[Op]
    device: torch.device
    suite: str = "quick"
    dtypes: Sequence[torch.dtype] = (torch.float32, torch.bfloat16)
    baselines: Sequence[str] = ("aten",)
    layouts: Sequence[str] = ()  # none: all
    shapes: Sequence[tuple[int, ...]] = ()  # instead of the suite's
    directions: Sequence[str] = DIRECTIONS
    rounds: int = 9
    rotate: bool | None = None
    time_limit: float | None = None
    block_seconds: float = 0.02


@dataclass
class Progress:
    cells: list[Cell] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def shapes_of(request: Request, op: Op) -> list[shapes.Shape]:
    if request.shapes:
        found = shapes.given(op.shapes, list(request.shapes))
    elif request.suite == "models":
        found = list(model_shapes.of(op.name, op.shapes, request.device.type))
    else:
        found = shapes.shapes_of(op.shapes, request.device.type, request.suite)
    return [shape for shape in found if not request.layouts or shape.layout in request.layouts]


def work_of(request: Request, named: Sequence[str]) -> list[tuple[Op, shapes.Shape, torch.dtype]]:
    """By shape first, so that a time limit cuts off the last shapes of every op, not the last ops.

    An op that was named and has nothing to measure is an error.
    """
    by_op = {op.name: [(op, shape) for shape in shapes_of(request, op)] for op in request.ops}
    empty = [name for name, cases in by_op.items() if not cases and (name in named or not any(by_op.values()))]
    if empty:
        wanted = "ROWSxCOLS" if registry.OPS[empty[0]].shapes == "rows" else "NxCxHxW"
        raise BadInput(f"nothing to measure for {empty[0]}, which takes shapes {wanted}: look at --shape and --layout")
    turns = itertools.zip_longest(*by_op.values())
    return [(*case, dtype) for turn in turns for case in turn if case for dtype in request.dtypes]


def measure(request: Request, work: list[tuple[Op, shapes.Shape, torch.dtype]]) -> Progress:
    begin, done = time.monotonic(), Progress()
    columns = ("{task.description}", rich.progress.BarColumn(), rich.progress.MofNCompleteColumn(),
               rich.progress.TimeRemainingColumn())  # fmt: skip
    with rich.progress.Progress(*columns, console=tables.console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=len(work))
        for op, shape, dtype in work:
            case = f"{op.name} {shape} {str(dtype).removeprefix('torch.')}"
            bar.update(task, description=case.ljust(44))
            if request.time_limit and time.monotonic() - begin > request.time_limit:
                done.skipped.append(f"{case}: time limit")
                continue
            torch._dynamo.reset()  # a shape must not inherit another's recompilation limit
            candidates = op.candidates(request.baselines)
            options = (request.directions, request.rounds, request.block_seconds, request.rotate)
            try:
                done.cells += harness.measure(op, shape, dtype, request.device, candidates, *options)
            except (torch.OutOfMemoryError, RuntimeError) as error:  # the CPU's lack of memory is a RuntimeError
                if not isinstance(error, torch.OutOfMemoryError) and "not enough memory" not in str(error):
                    raise
                done.skipped.append(f"{case}: {str(error).splitlines()[0][:100]}")
                if request.device.type == "cuda":
                    torch.cuda.empty_cache()
            bar.advance(task)
    return done


def command(request: Request, named: Sequence[str], output: Path | None, force: bool) -> results.Document:
    work = work_of(request, named)
    record = machine.describe(request.device)
    print(f"{record['device']}, {record['threads']} threads, torch {torch.__version__}, commit {record['commit']}")
    record["noise"] = refuse_if_noisy(request.device, force)
    streams = roofline.measure(request.device, [roofline.large(request.device)], rounds=request.rounds)
    done = measure(request, work)
    done.skipped += registry.absent(request.ops, request.baselines)
    names, dtypes = [op.name for op in request.ops], [str(dtype) for dtype in request.dtypes]
    done.cells.sort(key=lambda cell: (names.index(cell.op), dtypes.index(f"torch.{cell.dtype}")))
    cells = [results.cell_record(cell) for cell in done.cells]
    found = results.document("run", record, cells=cells, streams=streams, not_measured=done.skipped)

    roofs, every = roofline.table(streams), tables.cell_table(done.cells)
    summary = tables.summary_table(done.cells, registry.OPS, request.device.type)
    remarks = [f"not measured: {text}" for text in done.skipped] + tables.notes(done.cells)
    for table in (roofs, every, summary):
        tables.show(table)
    print(*remarks, sep="\n")
    if output:
        results.write(found, output / "results.json")
        title = f"{record['device']}, {record['threads']} threads, torch {torch.__version__}, {record['date']}"
        changed = " with changes" if record["uncommitted_changes"] else ""
        noisy = " **The machine was too noisy to tell.**" if record["noise"]["too_noisy"] else ""
        sections = [f"{table.title}:\n\n{table.markdown()}\n" for table in (summary, roofs, every)]
        head = f"# {title}\n\nCommit {record['commit']}{changed}, `{record['command']}`.{noisy}"
        sections = [f"{head} How it is measured: bench/README.md.\n", *sections]  # at any depth below the results
        text = "\n".join(sections) + "\n" + "".join(f"- {remark}\n" for remark in remarks)
        (output / "results.md").write_text(text, encoding="utf-8")
        plots.save(plots.throughput(done.cells, title), output / "results.png")
        print(f"results: {output}")
    return found
