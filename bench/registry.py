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

_MODULES = (bench_layer_norm, bench_rms_norm, bench_batch_norm, bench_group_norm, bench_instance_norm)
_MODULES += (bench_batch_renorm, bench_switch_norm, bench_batch_whitening)
OPS: dict[str, Op] = {op.name: op for module in _MODULES for op in module.OPS}


def chosen(names: Sequence[str]) -> list[Op]:
    """The named ops, all where none is named."""
    unknown = [name for name in names if name not in OPS]
    if unknown:
        raise BadInput(f"no op is called {', '.join(unknown)}; there are {', '.join(OPS)}")
    return [OPS[name] for name in names or OPS]
