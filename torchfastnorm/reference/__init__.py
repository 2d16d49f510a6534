"""Each op in a few lines of plain PyTorch: the specification to read, the oracle of the tests (in fp64), and the
baseline of the benchmarks. Never a fallback: the package itself does not call it."""

from .layer_norm import add_layer_norm, layer_norm
from .rms_norm import add_rms_norm, rms_norm

__all__ = ["add_layer_norm", "add_rms_norm", "layer_norm", "rms_norm"]
