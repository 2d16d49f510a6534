"""Tables: rows once, for the terminal (rich), for Markdown (tabulate) and for the HTML page."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

import rich.box
import rich.console
import rich.table
import rich.text
import tabulate
import torch

from .cells import Cell, Op

DASH = "-"
LEFT = 4  # columns that name a row, and are aligned to the left


@dataclass(frozen=True)
class Table:
    title: str
    headers: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        return tabulate.tabulate(self.rows, self.headers, tablefmt="github", disable_numparse=True)


def console(stderr: bool = False) -> rich.console.Console:
    """As wide as a table gets where there is no terminal, so that a log has whole lines."""
    found = rich.console.Console(stderr=stderr, highlight=False)
    return found if found.is_terminal else rich.console.Console(stderr=stderr, highlight=False, width=240)


def show(table: Table) -> None:
    if not table.rows:
        return
    shown = rich.table.Table(title=table.title, title_justify="left", box=rich.box.SIMPLE_HEAD, title_style="bold")
    for index, header in enumerate(table.headers):
        shown.add_column(header, justify="left" if index < LEFT else "right", no_wrap=index < LEFT)
    for row in table.rows:
        shown.add_row(*map(rich.text.Text, row))
    console().print(shown)


def microseconds(seconds: float) -> str:
    return DASH if math.isnan(seconds) else f"{1e6 * seconds:,.1f}"


def ratio(value: float) -> str:
    return DASH if math.isnan(value) else f"{value:.2f}"


def percent(value: float) -> str:
    return DASH if math.isnan(value) else f"{100 * value:.0f} %"


def cell_table(cells: list[Cell]) -> Table:
    baselines = list(dict.fromkeys(result.name for cell in cells for result in cell.results[1:]))
    rows = []
    for cell in cells:
        ours = cell.ours
        gigabytes = cell.traffic.total / ours.median / 1e9
        row = [cell.op, str(cell.shape), cell.dtype, cell.direction]
        row += [microseconds(ours.median) if ours.seconds else ours.failure, percent(ours.spread)]
        row += [DASH if math.isnan(gigabytes) else f"{gigabytes:,.1f}", percent(cell.roof_share), cell.mix or DASH]
        failures = {result.name: result.failure for result in cell.results}
        row += [failures.get(name) or ratio(cell.speedup(name)) for name in baselines]
        rows.append([*row, f"{cell.clean_rounds}/{cell.rounds}"])
    headers = ["op", "shape", "dtype", "direction", "µs", "±", "GB/s", "of roof", "roof"]
    return Table("Every cell", headers + [f"{name} / ours" for name in baselines] + ["clean rounds"], rows)


def is_large(cell: Cell) -> bool:
    return cell.shape.elements() * getattr(torch, cell.dtype).itemsize > 1 << 20


def geometric_mean(values: Iterable[float]) -> float:
    return statistics.geometric_mean(list(values))


def summary_table(cells: list[Cell], ops: dict[str, Op], device_type: str) -> Table:
    """Forward+backward against each baseline, over the shapes above 1 MB, beside the bars, which are for CPUs."""
    large = [cell for cell in cells if cell.direction == "forward+backward" and is_large(cell)]
    rows = []
    for name, kind, dtype in dict.fromkeys((cell.op, cell.shape.kind, cell.dtype) for cell in large):
        chosen = [c for c in large if (c.op, c.shape.kind, c.dtype) == (name, kind, dtype)]
        for baseline in dict.fromkeys(result.name for cell in chosen for result in cell.results[1:]):
            values = {str(c.shape): c.speedup(baseline) for c in chosen if not math.isnan(c.speedup(baseline))}
            if not values:
                continue
            bars = ops[name].cpu_bars if name in ops and device_type == "cpu" else {}
            bar = bars.get((baseline, kind, getattr(torch, dtype)))
            mean, worst = geometric_mean(values.values()), min(values, key=lambda shape: values[shape])
            verdict = DASH if bar is None else f"{bar:g} {'met' if mean >= bar else 'MISSED'}"
            lowest = f"{ratio(values[worst])} at {worst}"
            rows.append([name, kind, dtype, baseline, ratio(mean), verdict, lowest, str(len(values))])
    headers = ["op", "layout", "dtype", "baseline", "baseline / ours", "bar", "lowest", "shapes"]
    return Table("Forward+backward, geometric mean over the shapes above 1 MB", headers, rows)


def notes(cells: list[Cell]) -> list[str]:
    """What is not as it should be: candidates that failed or are wrong, and inaccurate parameter gradients."""
    found: dict[str, None] = {}
    for cell in cells:
        for result in cell.results:
            where = f"{cell.op} {cell.shape} {cell.dtype}, {result.name}"
            if result.failure and result.failure != "no backward":
                found[f"not timed: {where}: {result.failure}"] = None
            if result.note:
                found[f"inaccurate: {where}: {result.note}"] = None
    return list(found)
