"""The ops as functions, as ``torch.nn.functional`` has them."""

from .ops.batch_norm import batch_norm
from .ops.batch_renorm import batch_renorm
from .ops.batch_whitening import batch_whitening
from .ops.group_norm import group_norm
from .ops.instance_norm import instance_norm
from .ops.layer_norm import add_layer_norm, layer_norm
from .ops.rms_norm import add_rms_norm, rms_norm
from .ops.switch_norm import switch_norm

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
