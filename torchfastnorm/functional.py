"""The ops as functions, as ``torch.nn.functional`` has them."""

from .ops.batch_norm import batch_norm
from .ops.group_norm import group_norm
from .ops.instance_norm import instance_norm
from .ops.layer_norm import add_layer_norm, layer_norm
from .ops.rms_norm import add_rms_norm, rms_norm

__all__ = [
    "add_layer_norm",
    "add_rms_norm",
    "batch_norm",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "rms_norm",
]
