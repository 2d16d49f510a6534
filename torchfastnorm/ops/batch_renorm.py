"""BatchRenorm: a batch's statistics, corrected towards the running ones."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn
from torch.compiler import is_compiling

from .._extension import _C
from ._plane_norm import Activation, PlaneNorm, Sets, call_op, register_fakes

_batch_renorm = _C.batch_renorm

Dialect = Literal["paper", "torchrl", "ludvb", "sb3"]
Ramp = tuple[float, float]

# Between which batches r_max and d_max grow from 1 and 0.
RAMPS: dict[str, tuple[Ramp, Ramp]] = {
    "paper": ((5000, 40000), (5000, 25000)),
    "ludvb": ((5000, 40000), (5000, 25000)),
    "torchrl": ((10000, 10000), (10000, 10000)),
    "sb3": ((100001, 100001), (100001, 100001)),
}
# What a dialect's package calls our parameters and buffers.
KEYS: dict[str, dict[str, str]] = {
    "ludvb": {"running_var": "running_std"},
    "sb3": {"weight": "scale", "running_mean": "ra_mean", "running_var": "ra_var", "num_batches_tracked": "steps"},
}


def batch_renorm(
    input: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.01,
    eps: float = 1e-3,
    *,
    r_max: float = 3.0,
    d_max: float = 5.0,
    dialect: Dialect = "paper",
    residual: Tensor | None = None,
    activation: Activation = "none",
    mask: Tensor | None = None,
) -> Tensor:
    r"""Batch renormalization (Ioffe 2017, https://arxiv.org/abs/1702.03275), with what follows it, in one call.

    .. math::
        y = \mathrm{activation}\left(\left(\frac{x - \mathrm{mean}_c}{\sigma_c} \cdot r_c + d_c\right)
        \cdot \mathrm{weight}_c + \mathrm{bias}_c + \mathrm{residual}\right), \quad
        \sigma = \sqrt{\mathrm{var} + \mathrm{eps}}, \quad
        \sigma_\mathrm{run} = \sqrt{\mathrm{running\_var} + \mathrm{eps}}

    .. math::
        r = \mathrm{clamp}(\sigma / \sigma_\mathrm{run}, 1 / r_{\max}, r_{\max}), \quad
        d = \mathrm{clamp}((\mathrm{mean} - \mathrm{running\_mean}) / \sigma_\mathrm{run}, -d_{\max}, d_{\max})

    if ``training``, where r and d are constants to the gradient, and as :func:`batch_norm` with the running statistics
    otherwise. Training updates these, after they were used, as :func:`batch_norm` does.

    Args:
        input, weight, bias, training, residual, activation, mask: as of :func:`batch_norm`.
        running_mean, running_var: of shape ``(C,)``.
        momentum: weight of this batch in the running statistics. Default: 0.01.
        eps: added to the variance. Default: 1e-3.
        r_max, d_max: bounds of the correction; 1 and 0 make it batch normalization. Default: 3 and 5.
        dialect: the arithmetic of "paper", or of a package: "torchrl" (TorchRL; another factor in running_var for more
            than two dimensions), "ludvb" (batch_renorm on PyPI; sigma = sqrt(var) + eps, and ``running_var`` holds
            such a sigma) or "sb3" (Stable-Baselines3 Contrib; the unbiased variance). Default: "paper".

    Returns:
        Tensor of input's shape, dtype and memory format. Differentiable any number of times.

    Raises:
        ValueError: an unknown dialect; in training r_max < 1, d_max < 0, a negative momentum, or running statistics are
            missing.
        RuntimeError: running statistics are missing in evaluation; and what :func:`batch_norm` raises.
    """
    bounds = (r_max, d_max, 0.0, 0.0, 0.0, 0.0)
    return _call(
        input,
        running_mean,
        running_var,
        weight,
        bias,
        training,
        momentum,
        eps,
        *bounds,
        dialect,
        residual,
        activation,
        mask,
        None,
    )


def _call(*values: Any) -> Tensor:
    """The op's arguments; the last is num_batches_tracked, which the bounds grow with and which is raised by one."""
    if not is_compiling():
        y: Tensor = _batch_renorm(*values)
        if y is not NotImplemented:
            return y
    result: Tensor = call_op("batch_renorm", values[5] is True, *values)
    return result


register_fakes("batch_renorm", Sets.BATCH, updates=True)


class _BatchRenorm(PlaneNorm, nn.modules.batchnorm._BatchNorm):
    def __init__(
        self,
        num_features: int,
        eps: float = 1e-3,
        momentum: float = 0.01,
        affine: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        dialect: Dialect = "paper",
        r_max: float = 3.0,
        d_max: float = 5.0,
        r_ramp: Ramp | None = None,
        d_ramp: Ramp | None = None,
        bias: bool = True,
        activation: Activation = "none",
    ) -> None:
        if dialect not in RAMPS:
            raise ValueError(f"{type(self).__name__}: unknown dialect {dialect!r}; one of {', '.join(RAMPS)}")
        super().__init__(num_features, eps, momentum, affine, True, device, dtype)
        self.dialect, self.r_max, self.d_max = dialect, r_max, d_max
        self.r_ramp = RAMPS[dialect][0] if r_ramp is None else r_ramp
        self.d_ramp = RAMPS[dialect][1] if d_ramp is None else d_ramp
        self._set_options(bias, activation)

    def forward(self, input: Tensor, residual: Tensor | None = None, *, mask: Tensor | None = None) -> Tensor:
        self._check_input_dim(input)
        return _call(
            input,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training,
            self.momentum,
            self.eps,
            self.r_max,
            self.d_max,
            *self.r_ramp,
            *self.d_ramp,
            self.dialect,
            residual,
            self.activation,
            mask,
            self.num_batches_tracked if self.training else None,
        )

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for ours, theirs in KEYS.get(self.dialect, {}).items():
            if prefix + ours in destination:
                destination[prefix + theirs] = destination.pop(prefix + ours)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *arguments: Any) -> None:
        for ours, theirs in KEYS.get(self.dialect, {}).items():
            if prefix + theirs in state_dict:
                state_dict[prefix + ours] = state_dict.pop(prefix + theirs)
            elif (ours, theirs) == ("running_var", "running_std") and prefix + ours in state_dict:
                # Of a BatchNorm, or of another dialect: ludvb keeps a deviation.
                state_dict[prefix + ours] = state_dict[prefix + ours].sqrt() + self.eps
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, dialect={self.dialect}, r_max={self.r_max}, d_max={self.d_max}"


