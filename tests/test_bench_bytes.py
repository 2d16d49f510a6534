"""The byte formulas of the benchmark: as documented, and equal to what the kernels move on the simulator."""

from __future__ import annotations

import math

import pytest
import torch
from bench_cases import (
    BATCH_NORM,
    BATCH_NORM_ADD_RELU,
    BATCH_NORM_EVAL,
    CPU,
    GROUP_NORM,
    GROUP_NORM_SILU,
    INSTANCE_NORM,
    OPS,
    SWITCH_NORM,
    one_thread,  # noqa: F401
)

from bench import bench_layer_norm, bench_rms_norm
from bench.cells import Op
from bench.inputs import as_tuple, backward, make_inputs
from bench.shapes import Shape, in_both_layouts


@pytest.mark.parametrize(
    ("op", "direction", "matrices", "row_numbers", "parameters"),
    [
        (bench_layer_norm.OPS[0], "forward", 2, 2, 2),
        (bench_layer_norm.OPS[0], "backward", 3, 2, 3),
        (bench_layer_norm.OPS[1], "forward", 4, 2, 2),
        (bench_layer_norm.OPS[1], "backward", 4, 2, 3),
        (bench_rms_norm.OPS[0], "forward", 2, 1, 1),
        (bench_rms_norm.OPS[0], "backward", 3, 1, 2),
        (bench_rms_norm.OPS[1], "forward", 4, 1, 1),
        (bench_rms_norm.OPS[1], "backward", 4, 1, 2),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_byte_formulas(op, direction, matrices, row_numbers, parameters):
    rows, cols, size = 32768, 1024, 2
    expected = matrices * rows * cols * size + row_numbers * rows * 4 + parameters * cols * size
    assert op.traffic(direction, (rows, cols), size).total == expected
    total = op.traffic(direction, (rows, cols), 8).total
    assert total == 4 * expected + row_numbers * rows * (8 - 16)  # fp64 statistics


@pytest.mark.parametrize(
    ("op", "direction", "maps", "sets", "parameters"),
    [
        (BATCH_NORM, "forward", 2, 256, 2 + 4),  # running statistics: read and written
        (BATCH_NORM, "backward", 3, 256, 3),
        (BATCH_NORM_EVAL, "forward", 2, 256, 2 + 2),
        (BATCH_NORM_EVAL, "backward", 3, 256, 3),
        (BATCH_NORM_ADD_RELU, "forward", 3 + 1 / 16, 256, 2 + 4),  # with the signs
        (BATCH_NORM_ADD_RELU, "backward", 4 + 1 / 16, 256, 3),
        (GROUP_NORM, "forward", 2, 8 * 32, 2),
        (GROUP_NORM_SILU, "backward", 3, 8 * 32, 3),
        (INSTANCE_NORM, "forward", 2, 8 * 256, 2),
        (INSTANCE_NORM, "backward", 3, 8 * 256, 3),
        (SWITCH_NORM, "forward", 2, 2 * 8 * 256 + 8 + 256, 2 + 4),
        (SWITCH_NORM, "backward", 3, 2 * 8 * 256 + 8 + 256, 3),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_byte_formulas_of_feature_maps(op, direction, maps, sets, parameters):
    sizes = (8, 256, 32, 30)
    for size in (2, 4, 8):
        expected = maps * math.prod(sizes) * size + 2 * sets * max(4, size) + parameters * 256 * size
        assert op.traffic(direction, sizes, size).total == expected


ROWS, MAPS = Shape((256, 1024), ""), in_both_layouts(Shape((2, 64, 16, 16), ""))


def _cases() -> list[pytest.param]:
    return [pytest.param(op, shape, id=f"{op.name}-{shape}") for op in OPS.values()
            for shape in ([ROWS] if op.shapes == "rows" else MAPS)]  # fmt: skip


@pytest.mark.backends("sim")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("op", "shape"), _cases())
def test_byte_formulas_are_what_the_kernels_move(backend, op: Op, shape: Shape, dtype: torch.dtype) -> None:
    """Distinct 32-byte sectors that the kernel with the tensors reads and writes; statistics may fill parts of some.

    Of whitening that is the transform, the second of its two passes.
    """
    import sim

    inputs = make_inputs(op, shape, dtype, CPU, seed=0)
    (ours,) = op.candidates([])
    with sim.backend(sm_count=1, count_sectors=True):
        for direction in ("forward", "backward"):
            sim.reset_counters()
            if direction == "forward":
                outputs = as_tuple(ours.function(*inputs.inputs))
            else:
                backward(outputs, inputs, False)
            main = max(sim.counters().values(), key=lambda kernel: kernel.loads.sectors + kernel.stores.sectors)
            seen = 32 * (main.loads.sectors + main.stores.sectors)
            formula = op.traffic(direction, shape.sizes, dtype.itemsize)
            small = formula.total - round(formula.total / _tensor(shape, dtype)) * _tensor(shape, dtype)
            assert formula.total - abs(small) <= seen <= 1.03 * formula.total + SLACK * abs(small) + 2048, direction


SLACK = 8  # parameters and statistics: partial sectors, partial sums of several blocks


def _tensor(shape: Shape, dtype: torch.dtype) -> int:
    return math.prod(shape.sizes) * dtype.itemsize
