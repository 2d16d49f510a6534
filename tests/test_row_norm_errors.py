"""Bad arguments: the type of exception that torch.nn.functional raises, and a message that names argument and value."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import LAYER_NORM, OPS, Case, Op, evaluate, make_case
from conftest import TestBackend
from torch import Tensor

all_ops = pytest.mark.parametrize("op", OPS, ids=str)
Change = Callable[[Case], Case]


def short(t: Tensor | None) -> Tensor | None:
    return None if t is None else t[:-1].clone()


def call(case: Case, function: Callable[..., Any]) -> Any:
    arguments, keywords = case.arguments
    return function(*arguments, **keywords)


def both(case: Case, change: Callable[[Tensor], Tensor]) -> Case:
    """x and the residual changed alike, so that they still fit each other."""
    return case.replace(x=change(case.x), residual=None if case.residual is None else change(case.residual))


# What is wrong -> (change of a good case, what the message must say)
WRONG: dict[str, tuple[Change, tuple[str, ...]]] = {
    "trailing shape": (
        lambda c: c.replace(normalized_shape=(6,), weight=None, bias=None),
        ("normalized_shape", "6", "5"),
    ),
    "trailing shapes": (
        lambda c: c.replace(normalized_shape=(4, 5), weight=None, bias=None),
        ("normalized_shape", "4, 5", "3, 5"),
    ),
    "too few dimensions": (
        lambda c: both(c.replace(normalized_shape=(3, 5), weight=None, bias=None), lambda t: t[0, 0]),
        ("normalized_shape", "3, 5"),
    ),
    "empty normalized_shape": (lambda c: c.replace(normalized_shape=(), weight=None, bias=None), ("normalized_shape",)),
    "weight's shape": (lambda c: c.replace(weight=short(c.weight)), ("weight", "4", "5")),
    "weight's dimensions": (lambda c: c.replace(weight=c.weight[None]), ("weight", "1, 5")),
    "integer input": (lambda c: both(c.replace(weight=None, bias=None), Tensor.int), ("input", "Int")),
    "bool input": (lambda c: both(c.replace(weight=None, bias=None), Tensor.bool), ("input", "Bool")),
    "weight on another device": (lambda c: c.replace(weight=c.weight.to("meta")), ("weight", "meta", "device")),
}
WRONG_BIAS: dict[str, tuple[Change, tuple[str, ...]]] = {
    "bias's shape": (lambda c: c.replace(bias=short(c.bias)), ("bias", "4", "5")),
    "bias on another device": (lambda c: c.replace(bias=c.bias.to("meta")), ("bias", "meta", "device")),
}
WRONG_RESIDUAL: dict[str, tuple[Change, tuple[str, ...]]] = {
    "residual's rows": (lambda c: c.replace(residual=c.residual[:, :2].clone()), ("residual", "2, 2, 5", "2, 3, 5")),
    "residual's columns": (lambda c: c.replace(residual=c.residual[..., :4].clone()), ("residual", "2, 3, 4")),
    "residual on another device": (lambda c: c.replace(residual=c.residual.to("meta")), ("residual", "meta", "device")),
}
TYPES: dict[str, Change] = {
    "normalized_shape is a number": lambda c: c.replace(normalized_shape=5),
    "normalized_shape holds a string": lambda c: c.replace(normalized_shape=("5",)),
    "input is a list": lambda c: c.replace(x=[1.0, 2.0]),
    "input is None": lambda c: c.replace(x=None),
    "weight is a list": lambda c: c.replace(weight=[1.0] * 5),
    "eps is a string": lambda c: c.replace(eps="small"),
}


def expect_like_torch(case: Case, words: tuple[str, ...]) -> None:
    with pytest.raises(Exception) as theirs:
        call(case, case.op.torch)
    with pytest.raises(Exception) as ours:
        call(case, case.op.function)
    assert type(ours.value) is type(theirs.value), f"{ours.value!r}, torch: {theirs.value!r}"
    message = str(ours.value)
    for word in words:
        assert re.search(re.escape(word), message), f"{word!r} is missing in: {message}"


@all_ops
@pytest.mark.parametrize("name", WRONG)
def test_wrong_value(backend: TestBackend, op: Op, name: str) -> None:
    change, words = WRONG[name]
    expect_like_torch(change(make_case(op, (2, 3), 5, device=backend.device)), words)


@pytest.mark.parametrize("op", [op for op in OPS if op.has_bias], ids=str)
@pytest.mark.parametrize("name", WRONG_BIAS)
def test_wrong_bias(backend: TestBackend, op: Op, name: str) -> None:
    change, words = WRONG_BIAS[name]
    expect_like_torch(change(make_case(op, (2, 3), 5, device=backend.device)), words)


@pytest.mark.parametrize("op", [op for op in OPS if op.has_residual], ids=str)
@pytest.mark.parametrize("name", WRONG_RESIDUAL)
def test_wrong_residual(backend: TestBackend, op: Op, name: str) -> None:
    change, words = WRONG_RESIDUAL[name]
    expect_like_torch(change(make_case(op, (2, 3), 5, device=backend.device)), words)


@all_ops
@pytest.mark.parametrize("name", TYPES)
def test_wrong_type(backend: TestBackend, op: Op, name: str) -> None:
    expect_like_torch(TYPES[name](make_case(op, (2, 3), 5, device=backend.device)), ())


@pytest.mark.parametrize("op", [op for op in OPS if op.has_residual], ids=str)
@pytest.mark.parametrize("shape", ((5,), (3, 5), (1, 3, 5), (2, 1, 5), (2, 3, 1)))
def test_a_residual_is_not_broadcast(backend: TestBackend, op: Op, shape: tuple[int, ...]) -> None:
    """torch would broadcast; the fused form says what to do instead of reading a residual of another shape."""
    case = make_case(op, (2, 3), 5, device=backend.device)
    with pytest.raises(RuntimeError, match=r"residual.*expand") as error:
        call(case.replace(residual=torch.ones(shape, device=backend.device)), op.function)
    assert str(list(shape)) in str(error.value)


@all_ops
@pytest.mark.parametrize("dtype", (torch.int64, torch.bool, torch.complex64))
def test_what_must_be_floating(backend: TestBackend, op: Op, dtype: torch.dtype) -> None:
    case = make_case(op, (2, 3), 5, device=backend.device)
    for name in ("weight", "bias", "residual"):
        if getattr(case, name) is not None:
            with pytest.raises(RuntimeError, match=name):
                call(case.replace(**{name: getattr(case, name).to(dtype)}), op.function)
    with pytest.raises(RuntimeError, match="out_dtype"):
        call(case.replace(out_dtype=dtype), op.function)


@pytest.mark.parametrize("op", [op for op in OPS if op.has_bias], ids=str)
def test_layer_norm_needs_an_eps(backend: TestBackend, op: Op) -> None:
    case = make_case(op, (2, 3), 5, device=backend.device)
    for function in (op.torch, op.function):
        arguments, _ = case.arguments
        with pytest.raises(TypeError):
            function(*arguments, None)


@all_ops
def test_unknown_argument(backend: TestBackend, op: Op) -> None:
    arguments, _ = make_case(op, (2, 3), 5, device=backend.device).arguments
    with pytest.raises(TypeError, match="epsilon"):
        op.function(*arguments, epsilon=1e-5)


@all_ops
def test_a_failed_call_changes_nothing(backend: TestBackend, op: Op) -> None:
    """Errors come before anything is written, and the next call is right."""
    case = make_case(op, (2, 3), 5, device=backend.device)
    before = case.map(Tensor.clone)
    first = evaluate(case)
    for change, _ in WRONG.values():
        with pytest.raises((RuntimeError, ValueError, TypeError)):
            call(change(case), op.function)
    for name in ("x", "residual", "weight", "bias"):
        if getattr(case, name) is not None:
            assert torch.equal(getattr(case, name), getattr(before, name))
    assert torch.equal(evaluate(case)["y"], first["y"])


def test_an_error_in_backward(backend: TestBackend) -> None:
    case = make_case(LAYER_NORM, (2, 3), 5, device=backend.device)
    y = call(case.replace(x=case.x.requires_grad_()), LAYER_NORM.function)
    with pytest.raises(RuntimeError, match="shape"):
        y.backward(case.grad_y[:, :2])
