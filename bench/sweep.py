"""`python -m bench sweep`: every legal launch plan of an op, timed where there is a GPU; the best can be kept."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import torchfastnorm
from torchfastnorm._plan_choice import Choice, TunedPlan, save_table, slug, table_folders
from torchfastnorm.explain import KernelPlan, legal_plans

from .cells import Op
from .errors import BadInput
from .harness import works_of
from .inputs import make_inputs
from .shapes import Shape
from .tables import DASH, Table, microseconds
from .timing import CudaTimer, interleave

# The kernels of which explain knows, by the name of an op here.
EXPLAINED = {
    "iter_norm": "batch_whitening",
    "batch_norm_eval": "batch_norm",
    "batch_norm_add_relu": "batch_norm",
    "group_norm_silu": "group_norm",
}
WORTH_IT = 0.97  # a plan is tuned if it takes less than this share of the heuristic's time


def _options(op: Op, shape: Shape) -> dict[str, Any]:
    if op.shapes == "rows":
        return {}
    fused = {"residual": "residual" in op.inputs, "activation": "relu" if op.name.endswith("relu") else "none"}
    if op.name.endswith("silu"):
        fused["activation"] = "silu"
    return {"channels_last": shape.layout == "channels_last", "training": op.name != "batch_norm_eval", **fused}


def plans_of(
    op: Op, shape: Shape, dtype: torch.dtype, backward: bool, gpu: str | None
) -> list[tuple[Choice, KernelPlan]]:
    name = EXPLAINED.get(op.name, op.name)
    try:
        return legal_plans(name, shape.sizes, dtype, backward, gpu=gpu, **_options(op, shape))
    except ValueError as error:
        raise BadInput(str(error)) from None


def sizes_of(op: Op, shape: Shape) -> dict[str, Any]:
    """What a tuning table knows a call by."""
    if op.shapes == "rows":
        return {"cols": shape.sizes[-1]}
    sets = {"group_norm": "group", "instance_norm": "instance"}.get(EXPLAINED.get(op.name, op.name), "batch")
    sizes = {"sets": sets, "channels": shape.sizes[1], "spatial": math.prod(shape.sizes[2:])}
    sizes["channels_last"] = shape.layout == "channels_last"
    return sizes | ({"samples": shape.sizes[0]} if sets == "batch" else {"groups": 32} if sets == "group" else {})


def measure(
    op: Op, shape: Shape, dtype: torch.dtype, device: torch.device, backward: bool, gpu: str | None, rounds: int
) -> list[dict[str, Any]]:
    """A record for each plan, the heuristic's first; `seconds` is None where there is no GPU to take them."""
    kernel = f"{'row' if op.shapes == 'rows' else 'plane'}_{'backward' if backward else 'forward'}"
    plans = plans_of(op, shape, dtype, backward, gpu)
    works = {}
    if device.type == "cuda":
        cache = torch.cuda.get_device_properties(device).L2_cache_size
        one = op.traffic("forward", shape.sizes, dtype.itemsize).total
        sets = [make_inputs(op, shape, dtype, device, n) for n in range(max(1, min(64, math.ceil(3 * cache / one))))]
        ours = op.candidates(())[0]
        plain = works_of(ours, sets, "backward" if backward else "forward")

        def under(choice: Choice) -> Any:
            def work(call: int) -> None:
                with torchfastnorm.plan(kernel, **asdict(choice)):
                    plain(call)

            return work

        works = {str(number): under(choice) for number, (choice, _) in enumerate(plans)}
    seconds: dict[str, float] = {}
    failures: dict[str, str] = {}
    for name in list(works):  # a plan that a device refuses must not end the sweep
        try:
            works[name](0)
            torch.cuda.synchronize()
        except RuntimeError as error:
            failures[name] = str(error).splitlines()[0][:80]
            del works[name]
    if works:
        times, _ = interleave(works, CudaTimer(), rounds, 0.005)
        seconds = {name: statistics.median(values) for name, values in times.items()}
    return [
        {
            "op": op.name,
            "shape": str(shape),
            "dtype": str(dtype).removeprefix("torch."),
            "kernel": plan.kernel,
            "kind": kernel,
            "sizes": sizes_of(op, shape),
            "choice": asdict(choice),
            "heuristic": number == 0,
            "plan": asdict(plan),
            "seconds": seconds.get(str(number)),
            "failure": failures.get(str(number), ""),
        }
        for number, (choice, plan) in enumerate(plans)
    ]


def best(records: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    timed = [record for record in records if record["seconds"]]
    return min(timed, key=lambda record: record["seconds"], default=None)


def table(records: Sequence[dict[str, Any]], most: int | None = None) -> Table:
    """Fastest first, or, where nothing was timed, the heuristic's and then the others."""
    ordered = sorted(records, key=lambda r: (r["seconds"] or math.inf, not r["heuristic"]))
    fastest = best(records)
    rows = []
    for record in ordered[:most]:
        plan, marks = record["plan"], []
        if record["heuristic"]:
            marks.append("heuristic")
        if record is fastest:
            marks.append("best")
        time = microseconds(record["seconds"]) if record["seconds"] else record["failure"] or "not measured"
        rate = f"{plan['bytes'] / record['seconds'] / 1e9:,.0f}" if record["seconds"] else DASH
        row = [plan["kernel"], plan["regime"], ", ".join(marks), str(plan["grid"]), str(plan["block"])]
        row += [str(plan["cluster"]), str(plan["shared_bytes"]), f"{plan['occupancy']:.0%}", f"{plan['bytes']:,}"]
        rows.append([*row, time, rate])
    headers = ["kernel", "regime", "", "blocks", "threads", "cluster", "shared", "occupancy", "bytes", "µs", "GB/s"]
    first = records[0]
    rest = f", {len(records) - len(rows)} more" if len(rows) < len(records) else ""
    return Table(f"Plans of {first['op']} {first['shape']} {first['dtype']}{rest}", headers, rows)


def save(records: Sequence[dict[str, Any]], device: torch.device, **remarks: Any) -> Path | None:
    """Add what beats the heuristic to this device's tuning table; None where nothing does."""
    from torchfastnorm._plan_choice import read_table

    fastest, own = best(records), next(r for r in records if r["heuristic"])
    if fastest is None or own["seconds"] is None or fastest["seconds"] > WORTH_IT * own["seconds"]:
        return None
    name = torch.cuda.get_device_name(device)
    path = table_folders()[0] / f"{slug(name)}.json"
    entry = TunedPlan(fastest["kind"], fastest["dtype"], fastest["sizes"], Choice(**fastest["choice"]))
    others = [e for e in (read_table(path) if path.exists() else []) if (e.kernel, e.dtype, e.key()) !=
              (entry.kernel, entry.dtype, entry.key())]  # fmt: skip
    save_table(path, name, [*others, entry], **remarks)
    return path
