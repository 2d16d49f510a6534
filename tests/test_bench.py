"""The benchmark itself: a slow-down is seen, a wrong candidate is named and not timed, the byte formulas hold."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace

import pytest
import torch

pytest.importorskip("tabulate")
from bench import bench_layer_norm, bench_rms_norm, harness, report, shapes, timing

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread():  # a second one only waits where the suite runs in parallel
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


SHAPE = shapes.Shape(64, 256, "small, for the test of the harness")
LAYER_NORM = bench_layer_norm.OPS[0]
RMS_NORM = bench_rms_norm.OPS[0]


def candidate(name, function, has_backward=True):
    return harness.Candidate(name, function, "test", has_backward)


def measure(*candidates, op=LAYER_NORM, dtype=torch.float32, **options):
    options = {"rounds": 5, "block_seconds": 0.002, **options}
    return harness.measure(op, SHAPE, dtype, CPU, list(candidates), **options)


def right(x, weight, bias):
    return torch.nn.functional.layer_norm(x, (x.shape[-1],), weight, bias, bench_layer_norm.EPS)


def test_a_planted_slow_down_is_seen():
    def slow(*inputs):
        time.sleep(5e-3)
        return right(*inputs)

    for cell in measure(candidate("ours", slow), candidate("aten", right), directions=["forward", "forward+backward"]):
        assert cell.speedup("aten") < 0.7, cell.direction
    # The delay shows however busy the machine is; that equal ones look equal, only the best rounds can tell.
    equal = measure(candidate("ours", right), candidate("aten", right), directions=["forward"], rounds=15)[0]
    ours, aten = (min(result.seconds) for result in equal.results)
    assert 0.5 < aten / ours < 2


def test_equal_candidates_are_measured_in_turn():
    order = []
    works = {name: lambda call, name=name: order.append(name) for name in ("first", "second")}
    timing.interleave(works, timing.CpuTimer(), rounds=4, block_seconds=0.0)
    assert order[-8:] == ["first", "second", "second", "first"] * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_wrong_candidate_is_named_and_not_timed(dtype):
    def unbiased(x, weight, bias):  # divides the squares by cols - 8
        centred = x - x.mean(-1, keepdim=True)
        return centred * torch.rsqrt(centred.square().sum(-1, keepdim=True) / (x.shape[-1] - 32)) * weight + bias

    for cell in measure(candidate("ours", right), candidate("peer", unbiased), dtype=dtype):
        assert cell.results[1].failure.startswith("wrong: y off by")
        assert cell.results[1].seconds == [] and cell.results[0].seconds
        assert "wrong: y off by" in report.cell_table([cell], "simple")


def test_a_wrong_gradient_is_named():
    class Halved(torch.autograd.Function):
        @staticmethod
        def forward(ctx, y):
            return y.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad / 2

    cells = measure(candidate("ours", lambda *inputs: Halved.apply(right(*inputs))), directions=["forward"])
    assert cells[0].ours.failure.startswith("wrong: gradient of x off by 50 %")


def test_a_nan_is_wrong():
    cells = measure(candidate("ours", lambda *inputs: right(*inputs) * math.nan), directions=["forward"])
    assert cells[0].ours.failure.startswith("wrong: y")


def test_a_candidate_that_fails_or_has_no_backward_says_so():
    def broken(*inputs):
        raise NotImplementedError("only 3072 columns")

    def inference_only(*inputs):
        return right(*inputs).detach()

    others = (candidate("peer", broken), candidate("forward_only", inference_only, has_backward=False))
    cells = measure(candidate("ours", right), *others, directions=["forward", "backward"])
    assert [cell.results[1].failure for cell in cells] == ["failed: NotImplementedError: only 3072 columns"] * 2
    assert [cell.results[2].failure for cell in cells] == ["", "no backward"]


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
    assert op.traffic(direction, rows, cols, size).total == expected
    assert op.traffic(direction, rows, cols, 8).total == 4 * expected + row_numbers * rows * (8 - 16)  # fp64 statistics


@pytest.mark.parametrize("layout", ["contiguous", "strided", "unaligned"])
def test_inputs_have_the_layout_that_the_shape_names(layout):
    inputs = harness.make_inputs(RMS_NORM, replace(SHAPE, layout=layout), torch.float32, CPU, seed=0)
    x = inputs.leaves[0]
    assert x.shape == (SHAPE.rows, SHAPE.cols) and x.is_leaf
    assert x.stride() == ((3 * SHAPE.cols if layout == "strided" else SHAPE.cols), 1)
    assert (x.data_ptr() % 16 != 0) == (layout == "unaligned")


def test_disturbed_rounds_are_left_out_only_if_enough_remain():
    times = {"ours": [1.0, 9.0, 1.0, 1.0]}
    assert timing.keep_clean(times, [True, False, True, True]) == {"ours": [1.0, 1.0, 1.0]}
    assert timing.keep_clean(times, [True, False, True, False]) == times


def test_results_are_valid_json_and_name_the_failures():
    cells = measure(candidate("ours", right), candidate("aten", right), directions=["forward+backward"])
    record = json.loads(report.as_json({"device": "test"}, cells, [], ["layer_norm 1x1: time limit"]))
    cell = record["cells"][0]
    assert cell["bytes_read"] + cell["bytes_written"] == cells[0].traffic.total
    assert len(cell["candidates"]) == 2 and record["not_measured"] == ["layer_norm 1x1: time limit"]
