"""Results as JSON: written, checked against result.schema.json when read, and turned back into cells."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema

from .cells import Cell, Result, Traffic
from .errors import BadInput
from .shapes import Shape

SCHEMA = 2
Document = dict[str, Any]


def _schema() -> dict[str, Any]:
    return json.loads(Path(__file__).with_name("result.schema.json").read_text(encoding="utf-8"))


def candidate_record(result: Result) -> dict[str, Any]:
    known = {"median_seconds": result.median, "spread": result.spread} if len(result.seconds) > 1 else {}
    extra = {key: getattr(result, key) for key in ("failure", "note") if getattr(result, key)}
    return {"name": result.name, "version": result.version, **known, **extra, "seconds": result.seconds}


def cell_record(cell: Cell) -> dict[str, Any]:
    return {
        "op": cell.op,
        "sizes": list(cell.shape.sizes),
        "layout": cell.shape.layout,
        "dtype": cell.dtype,
        "direction": cell.direction,
        "bytes_read": cell.traffic.reads,
        "bytes_written": cell.traffic.writes,
        "roof": candidate_record(cell.roof),
        "mix": cell.mix,
        "candidates": [candidate_record(result) for result in cell.results],
        "clean_rounds": cell.clean_rounds,
        "rounds": cell.rounds,
        "page_faults_per_call": cell.page_faults,
        "buffer_sets": cell.sets,
    }


def _result(record: dict[str, Any]) -> Result:
    return Result(**{key: record[key] for key in ("name", "version", "seconds", "failure", "note") if key in record})


def cell_of(record: dict[str, Any]) -> Cell:
    return Cell(
        record["op"],
        Shape(tuple(record["sizes"]), "", record["layout"]),
        record["dtype"],
        record["direction"],
        Traffic(record["bytes_read"], record["bytes_written"]),
        [_result(candidate) for candidate in record["candidates"]],
        _result(record["roof"]),
        record.get("mix", ""),
        record.get("clean_rounds", 0),
        record.get("rounds", 0),
        record.get("page_faults_per_call", 0.0),
        record.get("buffer_sets", 1),
    )


def document(kind: str, machine: dict[str, Any], **lists: list[Any]) -> Document:
    return {"schema": SCHEMA, "kind": kind, "machine": machine, **lists}


def write(found: Document, path: Path) -> None:
    check(found, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def check(found: Any, path: Path) -> None:
    error = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(_schema()).iter_errors(found))
    if error is not None:
        message = error.message if len(error.message) < 160 else error.message[:160] + "..."
        raise BadInput(f"{path}: not a result of this benchmark: {error.json_path}: {message}")


def from_first_format(old: Document) -> Document:
    """Files written before they carried a number: run alone, with the latencies in them, CPU buffers not rotated.

    Which streams their roofs were is not recorded and stays empty.
    """
    machine = {"device_type": "cuda" if "gpu" in old["machine"] else "cpu", **old["machine"]}
    calls = [
        {"op": row["op"], "case": row["case"], "candidate": name, "version": machine["versions"][package],
         "seconds": [row[key]]}
        for row in old.get("latency", ())
        for name, key, package in (("torchfastnorm", "ours", "torchfastnorm"), ("aten", "aten", "torch"))
    ]  # fmt: skip
    return document("run", machine, cells=old["cells"], calls=calls, not_measured=old.get("not_measured", []))


def load(path: Path) -> Document:
    """The result in that file, in today's format."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except json.JSONDecodeError as error:
        raise BadInput(f"{path} is not JSON: {error}") from None
    if isinstance(found, dict) and "schema" not in found and "machine" in found and "cells" in found:
        try:
            found = from_first_format(found)
        except (KeyError, TypeError) as error:
            raise BadInput(f"{path}: not a result of this benchmark: {error}") from None
    check(found, path)
    return found


def cells_of(found: Document) -> list[Cell]:
    return [cell_of(record) for record in found.get("cells", ())]


def load_folder(folder: Path) -> dict[Path, Document]:
    """Every result below that folder, by path."""
    if not folder.is_dir():
        raise BadInput(f"{folder} is not a folder")
    found = {path: load(path) for path in sorted(folder.rglob("*.json"))}
    if not found:
        raise BadInput(f"{folder} holds no results (*.json); python -m bench run --output {folder} writes some")
    return found
