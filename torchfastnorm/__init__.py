"""torchfastnorm: normalization layers for PyTorch with hand-written kernels, drop-in for ``torch.nn``."""

from . import functional
from ._extension import build_info
from ._version import __version__
from .convert import convert
from .explain import explain
from .functional import add_layer_norm, add_rms_norm, layer_norm, rms_norm
from .ops.layer_norm import AddLayerNorm, LayerNorm
from .ops.rms_norm import AddRMSNorm, RMSNorm

__all__ = [
    "AddLayerNorm",
    "AddRMSNorm",
    "LayerNorm",
    "RMSNorm",
    "__version__",
    "add_layer_norm",
    "add_rms_norm",
    "build_info",
    "convert",
    "explain",
    "functional",
    "layer_norm",
    "rms_norm",
]
