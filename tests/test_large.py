"""More than 2^31 elements: offsets must be 64-bit everywhere. Slow, and each case says how much memory it takes."""

from __future__ import annotations

import pytest
import torch
from cases import LAYER_NORM, OPS, RMS_NORM, Op, evaluate, make_case
from checks import assert_bitwise, assert_close, oracle
from conftest import TestBackend

pytestmark = [pytest.mark.slow, pytest.mark.backends("cpu", "cuda")]
LIMIT = 2**31
GIGABYTE = 2**30


def need(backend: TestBackend, gigabytes: float) -> None:
    if backend.name == "cuda":
        free = torch.cuda.mem_get_info()[0]
    else:
        with open("/proc/meminfo") as info:
            fields = dict(line.split(":") for line in info)
        free = int(fields["MemAvailable"].split()[0]) * 1024
    if free < gigabytes * GIGABYTE:
        pytest.skip(f"needs {gigabytes:.0f} GB of free memory, {free / GIGABYTE:.0f} GB are there")


@pytest.mark.parametrize("op", (LAYER_NORM, RMS_NORM), ids=str)
@pytest.mark.parametrize("cols", (1024, 4099))
def test_forward_beyond_32_bits(backend: TestBackend, op: Op, cols: int) -> None:
    """The last rows, whose offsets do not fit 32 bits, equal the same rows alone."""
    rows = LIMIT // cols + 3
    need(backend, 2 * 2.1 * rows * cols / GIGABYTE)
    ends = make_case(op, 6, cols, torch.bfloat16, device=backend.device)
    x = torch.empty(rows, cols, dtype=torch.bfloat16, device=backend.device)
    x.view(-1)[:] = 1.0
    x[:3], x[-3:] = ends.x[:3], ends.x[3:]
    y = evaluate(ends.replace(x=x), backward=False)["y"]
    alone = evaluate(ends, backward=False)["y"]
    assert_bitwise("first rows", y[:3], alone[:3])
    assert_bitwise("last rows", y[-3:], alone[3:])
    assert_bitwise("a row in between", y[rows // 2], y[5])


@pytest.mark.parametrize("op", (LAYER_NORM, RMS_NORM), ids=str)
def test_backward_beyond_32_bits(backend: TestBackend, op: Op) -> None:
    """grad_y is one number expanded; x holds 2^31 elements in strided rows of a larger buffer."""
    cols, rows = 2048, LIMIT // 2048 + 2
    need(backend, 4 * 2.1 * rows * cols / GIGABYTE)
    ends = make_case(op, 6, cols, torch.bfloat16, device=backend.device)
    x, grad_y = (torch.zeros(rows, cols, dtype=torch.bfloat16, device=backend.device) for _ in range(2))
    x[:3], x[-3:], grad_y[:3], grad_y[-3:] = ends.x[:3], ends.x[3:], ends.grad_y[:3], ends.grad_y[3:]
    results = evaluate(ends.replace(x=x, grad_y=grad_y))
    alone = evaluate(ends)
    assert_bitwise("first rows", results["grad_x"][:3], alone["grad_x"][:3])
    assert_bitwise("last rows", results["grad_x"][-3:], alone["grad_x"][3:])
    for name in ("grad_weight", "grad_bias"):  # zero rows add nothing
        if name in alone:
            assert_close(name, results[name], oracle(ends)[name])


@pytest.mark.parametrize("op", OPS, ids=str)
def test_one_column_and_many_rows(backend: TestBackend, op: Op) -> None:
    """More than 2^31 rows: the row index itself needs 64 bits."""
    rows = LIMIT + 5
    need(backend, (5 if op.has_residual else 3) * 2 * rows / GIGABYTE)
    case = make_case(op, 4, 1, torch.float16, affine=False, device=backend.device)
    x = case.x.new_ones((rows, 1))
    x[-4:] = case.x
    residual = None if case.residual is None else case.residual.new_zeros((1, 1)).expand(rows, 1)
    results = evaluate(case.replace(x=x, residual=residual), backward=False)
    ends = case.replace(residual=None if residual is None else torch.zeros_like(case.residual))
    for name, tensor in evaluate(ends, backward=False).items():
        assert_bitwise(name, results[name][-4:], tensor)


@pytest.mark.parametrize("op", (LAYER_NORM, RMS_NORM), ids=str)
def test_offsets_between_rows_beyond_32_bits(backend: TestBackend, op: Op) -> None:
    """Three rows, far apart in one buffer of 2^31 elements and more: stride times row exceeds 32 bits."""
    stride = LIMIT // 2 + 7
    need(backend, 2.1 * 3 * stride / GIGABYTE)
    case = make_case(op, 3, 64, torch.bfloat16, device=backend.device)
    buffer = torch.empty(2 * stride + 64, dtype=torch.bfloat16, device=backend.device)
    x = buffer.as_strided((3, 64), (stride, 1))
    x.copy_(case.x)
    assert_bitwise("y", evaluate(case.replace(x=x))["y"], evaluate(case)["y"])


@pytest.mark.parametrize("op", (LAYER_NORM, RMS_NORM), ids=str)
def test_one_row_of_a_quarter_billion_columns(backend: TestBackend, op: Op) -> None:
    need(backend, 12)
    cols = 2**28 + 1
    x = torch.ones(1, cols, device=backend.device)
    x[0, ::2] = -1
    y = op.function(x, (cols,), eps=0.0)
    assert (y.abs() - 1).abs().max() < 1e-6
