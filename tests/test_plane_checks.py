"""The checks of the plane family must bite: each planted error, of a kind that kernels really have, is caught."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from cases import dtype_id
from plane_cases import (
    BATCH_NORM,
    FIRST,
    GROUP_NORM,
    INSTANCE_NORM,
    LAST,
    PLANE_OPS,
    PlaneCase,
    PlaneOp,
    default_groups,
    evaluate,
    in_layout,
    make_plane_case,
)
from plane_checks import SLOPES, check, check_layout, oracle
from torch import Tensor

from torchfastnorm.reference._plane_norm import ACTIVATIONS

Results = dict[str, Tensor]
LOW_AND_SINGLE = (torch.float32, torch.bfloat16, torch.float16)
all_ops = pytest.mark.parametrize("op", PLANE_OPS, ids=str)
SHAPE = (3, 6, 5, 7)


def right(case: PlaneCase) -> Results:
    """The oracle rounded to the dtypes of the results: the best that any kernel can do."""
    return {n: e.value.to(e.rounded_to or e.dtype).to(e.dtype) for n, e in oracle(case).items()}


@all_ops
@pytest.mark.parametrize("dtype", LOW_AND_SINGLE, ids=dtype_id)
@pytest.mark.parametrize("mask", (None, "scattered"))
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_right_result_passes(op: PlaneOp, dtype: torch.dtype, mask: str | None, activation: str) -> None:
    """The oracle rounded, and the reference computed in the accumulator's precision."""
    for batch_statistics in (True, False) if op is BATCH_NORM else (True,):
        case = make_plane_case(
            op,
            SHAPE,
            dtype,
            param_dtype=torch.float32,
            mask=mask,
            activation=activation,
            residual=True,
            batch_statistics=batch_statistics,
        )
        check(case, right(case))
        check(case, evaluate(case, op.reference))


def test_torch_passes() -> None:
    """The oracle against functions that nobody here wrote."""
    for op in PLANE_OPS:
        for shape in (SHAPE, (4, 6, 9)):
            case = make_plane_case(op, shape, activation="silu")
            check(case, evaluate(case, op.torch))
    for op in (BATCH_NORM, INSTANCE_NORM):
        case = make_plane_case(op, SHAPE, batch_statistics=False)
        check(case, evaluate(case, op.torch))


def one_element(results: Results, case: PlaneCase) -> None:
    results["y"][1, 4, 2, 3] += 8 * torch.finfo(case.x.dtype).eps * results["y"].abs().max()


def one_gradient(results: Results, case: PlaneCase) -> None:
    results["grad_x"][1, 4, 2, 3] += 16 * torch.finfo(case.x.dtype).eps * results["grad_x"].abs().max()


def a_plane_not_written(results: Results, case: PlaneCase) -> None:
    results["grad_x"][-1, -1] = 0


def last_position_not_written(results: Results, case: PlaneCase) -> None:
    results["y"][..., -1, -1] = 0


def nan_instead_of_number(results: Results, case: PlaneCase) -> None:
    results["y"][0, 0, 0, 0] = torch.nan


def infinity_instead_of_number(results: Results, case: PlaneCase) -> None:
    results["grad_weight"][3] = torch.inf


def a_sample_missing_in_grad_weight(results: Results, case: PlaneCase) -> None:
    part = case.samples(slice(0, -1))
    results["grad_weight"] = right(part)["grad_weight"] if case.op is not BATCH_NORM else results["grad_weight"] * 0.9


def a_sample_missing_in_grad_bias(results: Results, case: PlaneCase) -> None:
    results["grad_bias"] = case.grad_y[:-1].double().sum([0, 2, 3]).to(results["grad_bias"].dtype)


def neighbouring_channels_swapped(results: Results, case: PlaneCase) -> None:
    results["y"] = results["y"].roll(1, 1)


