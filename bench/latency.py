"""The cost of a call on a small input, where the kernel is nothing and the way to it is all: every op.

8 x 64, and 2 x 64 x 2 x 2 for feature maps, float32, one thread. On a GPU the time is that of the host to queue the
work, not that of the work, and a captured CUDA graph is measured too.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

import torchfastnorm

from .cells import Candidate, Op, Result
from .harness import failure_of
from .inputs import Inputs, as_tuple, backward, make_inputs
from .shapes import Shape
from .tables import Table, microseconds, percent, ratio
from .timing import CpuTimer, Work, interleave, keep_clean

CHANNELS = 64
ROWS, PLANES = Shape((8, CHANNELS), "a call's cost"), Shape((2, CHANNELS, 2, 2), "a call's cost")
MODULES: dict[str, Callable[[], nn.Module]] = {  # of torch.nn; ours is what convert makes of them
    "layer_norm": lambda: nn.LayerNorm(CHANNELS),
    "rms_norm": lambda: nn.RMSNorm(CHANNELS, eps=1e-6),
    "batch_norm": lambda: nn.BatchNorm2d(CHANNELS),
    "group_norm": lambda: nn.GroupNorm(32, CHANNELS),
    "instance_norm": lambda: nn.InstanceNorm2d(CHANNELS, affine=True),
}


class HostTimer(CpuTimer):
    longest_block = 200  # with a GPU: fewer than its queue holds, which would stop the host

    def __call__(self, work: Work, first: int, calls: int) -> float:
        self.wait()
        return super().__call__(work, first, calls)

    def wait(self) -> None:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()


def _graph(call: Callable[[], object]) -> Work:
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return lambda _: graph.replay()


def _cases(candidate: Candidate, inputs: Inputs, device: torch.device) -> dict[str, Callable[[], Work]]:
    """By name what makes the work, since that may fail."""
    plain = [t.detach() for t in inputs.inputs]

    def both(call: int) -> None:
        backward(as_tuple(candidate.function(*inputs.inputs)), inputs, False)

    found: dict[str, Callable[[], Work]] = {
        "forward without gradients": lambda: lambda call: candidate.function(*plain),
        "forward": lambda: lambda call: candidate.function(*inputs.inputs),
        "forward+backward": lambda: both,
    }
    if device.type == "cuda":
        found["forward+backward, CUDA graph"] = lambda: _graph(partial(both, 0))
    return found


def _module_cases(module: nn.Module, inputs: Inputs) -> dict[str, Callable[[], Work]]:
    x = inputs.inputs[0]
    return {
        "module forward": lambda: lambda call: module(x),
        "module forward+backward": lambda: lambda call: torch.autograd.backward((module(x),), inputs.upstream),
    }


def measure_op(
    op: Op, device: torch.device, baselines: Sequence[str], rounds: int, block_seconds: float = 0.015
) -> list[dict[str, Any]]:
    inputs = make_inputs(op, ROWS if op.shapes == "rows" else PLANES, torch.float32, device, seed=0)
    candidates = op.candidates(baselines)
    by_case: dict[str, dict[str, Callable[[], Work]]] = {}
    for candidate in candidates:
        for case, make in _cases(candidate, inputs, device).items():
            if candidate.has_backward or "backward" not in case:
                by_case.setdefault(case, {})[candidate.name] = make
    if op.name in MODULES:
        module = MODULES[op.name]().to(device)
        ours = torchfastnorm.convert(copy.deepcopy(module))
        for name, one in (("torchfastnorm", ours), ("aten", module)):
            if name in {c.name for c in candidates}:
                for case, make in _module_cases(one, inputs).items():
                    by_case.setdefault(case, {})[name] = make
    versions = {candidate.name: candidate.version for candidate in candidates}
    found = []
    for case, makers in by_case.items():
        works, failures = {}, {}
        for name, make in makers.items():
            try:
                works[name] = make()
                works[name](0)
            except Exception as error:  # a baseline may fail in any way; the table says how
                works.pop(name, None)
                failures[name] = failure_of(error)
        times = keep_clean(*interleave(works, HostTimer(), rounds, block_seconds)) if works else {}
        for name in makers:
            record = {"op": op.name, "case": case, "candidate": name, "version": versions[name]}
            failed = {"failure": failures[name]} if name in failures else {}
            found.append({**record, "seconds": times.get(name, []), **failed})
    return found


def measure(ops: Sequence[Op], device: torch.device, baselines: Sequence[str], rounds: int) -> list[dict[str, Any]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [record for op in ops for record in measure_op(op, device, baselines, rounds)]
    finally:
        torch.set_num_threads(threads)


def table(calls: list[dict[str, Any]]) -> Table:
    others = [name for name in dict.fromkeys(c["candidate"] for c in calls) if name != "torchfastnorm"]
    rows = []
    for op, case in dict.fromkeys((c["op"], c["case"]) for c in calls):
        chosen = {c["candidate"]: c for c in calls if (c["op"], c["case"]) == (op, case)}
        timed = {name: Result(name, "", record["seconds"]) for name, record in chosen.items()}
        ours = timed["torchfastnorm"]
        row = [op, case, chosen["torchfastnorm"].get("failure") or microseconds(ours.median), percent(ours.spread)]
        for name in others:
            other = timed.get(name, Result(name, ""))
            failure = chosen.get(name, {}).get("failure")
            row += [failure or microseconds(other.median), ratio(other.median / ours.median)]
        rows.append(row)
    headers = ["op, small, float32, 1 thread", "case", "ours µs", "±"]
    return Table("The cost of a call", headers + [h for n in others for h in (f"{n} µs", f"{n} / ours")], rows)
