"""What a forward keeps for its backward: bytes of the saved tensors, each storage counted once.

The input is kept by whoever made it in any case; `new` counts what neither it nor a parameter holds. On a GPU the
allocator tells the peak of forward and backward besides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from .cells import Candidate, Op
from .harness import failure_of
from .inputs import Inputs, as_tuple, backward, make_inputs
from .shapes import Shape
from .tables import DASH, Table, ratio


def kept(candidate: Candidate, inputs: Inputs) -> tuple[int, int]:
    """(bytes of all saved storages, of those that are not the inputs')."""
    saved: list[Tensor] = []  # alive until all are counted: an address must not be used twice

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = as_tuple(candidate.function(*inputs.inputs))
    given = {t.untyped_storage().data_ptr() for t in inputs.inputs}
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in saved}
    backward(outputs, inputs, False)  # the hooks must have seen a graph that works
    return sum(storages.values()), sum(size for address, size in storages.items() if address not in given)


def peak(candidate: Candidate, inputs: Inputs) -> int:
    """Above what inputs and parameters take, in forward and backward on a GPU."""
    backward(as_tuple(candidate.function(*inputs.inputs)), inputs, False)  # workspaces of libraries are made once
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    backward(as_tuple(candidate.function(*inputs.inputs)), inputs, False)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def measure(
    work: Sequence[tuple[Op, Shape, torch.dtype]], device: torch.device, baselines: Sequence[str]
) -> list[dict[str, Any]]:
    found = []
    for op, shape, dtype in work:
        torch._dynamo.reset()
        inputs = make_inputs(op, shape, dtype, device, seed=0)
        for candidate in op.candidates(baselines):
            if not candidate.has_backward:
                continue
            record: dict[str, Any] = {"op": op.name, "sizes": list(shape.sizes), "layout": shape.layout}
            record |= {"dtype": str(dtype).removeprefix("torch."), "candidate": candidate.name}
            record["version"] = candidate.version
            try:
                record["saved_bytes"], record["new_bytes"] = kept(candidate, inputs)
                if device.type == "cuda":
                    record["peak_bytes"] = peak(candidate, inputs)
            except Exception as error:  # a baseline may fail in any way; the table says how
                record["failure"] = failure_of(error)
            found.append(record)
    return found


def table(records: list[dict[str, Any]]) -> Table:
    def megabytes(record: dict[str, Any], key: str) -> str:
        return f"{record[key] / 1e6:,.3f}" if key in record else DASH

    ours = {_case(r): r for r in records if r["candidate"] == "torchfastnorm"}
    rows = []
    for record in records:
        own = ours.get(_case(record), {})
        known = "saved_bytes" in record and own.get("saved_bytes")
        row = [record["op"], str(Shape(tuple(record["sizes"]), "", record["layout"])), record["dtype"]]
        row += [record["candidate"], record.get("failure") or megabytes(record, "saved_bytes")]
        row += [megabytes(record, "new_bytes"), megabytes(record, "peak_bytes")]
        rows.append([*row, ratio(record["saved_bytes"] / own["saved_bytes"]) if known else DASH])
    headers = ["op", "shape", "dtype", "candidate", "kept MB", "new MB", "peak MB (GPU)", "kept / ours"]
    return Table("Kept for the backward", headers, rows)


def _case(record: dict[str, Any]) -> tuple[Any, ...]:
    return record["op"], tuple(record["sizes"]), record["layout"], record["dtype"]
