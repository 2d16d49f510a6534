"""Bad arguments of whitening: exception types, messages that name argument and value, nothing written."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import TestBackend
from torch import Tensor
from whitening_cases import RUNNING, make, results_of

from torchfastnorm import BatchWhitening, IterNorm, batch_whitening

Change = tuple[dict[str, Any], type[Exception], tuple[str, ...]]
ONES = torch.ones
# What is wrong -> (arguments, exception, what the message must say). The good call: (4, 6, 5, 3), two groups of 3.
WRONG: dict[str, Change] = {
    "weight's size": ({"weight": ONES(5)}, RuntimeError, ("weight", "5", "6 channels")),
    "weight's dimensions": ({"weight": ONES(1, 6, 1, 1)}, RuntimeError, ("weight", "reshape it to (6,)")),
    "bias's size": ({"bias": ONES(3)}, RuntimeError, ("bias", "3", "6 channels")),
    "integer weight": ({"weight": ONES(6).int()}, RuntimeError, ("weight", "Int")),
    "complex bias": ({"bias": ONES(6).cfloat()}, RuntimeError, ("bias", "Complex")),
    "weight elsewhere": ({"weight": ONES(6, device="meta")}, RuntimeError, ("weight", "meta", "device")),
    "running_wm elsewhere": ({"running_wm": ONES(2, 3, 3, device="meta")}, RuntimeError, ("running_wm", "meta")),
    "running_mean's size": ({"running_mean": ONES(6)}, RuntimeError, ("running_mean", "[2, 3, 1]", "[6]")),
    "running_mean of other groups": ({"running_mean": ONES(3, 2, 1)}, RuntimeError, ("running_mean", "[3, 2, 1]")),
    "running_wm's size": ({"running_wm": ONES(2, 3)}, RuntimeError, ("running_wm", "[2, 3, 3]", "[2, 3]")),
    "running_wm of one group": ({"running_wm": ONES(1, 6, 6)}, RuntimeError, ("running_wm", "num_channels")),
    "integer running_wm": ({"running_wm": ONES(2, 3, 3).long()}, RuntimeError, ("running_wm", "Long")),
    "running_mean alone": ({"running_wm": None}, ValueError, ("running_mean", "running_wm", "together")),
    "running_wm alone": ({"running_mean": None}, ValueError, ("running_mean", "running_wm", "together")),
    "integer input": ({"input": ONES(4, 6, 5, 3).int()}, NotImplementedError, ("input", "Int")),
    "one dimension": ({"input": ONES(6)}, IndexError, ("2 dimensions", "1")),
    "no dimension": ({"input": torch.tensor(1.0)}, IndexError, ("2 dimensions", "0")),
    "other channels": ({"input": ONES(4, 9, 5, 3)}, RuntimeError, ("running_mean", "[3, 3, 1]")),
    "groups that do not divide": ({"num_channels": 4}, ValueError, ("[4, 6, 5, 3]", "num_channels=4", "divisor of 6")),
    "groups of more than all": ({"num_channels": 12}, ValueError, ("num_channels=12", "divisor of 6")),
    "groups of none": ({"num_channels": 0}, ValueError, ("num_channels", "positive", "0")),
    "negative groups": ({"num_channels": -3}, ValueError, ("num_channels", "-3")),
    "unknown method": ({"method": "ZCA"}, ValueError, ("'ZCA'", "zca, pca, iternorm, cholesky")),
    "no method": ({"method": ""}, ValueError, ("method", "zca")),
    "negative iterations": ({"method": "iternorm", "iterations": -1}, ValueError, ("iterations", "-1")),
    "eps of zero": ({"eps": 0.0}, ValueError, ("eps", "positive", "0")),
    "negative eps": ({"eps": -1e-5}, ValueError, ("eps", "positive")),
    "input is a list": ({"input": [1.0]}, TypeError, ()),
    "input is None": ({"input": None}, TypeError, ()),
    "weight is a list": ({"weight": [1.0] * 6}, TypeError, ("weight",)),
    "bias is a number": ({"bias": 1.0}, TypeError, ("bias",)),
    "running_mean is a number": ({"running_mean": 0.0}, TypeError, ("running_mean",)),
    "training is a number": ({"training": 1}, TypeError, ("training",)),
    "momentum is None": ({"momentum": None}, TypeError, ("momentum",)),
    "eps is a string": ({"eps": "small"}, TypeError, ("eps",)),
    "num_channels is a float": ({"num_channels": 3.0}, TypeError, ("num_channels",)),
    "method is None": ({"method": None}, TypeError, ("method",)),
    "iterations is a float": ({"iterations": 2.5}, TypeError, ("iterations",)),
    "unknown argument": ({"epsilon": 1e-5}, TypeError, ("epsilon",)),
}
IN_EVALUATION: dict[str, Change] = {
    "no running statistics": (dict.fromkeys(RUNNING), RuntimeError, ("running_mean", "running_wm", "training=True")),
    "negative eps": ({"eps": -1e-5}, ValueError, ("eps", "non-negative")),
    "unknown method": ({"method": "svd"}, ValueError, ("'svd'",)),
}


def expect_error(backend: TestBackend, change: Change, training: bool) -> None:
    changes, kind, words = change
    arguments = make((4, 6, 5, 3), 3, torch.float32, backend)
    before = {name: arguments[name].clone() for name in RUNNING}
    moved = {n: t.to(backend.device) if isinstance(t, Tensor) and not t.is_meta else t for n, t in changes.items()}
    with pytest.raises(kind) as error:
        batch_whitening(**({"training": training, "num_channels": 3} | arguments | moved))
    for word in words:
        assert word in str(error.value), f"{word!r} is missing in: {error.value}"
    assert all(torch.equal(arguments[name], t) for name, t in before.items())


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments(backend: TestBackend, name: str) -> None:
    expect_error(backend, WRONG[name], training=True)


@pytest.mark.parametrize("name", IN_EVALUATION)
def test_wrong_in_evaluation(backend: TestBackend, name: str) -> None:
    expect_error(backend, IN_EVALUATION[name], training=False)


def test_eps_of_zero_in_evaluation(backend: TestBackend) -> None:
    """It has no say there."""
    arguments = make((4, 6, 5, 3), 3, torch.float32, backend)
    y = batch_whitening(**arguments, num_channels=3, eps=0.0)
    assert torch.equal(y, batch_whitening(**arguments, num_channels=3))


def test_fake_tensors_are_checked_too(backend: TestBackend) -> None:
    """A meta tensor meets the same errors as a real one."""
    x = torch.empty(4, 6, 5, 3, device="meta")
    for options, word in (({"num_channels": 4}, "num_channels=4"), ({"method": "svd"}, "svd"), ({"eps": 0.0}, "eps")):
        with pytest.raises(ValueError, match=word):
            batch_whitening(x, training=True, **options)
    with pytest.raises(RuntimeError, match=r"weight.*device"):
        batch_whitening(x, weight=torch.ones(6, device=backend.device), training=True)
    with pytest.raises(RuntimeError, match=r"running_mean and running_wm must be defined"):
        batch_whitening(x)


def test_running_statistics_do_not_require_gradients(backend: TestBackend) -> None:
    for training in (True, False):
        for name in RUNNING:
            arguments = make((4, 6, 5, 3), 3, torch.float32, backend)
            arguments["input"].requires_grad_(), arguments[name].requires_grad_()
            with pytest.raises(RuntimeError, match="running_mean and running_wm"):
                batch_whitening(**arguments, training=training, num_channels=3)


def test_the_op_that_writes_nothing(backend: TestBackend) -> None:
    own = make((4, 6, 5, 3), 3, torch.float32, backend)
    before = own["running_wm"].clone()
    tensors = (own["input"], own["running_mean"], own["running_wm"], None, None)
    for op in (torch.ops.torchfastnorm.batch_whitening, torch.ops.torchfastnorm.whitening_forward):
        with pytest.raises(RuntimeError, match="with_update"):
            op(*tensors, True, 0.1, 1e-5, 3, "zca", 5)
    assert torch.equal(own["running_wm"], before)


def test_an_error_in_backward(backend: TestBackend) -> None:
    own = make((4, 6, 5, 3), 3, torch.float32, backend)
    y = batch_whitening(own["input"].requires_grad_(), training=True)
    with pytest.raises(RuntimeError, match="shape"):
        y.backward(torch.ones(4, 6, 5, device=backend.device))


def test_a_direct_call_of_backward_is_checked(backend: TestBackend) -> None:
    """Whatever it is given, it reads within bounds."""
    own = make((4, 6, 5, 3), 3, torch.float32, backend)
    forward, backward = torch.ops.torchfastnorm.whitening_forward, torch.ops.torchfastnorm.whitening_backward
    for method in ("zca", "iternorm"):
        y, *saved = forward(own["input"], None, None, None, None, True, 0.1, 1e-5, 3, method, 5)
        last = [True, 1e-5, 3, method, 5, torch.float32, [True] * 3]
        good = [y, own["input"], *saved, own["weight"], *last]
        assert all(t.isfinite().all() for t in backward(*good))
        bad = {
            0: y[:3], 2: saved[0][:5], 3: saved[1][:1], 4: saved[2][:, :2], 5: own["weight"][:5], 8: 4, 9: "svd",
        }  # fmt: skip
        for at, value in bad.items():
            with pytest.raises((RuntimeError, ValueError)):
                backward(*good[:at], value, *good[at + 1 :])


@pytest.mark.parametrize(
    "arguments", ((0,), (-6,), (6, 0), (6, -1), (6, 1, 0), (6, 1, -2), (6, 1, None, 5, 1)), ids=str
)
def test_iter_norm_constructor(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match="IterNorm: num_features="):
        IterNorm(*arguments)


def test_batch_whitening_constructor() -> None:
    for arguments, words in (((6, 4), "num_channels=4"), ((6, 0), "num_channels=0"), ((6, -3), "num_channels=-3")):
        with pytest.raises(ValueError, match=f"BatchWhitening: {words} does not divide num_features=6"):
            BatchWhitening(*arguments)
    with pytest.raises(ValueError, match=r"unknown method 'ZCA'; one of zca, pca, iternorm, cholesky"):
        BatchWhitening(6, method="ZCA")


@pytest.mark.parametrize("kind", (IterNorm, BatchWhitening))
def test_modules_reject_other_channels(backend: TestBackend, kind: Any) -> None:
    module = kind(6).to(backend.device)
    for shape in ((4, 5, 3, 3), (6,), (4, 12), ()):
        with pytest.raises(ValueError, match=rf"{kind.__name__}: expected input \(N, 6, \*\)"):
            module(torch.ones(shape, device=backend.device))
    assert not module.running_mean.any()


def test_after_an_error_everything_works(backend: TestBackend) -> None:
    arguments = make((4, 6, 5, 3), 3, torch.float32, backend)
    first = results_of(batch_whitening, arguments, training=True, num_channels=3)
    for change in list(WRONG.values())[:6]:
        expect_error(backend, change, training=True)
    again = results_of(batch_whitening, arguments, training=True, num_channels=3)
    assert all(torch.equal(t, first[name]) for name, t in again.items())
