"""The ops as functions, as ``torch.nn.functional`` has them."""

from .ops.layer_norm import add_layer_norm, layer_norm
from .ops.rms_norm import add_rms_norm, rms_norm

__all__ = ["add_layer_norm", "add_rms_norm", "layer_norm", "rms_norm"]
