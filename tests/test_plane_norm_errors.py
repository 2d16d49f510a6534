"""Bad arguments of the plane family: torch's exception type where torch has the argument, and a message that names
argument and value; checked before anything is written (test_plane_norm_running.py)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import TestBackend
from plane_cases import BATCH_NORM, GROUP_NORM, INSTANCE_NORM, PLANE_OPS, PlaneCase, PlaneOp, evaluate, make_plane_case

Change = Callable[[PlaneCase], PlaneCase]
all_ops = pytest.mark.parametrize("op", PLANE_OPS, ids=str)
with_running = pytest.mark.parametrize("op", (BATCH_NORM, INSTANCE_NORM), ids=str)


def good(op: PlaneOp, backend: TestBackend, **options: Any) -> PlaneCase:
    return make_plane_case(op, (2, 6, 3, 5), device=backend.device, **options)


def call(case: PlaneCase, function: Callable[..., Any] | None = None) -> Any:
    arguments, keywords = case.arguments
    return (function or case.op.function)(*arguments, **keywords)


def expect_like_torch(case: PlaneCase, words: tuple[str, ...]) -> None:
    with pytest.raises(Exception) as theirs:
        call(case, case.op.torch)
    with pytest.raises(Exception) as ours:
        call(case)
    assert type(ours.value) is type(theirs.value), f"{ours.value!r}, torch: {theirs.value!r}"
    for word in words:
        assert word in str(ours.value), f"{word!r} is missing in: {ours.value}"


# What is wrong -> (change of a good case, what the message must say); torch rejects them all
WRONG: dict[str, tuple[Change, tuple[str, ...]]] = {
    "weight's size": (lambda c: c.replace(weight=c.weight[:5].clone()), ("weight", "5", "6")),
    "bias's size": (lambda c: c.replace(bias=c.bias[:5].clone()), ("bias", "5", "6")),
    "integer input": (lambda c: c.replace(x=c.x.int(), weight=None, bias=None), ("input", "Int")),
    "bool input": (lambda c: c.replace(x=c.x.bool(), weight=None, bias=None), ("input", "Bool")),
    "weight on another device": (lambda c: c.replace(weight=c.weight.to("meta")), ("weight", "meta", "device")),
    "bias on another device": (lambda c: c.replace(bias=c.bias.to("meta")), ("bias", "meta", "device")),
}
WRONG_RUNNING: dict[str, tuple[Change, tuple[str, ...]]] = {
    "running_mean's size": (lambda c: c.replace(running_mean=c.running_mean[:5].clone()), ("running_mean", "5", "6")),
    "running_var's size": (lambda c: c.replace(running_var=c.running_var[:5].clone()), ("running_var", "5", "6")),
    "neither in evaluation": (
        lambda c: c.replace(running_mean=None, running_var=None, batch_statistics=False),
        ("running_mean", "defined"),
    ),
    "one value, in training": (lambda c: c.map(lambda t: t[:1, :, :1, :1], ("x",)), ("1, 6, 1, 1", "more than 1")),
}
WRONG_OF: dict[str, tuple[PlaneOp, Change, tuple[str, ...]]] = {
    "running_var without running_mean": (BATCH_NORM, lambda c: c.replace(running_mean=None), ("running_mean", "both")),
    "running_mean without running_var": (BATCH_NORM, lambda c: c.replace(running_var=None), ("running_var", "both")),
    "no running_var in evaluation": (
        BATCH_NORM,
        lambda c: c.replace(running_var=None, batch_statistics=False),
        ("running_var", "defined"),
    ),
    "eps of zero in training": (BATCH_NORM, lambda c: c.replace(eps=0.0), ("eps", "positive", "0")),
    "negative eps in training": (BATCH_NORM, lambda c: c.replace(eps=-1e-5), ("eps", "positive")),
    "negative eps in evaluation": (
        BATCH_NORM,
        lambda c: c.replace(eps=-1e-5, batch_statistics=False),
        ("eps", "non-negative"),
    ),
    "one position for each sample": (
        INSTANCE_NORM,
        lambda c: c.map(lambda t: t[..., :1, :1], ("x",)),
        ("2, 6, 1, 1", "spatial"),
    ),
    "groups that do not divide": (GROUP_NORM, lambda c: c.replace(groups=4), ("4", "2, 6, 3, 5", "divisible")),
    "negative groups": (GROUP_NORM, lambda c: c.replace(groups=-2), ("-2", "greater than 0")),
    "one dimension": (GROUP_NORM, lambda c: c.replace(x=c.x[0, :, 0, 0]), ("2 dimensions", "1")),
    "one value in a group": (
        GROUP_NORM,
        lambda c: c.replace(x=c.x[:1, :, 0, 0], groups=6),
        ("more than 1 value", "1, 6"),
    ),
}
TYPES: dict[str, Change] = {
    "input is a list": lambda c: c.replace(x=[1.0, 2.0]),
    "input is None": lambda c: c.replace(x=None),
    "weight is a list": lambda c: c.replace(weight=[1.0] * 6),
    "bias is a number": lambda c: c.replace(bias=1.0),
    "eps is a string": lambda c: c.replace(eps="small"),
    "eps is None": lambda c: c.replace(eps=None),
}
TYPES_RUNNING: dict[str, Change] = {
    "momentum is None": lambda c: c.replace(momentum=None),
    "momentum is a string": lambda c: c.replace(momentum="0.1"),
    "running_mean is a list": lambda c: c.replace(running_mean=[0.0] * 6),
}


@all_ops
@pytest.mark.parametrize("name", WRONG)
def test_wrong_value(backend: TestBackend, op: PlaneOp, name: str) -> None:
    change, words = WRONG[name]
    expect_like_torch(change(good(op, backend)), words)


@with_running
@pytest.mark.parametrize("name", WRONG_RUNNING)
def test_wrong_running_statistics(backend: TestBackend, op: PlaneOp, name: str) -> None:
    change, words = WRONG_RUNNING[name]
    words = () if op is INSTANCE_NORM and "size" in name else words  # torch's sizes there are those of its reshaping
    expect_like_torch(change(good(op, backend)), words)


@pytest.mark.parametrize("name", WRONG_OF)
def test_wrong_value_of_one_op(backend: TestBackend, name: str) -> None:
    op, change, words = WRONG_OF[name]
    expect_like_torch(change(good(op, backend)), words)


@all_ops
@pytest.mark.parametrize("name", TYPES)
def test_wrong_type(backend: TestBackend, op: PlaneOp, name: str) -> None:
    case = TYPES[name](good(op, backend))
    if name == "input is a list" or name == "input is None":  # torch's Python reads its size first
        with pytest.raises((TypeError, AttributeError)):
            call(case)
    else:
        with pytest.raises(TypeError):
            call(case)


@with_running
@pytest.mark.parametrize("name", TYPES_RUNNING)
def test_wrong_type_of_running_statistics(backend: TestBackend, op: PlaneOp, name: str) -> None:
    with pytest.raises(TypeError):
        call(TYPES_RUNNING[name](good(op, backend)))


def test_groups_of_zero(backend: TestBackend) -> None:
    """torch divides by zero in Python before it can say what is wrong."""
    with pytest.raises(RuntimeError, match="greater than 0, got 0"):
        call(good(GROUP_NORM, backend, groups=1).replace(groups=0))


@all_ops
def test_dtypes_torch_does_not_mix(backend: TestBackend, op: PlaneOp) -> None:
    """What torch rejects as mixed is allowed; what is not floating is named."""
    for name in ("weight", "bias", "residual", "running_mean", "running_var"):
        case = good(op, backend, residual=True)
        if getattr(case, name) is not None:
            for dtype in (torch.int64, torch.bool, torch.complex64):
                with pytest.raises(RuntimeError, match=name):
                    call(case.map(lambda t, dtype=dtype: t.to(dtype), [name]))


@all_ops
@pytest.mark.parametrize("activation", ("softplus", "ReLU", "", "gelu_none"))
def test_unknown_activation(backend: TestBackend, op: PlaneOp, activation: str) -> None:
    with pytest.raises(ValueError, match=r"activation.*relu") as error:
        call(good(op, backend, activation=activation))
    assert repr(activation) in str(error.value)


@all_ops
def test_activation_of_another_type(backend: TestBackend, op: PlaneOp) -> None:
    for activation in (None, 3, torch.relu):
        with pytest.raises(TypeError, match="activation"):
            call(good(op, backend, activation=activation))


@all_ops
@pytest.mark.parametrize("shape", ((2, 6, 3, 4), (2, 6, 3), (1, 6, 3, 5), (2, 1, 1, 1), (2, 6, 5, 3)))
def test_a_residual_is_not_broadcast(backend: TestBackend, op: PlaneOp, shape: tuple[int, ...]) -> None:
    case = good(op, backend).replace(residual=torch.ones(shape, device=backend.device))
    with pytest.raises(RuntimeError, match=r"residual") as error:
        call(case)
    assert str(list(shape)) in str(error.value) and "[2, 6, 3, 5]" in str(error.value)
    with pytest.raises(RuntimeError, match=r"residual.*device"):
        call(good(op, backend).replace(residual=torch.ones(2, 6, 3, 5, device="meta")))


@all_ops
@pytest.mark.parametrize("dtype", (torch.uint8, torch.int64, torch.float32))
def test_a_mask_must_be_bool(backend: TestBackend, op: PlaneOp, dtype: torch.dtype) -> None:
    mask = torch.ones(2, 1, 3, 5, dtype=dtype, device=backend.device)
    with pytest.raises((TypeError, RuntimeError), match=r"mask.*bool"):
        call(good(op, backend).replace(mask=mask))


@all_ops
@pytest.mark.parametrize(
    "shape", ((2, 6, 3, 5), (2, 3, 5), (2, 1, 3, 4), (3, 1, 3, 5), (2, 1, 3, 5, 1), (6, 3, 5), (4,), (0, 1, 3, 5))
)
def test_a_mask_must_fit(backend: TestBackend, op: PlaneOp, shape: tuple[int, ...]) -> None:
    """One value for all channels: a mask for each channel is not what the statistics of a set can use."""
    mask = torch.ones(shape, dtype=torch.bool, device=backend.device)
    with pytest.raises(RuntimeError, match=r"mask.*\(N, 1, spatial") as error:
        call(good(op, backend).replace(mask=mask))
    assert str(list(shape)) in str(error.value)
    with pytest.raises(RuntimeError, match=r"mask.*device"):
        call(good(op, backend).replace(mask=torch.ones(2, 1, 3, 5, dtype=torch.bool, device="meta")))


@with_running
def test_running_statistics_do_not_require_gradients(backend: TestBackend, op: PlaneOp) -> None:
    for batch_statistics in (True, False):
        case = good(op, backend, batch_statistics=batch_statistics)
        case = case.replace(x=case.x.requires_grad_(), running_mean=case.running_mean.requires_grad_())
        with pytest.raises(RuntimeError, match="running_mean"):
            call(case)


@all_ops
def test_unknown_argument(backend: TestBackend, op: PlaneOp) -> None:
    arguments, _ = good(op, backend).arguments
    with pytest.raises(TypeError, match="epsilon"):
        op.function(*arguments, epsilon=1e-5)
    with pytest.raises(TypeError):
        op.function(*arguments, None)  # what is new goes by name


@all_ops
def test_after_an_error_everything_works(backend: TestBackend, op: PlaneOp) -> None:
    case = good(op, backend)
    first = evaluate(case)
    for change, _ in WRONG.values():
        with pytest.raises((RuntimeError, ValueError, TypeError)):
            call(change(case))
    assert torch.equal(evaluate(case)["y"], first["y"])


@all_ops
def test_an_error_in_backward(backend: TestBackend, op: PlaneOp) -> None:
    case = good(op, backend)
    y = call(case.replace(x=case.x.requires_grad_()))
    with pytest.raises(RuntimeError, match="shape"):
        y.backward(case.grad_y[:, :2])
