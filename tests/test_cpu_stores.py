"""Stores past the caches (csrc/cpu/row_kernels.h, goes_past_caches) give the bits that other stores give."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_package import run

import torchfastnorm
from torchfastnorm import functional as F

# Rows and planes of whole cache lines, in each of the ways that a kernel takes them, and of others.
ROWS = {
    "short": (37, 64), "several": (9, 1024), "blocks": (5, 20480), "by columns": (1, 20480), "not whole": (9, 1000),
    "several, not whole": (9, 4095), "blocks, not whole": (5, 20483), "by columns, not whole": (1, 20483),
}  # fmt: skip
PLANES = {
    "short": (8, 64, 4, 8), "pieces": (2, 3, 96, 96), "sets": (2, 64, 16, 16), "not whole": (2, 34, 7, 9),
    "tiles": (3, 70, 7, 7), "tiles of eight": (2, 35, 13, 15), "less than a line": (3, 33, 1, 3),
}  # fmt: skip
DTYPES = (torch.float32, torch.bfloat16, torch.float64)


def gradients(y: torch.Tensor, *inputs: torch.Tensor) -> list[torch.Tensor]:
    return [y.detach(), *torch.autograd.grad(y, inputs, torch.randn_like(y))]


def row_results(shape: tuple[int, int], dtype: torch.dtype) -> list[torch.Tensor]:
    torch.manual_seed(0)
    x, residual = (torch.randn(shape, dtype=dtype, requires_grad=True) for _ in range(2))
    weight, bias = (torch.randn(shape[1:], dtype=dtype, requires_grad=True) for _ in range(2))
    return [
        *gradients(F.layer_norm(x, shape[1:], weight, bias), x, weight, bias),
        *gradients(F.rms_norm(x, shape[1:]), x),
        *gradients(F.add_layer_norm(x, residual, shape[1:], weight, bias)[0], x, residual, weight, bias),
    ]


def plane_results(shape: tuple[int, ...], dtype: torch.dtype, memory_format: torch.memory_format) -> list[torch.Tensor]:
    torch.manual_seed(0)
    x, residual = (
        torch.randn(shape, dtype=dtype).contiguous(memory_format=memory_format).requires_grad_() for _ in range(2)
    )
    weight, bias = (torch.randn(shape[1], dtype=dtype, requires_grad=True) for _ in range(2))
    mask = torch.rand(shape[0], 1, *shape[2:]) < 0.7
    fused = {"residual": residual, "activation": "relu"}
    return [
        *gradients(F.batch_norm(x, None, None, weight, bias, True), x, weight, bias),
        *gradients(F.batch_norm(x, None, None, weight, bias, True, **fused), x, weight, bias, residual),
        *gradients(F.batch_norm(x, None, None, weight, bias, True, mask=mask), x, weight, bias),
        *gradients(F.batch_norm(x, weight.detach(), bias.detach() ** 2, None, None), x),
        *gradients(F.group_norm(x, 1, weight, bias, activation="silu"), x, weight, bias),
        *gradients(F.instance_norm(x), x),
    ]


def results() -> dict[tuple, list[torch.Tensor]]:
    rows = {("rows", name, dtype): row_results(shape, dtype) for name, shape in ROWS.items() for dtype in DTYPES}
    planes = {
        (str(layout), name, dtype): plane_results(shape, dtype, layout)
        for layout in (torch.contiguous_format, torch.channels_last)
        for name, shape in PLANES.items()
        for dtype in DTYPES
    }
    return rows | planes


@pytest.mark.skipif(
    torchfastnorm.build_info()["cpu_capability"] != "AVX512", reason="only AVX-512 stores past the caches"
)
@pytest.mark.parametrize("threads", (1, 3))
def test_stores_past_the_caches_change_no_bit(threads: int, tmp_path: Path) -> None:
    found = []
    for cache in ("0", str(1 << 50)):
        path = tmp_path / f"{cache}.pt"
        code = f"""
import torch
from test_cpu_stores import results
torch.set_num_threads({threads})
torch.save(results(), {str(path)!r})
"""
        done = run(code, TORCHFASTNORM_CPU_CACHE_BYTES=cache)
        assert done.returncode == 0, done.stderr
        found.append(torch.load(path))
    past, plain = found
    assert past.keys() == plain.keys()
    for key, tensors in plain.items():
        for index, (expected, computed) in enumerate(zip(tensors, past[key], strict=True)):
            assert torch.equal(computed, expected), (key, index)
