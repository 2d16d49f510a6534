"""torchfastnorm: normalization layers for PyTorch with hand-written kernels, drop-in for ``torch.nn``."""

from . import functional
from ._extension import build_info
from ._plan_choice import load_when_cuda_starts as _load_when_cuda_starts
from ._plan_choice import plan
from ._version import __version__
from .convert import convert
from .explain import explain
from .functional import (
    add_layer_norm,
    add_rms_norm,
    batch_norm,
    batch_renorm,
    batch_whitening,
    group_norm,
    instance_norm,
    layer_norm,
    rms_norm,
    switch_norm,
)
from .ops._iter_norm import IterNorm
from .ops.batch_norm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from .ops.batch_renorm import BatchRenorm1d, BatchRenorm2d, BatchRenorm3d
from .ops.batch_whitening import BatchWhitening
from .ops.group_norm import GroupNorm
from .ops.instance_norm import InstanceNorm1d, InstanceNorm2d, InstanceNorm3d
from .ops.layer_norm import AddLayerNorm, LayerNorm
from .ops.rms_norm import AddRMSNorm, RMSNorm
from .ops.switch_norm import SwitchNorm1d, SwitchNorm2d, SwitchNorm3d

__all__ = [
    "AddLayerNorm",
    "AddRMSNorm",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "BatchRenorm1d",
    "BatchRenorm2d",
    "BatchRenorm3d",
    "BatchWhitening",
    "GroupNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "IterNorm",
    "LayerNorm",
    "RMSNorm",
    "SwitchNorm1d",
    "SwitchNorm2d",
    "SwitchNorm3d",
    "__version__",
    "add_layer_norm",
    "add_rms_norm",
    "batch_norm",
    "batch_renorm",
    "batch_whitening",
    "build_info",
    "convert",
    "explain",
    "functional",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "plan",
    "rms_norm",
    "switch_norm",
]

_load_when_cuda_starts()
