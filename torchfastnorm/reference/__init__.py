"""Each op in a few lines of plain PyTorch: the specification to read, the oracle of the tests (in fp64), and the
baseline of the benchmarks. Never a fallback: the package itself does not call it."""

from .batch_norm import batch_norm
from .batch_renorm import batch_renorm
from .batch_whitening import batch_whitening
from .group_norm import group_norm
from .instance_norm import instance_norm
from .layer_norm import add_layer_norm, layer_norm
from .rms_norm import add_rms_norm, rms_norm
from .switch_norm import switch_norm

__all__ = [
    "add_layer_norm",
    "add_rms_norm",
    "batch_norm",
    "batch_renorm",
    "batch_whitening",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "rms_norm",
    "switch_norm",
]