class BatchRenorm1d(_BatchRenorm, nn.BatchNorm1d):
    """:func:`batch_renorm` as a module, with the paper's schedule of its bounds. No class of torch.nn has it, and
    ``torch.nn.SyncBatchNorm.convert_sync_batchnorm`` would make a plain batch norm of it.

    Args:
        num_features: C of an input ``(N, C)`` or ``(N, C, L)``.
        eps: added to the variance. Default: 1e-3.
        momentum: weight of a batch in the running statistics. Default: 0.01.
        affine: learn ``weight`` (ones at first) and ``bias``. Default: True.
        device, dtype: of the parameters and the running statistics.
        dialect: whose arithmetic, defaults of the ramps and names in the state_dict; see :func:`batch_renorm`. A
            state_dict of the package loads, and one is written. Default: "paper", with the names of BatchNorm, whose
            checkpoints load and evaluate to the same with the same eps.
        r_max, d_max: bounds of the correction in the end. Default: 3 and 5.
        r_ramp, d_ramp: numbers of batches between which the bounds grow in a line from 1 and 0. Default: (5000, 40000)
            and (5000, 25000); of "torchrl" a step at 10000, of "sb3" one at 100001.
        bias: learn ``bias`` (zeros at first); only with ``affine``. Default: True.
        activation: applied to the result, see :func:`batch_norm`. Default: "none".

    Shape:
        input ``(N, C)`` or ``(N, C, L)``, output the same; ``forward`` also takes ``residual``, of input's shape, and
        the keyword ``mask``, broadcastable to ``(N, 1, L)``.
    """


class BatchRenorm2d(_BatchRenorm, nn.BatchNorm2d):
    """:class:`BatchRenorm1d` for input ``(N, C, H, W)``."""


class BatchRenorm3d(_BatchRenorm, nn.BatchNorm3d):
    """:class:`BatchRenorm1d` for input ``(N, C, D, H, W)``."""