def the_other_layout(results: Results, case: PlaneCase) -> None:
    """Channels last read as channels first: right numbers at wrong places."""
    results["y"] = in_layout(results["y"], LAST).movedim(1, -1).reshape(results["y"].shape)


PLANTED: list[Callable[[Results, PlaneCase], None]] = [
    one_element,
    one_gradient,
    a_plane_not_written,
    last_position_not_written,
    nan_instead_of_number,
    infinity_instead_of_number,
    a_sample_missing_in_grad_weight,
    a_sample_missing_in_grad_bias,
    neighbouring_channels_swapped,
    the_other_layout,
]


@all_ops
@pytest.mark.parametrize("plant", PLANTED, ids=lambda f: f.__name__)
@pytest.mark.parametrize("dtype", LOW_AND_SINGLE, ids=dtype_id)
def test_a_damaged_result_is_caught(
    plant: Callable[[Results, PlaneCase], None], op: PlaneOp, dtype: torch.dtype
) -> None:
    case = make_plane_case(op, SHAPE, dtype)
    results = right(case)
    plant(results, case)
    with pytest.raises(AssertionError):
        check(case, results)


def wrong_formulas(case: PlaneCase) -> dict[str, PlaneCase]:
    wrong = {
        "wrong eps": case.replace(eps=3e-2),
        "weight forgotten": case.replace(weight=None),
        "weight of a neighbour": case.replace(weight=case.weight.roll(1)),
        "bias of a neighbour": case.replace(bias=case.bias.roll(1)),
        "bias in place of weight": case.replace(weight=case.bias, bias=case.weight),
        "gradient of y scaled": case.replace(grad_y=case.grad_y * 1.02),
        "activation forgotten": case.replace(activation="none"),
        "gelu of the other kind": case.replace(activation="gelu_tanh"),
        "mask forgotten": case.replace(mask=None),
        "mask of a neighbour": case.replace(mask=case.mask.roll(1, -1)),
        "mask inverted": case.replace(mask=~case.mask),
    }
    if case.op is BATCH_NORM:
        wrong |= {
            "residual forgotten": case.replace(residual=torch.zeros_like(case.residual)),
            "statistics of a sample": case.samples(slice(0, 1)),
            "momentum the other way round": case.replace(momentum=0.9),
            "running statistics swapped": case.replace(running_mean=case.running_var, running_var=case.running_mean),
            "eval in place of training": case.replace(batch_statistics=False),
        }
    if case.op is GROUP_NORM:
        wrong["wrong groups"] = case.replace(groups=2)
        wrong["one group"] = case.replace(groups=1)
    if case.op is INSTANCE_NORM:
        wrong["running statistics of one sample"] = case.samples(slice(0, 1))
    return wrong


@all_ops
@pytest.mark.parametrize("dtype", LOW_AND_SINGLE, ids=dtype_id)
def test_a_wrong_formula_is_caught(op: PlaneOp, dtype: torch.dtype) -> None:
    case = make_plane_case(op, SHAPE, dtype, mask="scattered", residual=True, activation="gelu")
    for name, planted in wrong_formulas(case).items():
        with pytest.raises(AssertionError):
            results = right(planted)
            if not planted.batch_statistics:
                results |= {n: getattr(case, n) for n in ("running_mean", "running_var")}
            if planted.weight is None:
                results["grad_weight"] = right(case)["grad_weight"]
            check(case, results)
            pytest.fail(f"{name} was not caught", pytrace=False)


@all_ops
def test_a_rounding_in_the_middle_is_caught(op: PlaneOp) -> None:
    """x_hat, or the sum before the activation, in bf16."""
    case = make_plane_case(op, SHAPE, torch.bfloat16)
    results = right(case)
    shape = (1, -1, 1, 1)
    plain = right(case.replace(weight=None, bias=None))["y"]
    results["y"] = plain * case.weight.view(shape) + case.bias.view(shape)
    with pytest.raises(AssertionError, match="y"):
        check(case, results)
    active = case.replace(activation="silu")
    results = right(active) | {"y": ACTIVATIONS["silu"](right(case)["y"])}
    with pytest.raises(AssertionError, match="y"):
        check(active, results)


