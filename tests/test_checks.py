"""The checks must bite: each planted error, of a kind that kernels really have, is caught; the right result passes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from cases import ADD_LAYER_NORM, LAYER_NORM, OPS, Case, Op, dtype_id, evaluate, make_case
from checks import assert_bitwise, assert_not_worse, check, oracle
from tolerances import DIRECTION, TOLERANCES
from torch import Tensor

LOW_AND_SINGLE = (torch.float32, torch.bfloat16, torch.float16)
Results = dict[str, Tensor]


def right(case: Case) -> Results:
    """The oracle rounded to the dtypes of the results: the best that any kernel can do."""
    return {name: e.value.to(e.dtype) for name, e in oracle(case).items()}


@pytest.mark.parametrize("op", OPS, ids=str)
@pytest.mark.parametrize("dtype", LOW_AND_SINGLE, ids=dtype_id)
def test_the_right_result_passes(op: Op, dtype: torch.dtype) -> None:
    case = make_case(op, 9, 65, dtype)
    check(case, right(case))
    # Autograd through the reference rounds twice where the gradient of a low-precision sum flows in.
    backward = dtype == torch.float32 or not op.has_residual
    check(case, evaluate(case, op.reference, backward=backward), backward=backward)


def one_element(results: Results, case: Case) -> None:
    results["y"][4, 7] += 2 * torch.finfo(case.x.dtype).eps * results["y"].abs().max()


def one_gradient(results: Results, case: Case) -> None:
    results["grad_x"][4, 7] += 4 * torch.finfo(case.x.dtype).eps * results["grad_x"].abs().max()


def one_row_not_written(results: Results, case: Case) -> None:
    results["grad_x"][-1] = 0


def last_column_not_written(results: Results, case: Case) -> None:
    results["y"][:, -1] = 0


def nan_instead_of_number(results: Results, case: Case) -> None:
    results["y"][0, 0] = torch.nan


def infinity_instead_of_number(results: Results, case: Case) -> None:
    results["grad_weight"][3] = torch.inf


def one_row_missing_in_grad_weight(results: Results, case: Case) -> None:
    rest = right(case.rows(slice(0, -1)))
    results["grad_weight"] = rest["grad_weight"]


def neighbours_swapped(results: Results, case: Case) -> None:
    results["y"] = results["y"].roll(1, 1)


def low_precision_x_hat(results: Results, case: Case) -> None:
    plain = right(case.replace(weight=None, bias=None))["y"]
    results["y"] = plain * case.weight + (0 if case.bias is None else case.bias)


PLANTED: list[Callable[[Results, Case], None]] = [
    one_element,
    one_gradient,
    one_row_not_written,
    last_column_not_written,
    nan_instead_of_number,
    infinity_instead_of_number,
    one_row_missing_in_grad_weight,
    neighbours_swapped,
]


@pytest.mark.parametrize("plant", PLANTED, ids=lambda f: f.__name__)
@pytest.mark.parametrize("op", OPS, ids=str)
@pytest.mark.parametrize("dtype", LOW_AND_SINGLE, ids=dtype_id)
def test_a_damaged_result_is_caught(plant: Callable[[Results, Case], None], op: Op, dtype: torch.dtype) -> None:
    case = make_case(op, 9, 65, dtype)
    results = right(case)
    plant(results, case)
    with pytest.raises(AssertionError):
        check(case, results)


@pytest.mark.parametrize("op", OPS, ids=str)
def test_a_rounding_in_the_middle_is_caught(op: Op) -> None:
    case = make_case(op, 9, 65, torch.bfloat16)
    results = right(case)
    low_precision_x_hat(results, case)
    with pytest.raises(AssertionError, match="y"):
        check(case, results)


@pytest.mark.parametrize("op", OPS, ids=str)
@pytest.mark.parametrize("dtype", LOW_AND_SINGLE, ids=dtype_id)
def test_a_wrong_formula_is_caught(op: Op, dtype: torch.dtype) -> None:
    case = make_case(op, 9, 65, dtype)
    wrong = {
        "wrong eps": case.replace(eps=3e-2),
        "weight forgotten": case.replace(weight=torch.ones_like(case.weight)),
        "weight of a neighbour": case.replace(weight=case.weight.roll(1)),
        "gradient of y scaled": case.replace(grad_y=case.grad_y * 1.02),
    }
    if op.has_bias:
        wrong["bias in place of weight"] = case.replace(weight=case.bias, bias=case.weight)
        wrong["bias of a neighbour"] = case.replace(bias=case.bias.roll(1))
    if op.has_residual:
        wrong["gradient of the sum dropped"] = case.replace(grad_sum=torch.zeros_like(case.grad_sum))
    for name, planted in wrong.items():
        with pytest.raises(AssertionError):
            check(case, right(planted))
            pytest.fail(f"{name} was not caught", pytrace=False)


@pytest.mark.parametrize("rows", (1000, 8192))
def test_grad_weight_summed_in_bfloat16_is_caught(rows: int) -> None:
    case = make_case(LAYER_NORM, rows, 8, torch.bfloat16)
    results = right(case)
    x_hat = right(case.replace(weight=None, bias=None, out_dtype=torch.float32))["y"]
    total = torch.zeros(8, dtype=torch.bfloat16)
    for row in (case.grad_y * x_hat).bfloat16():
        total += row
    results["grad_weight"] = total
    with pytest.raises(AssertionError, match="grad_weight"):
        check(case, results)


def test_the_normalised_sum_must_be_the_rounded_one() -> None:
    """bf16 residual: y must come from the sum that is returned, not from the exact one."""
    case = make_case(ADD_LAYER_NORM, 9, 65, torch.bfloat16)
    results = right(case)
    exact = make_case(LAYER_NORM, 9, 65, torch.float32).replace(
        x=case.x.float() + case.residual.float(), weight=case.weight, bias=case.bias, out_dtype=torch.bfloat16
    )
    results["y"] = right(exact)["y"]
    with pytest.raises(AssertionError, match="y"):
        check(case, results)


def test_cancelling_variance_is_caught() -> None:
    """E[x^2] - E[x]^2 in fp32 at mean 1e4: what the scale must not excuse."""
    case = make_case(LAYER_NORM, 9, 65)
    case = case.replace(x=case.x * 0.5 + 1e4)
    mean = case.x.mean(-1, keepdim=True)
    variance = case.x.square().mean(-1, keepdim=True) - mean.square()
    results = right(case)
    results["y"] = (case.x - mean) * torch.rsqrt(variance.clamp_min(0) + 1e-5) * case.weight + case.bias
    with pytest.raises(AssertionError, match="y"):
        check(case, results)


@pytest.mark.parametrize("name, dtype", (("y", torch.bfloat16), ("grad_x", torch.int32)))
def test_a_wrong_dtype_is_caught(name: str, dtype: torch.dtype) -> None:
    case = make_case(LAYER_NORM, 9, 65)
    results = right(case)
    results[name] = results[name].to(dtype)
    with pytest.raises(AssertionError, match="dtype"):
        check(case, results)


def test_a_missing_gradient_is_caught() -> None:
    case = make_case(LAYER_NORM, 9, 65)
    results = right(case)
    del results["grad_bias"]
    with pytest.raises(AssertionError):
        check(case, results)


def test_not_worse_compares_with_torch() -> None:
    case = make_case(LAYER_NORM, 64, 65)
    expected = oracle(case)["y"]
    noise = torch.randn(64, 65, dtype=torch.float64) * 1e-6
    theirs = (expected.value + noise).float()
    assert_not_worse("y", (expected.value + 1.4 * noise).float(), theirs, expected)
    with pytest.raises(AssertionError):
        assert_not_worse("y", (expected.value + 1.7 * noise).float(), theirs, expected)
    with pytest.raises(AssertionError):
        assert_not_worse("y", torch.full_like(theirs, torch.nan), theirs, expected)


def test_bitwise_sees_the_last_bit_and_the_sign_of_zero() -> None:
    a = torch.tensor([0.0, 1.0, torch.nan])
    assert_bitwise("a", a, a.clone())
    for changed in ([-0.0, 1.0, torch.nan], [0.0, 1.0 + 2**-23, torch.nan], [0.0, 1.0, 0.0]):
        with pytest.raises(AssertionError):
            assert_bitwise("a", a, torch.tensor(changed))


def test_every_direction_has_a_bound_with_a_reason() -> None:
    directions = {"row": set(DIRECTION.values()) - {"running"}, "plane": set(DIRECTION.values()) - {"sum"}}
    wanted = [(geometry, direction) for geometry, those in directions.items() for direction in those]
    assert len(TOLERANCES) == 2 * len(wanted)
    for geometry, direction in wanted:
        for dtype in (torch.float32, torch.float64):
            bound = TOLERANCES[geometry, direction, dtype]
            assert bound.reason and 0.5 <= bound.rounding < 1 and 0 < bound.arithmetic <= 32
