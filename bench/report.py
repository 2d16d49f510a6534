"""Tables for people, JSON for programs, a plot for both."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tabulate
import torch

from .harness import Cell, Op
from .latency import Latency

DASH = "-"
COLOURS = {"torchfastnorm": "#2a6f97", "aten": "#c1543c", "compile": "#e0a458", "reference": "#9aa5ad"}
COLOURS["unfused"] = "#8ab6a9"


def microseconds(seconds: float) -> str:
    return DASH if math.isnan(seconds) else f"{1e6 * seconds:,.1f}"


def ratio(value: float) -> str:
    return DASH if math.isnan(value) else f"{value:.2f}"


def cell_table(cells: list[Cell], style: str) -> str:
    baselines = list(dict.fromkeys(result.name for cell in cells for result in cell.results[1:]))
    rows = []
    for cell in cells:
        ours = cell.ours
        gigabytes = cell.traffic.total / ours.median / 1e9
        row = [cell.op, str(cell.shape), cell.dtype, cell.direction]
        row += [microseconds(ours.median) if ours.seconds else ours.failure]
        row += [DASH if math.isnan(ours.spread) else f"{100 * ours.spread:.0f} %"]
        row += [DASH if math.isnan(gigabytes) else f"{gigabytes:,.1f}"]
        row += [DASH if math.isnan(cell.roof_share) else f"{100 * cell.roof_share:.0f} %"]
        failures = {result.name: result.failure for result in cell.results}
        row += [failures.get(name) or ratio(cell.speedup(name)) for name in baselines]
        rows.append([*row, f"{cell.clean_rounds}/{cell.rounds}"])
    headers = ["op", "shape", "dtype", "direction", "µs", "±", "GB/s", "of roof"]
    headers += [f"{name} / ours" for name in baselines] + ["clean rounds"]
    return tabulate.tabulate(rows, headers, tablefmt=style, disable_numparse=True)


def geometric_mean(values: Iterable[float]) -> float:
    return statistics.geometric_mean(list(values))


def summary_table(cells: list[Cell], ops: list[Op], device: torch.device, style: str) -> str:
    """Forward+backward against each baseline, over the shapes above 1 MB, beside the bars, which are for CPUs."""
    large = [cell for cell in cells if cell.shape.elements() * getattr(torch, cell.dtype).itemsize > 1 << 20]
    large = [cell for cell in large if cell.direction == "forward+backward"]
    rows = []
    for op in ops:
        for kind, dtype in dict.fromkeys((cell.shape.kind, cell.dtype) for cell in large):
            chosen = [c for c in large if (c.op, c.shape.kind, c.dtype) == (op.name, kind, dtype)]
            for baseline in dict.fromkeys(result.name for cell in chosen for result in cell.results[1:]):
                values = {str(c.shape): c.speedup(baseline) for c in chosen if not math.isnan(c.speedup(baseline))}
                if not values:
                    continue
                bar = op.cpu_bars.get((baseline, kind, getattr(torch, dtype))) if device.type == "cpu" else None
                mean, worst = geometric_mean(values.values()), min(values, key=lambda shape: values[shape])
                verdict = DASH if bar is None else f"{bar:g} {'met' if mean >= bar else 'MISSED'}"
                lowest = f"{ratio(values[worst])} at {worst}"
                rows.append([op.name, kind, dtype, baseline, ratio(mean), verdict, lowest, len(values)])
    headers = ["op", "layout", "dtype", "baseline", "baseline / ours", "bar", "lowest", "shapes"]
    return tabulate.tabulate(rows, headers, tablefmt=style, disable_numparse=True)


def latency_table(latencies: list[Latency], style: str) -> str:
    rows = [[x.op, x.case, microseconds(x.ours), microseconds(x.aten), ratio(x.speedup)] for x in latencies]
    headers = ["op, 8 x 64, float32, 1 thread", "case", "ours µs", "ATen µs", "ATen / ours"]
    return tabulate.tabulate(rows, headers, tablefmt=style, disable_numparse=True)


def notes(cells: list[Cell]) -> list[str]:
    found = {f"{c.op} {c.shape} {c.dtype}, {r.name}: {r.note}": None for c in cells for r in c.results if r.note}
    return list(found)


def as_json(machine: dict[str, Any], cells: list[Cell], latencies: list[Latency], skipped: list[str]) -> str:
    def candidate(result: Any) -> dict[str, Any]:
        known = {"median_seconds": result.median, "spread": result.spread} if result.seconds else {}
        extra = {key: getattr(result, key) for key in ("failure", "note") if getattr(result, key)}
        return {"name": result.name, "version": result.version, **known, **extra, "seconds": result.seconds}

    records = [
        {
            "op": cell.op,
            "sizes": cell.shape.sizes,
            "layout": cell.shape.layout,
            "dtype": cell.dtype,
            "direction": cell.direction,
            "bytes_read": cell.traffic.reads,
            "bytes_written": cell.traffic.writes,
            "roof": candidate(cell.roof),
            "candidates": [candidate(result) for result in cell.results],
            "clean_rounds": cell.clean_rounds,
            "rounds": cell.rounds,
            "page_faults_per_call": cell.page_faults,
        }
        for cell in cells
    ]
    whole = {
        "machine": machine,
        "cells": records,
        "latency": [dataclasses.asdict(latency) for latency in latencies],
        "not_measured": skipped,
    }
    return json.dumps(whole, indent=1) + "\n"


def plot(cells: list[Cell], path: Path, title: str) -> None:
    """Throughput of forward+backward: a panel for each op and dtype, a group of bars for each shape, the roof above."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    chosen = [cell for cell in cells if cell.direction == "forward+backward" and cell.ours.seconds]
    if not chosen:
        return
    ops, dtypes = (list(dict.fromkeys(getattr(cell, key) for cell in chosen)) for key in ("op", "dtype"))
    shapes = max(len([c for c in chosen if (c.op, c.dtype) == (op, dtype)]) for op in ops for dtype in dtypes)
    size = (max(5.5, 0.62 * shapes + 1.5) * len(dtypes), 2.3 * len(ops) + 1.2)
    figure, axes = pyplot.subplots(len(ops), len(dtypes), figsize=size, squeeze=False, layout="constrained")
    for row, op in enumerate(ops):
        for column, dtype in enumerate(dtypes):
            axis = axes[row, column]
            panel = [cell for cell in chosen if (cell.op, cell.dtype) == (op, dtype)]
            names = list(dict.fromkeys(r.name for cell in panel for r in cell.results if r.seconds))
            width = 0.8 / max(1, len(names))
            for index, name in enumerate(names):
                medians = [next((r.median for r in c.results if r.name == name), math.nan) for c in panel]
                heights = [c.traffic.total / m / 1e9 for c, m in zip(panel, medians, strict=True)]
                places = [place + (index - (len(names) - 1) / 2) * width for place in range(len(panel))]
                axis.bar(places, heights, width, label=name, color=COLOURS.get(name), zorder=2)
            roofs = [cell.traffic.total / cell.roof.median / 1e9 for cell in panel]
            lows, highs = ([place + side for place in range(len(panel))] for side in (-0.45, 0.45))
            axis.hlines(
                roofs, lows, highs, color="#222222", linewidth=1.2, label="roof: same bytes, no arithmetic", zorder=3
            )
            axis.set_title(f"{op}, {dtype}", loc="left", fontweight="bold")
            axis.set_xticks(
                range(len(panel)), [str(c.shape).replace(" ", "\n") for c in panel], rotation=30, ha="right"
            )
            axis.grid(axis="y", alpha=0.25)
            if column == 0:
                axis.set_ylabel("GB/s, forward+backward")
    handles = {label: h for axis in axes.flat for h, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles), frameon=False)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
