"""What the papers promise (1502.03167, 1607.06450, 1607.08022, 1803.08494), and random cases against the oracle."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import DTYPES
from checks import assert_bitwise
from conftest import TestBackend
from plane_cases import (
    BATCH_NORM,
    GROUP_NORM,
    INSTANCE_NORM,
    LAYOUTS,
    PLANE_OPS,
    PlaneCase,
    PlaneOp,
    default_groups,
    evaluate,
    make_plane_case,
)
from plane_checks import check, check_layout
from torch import Tensor, nn

from torchfastnorm.reference._plane_norm import ACTIVATIONS

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

SETTINGS = settings(
    deadline=None,
    derandomize=True,
    max_examples=50,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
SHAPE = (4, 6, 5, 7)
all_ops = pytest.mark.parametrize("op", PLANE_OPS, ids=str)
both_layouts = pytest.mark.parametrize("layout", LAYOUTS)


def case_of(op: PlaneOp, backend: TestBackend, layout: str, **options: Any) -> PlaneCase:
    return make_plane_case(op, SHAPE, layout=layout, running=False, device=backend.device, **options)


def sets(op: PlaneOp, t: Tensor) -> Tensor:
    """(number of sets, elements of a set)"""
    if op is BATCH_NORM:
        return t.transpose(0, 1).flatten(1)
    if op is INSTANCE_NORM:
        return t.flatten(2).flatten(0, 1)
    return t.reshape(len(t) * default_groups(t.shape[1]), -1)


@all_ops
@both_layouts
def test_scale_and_shift_of_the_input(backend: TestBackend, op: PlaneOp, layout: str) -> None:
    """norm(a x + b) = norm(x), with a and b of a set's own: what makes a layer's initial scale harmless."""
    case = case_of(op, backend, layout, eps=1e-12)
    plain = evaluate(case)
    shape = {BATCH_NORM: (1, 6, 1, 1), GROUP_NORM: (4, 1, 1, 1), INSTANCE_NORM: (4, 6, 1, 1)}[op]
    scale, shift = torch.rand(shape, device=backend.device) + 0.5, torch.randn(shape, device=backend.device)
    moved = evaluate(case.replace(x=case.x * scale + shift))
    torch.testing.assert_close(moved["y"], plain["y"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(moved["grad_x"] * scale, plain["grad_x"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(moved["grad_weight"], plain["grad_weight"], rtol=1e-4, atol=1e-4)


@all_ops
@both_layouts
@pytest.mark.parametrize("scale", (-18, -3, 5, 16))
def test_scaling_by_a_power_of_two(backend: TestBackend, op: PlaneOp, layout: str, scale: int) -> None:
    """norm(2^k x) with eps 4^k eps is norm(x), to the last bit: no constant hides anywhere in the formula."""
    case = case_of(op, backend, layout, eps=1e-3, activation="gelu")
    scaled = evaluate(case.replace(x=case.x * 2.0**scale, eps=1e-3 * 4.0**scale))
    plain = evaluate(case)
    assert_bitwise("y", scaled["y"], plain["y"])
    assert_bitwise("grad_x", scaled["grad_x"] * 2.0**scale, plain["grad_x"])


@all_ops
@both_layouts
@pytest.mark.parametrize("mask", (None, "scattered"))
def test_the_gradient_has_no_part_along_the_set(
    backend: TestBackend, op: PlaneOp, layout: str, mask: str | None
) -> None:
    """sum(dx) = 0 and sum(dx * x_hat) = 0 over each normalised set: shifting and scaling x changes nothing."""
    case = case_of(op, backend, layout, eps=1e-12, activation="silu", mask=mask)
    results = evaluate(case)
    x_hat = evaluate(case.replace(weight=None, bias=None, activation="none"), backward=False)["y"]
    grad_x = sets(op, results["grad_x"]).double()
    magnitude = grad_x.abs().sum(1)
    assert (grad_x.sum(1).abs() <= 1e-6 * magnitude).all()
    along = (grad_x * sets(op, x_hat).double()).sum(1)
    assert (along.abs() <= 1e-5 * magnitude).all()


@all_ops
@both_layouts
def test_identity_is_recovered(backend: TestBackend, op: PlaneOp, layout: str) -> None:
    """weight and bias equal to the set's deviation and mean give x back: the norm takes nothing from a network."""
    case = case_of(op, backend, layout)
    x = case.x if op is BATCH_NORM else case.x[:1].expand(SHAPE)  # where sets differ from sample to sample
    if op is GROUP_NORM:
        x = x[:, :1].expand(SHAPE) * torch.tensor([1.0, 1, 2, 2, 3, 3], device=backend.device).view(1, 6, 1, 1)
    case = case.replace(x=x.contiguous(), groups=3).in_layout(layout)
    channels = case.x.transpose(0, 1).flatten(1).double()
    weight = (channels.var(1, unbiased=False) + case.eps).sqrt()
    y = evaluate(case.replace(weight=weight.float(), bias=channels.mean(1).float()), backward=False)["y"]
    torch.testing.assert_close(y, case.x, rtol=1e-5, atol=1e-5)


