"""What the row norms share in Python: the way through ``torch.ops`` and the fake kernels that torch.compile runs.

Every call goes first to the op's fast entry, a C function that takes plain tensors and answers ``NotImplemented`` to
anything else; :func:`call_op` is the way for the rest, and names wrong types as ``torch.nn.functional`` does.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.overrides import has_torch_function

Shape = Sequence[int]
SUPPORTED = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def _wrong_type(name: str, argument: str, expected: str, value: object) -> TypeError:
    return TypeError(f"{name}(): argument '{argument}' must be {expected}, not {type(value).__name__}")


def _as_shape(name: str, shape: Any) -> tuple[Any, ...]:
    if not isinstance(shape, (tuple, list)):
        raise _wrong_type(name, "normalized_shape", "tuple of ints", shape)
    sizes: list[Any] = []
    for position, size in enumerate(shape):
        try:
            if isinstance(size, bool):
                raise TypeError
            sizes.append(size if isinstance(size, torch.SymInt) else operator.index(size))
            if not isinstance(size, torch.SymInt) and abs(sizes[-1]) >= 2**63:
                raise TypeError
        except TypeError:
            raise TypeError(
                f"{name}(): argument 'normalized_shape' must be tuple of ints, but found element of type "
                f"{type(size).__name__} at pos {position}"
            ) from None
    return tuple(sizes)


def call_op(op: Any, tensors: dict[str, Any], shape: Any, params: dict[str, Any], eps: Any, out_dtype: Any) -> Any:
    """Call ``op(*tensors, shape, *params, eps, out_dtype)`` through ``torch.ops``; ``params`` may be None."""
    if is_compiling():
        return op(*tensors.values(), shape, *params.values(), eps, out_dtype)
    name = op._schema.name.split("::")[1]
    if not has_torch_function((*tensors.values(), *params.values())):
        for argument, value in (*tensors.items(), *((k, v) for k, v in params.items() if v is not None)):
            if not isinstance(value, Tensor):
                raise _wrong_type(name, argument, "Tensor", value)
        shape = _as_shape(name, shape)
        optional_eps = op._schema.arguments[-2].type.kind() == "OptionalType"
        if not (optional_eps and eps is None):
            if not isinstance(eps, (float, int, Tensor, torch.SymFloat)):
                raise _wrong_type(name, "eps", "float", eps)
            eps = float(eps)
        if not (out_dtype is None or isinstance(out_dtype, torch.dtype)):
            raise _wrong_type(name, "out_dtype", "torch.dtype", out_dtype)
    return op(*tensors.values(), shape, *params.values(), eps, out_dtype)


def _check_floating(name: str, argument: str, dtype: torch.dtype) -> None:
    if dtype not in SUPPORTED:
        raise NotImplementedError(
            f"{name}(): {argument} of dtype {dtype} is not implemented; use "
            "torch.float32, torch.float64, torch.float16 or torch.bfloat16"
        )


def _check_shape(same: tuple[Any, Any], message: Callable[[], str]) -> None:
    got, expected = same
    torch._check(len(got) == len(expected), message)
    for a, b in zip(got, expected, strict=True):
        torch._check(a == b, message)


def _parameter_message(name: str, argument: str, got: Shape, shape: Shape) -> str:
    return (
        f"Expected {argument} to be of same shape as normalized_shape, but got {argument} of shape {list(got)} and "
        f"normalized_shape = {list(shape)} in {name}(); reshape it, or pass the matching normalized_shape"
    )


def _check(name: str, input: Tensor, residual: Tensor | None, shape: Shape, weight: Any, bias: Any, dtype: Any) -> None:
    """The checks of csrc/bindings/row_norm_checks.h: with dynamic shapes nothing else guards that sizes agree."""
    rank = len(shape)
    torch._check(rank > 0, lambda: f"Expected normalized_shape to be at least 1-dimensional in {name}(), but got []")
    if name.endswith("rms_norm"):
        torch._check_value(
            input.dim() >= rank, lambda: f"{name}(): input must have at least {rank} dimensions, but has {input.dim()}"
        )
    _check_shape(
        (input.shape[max(0, input.dim() - rank) :], shape),
        lambda: (
            f"Given normalized_shape={list(shape)}, expected input to have these trailing dimensions, but got input "
            f"of shape {list(input.shape)} in {name}(); pass the sizes of input's trailing dimensions"
        ),
    )
    for argument, param in (("weight", weight), ("bias", bias)):
        if param is not None:
            _check_shape((param.shape, shape), partial(_parameter_message, name, argument, param.shape, shape))
            if param.dtype not in SUPPORTED:
                raise RuntimeError(f"{name}(): expected {argument} of a floating dtype, but got {param.dtype}")
    _check_floating(name, "input", input.dtype)
    if dtype is not None:
        _check_floating(name, "out_dtype", dtype)
    if residual is not None:
        _check_shape(
            (residual.shape, input.shape),
            lambda: f"{name}(): residual must have input's shape {list(input.shape)}, but has {list(residual.shape)}",
        )
        _check_floating(name, "residual", residual.dtype)
    for argument, tensor in (("weight", weight), ("bias", bias), ("residual", residual)):
        if tensor is not None and tensor.device != input.device:
            raise RuntimeError(
                f"{name}(): expected all tensors to be on the same device, but {argument} is on {tensor.device} and "
                f"input on {input.device}; move one with .to(device)"
            )


def _empty(like: Tensor, shape: Shape, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=like.device)


def register_fakes(name: str, centered: bool) -> None:
    """Register what ``name``, ``add_<name>``, ``<name>_forward`` and ``<name>_backward`` return, without the values.

    ``centered``: the norm subtracts the mean; then it also has a bias.
    """

    @torch.library.register_fake(f"torchfastnorm::{name}")
    def plain(input: Tensor, shape: Shape, weight: Any, *rest: Any) -> Tensor:
        _check(name, input, None, shape, weight, rest[0] if centered else None, rest[-1])
        return _empty(input, input.shape, rest[-1] or input.dtype)

    @torch.library.register_fake(f"torchfastnorm::add_{name}")
    def add(input: Tensor, residual: Tensor, shape: Shape, weight: Any, *rest: Any) -> tuple[Tensor, Tensor]:
        _check(f"add_{name}", input, residual, shape, weight, rest[0] if centered else None, rest[-1])
        return _empty(input, input.shape, rest[-1] or input.dtype), _empty(input, input.shape, residual.dtype)

    @torch.library.register_fake(f"torchfastnorm::{name}_forward")
    def forward(
        input: Tensor, residual: Tensor | None, shape: Shape, weight: Any, bias: Any, eps: float, out_dtype: Any
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor]:
        _check(name, input, residual, shape, weight, bias, out_dtype)
        h = input if residual is None else residual
        statistics = torch.float64 if h.dtype == torch.float64 else torch.float32
        rows = input.shape[: input.dim() - len(shape)]
        return (
            _empty(input, input.shape, out_dtype or input.dtype),
            None if residual is None else _empty(input, input.shape, residual.dtype),
            _empty(input, rows, statistics) if centered else None,
            _empty(input, rows, statistics),
        )

    @torch.library.register_fake(f"torchfastnorm::{name}_backward")
    def backward(
        grad_y: Tensor,
        grad_sum: Tensor | None,
        h: Tensor,
        shape: Shape,
        weight: Tensor | None,
        mean: Tensor | None,
        rstd: Tensor,
        eps: float,
        x_dtype: torch.dtype,
        param_dtype: torch.dtype,
        mask: Sequence[bool],
    ) -> tuple[Tensor | None, ...]:
        shapes = (h.shape, h.shape, shape, shape)
        dtypes = (h.dtype, x_dtype, param_dtype, param_dtype)
        return tuple(_empty(h, s, d) if wanted else None for s, d, wanted in zip(shapes, dtypes, mask, strict=True))
