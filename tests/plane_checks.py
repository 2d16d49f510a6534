"""How a result of the plane family is judged: the fp64 oracle with the scale of every result's errors (tolerances.py).

A set is a channel of the batch, a group of a sample or a plane. Everything is seen as (samples, groups, channels of a
group, positions), so that the three norms differ in the dimensions of a set alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from cases import accumulator
from checks import Expected, assert_close, assert_not_worse
from plane_cases import BATCH_NORM, FIRST, GROUP_NORM, LAST, PlaneCase, evaluate, in_layout
from tolerances import bound_of
from torch import Tensor

from torchfastnorm.reference._plane_norm import ACTIVATIONS


@dataclass(frozen=True)
class Slope:
    """What an activation does to errors: bounds of |f'| and |f''|, the jump of f' at 0."""

    first: float
    second: float
    jump: float = 0.0


SLOPES = {
    "none": Slope(1, 0),
    "relu": Slope(1, 0, 1),
    "leaky_relu": Slope(1, 0, 1),
    "elu": Slope(1, 1),
    "silu": Slope(1.1, 0.5),
    "gelu": Slope(1.13, 0.8),
    "gelu_tanh": Slope(1.13, 0.8),
}


def derivative(activation: str, v: Tensor) -> Tensor:
    v = v.detach().requires_grad_()
    return torch.autograd.grad(ACTIVATIONS[activation](v).sum(), v)[0]


def slope_rounding(activation: str, v: Tensor) -> Tensor:
    """Error of computing f'(v) in units of eps: its formula with every term taken by its magnitude."""
    v = v.abs()
    if activation == "none" or SLOPES[activation].jump:
        return torch.zeros_like(v)
    return {
        "elu": torch.ones_like(v),
        "silu": 1 + v,
        "gelu": torch.ones_like(v),
        "gelu_tanh": 1 + 0.4 * v * (1 + 0.134 * v.square()),
    }[activation].clamp_max(64)


def oracle(case: PlaneCase) -> dict[str, Expected]:
    """Every result of the case in fp64, from the reference on the same rounded inputs."""
    case = case.to("cpu").in_layout(FIRST)  # torch's sums over channels_last err by hundreds of eps
    dtypes = {"y": case.x.dtype} | {
        n: t.dtype for n in ("running_mean", "running_var") if (t := getattr(case, n)) is not None
    }
    dtypes |= {f"grad_{n}": t.dtype for n in ("x", "residual", "weight", "bias") if (t := getattr(case, n)) is not None}
    work = accumulator(case.x.dtype)
    exact = case if case.residual is None else case.replace(residual=case.residual.to(case.x.dtype))
    exact = exact.map(Tensor.double)
    values = evaluate(exact, exact.op.reference)
    scales = _scales(exact, work)
    through = {"grad_residual": case.x.dtype} if case.residual is not None else {}
    coarser = {n: d for n, d in through.items() if torch.finfo(d).eps > torch.finfo(dtypes[n]).eps}
    return {n: Expected(values[n], scales[n], dtypes[n], work, "plane", coarser.get(n)) for n in values}


