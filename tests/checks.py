"""How a result is judged: against fp64 (tolerances.py), against torch's own error, and bit by bit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from cases import LAYER_NORM, RMS_NORM, Case, accumulator, evaluate
from tolerances import bound_of
from torch import Tensor

_CORE = {"layer_norm": LAYER_NORM, "rms_norm": RMS_NORM}
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Expected:
    value: Tensor  # fp64
    scale: Tensor  # fp64, what the accumulator's errors are proportional to
    dtype: torch.dtype  # that the result must have
    accumulator: torch.dtype
    geometry: str = "row"
    rounded_to: torch.dtype | None = None  # a coarser dtype that the result passes through


def oracle(case: Case) -> dict[str, Expected]:
    """Every result of the case in fp64, from the reference on the same rounded inputs."""
    case = case.map(Tensor.cpu)
    h = case.x if case.residual is None else (case.x + case.residual).to(case.residual.dtype)
    work = accumulator(h.dtype)
    eps = case.eps if case.eps is not None else 1e-5 if case.op.core == "layer_norm" else torch.finfo(work).eps
    exact = case.map(Tensor.double).replace(
        op=_CORE[case.op.core], x=h.double(), residual=None, grad_sum=None, eps=eps, out_dtype=None
    )
    values = evaluate(exact, exact.op.reference)
    scales = _scales(exact, eps, work)
    if case.residual is not None:
        grad_sum = case.grad_sum.double()
        values["grad_x"] = values["grad_x"] + grad_sum
        values |= {"sum": case.x.double() + case.residual.double(), "grad_residual": values["grad_x"]}
        scales["grad_x"] = scales["grad_x"] + grad_sum.abs()
        scales |= {"sum": case.x.double().abs() + case.residual.double().abs(), "grad_residual": scales["grad_x"]}
    dtypes = {"y": case.out_dtype or case.x.dtype} | {"sum": h.dtype}
    dtypes |= {f"grad_{n}": t.dtype for n in ("x", "residual", "weight", "bias") if (t := getattr(case, n)) is not None}
    return {n: Expected(values[n], scales[n], dtypes[n], work) for n in values}


def _scales(case: Case, eps: float, work: torch.dtype) -> dict[str, Tensor]:
    """First-order error of each result in units of the accumulator's eps: every term by its magnitude."""
    dims = list(range(-len(case.normalized_shape), 0))
    lead = list(range(case.x.dim() - len(dims)))

    def mean(t: Tensor) -> Tensor:
        return t.mean(dims, keepdim=True)

    def over_rows(t: Tensor) -> Tensor:
        return t.sum(lead) if lead else t

    x, grad_y = case.x, case.grad_y
    weight = torch.ones_like(x) if case.weight is None else case.weight
    subtracts_mean = case.op.core == "layer_norm"
    centred = x - mean(x) if subtracts_mean else x
    rstd = torch.rsqrt(mean(centred.square()) + eps)
    x_hat = (centred * rstd).abs()
    # The mean is known to eps * mean(|x|), which rstd magnifies: the condition of LayerNorm. The variance errs by the
    # square of it, which counts for rows that are constant but for their rounding.
    condition = mean(x.abs()) * rstd if subtracts_mean else torch.zeros_like(rstd)
    rstd_error = 1 + torch.finfo(work).eps * condition.square()
    x_hat_error = x_hat * rstd_error + condition
    g = (grad_y * weight).abs()
    terms = g + x_hat * mean(g * x_hat) + (mean(g) if subtracts_mean else 0)
    scales = {
        "y": weight.abs() * x_hat_error + (0 if case.bias is None else case.bias.abs()),
        "grad_x": rstd * (terms * rstd_error + x_hat_error * mean(g * x_hat) + x_hat * mean(g * x_hat_error)),
    }
    if case.weight is not None:
        scales["grad_weight"] = over_rows(grad_y.abs() * x_hat_error)
    if case.bias is not None:
        scales["grad_bias"] = over_rows(grad_y.abs())
    return scales