@pytest.mark.parametrize("op", (BATCH_NORM, INSTANCE_NORM), ids=str)
def test_wrong_running_statistics_are_caught(op: PlaneOp) -> None:
    case = make_plane_case(op, SHAPE)
    planted = {
        "biased variance": ("running_var", lambda t: t - 0.1 * case.x.transpose(0, 1).flatten(1).var(1) / 105),
        "not updated": ("running_mean", lambda t: case.running_mean),
        "updated twice": ("running_mean", lambda t: t + 0.1 * (t - case.running_mean)),
        "of a neighbour": ("running_var", lambda t: t.roll(1)),
    }
    for name, (which, change) in planted.items():
        results = right(case)
        results[which] = change(results[which])
        with pytest.raises(AssertionError, match=which):
            check(case, results)
            pytest.fail(f"{name} was not caught", pytrace=False)


@all_ops
def test_cancelling_variance_is_caught(op: PlaneOp) -> None:
    """E[x^2] - E[x]^2 in fp32 at mean 1e4: what the scale must not excuse."""
    case = make_plane_case(op, SHAPE, running=False)
    case = case.replace(x=case.x + 1e4)
    groups = {BATCH_NORM: 6, GROUP_NORM: default_groups(6), INSTANCE_NORM: 6}[op]
    x = case.x.view(3, groups, -1, 5, 7)
    dims = (0, 2, 3, 4) if op is BATCH_NORM else (2, 3, 4)
    mean = x.mean(dims, keepdim=True)
    variance = x.square().mean(dims, keepdim=True) - mean.square()
    y = ((x - mean) * torch.rsqrt(variance.clamp_min(0) + 1e-5)).view(SHAPE)
    shape = (1, -1, 1, 1)
    results = right(case) | {"y": y * case.weight.view(shape) + case.bias.view(shape)}
    with pytest.raises(AssertionError, match="y"):
        check(case, results)


def test_a_wrong_slope_at_a_kink_is_caught() -> None:
    """Next to the kink of relu either slope passes, where the sign is sure only the right one."""
    case = make_plane_case(BATCH_NORM, SHAPE, activation="relu", batch_statistics=False)
    results = right(case)
    place = (results["y"] > 0).nonzero()[5]
    results["grad_x"][tuple(place)] = 0
    with pytest.raises(AssertionError, match="grad_x"):
        check(case, results)
    identity = {"running_mean": torch.zeros(6), "running_var": torch.ones(6), "weight": None, "bias": None}
    at_zero = case.replace(**identity, x=torch.zeros_like(case.x), eps=0.0)
    for slope in (0.0, 1.0):
        check(at_zero, right(at_zero) | {"grad_x": slope * case.grad_y})
    with pytest.raises(AssertionError, match="grad_x"):
        check(at_zero, right(at_zero) | {"grad_x": 2 * case.grad_y})


def test_bounds_of_the_slopes() -> None:
    v = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    for name, function in ACTIVATIONS.items():
        x = v.clone().requires_grad_()
        (first,) = torch.autograd.grad(function(x).sum(), x, create_graph=True)
        second = torch.autograd.grad(first.sum(), x)[0] if first.requires_grad else torch.zeros_like(v)
        away = second[v.abs() > 0.01]
        assert first.abs().max() <= SLOPES[name].first and away.abs().max() <= SLOPES[name].second, name


def test_a_lost_layout_is_caught() -> None:
    case = make_plane_case(BATCH_NORM, SHAPE, layout=LAST)
    results = evaluate(case, BATCH_NORM.torch)
    check_layout(case, results)
    with pytest.raises(AssertionError, match="y"):
        check_layout(case, results | {"y": in_layout(results["y"], FIRST)})
    assert case.in_layout(FIRST).x.is_contiguous()
