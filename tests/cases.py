"""What the tests run: the ops, their inputs, and one way to evaluate a function on them, forward and backward.

A Case holds the arguments of one call and the gradients that flow into its outputs. `evaluate` turns it into named
results; our functions, the reference and torch's own all go through it, so they are compared like with like.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import torchfastnorm
from torchfastnorm import functional, reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
LOW = (torch.bfloat16, torch.float16)


def dtype_id(dtype: torch.dtype | None) -> str:
    return "default" if dtype is None else str(dtype).removeprefix("torch.")


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype of statistics and partial sums, as in csrc/interface/types.h."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@dataclass(frozen=True)
class Op:
    name: str
    has_bias: bool
    has_residual: bool

    def __str__(self) -> str:
        return self.name

    @property
    def core(self) -> str:
        """The norm without the residual: its stem everywhere in the tree."""
        return self.name.removeprefix("add_")

    @property
    def node(self) -> str:
        """The name of the node that a call leaves in the graph."""
        return {"layer_norm": "LayerNormBackward", "rms_norm": "RMSNormBackward"}[self.core]

    @property
    def function(self) -> Callable[..., Any]:
        return getattr(functional, self.name)

    @property
    def reference(self) -> Callable[..., Any]:
        return getattr(reference, self.name)

    @property
    def module(self) -> type[torch.nn.Module]:
        stem = {"layer_norm": "LayerNorm", "rms_norm": "RMSNorm"}[self.core]
        return getattr(torchfastnorm, f"Add{stem}" if self.has_residual else stem)

    @property
    def torch(self) -> Callable[..., Any]:
        """torch.nn.functional's function; with a residual, what a user of torch writes instead of ours."""
        norm = getattr(F, self.core)
        if not self.has_residual:
            return norm

        def add_then_norm(input: Tensor, residual: Tensor, *arguments: Any, **keywords: Any) -> tuple[Tensor, Tensor]:
            total = input + residual
            return norm(total, *arguments, **keywords), total

        return add_then_norm


LAYER_NORM = Op("layer_norm", has_bias=True, has_residual=False)
RMS_NORM = Op("rms_norm", has_bias=False, has_residual=False)
ADD_LAYER_NORM = Op("add_layer_norm", has_bias=True, has_residual=True)
ADD_RMS_NORM = Op("add_rms_norm", has_bias=False, has_residual=True)
OPS = (LAYER_NORM, RMS_NORM, ADD_LAYER_NORM, ADD_RMS_NORM)

LEAVES = ("x", "residual", "weight", "bias")


@dataclass(frozen=True)
class Case:
    op: Op
    normalized_shape: tuple[int, ...]
    x: Tensor
    residual: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    grad_y: Tensor
    grad_sum: Tensor | None
    eps: float | None = None  # None: the op's default
    out_dtype: torch.dtype | None = None

    @property
    def arguments(self) -> tuple[list[Any], dict[str, Any]]:
        tensors = [self.x, self.residual] if self.op.has_residual else [self.x]
        affine = [self.weight, self.bias] if self.op.has_bias else [self.weight]
        keywords: dict[str, Any] = {} if self.eps is None else {"eps": self.eps}
        if self.out_dtype is not None:
            keywords["out_dtype"] = self.out_dtype
        return [*tensors, self.normalized_shape, *affine], keywords

    def replace(self, **changes: Any) -> Case:
        return dataclasses.replace(self, **changes)

    def map(self, change: Callable[[Tensor], Tensor]) -> Case:
        """The same case with every tensor changed."""
        tensors = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return self.replace(**{name: change(t) for name, t in tensors.items() if isinstance(t, Tensor)})

    def rows(self, rows: slice) -> Case:
        """The same case with some of the rows (of the first dimension) only."""
        names = ("x", "residual", "grad_y", "grad_sum")
        return self.replace(**{n: getattr(self, n)[rows] for n in names if getattr(self, n) is not None})


def make_case(
    op: Op,
    lead: Sequence[int] | int,
    normalized_shape: Sequence[int] | int,
    dtype: torch.dtype = torch.float32,
    *,
    param_dtype: torch.dtype | None = None,
    residual_dtype: torch.dtype | None = None,
    out_dtype: torch.dtype | None = None,
    affine: bool = True,
    eps: float | None = None,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> Case:
    """A case of ordinary values: mean 1, deviation 2, so that forgetting the mean or the variance shows."""
    lead = (lead,) if isinstance(lead, int) else tuple(lead)
    shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
    generator = torch.Generator().manual_seed(seed)

    def randn(size: Sequence[int], like: torch.dtype, scale: float = 1.0, shift: float = 0.0) -> Tensor:
        return torch.randn(tuple(size), generator=generator).mul_(scale).add_(shift).to(device, like)

    param_dtype = param_dtype or dtype
    residual_dtype = residual_dtype or dtype
    return Case(
        op,
        shape,
        x=randn(lead + shape, dtype, 2.0, 1.0),
        residual=randn(lead + shape, residual_dtype, 1.0, -0.5) if op.has_residual else None,
        weight=randn(shape, param_dtype, 0.5, 1.0) if affine else None,
        bias=randn(shape, param_dtype, 0.5) if affine and op.has_bias else None,
        grad_y=randn(lead + shape, out_dtype or dtype, 1.0, 0.25),
        grad_sum=randn(lead + shape, residual_dtype, 1.0, -0.25) if op.has_residual else None,
        eps=eps,
        out_dtype=out_dtype,
    )


def evaluate(case: Case, function: Callable[..., Any] | None = None, *, backward: bool = True) -> dict[str, Tensor]:
    """Named results of one call: y, sum and, with `backward`, grad_<leaf> of every leaf that is there."""
    leaves = {n: t.detach().requires_grad_(backward) for n in LEAVES if (t := getattr(case, n)) is not None}
    arguments, keywords = case.replace(**leaves).arguments
    output = (function or case.op.function)(*arguments, **keywords)
    outputs = {"y": output[0], "sum": output[1]} if case.op.has_residual else {"y": output}
    results = {name: t.detach() for name, t in outputs.items()}
    if backward:
        flowing = [case.grad_y, case.grad_sum] if case.op.has_residual else [case.grad_y]
        grads = torch.autograd.grad(list(outputs.values()), list(leaves.values()), flowing)
        results |= {f"grad_{name}": grad for name, grad in zip(leaves, grads, strict=True)}
    return results