@all_ops
def test_gradient_is_inverse_to_the_scale_of_the_weights_before(backend: TestBackend, op: PlaneOp) -> None:
    """A convolution's weight times a: the same output, and a gradient of 1/a (1502.03167, section 3.3)."""
    conv = nn.Conv2d(3, 6, 3, bias=False).to(backend.device)
    x = torch.randn(4, 3, 9, 8, device=backend.device)
    case = make_plane_case(op, (4, 6, 7, 6), eps=1e-12, running=False, device=backend.device)

    def run(weight: Tensor) -> tuple[Tensor, Tensor]:
        weight = weight.detach().requires_grad_()
        arguments, keywords = case.replace(x=nn.functional.conv2d(x, weight)).arguments
        y = op.function(*arguments, **keywords)
        return y.detach(), torch.autograd.grad(y, weight, case.grad_y)[0]

    y, grad = run(conv.weight)
    for a in (0.25, 10.0):
        scaled_y, scaled_grad = run(a * conv.weight)
        torch.testing.assert_close(scaled_y, y, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(a * scaled_grad, grad, rtol=1e-3, atol=1e-4 * grad.abs().max().item())
    # and it stands at a right angle to the weight: a step only turns and lengthens it
    across = (grad * conv.weight).sum((0, 1, 2, 3) if op is not BATCH_NORM else (1, 2, 3))
    assert (across.abs() <= 1e-4 * grad.norm() * conv.weight.norm()).all()


@pytest.mark.parametrize("op", (BATCH_NORM, INSTANCE_NORM), ids=str)
@both_layouts
def test_evaluation_uses_the_moving_averages_of_the_batches(backend: TestBackend, op: PlaneOp, layout: str) -> None:
    momentum, batches = 0.25, 6
    cases = [make_plane_case(op, SHAPE, layout=layout, seed=s, device=backend.device) for s in range(batches)]
    running = [torch.zeros(6, device=backend.device), torch.ones(6, device=backend.device)]
    average = [t.double() for t in running]
    for case in cases:
        named = {"running_mean": running[0], "running_var": running[1], "momentum": momentum}
        arguments, keywords = case.replace(**named).arguments
        op.function(*arguments, **keywords)
        channels = case.x.double().flatten(2) if op is INSTANCE_NORM else case.x.double().transpose(0, 1).flatten(1)
        batch = [channels.mean(-1), channels.var(-1)]
        batch = [t.mean(0) if op is INSTANCE_NORM else t for t in batch]
        average = [(1 - momentum) * a + momentum * b for a, b in zip(average, batch, strict=True)]
    x = cases[0].x.double()
    mean, var = (t.view(1, 6, 1, 1) for t in average)
    affine = [cases[0].weight.double().view(1, 6, 1, 1), cases[0].bias.double().view(1, 6, 1, 1)]
    expected = (x - mean) / (var + 1e-5).sqrt() * affine[0] + affine[1]
    named = {"running_mean": running[0], "running_var": running[1], "batch_statistics": False}
    arguments, keywords = cases[0].replace(**named).arguments
    torch.testing.assert_close(op.function(*arguments, **keywords).double(), expected, rtol=1e-5, atol=1e-5)


@both_layouts
def test_permuting_samples_and_positions(backend: TestBackend, layout: str) -> None:
    """BatchNorm sees a set, not an order: a permuted batch gives the permuted output."""
    case = case_of(BATCH_NORM, backend, layout)
    order = torch.randperm(4)
    plain, permuted = evaluate(case), evaluate(case.samples(order).in_layout(layout))
    for name in ("y", "grad_x"):
        torch.testing.assert_close(permuted[name], plain[name][order], rtol=1e-5, atol=1e-5)
    for name in ("grad_weight", "grad_bias"):
        torch.testing.assert_close(permuted[name], plain[name], rtol=1e-5, atol=1e-4)


sizes = st.one_of(st.integers(1, 9), st.sampled_from((16, 17, 31, 32, 33, 64, 65)))


@st.composite
def cases(draw: st.DrawFn, op: PlaneOp, backend: TestBackend) -> PlaneCase:
    channels = draw(st.one_of(st.integers(1, 20), st.sampled_from((31, 32, 48, 64, 65, 96, 128, 130))))
    shape = [draw(st.integers(1, 5)), channels]
    for size in draw(st.lists(sizes, min_size=1 if op is INSTANCE_NORM else 0, max_size=3)):
        if torch.Size((*shape, size)).numel() <= min(backend.limit, 1 << 17):
            shape.append(size)
    evaluation = op is not GROUP_NORM and draw(st.integers(0, 3)) == 0
    dtype = draw(st.sampled_from(DTYPES))
    divisors = [g for g in range(1, channels + 1) if channels % g == 0]
    groups = draw(st.sampled_from(divisors))
    positions = torch.Size(shape[2:]).numel()
    values = {BATCH_NORM: shape[0] * positions, INSTANCE_NORM: positions}.get(
        op, shape[0] * channels // groups * positions
    )
    if values < 2 or len(shape) < 3:  # what torch rejects
        shape = [*shape[:2], *shape[2:], 2 + draw(st.integers(0, 3))]
    return make_plane_case(
        op,
        shape,
        dtype,
        layout=draw(st.sampled_from(LAYOUTS)),
        groups=groups,
        param_dtype=draw(st.sampled_from((dtype, torch.float32))) if dtype != torch.float64 else None,
        residual=draw(st.sampled_from((False, True))),
        mask=draw(st.sampled_from((None, None, "scattered", "padding"))),
        affine=draw(st.integers(0, 3)) > 0,
        activation=draw(st.sampled_from(list(ACTIVATIONS))),
        batch_statistics=not evaluation,
        eps=draw(st.sampled_from((1e-5, 1e-3))),
        device=backend.device,
        seed=draw(st.integers(0, 2**16)),
    )


@all_ops
@SETTINGS
@given(data=st.data())
def test_any_case_is_right(backend: TestBackend, op: PlaneOp, data: Any) -> None:
    case = data.draw(cases(op, backend))
    results = check(case)
    if case.x.dim() > 2 and 1 not in case.x.shape:
        check_layout(case, results)
