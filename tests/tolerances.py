"""How far a result may lie from the fp64 oracle: one table for all ops.

    |result - oracle|  <=  rounding * eps(result dtype) * |oracle|  +  arithmetic * eps(accumulator) * scale

The oracle works on the same rounded inputs. `scale` is what the accumulator's errors are proportional to, element by
element: the formula with every term taken by its magnitude (checks.py). So a bound holds for mean 1e4 and for
constant rows as it does for ordinary data, and no shape needs an exception.

`rounding` is 0.5 for a result that is computed in the accumulator's precision and rounded once. It is this 0.5 that
catches an intermediate stored in a low dtype: such a result is off by a whole unit somewhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

ROUNDED_ONCE = 0.5 * (1 + 2**-6)  # the computed value may lie on the other side of a power of two


@dataclass(frozen=True)
class Bound:
    rounding: float
    arithmetic: float
    reason: str


# (geometry, direction, dtype of the accumulator). The dtype of the result enters through its eps.
TOLERANCES: dict[tuple[str, str, torch.dtype], Bound] = {
    ("row", "sum", torch.float32): Bound(ROUNDED_ONCE, 1.0, "one addition in fp32"),
    ("row", "sum", torch.float64): Bound(ROUNDED_ONCE, 1.0, "one addition in fp64"),
    ("row", "forward", torch.float32): Bound(
        ROUNDED_ONCE, 4.0, "mean, variance, reciprocal root, two products, one sum: about one eps each"
    ),
    ("row", "grad_x", torch.float32): Bound(
        ROUNDED_ONCE, 4.0, "as forward, with the errors of the saved mean and rstd and of two row sums"
    ),
    ("row", "grad_params", torch.float32): Bound(
        ROUNDED_ONCE, 4.0, "fp32 partial sums over the rows, of terms that carry the errors of mean and rstd"
    ),
    ("row", "forward", torch.float64): Bound(ROUNDED_ONCE, 8.0, "as fp32; the oracle, fp64 itself, errs as much"),
    ("row", "grad_x", torch.float64): Bound(ROUNDED_ONCE, 8.0, "as fp32; the oracle, fp64 itself, errs as much"),
    ("row", "grad_params", torch.float64): Bound(ROUNDED_ONCE, 8.0, "as fp32; the oracle, fp64 itself, errs as much"),
    ("plane", "forward", torch.float32): Bound(
        ROUNDED_ONCE, 4.0, "as a row; the residual's sum and the activation are in the scale, about one eps each"
    ),
    ("plane", "grad_x", torch.float32): Bound(
        ROUNDED_ONCE, 4.0, "as forward, with the errors of the saved mean and rstd, of the slope and of two sums"
    ),
    ("plane", "grad_params", torch.float32): Bound(
        ROUNDED_ONCE,
        4.0,
        "fp32 partial sums over samples and positions, of terms that carry the errors of mean and rstd",
    ),
    ("plane", "running", torch.float32): Bound(
        ROUNDED_ONCE, 4.0, "mean or unbiased variance, two products, one sum: about one eps each"
    ),
    ("plane", "forward", torch.float64): Bound(ROUNDED_ONCE, 8.0, "as fp32; the oracle, fp64 itself, errs as much"),
    ("plane", "grad_x", torch.float64): Bound(ROUNDED_ONCE, 8.0, "as fp32; the oracle, fp64 itself, errs as much"),
    ("plane", "grad_params", torch.float64): Bound(ROUNDED_ONCE, 8.0, "as fp32; the oracle, fp64 itself, errs as much"),
    ("plane", "running", torch.float64): Bound(ROUNDED_ONCE, 8.0, "as fp32; the oracle, fp64 itself, errs as much"),
}


@dataclass(frozen=True)
class Error:
    error: float  # of the largest element, or of 1 if that is more
    reason: str


# By the dtype of input and result; running statistics in fp64 or fp32, where parameters have input's dtype.
WHITENING = {
    torch.float64: Error(1e-8, "eigenvectors, the oracle's too, err by eps / gap, gradients by eps / gap^2"),
    torch.float32: Error(1e-4, "fp32 covariance and matrix: eps * width, times the condition (16), over the gaps"),
    torch.bfloat16: Error(2**-8 + 1e-4, "as fp32, rounded once: half of eps"),
    torch.float16: Error(2**-11 + 1e-4, "as fp32, rounded once: half of eps"),
}

DIRECTION = {
    "y": "forward",
    "sum": "sum",
    "grad_x": "grad_x",
    "grad_residual": "grad_x",
    "grad_weight": "grad_params",
    "grad_bias": "grad_params",
    "running_mean": "running",
    "running_var": "running",
}


def bound_of(result: str, accumulator: torch.dtype, geometry: str = "row") -> Bound:
    return TOLERANCES[geometry, DIRECTION[result], accumulator]
