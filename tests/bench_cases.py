"""What the tests of the benchmark share: its ops by name, small shapes, planted candidates."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

for library in ("click", "jinja2", "jsonschema", "matplotlib", "rich", "tabulate"):
    pytest.importorskip(library)
from bench import cells, harness, registry, results, shapes  # noqa: E402

gc.freeze()  # each measurement begins with a collection, which then need not look at all of torch
CPU = torch.device("cpu")
SHAPE = shapes.Shape((64, 256), "small, for the test of the harness")
PLANES = shapes.in_both_layouts(shapes.Shape((4, 64, 12, 11), "small, for the test of the harness"))
OPS = registry.OPS
LAYER_NORM, RMS_NORM = OPS["layer_norm"], OPS["rms_norm"]
BATCH_NORM, BATCH_NORM_EVAL, BATCH_NORM_ADD_RELU = (
    OPS[name] for name in ("batch_norm", "batch_norm_eval", "batch_norm_add_relu")
)
GROUP_NORM, GROUP_NORM_SILU = OPS["group_norm"], OPS["group_norm_silu"]
INSTANCE_NORM, SWITCH_NORM = OPS["instance_norm"], OPS["switch_norm"]
PLANE_OPS = [op for op in OPS.values() if op.shapes != "rows"]


def candidate(name: str, function: Any, has_backward: bool = True) -> cells.Candidate:
    return cells.Candidate(name, function, "test", has_backward)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """A second one only waits where the suite runs in parallel."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def measure(*candidates: cells.Candidate, op: cells.Op = LAYER_NORM, shape: shapes.Shape = SHAPE,
            dtype: torch.dtype = torch.float32, **options: Any) -> list[cells.Cell]:  # fmt: skip
    options = {"rounds": 5, "block_seconds": 0.002, **options}
    return harness.measure(op, shape, dtype, CPU, list(candidates), **options)


MACHINE = {
    "device": "Test CPU",
    "device_type": "cpu",
    "threads": 1,
    "date": "2026-01-01 00:00 UTC",
    "commit": "abc",
    "versions": {"torch": "2", "torchfastnorm": "0"},
}


def run_document(
    seconds: float, device: str = "Test CPU", op: str = "layer_norm", aten: float = 2e-3
) -> dict[str, Any]:
    """A run of one op on two shapes whose nine rounds spread by 1 %."""
    found = []
    for sizes in ((64, 256), (2048, 1024)):
        rounds = [[one * (1 + 0.01 * (i % 3 - 1)) for i in range(9)] for one in (seconds, aten, 1e-3)]
        ours, other, roof = (
            cells.Result(n, "1", r) for n, r in zip(("torchfastnorm", "aten", "roof"), rounds, strict=True)
        )
        traffic = cells.Traffic(3 << 20, 1 << 20)
        shape = shapes.Shape(sizes, "")
        for direction in cells.DIRECTIONS:
            cell = cells.Cell(op, shape, "float32", direction, traffic, [ours, other], roof, "3R1W", 9, 9)
            found.append(results.cell_record(cell))
    return results.document("run", {**MACHINE, "device": device}, cells=found, not_measured=["x: time limit"])


def written(path: Path, document: dict[str, Any]) -> str:
    results.write(document, path)
    return str(path)