def _scales(case: PlaneCase, work: torch.dtype) -> dict[str, Tensor]:
    """First-order error of each result in units of the accumulator's eps: every term by its magnitude."""
    eps = torch.finfo(work).eps
    samples, channels = case.x.shape[:2]
    groups = case.groups if case.op is GROUP_NORM else max(channels, 1)
    dims = (0, 2, 3) if case.op is BATCH_NORM or not case.batch_statistics else (2, 3)

    def planes(t: Tensor) -> Tensor:
        positions = case.x.shape[2:].numel()
        return t.reshape(samples, groups, channels // groups, positions)

    def parameter(t: Tensor | None, default: float) -> Tensor:
        t = case.x.new_full((channels,), default) if t is None else t
        return t.view(1, groups, channels // groups, 1)

    counted = torch.ones_like(case.x) if case.mask is None else case.mask.expand_as(case.x).double()
    counts = planes(counted)
    number = counts.sum(dims, keepdim=True)

    def mean(t: Tensor) -> Tensor:
        return (t * counts).sum(dims, keepdim=True) / number.clamp_min(1)

    x, grad_y = planes(case.x), planes(case.grad_y).abs() * counts
    x = x.where(counts > 0, 0)
    weight, bias = parameter(case.weight, 1), parameter(case.bias, 0)
    residual = torch.zeros_like(x) if case.residual is None else planes(case.residual).where(counts > 0, 0)
    if case.batch_statistics:
        centre, magnitude = mean(x), mean(x.abs())
        variance = mean((x - centre).square())
    else:  # constants, which may be rounded to the accumulator
        centre, variance = parameter(case.running_mean, 0), parameter(case.running_var, 1)
        magnitude = torch.where(centre.to(work).double() == centre, 0.0, centre.abs())
    rstd = torch.rsqrt(variance + case.eps)
    x_hat = (x - centre) * rstd
    # The mean is known to eps * mean(|x|), which rstd magnifies. The variance errs by the square of it, which counts
    # for sets that are constant but for their rounding.
    condition = magnitude * rstd
    rstd_error = 1 + eps * condition.square()
    x_hat_error = x_hat.abs() * rstd_error + condition
    v = x_hat * weight + bias + residual
    v_error = weight.abs() * x_hat_error + bias.abs() + residual.abs()
    slope = SLOPES[case.activation]
    g = grad_y * derivative(case.activation, v).abs()
    # Where v is so near to a kink that its sign is not known, either slope is right.
    unknown = 1.01 * slope.jump * (v.abs() <= 8 * eps * v_error) / (bound_of("grad_x", work, "plane").arithmetic * eps)
    g_error = grad_y * (slope_rounding(case.activation, v) + slope.second * v_error + unknown)
    if case.activation == "leaky_relu":
        g_error = g_error + g
    x_hat = x_hat.abs()
    product = weight.abs() * (g + g_error)
    terms = product
    if case.batch_statistics:
        terms = product + x_hat * mean(product * x_hat) + mean(product)
        terms = terms * rstd_error + x_hat_error * mean(product * x_hat) + x_hat * mean(product * x_hat_error)
    over_planes = [0, 3]
    scales = {
        "y": (slope.first * v_error + (v.abs() if slope.second else 0)) * counts,
        "grad_x": rstd * terms * counts,
        "grad_residual": g_error + g,
        "grad_weight": ((g * x_hat_error + g_error * x_hat) * counts).sum(over_planes),
        "grad_bias": (g + g_error).sum(over_planes),
    }
    scales = {n: s.reshape(case.x.shape if s.dim() == 4 else (channels,)) for n, s in scales.items()}
    if case.running_mean is not None and case.batch_statistics:
        unbiased = number / (number - 1).clamp_min(1)
        old, new = 1 - case.momentum, case.momentum
        # fp64 has nothing wider: the means of blocks are rounded to it, and their distances carry that.
        merging = magnitude * variance.sqrt() if work == torch.float64 else 0
        batch_mean, batch_var = magnitude, unbiased * (variance + eps * magnitude.square() + merging)
        scales["running_mean"] = old * case.running_mean.abs() + new * batch_mean.mean(0).flatten()
        scales["running_var"] = old * case.running_var.abs() + new * batch_var.mean(0).flatten()
    return scales


def check(case: PlaneCase, results: Mapping[str, Tensor] | None = None, *, backward: bool = True) -> dict[str, Tensor]:
    """Evaluates our function on the case and compares every result with the oracle."""
    results = evaluate(case, backward=backward) if results is None else dict(results)
    expected = oracle(case)
    names = [n for n in expected if backward or not n.startswith("grad_")]
    assert sorted(results) == sorted(names)
    for name in names:
        assert_close(name, results[name], expected[name])
    return results


def check_layout(case: PlaneCase, results: Mapping[str, Tensor]) -> None:
    """channels_last in, channels_last out, forward and backward; anything else contiguous."""
    for name in ("y", "grad_x", "grad_residual"):
        if name in results:
            assert results[name].stride() == in_layout(results[name], layout_of(case.x)).stride(), name


def layout_of(t: Tensor) -> str:
    last = t.dim() > 2 and t.movedim(1, -1).is_contiguous() and not t.is_contiguous()
    return LAST if last else FIRST


def check_not_worse(case: PlaneCase) -> dict[str, Tensor]:
    """Output and gradients of our function against torch's own of the contiguous case, both judged by the oracle.
    (Of the running statistics the oracle's bound is asked alone: torch's CPU code sums in fp64.)"""
    ours, theirs, expected = evaluate(case), evaluate(case.in_layout(FIRST), case.op.torch), oracle(case)
    for name in ours:
        if name.startswith("running_"):
            assert_close(name, ours[name], expected[name])
        else:
            assert_not_worse(name, ours[name], theirs[name], expected[name])
    return ours
