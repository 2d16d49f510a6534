"""SwitchNorm: the mixture of three statistics. The passes over x that it shares are tested with the other norms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import TestBackend
from plane_cases import LAYOUTS, cut, in_layout
from torch import Tensor

from torchfastnorm import reference, switch_norm

all_layouts = pytest.mark.parametrize("layout", LAYOUTS)
both_modes = pytest.mark.parametrize("training", (True, False), ids=("training", "eval"))
both_averages = pytest.mark.parametrize("moving_average", (True, False), ids=("moving", "sums"))
# Vectors, planes of one element, one sample, one channel, planes of a block and of many; odd sizes throughout.
SHAPES = (
    (6, 5),
    (1, 5),
    (6, 1),
    (7, 33),
    (4, 3, 7),
    (5, 7, 4, 4),
    (3, 40, 9, 7),
    (4, 6, 1, 1),
    (1, 5, 4, 3),
    (5, 1, 3, 3),
)
SHAPES += ((2, 3, 3, 4, 5), (17, 2, 3, 11), (3, 4, 130, 131))
LOGITS = ("mean_weight", "var_weight")
LEAVES = ("input", *LOGITS, "weight", "bias", "residual")
PER_CHANNEL = ("running_mean", "running_var", "weight", "bias")


def make(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    backend: TestBackend,
    layout: str = LAYOUTS[0],
    terms: int = 3,
    residual: bool = False,
    other: dict[str, torch.dtype] | None = None,
) -> dict[str, Any]:
    """Arguments whose means differ from plane to plane. `other`: dtypes of those that have one of their own."""
    generator = torch.Generator().manual_seed(0)

    def randn(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    samples, channels = shape[:2]
    centers = randn(samples, channels, *[1] * (len(shape) - 2))
    own = torch.float64 if dtype == torch.float64 else torch.float32
    arguments = {
        "input": in_layout((randn(*shape) * 1.5 + centers + 0.5).to(dtype), layout),
        "mean_weight": randn(terms).to(dtype),
        "var_weight": randn(terms).to(dtype),
    }
    if terms == 3 or len(shape) == 2:
        arguments["running_mean"] = (randn(channels) * 0.5).to(own)
        arguments["running_var"] = (randn(channels).square() + 0.5).to(own)
    arguments |= {"weight": (randn(channels) * 0.5 + 1).to(dtype), "bias": randn(channels).to(dtype)}
    if residual:
        arguments["residual"] = in_layout(randn(*shape).to(dtype), layout)
    return {name: t.to(backend.device, (other or {}).get(name, t.dtype)) for name, t in arguments.items()}


def results_of(function: Any, arguments: dict[str, Any], training: bool = True, **options: Any) -> dict[str, Tensor]:
    """y, the running statistics that the call leaves, and the gradients of everything."""
    own = {name: t.clone() for name, t in arguments.items()}
    leaves = {name: own[name].requires_grad_() for name in LEAVES if name in own}
    y = function(**own, training=training, **options)
    generator = torch.Generator().manual_seed(1)
    grad = torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.device, y.dtype)
    grads = torch.autograd.grad(y, list(leaves.values()), grad)
    found = {"y": y.detach()} | {name: own[name] for name in own if name.startswith("running")}
    return found | {f"grad_{name}": g for name, g in zip(leaves, grads, strict=True)}


def assert_right(arguments: dict[str, Any], tolerance: float, **options: Any) -> dict[str, Tensor]:
    expected = results_of(reference.switch_norm, {n: t.cpu().double() for n, t in arguments.items()}, **options)
    results = results_of(switch_norm, arguments, **options)
    for name, found in results.items():
        like = arguments.get(name.removeprefix("grad_"), arguments["input"])
        assert (found.dtype, found.shape) == (like.dtype, like.shape), name
        scale = expected[name].abs().max().clamp_min(1)
        error = ((found.cpu().double() - expected[name]) / scale).abs().max()
        assert error <= tolerance, f"{name}: {error:.1e}"
    return results


@all_layouts
@both_modes
@pytest.mark.parametrize("terms", (3, 2))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_exact(backend: TestBackend, layout: str, training: bool, terms: int, shape: tuple[int, ...]) -> None:
    """fp64 against autograd of the formula."""
    arguments = make(cut(shape, backend.limit), torch.float64, backend, layout, terms)
    assert_right(arguments, 1e-8, training=training)


@all_layouts
@both_modes
@pytest.mark.parametrize("terms", (3, 2))
@pytest.mark.parametrize("dtype, tolerance", ((torch.float32, 1e-4), (torch.bfloat16, 2**-7), (torch.float16, 2**-9)))
def test_dtypes(
    backend: TestBackend, layout: str, training: bool, terms: int, dtype: torch.dtype, tolerance: float
) -> None:
    arguments = make((8, 16, 9, 10), dtype, backend, layout, terms, residual=True)
    results = assert_right(arguments, tolerance, training=training)
    assert results["y"].stride() == results["grad_input"].stride() == arguments["input"].stride()


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float32, torch.float64))
def test_mixed_dtypes(backend: TestBackend, dtype: torch.dtype) -> None:
    """Parameters, logits and running statistics each have a dtype of their own, and so have their gradients."""
    others = {torch.bfloat16: torch.float32, torch.float32: torch.bfloat16, torch.float64: torch.float32}
    tolerances = {torch.bfloat16: 2**-7, torch.float32: 2**-7, torch.float64: 1e-6}
    for names in (LOGITS, ("weight", "bias"), ("running_mean", "running_var"), ("residual",)):
        arguments = make((4, 6, 5, 7), dtype, backend, residual=True, other=dict.fromkeys(names, others[dtype]))
        assert_right(arguments, tolerances[dtype])


@all_layouts
@both_modes
@pytest.mark.parametrize("activation", ("none", "relu", "leaky_relu", "elu", "silu", "gelu", "gelu_tanh"))
def test_fused(backend: TestBackend, layout: str, training: bool, activation: str) -> None:
    for residual in (False, True):
        arguments = make((4, 6, 5, 7), torch.float64, backend, layout, residual=residual)
        assert_right(arguments, 1e-10, training=training, activation=activation)


def test_without_parameters(backend: TestBackend) -> None:
    """No weight, no bias, no running statistics: allowed in training."""
    arguments = make((4, 6, 5, 7), torch.float64, backend)
    for gone in (("weight",), ("bias",), ("running_mean", "running_var"), tuple(arguments)[3:]):
        assert_right({name: t for name, t in arguments.items() if name not in gone}, 1e-10)


@both_averages
@all_layouts
@pytest.mark.parametrize("shape, terms", (((64, 4, 28, 14), 3), ((256, 3, 8, 8), 3), ((33, 5), 2), ((1, 4, 3, 3), 3)))
def test_running_statistics(
    backend: TestBackend, layout: str, moving_average: bool, shape: tuple[int, ...], terms: int
) -> None:
    arguments = make(cut(shape, backend.limit), torch.float32, backend, layout, terms)
    for momentum in (0.0, 0.9, 1.0):
        results = assert_right(arguments, 1e-4, moving_average=moving_average, momentum=momentum)
        if moving_average and momentum == 1:  # the authors' convention: nothing of this batch
            assert torch.equal(results["running_var"], arguments["running_var"])
    assert results_of(switch_norm, arguments, training=False)["running_mean"].equal(arguments["running_mean"])


@pytest.mark.parametrize("kept", range(3), ids=("instance", "layer", "batch"))
def test_one_statistic_alone(backend: TestBackend, kept: int) -> None:
    """Logits that leave one: what torch computes with it, but for the unbiased variance of a plane."""
    x = make((4, 6, 5, 7), torch.float64, backend)["input"]
    logits = torch.full((3,), -100.0, dtype=torch.float64, device=x.device)
    logits[kept] = 100.0
    var, mean = torch.var_mean(x, (2, 3), keepdim=True)
    dims = ((2, 3), (1, 2, 3), (0, 2, 3))[kept]
    if kept:
        var = var.mean(1 - (kept - 1), keepdim=True) + mean.var(1 - (kept - 1), correction=0, keepdim=True)
    expected = (x - x.mean(dims, keepdim=True)) / (var + 1e-5).sqrt()
    torch.testing.assert_close(switch_norm(x, logits, logits, training=True), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.tsan
@all_layouts
@pytest.mark.parametrize("shape, terms", (((16, 12, 14, 14), 3), ((16, 12, 14, 14), 2), ((40, 30), 2)))
def test_deterministic(backend: TestBackend, layout: str, shape: tuple[int, ...], terms: int) -> None:
    arguments = make(shape, torch.bfloat16, backend, layout, terms)
    first = results_of(switch_norm, arguments)
    for name, t in results_of(switch_norm, arguments).items():
        assert torch.equal(t, first[name]), name


@all_layouts
@pytest.mark.parametrize("terms", (3, 2))
def test_hard_inputs(backend: TestBackend, layout: str, terms: int) -> None:
    """A mean of 1e4 everywhere or in a channel, constant planes, one element far out, nothing but one number."""

    def change(arguments: dict[str, Any], kind: str) -> None:
        x = arguments["input"]
        if kind == "mean":
            x += 1e4
        elif kind == "channel":
            x[:, 0] += 1e4
        elif kind == "planes":
            x[:, 1] = 3.0
        elif kind == "outlier":
            x[0, 2, 0, 0] = 1e5
        else:
            x.fill_(3.0)

    for kind in ("mean", "channel", "planes", "outlier", "constant"):
        arguments = make((8, 4, 6, 6), torch.float32, backend, layout, terms)
        change(arguments, kind)
        found = results_of(switch_norm, arguments)
        assert all(t.isfinite().all() for t in found.values()), kind
        exact = {name: t.cpu().double() for name, t in arguments.items()}
        y = reference.switch_norm(**exact, training=True)
        torch.testing.assert_close(
            found["y"].cpu().double(), y, rtol=1e-4, atol=5e-3, msg=lambda m, k=kind: f"{k}: {m}"
        )


def test_a_nan_stays_visible(backend: TestBackend) -> None:
    """In its sample and its channel; planes of neither do not see it."""
    arguments = make((3, 4, 5, 5), torch.float32, backend)
    arguments["input"][1, 2, 0, 0] = float("nan")
    y = switch_norm(**arguments, training=True)
    seen = y.isnan().flatten(2).all(2)
    expected = torch.zeros(3, 4, dtype=torch.bool, device=y.device)
    expected[1], expected[:, 2] = True, True
    assert torch.equal(seen, expected) and torch.equal(y.isnan().flatten(2).any(2), expected)


ERRORS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "logits of another length": ({"mean_weight": torch.ones(4)}, RuntimeError, "mean_weight"),
    "logits that differ in length": ({"var_weight": torch.ones(2)}, RuntimeError, "var_weight"),
    "logits of two dimensions": ({"mean_weight": torch.ones(3, 1)}, RuntimeError, "mean_weight"),
    "integer logits": ({"mean_weight": torch.ones(3).int()}, RuntimeError, "mean_weight"),
    "weight's size": ({"weight": torch.ones(5)}, RuntimeError, "weight"),
    "bias's size": ({"bias": torch.ones(5)}, RuntimeError, "bias"),
    "running_mean's size": ({"running_mean": torch.ones(5)}, RuntimeError, "running_mean"),
    "residual's size": ({"residual": torch.ones(4, 6, 5, 6)}, RuntimeError, "residual"),
    "running without a batch": (dict.fromkeys(LOGITS, torch.ones(2)), RuntimeError, "running"),
    "one dimension": (dict.fromkeys(PER_CHANNEL) | {"input": torch.ones(6)}, IndexError, "2 dimensions"),
    "unknown activation": ({"activation": "tanh"}, ValueError, "tanh"),
    "a number for logits": ({"mean_weight": 1.0}, TypeError, "mean_weight"),
    "no logits of means": ({"mean_weight": None}, TypeError, "mean_weight"),
    "no logits of variances": ({"var_weight": None}, TypeError, "var_weight"),
    "training of another type": ({"training": 1}, TypeError, "training"),
    "moving_average of another type": ({"moving_average": 1}, TypeError, "moving_average"),
}


@pytest.mark.parametrize("wrong", ERRORS)
def test_a_failed_call_writes_nothing(backend: TestBackend, wrong: str) -> None:
    changes, kind, word = ERRORS[wrong]
    arguments: dict[str, Any] = make((4, 6, 5, 7), torch.float32, backend) | {"training": True}
    before = {name: t.clone() for name, t in arguments.items() if name.startswith("running")}
    changes = {name: t.to(backend.device) if isinstance(t, Tensor) else t for name, t in changes.items()}
    with pytest.raises(kind, match=word):
        switch_norm(**(arguments | changes))
    assert all(torch.equal(arguments[name], t) for name, t in before.items())


def test_evaluation_needs_what_the_batch_would_give(backend: TestBackend) -> None:
    arguments = make((4, 6, 5, 7), torch.float32, backend)
    for gone in ("running_mean", "running_var"):
        for training in (False, True):
            with pytest.raises((RuntimeError, ValueError), match=gone):
                switch_norm(**(arguments | {gone: None}), training=training)
    arguments |= {"running_mean": None, "running_var": None}
    with pytest.raises(RuntimeError, match="running_mean"):
        switch_norm(**arguments)
    arguments |= {name: arguments[name][:2].clone() for name in LOGITS}
    assert switch_norm(**arguments).isfinite().all()


@all_layouts
def test_other_samples_have_no_say_without_the_batch(backend: TestBackend, layout: str) -> None:
    """A NaN or an infinite variance of one sample, in a mixture of instance and layer, and in evaluation."""
    for terms, training in ((2, True), (3, False)):
        arguments = make((4, 6, 5, 7), torch.float32, backend, layout, terms)
        alone = {n: t[1:] if n in ("input", "residual") else t for n, t in arguments.items()}
        expected = results_of(switch_norm, alone, training=training)
        for value in (float("nan"), 1e30):
            arguments["input"][0, 2, 0, 0] = value
            found = results_of(switch_norm, arguments, training=training)
            assert torch.equal(found["y"][1:], expected["y"])
