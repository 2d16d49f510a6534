"""Figures, for PNG files and the page: throughput of every cell, the roofline of a device, a heat map of ratios."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from .cells import Cell
from .roofline import gigabytes

COLOURS = {"torchfastnorm": "#2a6f97", "aten": "#c1543c", "compile": "#e0a458", "reference": "#9aa5ad"}
COLOURS |= {"unfused": "#8ab6a9", "compile_max": "#b8860b", "cudnn": "#6b4c9a"}
STYLE = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "torchfastnorm"}
LINES = ("-", "--", "-.", ":", (0, (1, 4)))
LARGEST_RATIO = 8.0  # where the heat map's colours end


def _timed(cells: Sequence[Cell], direction: str = "forward+backward") -> list[Cell]:
    return [cell for cell in cells if cell.direction == direction and cell.ours.seconds]


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Figure | None, path: Path) -> None:
    if figure is not None:
        figure.savefig(path, dpi=130)


def as_svg(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def throughput(cells: Sequence[Cell], title: str = "") -> Figure | None:
    """A panel for each op and dtype, a group of bars for each shape, the roof above; None: there is nothing to show."""
    chosen = _timed(cells)
    if not chosen:
        return None
    ops, dtypes = (list(dict.fromkeys(getattr(cell, key) for cell in chosen)) for key in ("op", "dtype"))
    widest = max(len([c for c in chosen if (c.op, c.dtype) == (op, dtype)]) for op in ops for dtype in dtypes)
    with matplotlib.rc_context(STYLE):
        figure = _figure(max(5.5, 0.62 * widest + 1.5) * len(dtypes), 2.3 * len(ops) + 1.2)
        axes = figure.subplots(len(ops), len(dtypes), squeeze=False)
        for row, op in enumerate(ops):
            for column, dtype in enumerate(dtypes):
                axis = axes[row, column]
                _bars(axis, [cell for cell in chosen if (cell.op, cell.dtype) == (op, dtype)])
                axis.set_title(f"{op}, {dtype}", loc="left", fontweight="bold")
                if column == 0:
                    axis.set_ylabel("GB/s, forward+backward")
        handles = {text: h for axis in axes.flat for h, text in zip(*axis.get_legend_handles_labels(), strict=True)}
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles), frameon=False)
        figure.suptitle(title, fontsize=10)
    return figure


def _bars(axis: Any, panel: Sequence[Cell]) -> None:
    names = list(dict.fromkeys(r.name for cell in panel for r in cell.results if r.seconds))
    width = 0.8 / max(1, len(names))
    for index, name in enumerate(names):
        medians = [next((r.median for r in c.results if r.name == name), math.nan) for c in panel]
        heights = [c.traffic.total / m / 1e9 for c, m in zip(panel, medians, strict=True)]
        places = [place + (index - (len(names) - 1) / 2) * width for place in range(len(panel))]
        axis.bar(places, heights, width, label=name, color=COLOURS.get(name), zorder=2)
    roofs = [cell.traffic.total / cell.roof.median / 1e9 for cell in panel]
    lows, highs = ([place + side for place in range(len(panel))] for side in (-0.45, 0.45))
    axis.hlines(roofs, lows, highs, color="#222222", linewidth=1.2, label="roof: same bytes, no arithmetic", zorder=3)
    axis.set_xticks(range(len(panel)), [str(c.shape).replace(" ", "\n") for c in panel], rotation=30, ha="right")
    axis.grid(axis="y", alpha=0.25)


def roofline(cells: Sequence[Cell], streams: Sequence[dict[str, Any]], title: str = "") -> Figure | None:
    """GB/s over the bytes that a call moves. Norms do next to no arithmetic, so that the roof is memory's."""
    directions = ("forward", "backward")
    chosen = [cell for direction in directions for cell in _timed(cells, direction)]
    if not chosen and not streams:
        return None
    with matplotlib.rc_context(STYLE):
        figure = _figure(11, 4.6)
        axes = figure.subplots(1, 2, sharey=True)
        threads = max((s["threads"] for s in streams), default=0)
        ops = list(dict.fromkeys(cell.op for cell in chosen))
        for axis, direction in zip(axes, directions, strict=True):
            panel = _timed(cells, direction)
            for index, op in enumerate(ops):
                points = [(c.traffic.total, c.traffic.total / c.ours.median / 1e9) for c in panel if c.op == op]
                if points:
                    axis.scatter(*zip(*points, strict=True), s=16, label=op, color=f"C{index % 10}",
                                 marker="os^"[index // 10 % 3], zorder=3)  # fmt: skip
            for index, mix in enumerate(dict.fromkeys(s["mix"] for s in streams)):
                chosen_streams = [s for s in streams if (s["mix"], s["threads"]) == (mix, threads)]
                line = sorted((s["bytes"], gigabytes(s)) for s in chosen_streams)
                style = {"color": "#222222", "linewidth": 1, "linestyle": LINES[index], "marker": "_"}
                axis.plot(*zip(*line, strict=True), label=f"roof {mix}", zorder=2, **style)
            roofs = sorted((c.traffic.total, c.traffic.total / c.roof.median / 1e9) for c in panel if c.roof.seconds)
            if roofs:
                axis.scatter(*zip(*roofs, strict=True), s=50, marker="_", color="#222222", label="roof of a cell")
            axis.set(xscale="log", yscale="log", xlabel="bytes moved by a call")
            axis.set_title(direction, loc="left", fontweight="bold")
            axis.grid(which="major", alpha=0.25)
        axes[0].set_ylabel("GB/s")
        handles = {text: h for axis in axes for h, text in zip(*axis.get_legend_handles_labels(), strict=True)}
        figure.legend(handles.values(), handles.keys(), loc="outside right upper", frameon=False, fontsize=8)
        figure.suptitle(title, fontsize=10)
    return figure


def heat_map(cells: Sequence[Cell], baseline: str, title: str = "") -> Figure | None:
    """Time of the baseline / ours, forward+backward: a panel for each op, a row for a shape, a column for a dtype."""
    chosen = [cell for cell in _timed(cells) if not math.isnan(cell.speedup(baseline))]
    if not chosen:
        return None
    dtypes = list(dict.fromkeys(cell.dtype for cell in chosen))
    by_op = {op: list(dict.fromkeys(str(c.shape) for c in chosen if c.op == op))
             for op in dict.fromkeys(cell.op for cell in chosen)}  # fmt: skip
    columns = min(4, len(by_op))
    rows = math.ceil(len(by_op) / columns)
    with matplotlib.rc_context({**STYLE, "axes.spines.left": False, "axes.spines.bottom": False}):
        tallest = max(map(len, by_op.values()))
        width = max(5.0, (1.7 + 0.85 * len(dtypes)) * columns + 0.6)
        figure = _figure(width, (0.24 * tallest + 0.9) * rows + 0.5)
        grid = figure.subplots(rows, columns, squeeze=False)
        scale = TwoSlopeNorm(0.0, -math.log2(LARGEST_RATIO) / 2, math.log2(LARGEST_RATIO))
        for axis in grid.flat[len(by_op) :]:
            axis.set_visible(False)
        for axis, (op, shapes) in zip(grid.flat, by_op.items(), strict=False):
            found = {(str(c.shape), c.dtype): c.speedup(baseline) for c in chosen if c.op == op}
            values = [[found.get((shape, dtype), math.nan) for dtype in dtypes] for shape in shapes]
            colours = [[math.log2(value) for value in row] for row in values]
            axis.imshow(colours, norm=scale, cmap="RdBu", aspect="auto")
            for y, row in enumerate(values):
                for x, value in enumerate(row):
                    if not math.isnan(value):
                        dark = not -0.9 < math.log2(value) < 2.1
                        axis.text(x, y, f"{value:.2f}", ha="center", va="center", color="white" if dark else "black")
            axis.set_xticks(range(len(dtypes)), dtypes)
            axis.set_yticks(range(len(shapes)), shapes, fontsize=7)
            axis.tick_params(length=0)
            axis.set_title(op, loc="left", fontweight="bold")
        figure.suptitle(title, fontsize=10)
    return figure
