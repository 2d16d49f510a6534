"""Feature maps of more than 2^31 elements: offsets must be 64-bit everywhere. Slow; each case says what it takes."""

from __future__ import annotations

import pytest
import torch
from checks import assert_bitwise
from conftest import TestBackend
from plane_cases import BATCH_NORM, GROUP_NORM, INSTANCE_NORM, LAST, LAYOUTS, PlaneOp
from test_large import GIGABYTE, LIMIT, need
from torch import Tensor

pytestmark = [pytest.mark.slow, pytest.mark.backends("cpu", "cuda")]
both_layouts = pytest.mark.parametrize("layout", LAYOUTS)


def zeros(backend: TestBackend, shape: tuple[int, ...], layout: str) -> Tensor:
    memory_format = torch.channels_last if layout == LAST else torch.contiguous_format
    t = torch.empty(shape, dtype=torch.bfloat16, device=backend.device, memory_format=memory_format)
    return t.zero_()


def run(op: PlaneOp, x: Tensor, grad_y: Tensor, **options: object) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_()
    groups = {"num_groups": 2} if op is GROUP_NORM else {}
    y = op.function(x, **groups, **options)
    return y.detach(), torch.autograd.grad(y, x, grad_y)[0]


@both_layouts
@pytest.mark.parametrize("op", (GROUP_NORM, INSTANCE_NORM), ids=str)
def test_the_last_sample_is_that_sample_alone(backend: TestBackend, op: PlaneOp, layout: str) -> None:
    """Its offset does not fit 32 bits; forward and backward."""
    shape = (65, 64, 720, 720)
    elements = torch.Size(shape).numel()
    assert elements > LIMIT
    need(backend, 4 * 2.05 * elements / GIGABYTE)
    x, grad_y = zeros(backend, shape, layout), zeros(backend, shape, layout)
    for t in (x, grad_y):
        for sample in (0, -1):
            t[sample] = torch.randn(shape[1:], dtype=torch.float32).to(backend.device)
    y, grad_x = run(op, x, grad_y, activation="relu")
    for sample in (slice(0, 1), slice(64, 65)):
        alone = run(op, x[sample], grad_y[sample], activation="relu")
        assert_bitwise("y", y[sample], alone[0])
        assert_bitwise("grad_x", grad_x[sample], alone[1])


@both_layouts
def test_batch_norm_beyond_32_bits(backend: TestBackend, layout: str) -> None:
    """One channel's set alone has 2^29 elements; the mean of ones and twos, and evaluation of the last sample."""
    shape = (4100, 4, 512, 256)
    elements = torch.Size(shape).numel()
    assert elements > LIMIT
    need(backend, 4 * 2.05 * elements / GIGABYTE)
    x = zeros(backend, shape, layout)
    x[::2] = 1
    x[1::2] = 2
    running = [torch.zeros(4, device=backend.device), torch.zeros(4, device=backend.device)]
    options = {"running_mean": running[0], "running_var": running[1], "training": True, "momentum": 1.0, "eps": 1e-12}
    y, grad_x = run(BATCH_NORM, x, x, **options)
    for statistic, expected in zip(running, (1.5, 0.25), strict=True):
        torch.testing.assert_close(statistic, torch.full_like(statistic, expected), rtol=1e-5, atol=0)
    for sample, value in ((0, -1.0), (1, 1.0), (-2, -1.0), (-1, 1.0)):
        assert (y[sample] == value).all()
    assert grad_x.abs().max() <= 2e-2  # grad_y is a multiple of x_hat and a constant: nothing is left of it
    evaluation = BATCH_NORM.function(x, *running, eps=1e-12)
    assert torch.equal(evaluation[-1], y[-1])


@both_layouts
def test_many_samples_and_many_channels(backend: TestBackend, layout: str) -> None:
    """More planes than 2^31: the plane index itself needs 64 bits."""
    shape = (LIMIT // 1024 + 3, 512, 2, 1)
    need(backend, 2 * 2.05 * torch.Size(shape).numel() / GIGABYTE)
    x = zeros(backend, shape, layout)
    x[:, :, 0] = 1
    y = INSTANCE_NORM.function(x, eps=1e-12)
    for sample in (0, shape[0] // 2, -1):
        assert (y[sample, :, 0] == 1).all() and (y[sample, :, 1] == -1).all()
