"""LayerNorm over the last dimensions, plain and after a residual add."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from .._extension import _C
from ._row_norm import Shape, call_op, register_fakes

_layer_norm = _C.layer_norm
_add_layer_norm = _C.add_layer_norm


def layer_norm(
    input: Tensor,
    normalized_shape: Shape,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    r"""Layer normalization (Ba, Kiros, Hinton 2016, https://arxiv.org/abs/1607.06450) in one kernel.

    .. math::
        y = \frac{x - \mathrm{mean}(x)}{\sqrt{\mathrm{var}(x) + \mathrm{eps}}} \cdot \mathrm{weight} + \mathrm{bias}

    with the mean and the biased variance over the last ``len(normalized_shape)`` dimensions. Statistics and arithmetic
    are in float32 (float64 for float64), rounded once.

    Args:
        input: float32, float64, float16 or bfloat16, of shape ``(*, *normalized_shape)``. Read without a copy if its
            normalized dimensions are contiguous and its leading ones merge into at most three strides.
        normalized_shape: sizes of the dimensions to normalize over, a tuple or list of ints.
        weight, bias: of shape ``normalized_shape``, of any of these dtypes, or None for ones and zeros. Default: None.
        eps: added to the variance. Default: 1e-5.
        out_dtype: dtype of the result; default: input's, under autocast too.

    Returns:
        Tensor of input's shape, contiguous. Differentiable any number of times; the gradients of weight and bias have
        their parameters' dtypes.

    Raises:
        TypeError: an argument is of the wrong Python type.
        RuntimeError: shapes do not fit, or the tensors are on different devices.
        NotImplementedError: a dtype other than the four (a RuntimeError too).
    """
    if not is_compiling():
        y = _layer_norm(input, normalized_shape, weight, bias, eps, out_dtype)
        if y is not NotImplemented:
            return y
    op = torch.ops.torchfastnorm.layer_norm.default
    return call_op(op, {"input": input}, normalized_shape, {"weight": weight, "bias": bias}, eps, out_dtype)


def add_layer_norm(
    input: Tensor,
    residual: Tensor,
    normalized_shape: Shape,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    out_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    r"""``sum = input + residual`` and :func:`layer_norm` of it in one kernel, the pre-norm step of a transformer.

    .. math::
        s = x + \mathrm{residual}, \qquad
        y = \frac{s - \mathrm{mean}(s)}{\sqrt{\mathrm{var}(s) + \mathrm{eps}}} \cdot \mathrm{weight} + \mathrm{bias}

    What is normalized is the sum as it is returned, rounded to residual's dtype. A float32 residual with bfloat16
    input keeps a transformer's residual stream in float32 at no extra pass over memory.

    Args:
        input: as in :func:`layer_norm`.
        residual: of input's shape, of any of the four floating dtypes.
        normalized_shape, weight, bias, eps: as in :func:`layer_norm`.
        out_dtype: dtype of the first result; default: input's.

    Returns:
        ``(output, sum)``, both of input's shape and contiguous, ``sum`` in residual's dtype. Gradients flow through
        both results.

    Raises:
        TypeError, RuntimeError, NotImplementedError: as in :func:`layer_norm`; a residual of another shape is a
            RuntimeError.
    """
    if not is_compiling():
        results = _add_layer_norm(input, residual, normalized_shape, weight, bias, eps, out_dtype)
        if results is not NotImplemented:
            return results
    op = torch.ops.torchfastnorm.add_layer_norm.default
    tensors = {"input": input, "residual": residual}
    return call_op(op, tensors, normalized_shape, {"weight": weight, "bias": bias}, eps, out_dtype)


register_fakes("layer_norm", centered=True)


class LayerNorm(nn.LayerNorm):
    """:class:`torch.nn.LayerNorm` on :func:`layer_norm`: same arguments, parameters, state_dict and representation.

    Args:
        normalized_shape: sizes of the trailing dimensions to normalize over, or one int for the last dimension.
        eps: added to the variance. Default: 1e-5.
        elementwise_affine: learn ``weight`` (ones at first) and ``bias``. Default: True.
        bias: learn ``bias`` (zeros at first); only with ``elementwise_affine``. Default: True.
        device, dtype: of the parameters.

    Shape:
        input ``(*, *normalized_shape)``, output the same.
    """

    def forward(self, input: Tensor) -> Tensor:
        return layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)


class AddLayerNorm(LayerNorm):
    """:class:`LayerNorm` on :func:`add_layer_norm`: ``output, sum = module(input, residual)``.

    Arguments and parameters are :class:`LayerNorm`'s; input, residual and both results have one shape.
    """

    def forward(self, input: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return add_layer_norm(input, residual, self.normalized_shape, self.weight, self.bias, self.eps)
