"""RMSNorm over the last dimensions, plain and after a residual add."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from .._extension import _C
from ._row_norm import Shape, call_op, register_fakes

_rms_norm = _C.rms_norm
_add_rms_norm = _C.add_rms_norm


def rms_norm(
    input: Tensor,
    normalized_shape: Shape,
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    r"""Root mean square normalization (Zhang, Sennrich 2019, https://arxiv.org/abs/1910.07467) in one kernel.

    .. math::
        y = \frac{x}{\sqrt{\mathrm{mean}(x^2) + \mathrm{eps}}} \cdot \mathrm{weight}

    with the mean over the last ``len(normalized_shape)`` dimensions. Statistics and arithmetic are in float32 (float64
    for float64), rounded once.

    Args:
        input: float32, float64, float16 or bfloat16, of shape ``(*, *normalized_shape)``. Read without a copy if its
            normalized dimensions are contiguous and its leading ones merge into at most three strides.
        normalized_shape: sizes of the dimensions to normalize over, a tuple or list of ints.
        weight: of shape ``normalized_shape``, of any of these dtypes, or None for ones. Default: None.
        eps: added to the mean square; None: the machine epsilon of float32 (of float64 for float64).
            Default: None.
        out_dtype: dtype of the result; default: input's, under autocast too.

    Returns:
        Tensor of input's shape, contiguous. Differentiable any number of times; the gradient of weight has weight's
        dtype.

    Raises:
        TypeError: an argument is of the wrong Python type.
        ValueError: input has fewer dimensions than normalized_shape.
        RuntimeError: shapes do not fit, or the tensors are on different devices.
        NotImplementedError: a dtype other than the four (a RuntimeError too).
    """
    if not is_compiling():
        y = _rms_norm(input, normalized_shape, weight, eps, out_dtype)
        if y is not NotImplemented:
            return y
    op = torch.ops.torchfastnorm.rms_norm.default
    return call_op(op, {"input": input}, normalized_shape, {"weight": weight}, eps, out_dtype)


def add_rms_norm(
    input: Tensor,
    residual: Tensor,
    normalized_shape: Shape,
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    out_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    r"""``sum = input + residual`` and :func:`rms_norm` of it in one kernel, the pre-norm step of a transformer.

    .. math::
        s = x + \mathrm{residual}, \qquad y = \frac{s}{\sqrt{\mathrm{mean}(s^2) + \mathrm{eps}}} \cdot \mathrm{weight}

    What is normalized is the sum as it is returned, rounded to residual's dtype. A float32 residual with bfloat16
    input keeps a transformer's residual stream in float32 at no extra pass over memory.

    Args:
        input: as in :func:`rms_norm`.
        residual: of input's shape, of any of the four floating dtypes.
        normalized_shape, weight: as in :func:`rms_norm`.
        eps: added to the mean square; None: the machine epsilon of float32 (of float64 for a float64 residual).
            Default: None.
        out_dtype: dtype of the first result; default: input's.

    Returns:
        ``(output, sum)``, both of input's shape and contiguous, ``sum`` in residual's dtype. Gradients flow through
        both results.

    Raises:
        TypeError, ValueError, RuntimeError, NotImplementedError: as in :func:`rms_norm`; a residual of another shape
            is a RuntimeError.
    """
    if not is_compiling():
        results = _add_rms_norm(input, residual, normalized_shape, weight, eps, out_dtype)
        if results is not NotImplemented:
            return results
    op = torch.ops.torchfastnorm.add_rms_norm.default
    tensors = {"input": input, "residual": residual}
    return call_op(op, tensors, normalized_shape, {"weight": weight}, eps, out_dtype)


register_fakes("rms_norm", centered=False)


class RMSNorm(nn.RMSNorm):
    """:class:`torch.nn.RMSNorm` on :func:`rms_norm`: same arguments, parameters, state_dict and representation.

    Args:
        normalized_shape: sizes of the trailing dimensions to normalize over, or one int for the last dimension.
        eps: added to the mean square; None: machine epsilon, as :func:`rms_norm` says. Default: None.
        elementwise_affine: learn ``weight`` (ones at first). Default: True.
        device, dtype: of the parameter.

    Shape:
        input ``(*, *normalized_shape)``, output the same.
    """

    def forward(self, input: Tensor) -> Tensor:
        return rms_norm(input, self.normalized_shape, self.weight, self.eps)


class AddRMSNorm(RMSNorm):
    """:class:`RMSNorm` on :func:`add_rms_norm`: ``output, sum = module(input, residual)``.

    Arguments and parameters are :class:`RMSNorm`'s; input, residual and both results have one shape.
    """

    def forward(self, input: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return add_rms_norm(input, residual, self.normalized_shape, self.weight, self.eps)
