"""`python -m bench report`: all results of a folder as one self-contained HTML page, and the figures as PNG files."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.figure import Figure

from . import latency, memory, plots, registry, results, roofline, tables, train
from .cells import Cell
from .machine import slug
from .results import Document

TITLE = "torchfastnorm: measured"
TABLES: dict[str, Callable[[list[dict[str, Any]]], tables.Table]] = {
    "streams": roofline.table, "calls": latency.table, "kept": memory.table, "steps": train.table,
}  # fmt: skip


@dataclass
class Device:
    name: str
    sources: list[dict[str, Any]] = field(default_factory=list)
    figures: list[dict[str, str]] = field(default_factory=list)
    tables: list[tables.Table] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    drawn: dict[str, Figure] = field(default_factory=dict)  # by the name of its PNG


def _source(found: Document) -> dict[str, Any]:
    machine = found["machine"]
    commit = machine["commit"] + (" with changes" if machine.get("uncommitted_changes") else "")
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    text = f"{machine['date']}, commit {commit}, {machine['threads']} threads, {versions}"
    noisy = machine.get("noise", {}).get("too_noisy", False)
    return {"kind": found["kind"], "text": text, "command": machine.get("command", ""), "noisy": noisy}


def _draw(device: Device, cells: list[Cell], streams: list[dict[str, Any]]) -> None:
    name = slug(device.name)
    figures = {f"roofline-{name}": ("Roofline", plots.roofline(cells, streams, device.name))}
    for baseline in dict.fromkeys(result.name for cell in cells for result in cell.results[1:]):
        title = f"Forward+backward, time of {baseline} / ours"
        figures[f"ratios-{name}-{baseline}"] = (title, plots.heat_map(cells, baseline, f"{device.name}: {title}"))
    title = "Throughput, forward+backward"
    figures[f"throughput-{name}"] = (title, plots.throughput(cells, device.name))
    for file, (title, figure) in figures.items():
        if figure is not None:
            device.drawn[file] = figure
            device.figures.append({"title": title, "data": base64.b64encode(plots.as_svg(figure)).decode()})


def device_of(name: str, documents: list[Document]) -> Device:
    device = Device(name, [_source(found) for found in documents])
    # Of a cell that several results hold the newest is shown.
    newest = {cell.key: cell for found in documents for cell in results.cells_of(found)}
    cells = list(newest.values())
    lists: dict[str, list[dict[str, Any]]] = {key: [row for d in documents for row in d.get(key, ())] for key in TABLES}
    _draw(device, cells, lists["streams"])
    if cells:
        type_ = documents[0]["machine"]["device_type"]
        device.tables += [tables.summary_table(cells, registry.OPS, type_), tables.cell_table(cells)]
    device.tables += [TABLES[key](rows) for key, rows in lists.items() if rows]
    device.remarks = [f"not measured: {text}" for found in documents for text in found.get("not_measured", ())]
    device.remarks += tables.notes(cells)
    return device


def devices_of(found: dict[Path, Document]) -> list[Device]:
    """A CPU counts anew with every number of threads."""
    by_name: dict[str, list[Document]] = {}
    for one in sorted(found.values(), key=lambda d: d["machine"]["date"]):
        machine = one["machine"]
        threads = f", threads: {machine['threads']}" if machine["device_type"] == "cpu" else ""
        by_name.setdefault(machine["device"] + threads, []).append(one)
    return [device_of(name, documents) for name, documents in by_name.items()]


def page(devices: list[Device]) -> str:
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.get_template("page.html.jinja").render(title=TITLE, devices=devices, left=tables.LEFT)


def write(folder: Path, output: Path) -> list[Path]:
    """The files written: the page first."""
    devices = devices_of(results.load_folder(folder))
    output.mkdir(parents=True, exist_ok=True)
    written = [output / "report.html"]
    written[0].write_text(page(devices), encoding="utf-8")
    for device in devices:
        for name, figure in device.drawn.items():
            written.append(output / f"{name}.png")
            plots.save(figure, written[-1])
    return written
