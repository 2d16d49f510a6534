"""All ops that are measured, by name."""

from __future__ import annotations

from collections.abc import Sequence

from . import (
    bench_batch_norm,
    bench_batch_renorm,
    bench_batch_whitening,
    bench_group_norm,
    bench_instance_norm,
    bench_layer_norm,
    bench_rms_norm,
    bench_switch_norm,
)
from .cells import Op
from .errors import BadInput

_PLAIN = (bench_layer_norm, bench_rms_norm, bench_batch_norm, bench_group_norm, bench_instance_norm)
_OTHERS = (bench_batch_renorm, bench_switch_norm, bench_batch_whitening)
OPS: dict[str, Op] = {op.name: op for module in (*_PLAIN, *_OTHERS) for op in module.OPS}


def chosen(names: Sequence[str]) -> list[Op]:
    """The named ops, all where none is named."""
    unknown = [name for name in names if name not in OPS]
    if unknown:
        raise BadInput(f"no op is called {', '.join(unknown)}; there are {', '.join(OPS)}")
    return [OPS[name] for name in names or OPS]


def absent(ops: Sequence[Op], baselines: Sequence[str]) -> list[str]:
    """The baselines that none of the ops has here, as remarks."""
    there = {candidate.name for op in ops for candidate in op.candidates(baselines)}
    return [f"{name}: not installed, or without these ops" for name in baselines if name not in there]
