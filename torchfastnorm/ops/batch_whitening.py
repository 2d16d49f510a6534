"""Whitening: groups of channels are decorrelated, not only scaled."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from .._extension import _C
from ._plane_norm import call_op, dense

_batch_whitening = _C.batch_whitening

Method = Literal["zca", "pca", "iternorm", "cholesky"]


def batch_whitening(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_wm: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    num_channels: int | None = None,
    method: Method = "zca",
    iterations: int = 5,
) -> Tensor:
    r"""Batch whitening (Huang et al. 2018, https://arxiv.org/abs/1804.08450; by Newton's iteration Huang et al. 2019,
    https://arxiv.org/abs/1904.03441).

    The channels are cut into groups of ``num_channels`` consecutive ones. With :math:`x` the channels of one group at
    one place of one sample, and means over all of them,

    .. math::
        y = W (x - \mathrm{mean}) \cdot \mathrm{weight} + \mathrm{bias}, \quad
        C = \mathrm{mean}((x - \mathrm{mean})(x - \mathrm{mean})^T) + \mathrm{eps}\, I

    and W one of the matrices for which :math:`W C W^T = I`:

    - "zca": :math:`C^{-1/2}`, which changes the input least;
    - "pca": :math:`\Lambda^{-1/2} Q^T` of the eigenvalues, largest first, and eigenvectors of C;
    - "cholesky": the inverse of C's lower triangular factor;
    - "iternorm": :math:`P_T / \sqrt{\mathrm{tr}\,C}`, nearly the first, after T steps of :math:`P_0 = I,\;
      P_{k+1} = (3 P_k - P_k^3 C / \mathrm{tr}\,C) / 2`.

    Statistics and arithmetic are in float32 (float64 for float64; eigenvalues always in float64), rounded once. If not
    ``training``, the running mean and matrix take the place of the batch's, constants to the gradient. Training updates
    those that are given; nothing is written if the call fails:

    .. math::
        \mathrm{running} \leftarrow (1 - \mathrm{momentum}) \cdot \mathrm{running} +
        \mathrm{momentum} \cdot (\mathrm{mean}, W)

    Args:
        input: float32, float64, float16 or bfloat16, of shape ``(N, C, *)``, contiguous or channels_last.
        running_mean: of shape ``(C / num_channels, num_channels, 1)``, of any of these dtypes.
        running_wm: of shape ``(C / num_channels, num_channels, num_channels)``. Both may be None if ``training``.
        weight, bias: of shape ``(C,)``, of any of these dtypes, or None for ones and zeros.
        training: whiten with the batch's own statistics. Default: False.
        momentum: weight of this batch in the running statistics. Default: 0.1.
        eps: added to the covariance's diagonal. Default: 1e-5.
        num_channels: of a group; divides C. Default: C, one group.
        method: as above. Default: "zca".
        iterations: T of "iternorm". Default: 5.

    Returns:
        Tensor of input's shape, dtype and memory format. Differentiable up to the fourth derivative, "iternorm" any
        number of times. Fewer samples than channels give finite results and gradients. Where eigenvalues coincide, the
        gradient of "zca" is exact; "pca" has none there, and its axes are taken not to turn.

    Raises:
        TypeError: an argument is of the wrong Python type.
        ValueError: an unknown method, a ``num_channels`` that does not divide C, negative iterations, eps not positive
            in training, or one running statistic without the other.
        IndexError: fewer than two dimensions.
        RuntimeError: shapes do not fit, running statistics are missing in evaluation, or the tensors are on different
            devices.
        NotImplementedError: a dtype other than the four (a RuntimeError too).
    """
    if num_channels is None and isinstance(input, Tensor):
        num_channels = input.shape[1] if input.dim() > 1 else 1
    tensors = (input, running_mean, running_wm, weight, bias)
    return _call(*tensors, training, momentum, eps, num_channels, method, iterations)


def _call(*values: Any) -> Tensor:
    if not is_compiling():
        y: Tensor = _batch_whitening(*values)
        if y is not NotImplemented:
            return y
    running_mean, training = values[1], values[5]
    result: Tensor = call_op("batch_whitening", training is True and running_mean is not None, *values)
    return result


def _rows_of_decomposition(method: str, training: bool, width: int) -> int:
    """csrc/bindings/whitening_matrix.h"""
    return {"iternorm": width, "cholesky": 0}.get(method, width + 1) if training else 0


def _register_fakes() -> None:
    def public(input: Tensor, *values: Any) -> Tensor:
        _C.check_whitening(input, *values)
        return torch.empty_like(dense(input))

    def inner(input: Tensor, *values: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        _C.check_whitening(input, *values)
        training, width, method = values[4], values[7], values[8]
        channels = input.shape[1]
        statistics = torch.float64 if input.dtype == torch.float64 else torch.float32
        mean = torch.empty((channels,), dtype=statistics, device=input.device)
        wm = mean.new_empty((channels // width, width, width))
        rows = _rows_of_decomposition(method, training, width)
        # Eigenvectors and eigenvalues are in float64; there are none of an empty batch.
        if training and input.numel() == 0:
            rows = 0
        wide = torch.float64 if rows == width + 1 else statistics
        return torch.empty_like(dense(input)), mean, wm, wm.new_empty((channels // width, rows, width), dtype=wide)

    def backward(grad_y: Tensor, input: Tensor, *values: Any) -> tuple[Tensor | None, ...]:
        param_dtype, wanted = values[-2:]
        param = torch.empty((input.shape[1],), dtype=param_dtype, device=input.device)
        made = (torch.empty_like(dense(input)), param, torch.empty_like(param))
        return tuple(t if want else None for t, want in zip(made, wanted, strict=True))

    for name, fake in (("batch_whitening", public), ("whitening_forward", inner)):
        for op in (name, f"{name}_with_update"):
            torch.library.register_fake(f"torchfastnorm::{op}")(fake)
    torch.library.register_fake("torchfastnorm::whitening_backward")(backward)


_register_fakes()


class _Whitening(nn.Module):
    num_features: int
    num_channels: int
    eps: float
    momentum: float
    method: Method
    iterations: int
    weight: nn.Parameter | None
    bias: nn.Parameter | None
    running_mean: Tensor
    running_wm: Tensor

    def _register(self, shape: tuple[int, ...], affine: bool, device: Any, dtype: Any) -> None:
        self.affine = affine
        for name in ("weight", "bias"):
            parameter = nn.Parameter(torch.empty(shape, device=device, dtype=dtype)) if affine else None
            self.register_parameter(name, parameter)
        groups, width = self.num_features // self.num_channels, self.num_channels
        for name, columns in (("running_mean", 1), ("running_wm", width)):
            self.register_buffer(name, torch.empty((groups, width, columns), device=device, dtype=dtype))
        self.reset_parameters()

    def reset_running_stats(self) -> None:
        """Set the running mean to 0 and the running matrices to the identity."""
        self.running_mean.zero_()
        self.running_wm.copy_(torch.eye(self.num_channels, device=self.running_wm.device))

    def reset_parameters(self) -> None:
        """Start anew: ``weight`` 1, ``bias`` 0, no statistics."""
        self.reset_running_stats()
        if self.weight is not None and self.bias is not None:
            nn.init.ones_(self.weight)
            nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() < 2 or input.shape[1] != self.num_features:
            raise ValueError(
                f"{type(self).__name__}: expected input (N, {self.num_features}, *), got {tuple(input.shape)}"
            )
        affine = [None if t is None else t.view(-1) for t in (self.weight, self.bias)]
        options = (self.training, self.momentum, self.eps, self.num_channels, self.method, self.iterations)
        return _call(input, self.running_mean, self.running_wm, *affine, *options)


class BatchWhitening(_Whitening):
    """:func:`batch_whitening` as a module.

    Args:
        num_features: C of an input ``(N, C, *)``.
        num_channels: of a group; divides ``num_features``. Default: ``num_features``, one group.
        method: "zca", "pca", "iternorm" or "cholesky", see :func:`batch_whitening`. Default: "zca".
        eps: added to the covariance's diagonal. Default: 1e-5.
        momentum: weight of a batch in the running statistics. Default: 0.1.
        affine: learn ``weight`` (ones at first) and ``bias`` (zeros), both of shape ``(C,)``. Default: True.
        iterations: of "iternorm". Default: 5.
        device, dtype: of the parameters and the running statistics.

    Buffers: ``running_mean`` of shape ``(groups, num_channels, 1)``, ``running_wm`` of shape ``(groups, num_channels,
    num_channels)``. Evaluation whitens with the average of the batches' matrices, as IterNorm does.

    Raises:
        ValueError: ``num_channels`` does not divide ``num_features``, or the method is unknown; in forward, an input of
            other channels.
    """

    def __init__(
        self,
        num_features: int,
        num_channels: int | None = None,
        method: Method = "zca",
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = True,
        *,
        iterations: int = 5,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        width = num_features if num_channels is None else num_channels
        if width < 1 or num_features % width:
            raise ValueError(f"BatchWhitening: num_channels={width} does not divide num_features={num_features}")
        if method not in ("zca", "pca", "iternorm", "cholesky"):
            raise ValueError(f"BatchWhitening: unknown method {method!r}; one of zca, pca, iternorm, cholesky")
        self.num_features, self.num_channels, self.method = num_features, width, method
        self.eps, self.momentum, self.iterations = eps, momentum, iterations
        self._register((num_features,), affine, device, dtype)

    def extra_repr(self) -> str:
        iterations = f", iterations={self.iterations}" if self.method == "iternorm" else ""
        return (
            f"{self.num_features}, num_channels={self.num_channels}, method={self.method}{iterations}, eps={self.eps}, "
            f"momentum={self.momentum}, affine={self.affine}"
        )