def error_over_bound(name: str, result: Tensor, expected: Expected) -> Tensor:
    """Per element: error / allowed error. NaN and infinities must be where the oracle, rounded, has them."""
    assert result.dtype == expected.dtype, f"{name}: dtype {result.dtype}, expected {expected.dtype}"
    assert result.shape == expected.value.shape, f"{name}: shape {result.shape}, expected {expected.value.shape}"
    value, actual = expected.value, result.cpu().double()
    bound = bound_of(name, expected.accumulator, expected.geometry)
    kind = torch.finfo(expected.rounded_to or expected.dtype)
    allowed = (
        bound.rounding * kind.eps * value.abs()
        + bound.arithmetic * torch.finfo(expected.accumulator).eps * expected.scale
    )
    allowed = allowed + kind.smallest_normal * kind.eps  # the spacing of subnormal numbers
    rounded = value.to(expected.rounded_to or expected.dtype).to(expected.dtype).double()
    special = ~rounded.isfinite()
    same = (rounded == actual) | (rounded.isnan() & actual.isnan())
    ratio = (actual - value).abs() / allowed
    ratio = torch.where(special, torch.where(same, 0.0, torch.inf), ratio)
    return ratio.nan_to_num(nan=torch.inf, posinf=torch.inf)


def assert_close(name: str, result: Tensor, expected: Expected) -> None:
    ratio = error_over_bound(name, result, expected)
    if ratio.numel() == 0 or ratio.max() <= 1:
        return
    worst = int(ratio.argmax())
    place = tuple(int(i) for i in torch.unravel_index(torch.tensor(worst), ratio.shape))
    actual, value = result.cpu().flatten()[worst].item(), expected.value.flatten()[worst].item()
    raise AssertionError(
        f"{name}{list(place)} = {actual!r}, expected {value!r}: {ratio.max():.3g} times the allowed error; "
        f"{int((ratio > 1).sum())} of {ratio.numel()} elements are out of bounds"
    )


def check(case: Case, results: Mapping[str, Tensor] | None = None, *, backward: bool = True) -> dict[str, Tensor]:
    """Evaluates our function on the case and compares every result with the oracle."""
    results = evaluate(case, backward=backward) if results is None else dict(results)
    expected = oracle(case)
    names = [n for n in expected if backward or not n.startswith("grad_")]
    assert sorted(results) == sorted(names)
    for name in names:
        assert_close(name, results[name], expected[name])
    return results


def assert_not_worse(name: str, ours: Tensor, theirs: Tensor, expected: Expected) -> None:
    """Error never above torch's by more than half, as root mean square; the largest one not above its triple.

    The largest of a few roundings is luck; the triple finds one element gone wrong among many. 1.5 eps are always
    allowed: rstd, x_hat and its product with weight are rounded, by half an eps each, all elements of a row of one
    magnitude alike, and where torch is exact (such rows) it is by luck."""
    eps = torch.finfo(expected.dtype).eps
    for measure, reduce, factor in (
        ("root mean square", lambda t: t.square().mean().sqrt(), 1.5),
        ("largest", lambda t: t.abs().max(), 3.0),
    ):
        our_error, their_error = (
            reduce(t.cpu().double() - expected.value).nan_to_num(nan=torch.inf) for t in (ours, theirs)
        )
        allowed = torch.maximum(factor * their_error, 1.5 * eps * reduce(expected.value))
        assert our_error <= allowed, (
            f"{name}: {measure} error {our_error:.4g}, torch's {their_error:.4g}, allowed {allowed:.4g}"
        )


def check_not_worse(case: Case) -> None:
    """Every result of our function against torch's own, both judged by the oracle."""
    ours, theirs, expected = evaluate(case), evaluate(case, case.op.torch), oracle(case)
    for name in ours:
        assert_not_worse(name, ours[name], theirs[name], expected[name])


def assert_bitwise(name: str, a: Tensor, b: Tensor) -> None:
    """Equal to the last bit; the sign of zero counts."""
    assert a.dtype == b.dtype and a.shape == b.shape, f"{name}: {a.dtype} {a.shape} against {b.dtype} {b.shape}"
    bits = _BITS[a.element_size()]
    different = a.contiguous().view(bits) != b.contiguous().view(bits)
    assert not different.any(), f"{name}: {int(different.sum())} of {different.numel()} elements differ in their bits"


def assert_same_results(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> None:
    assert sorted(a) == sorted(b)
    for name in a:
        assert_bitwise(name, a[name], b[name])
