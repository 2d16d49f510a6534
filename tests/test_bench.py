"""The benchmark itself: a slow-down is seen, a wrong candidate is named and not timed, the byte formulas hold."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace

import pytest
import torch

pytest.importorskip("tabulate")
from bench import __main__ as command
from bench import (
    bench_batch_norm,
    bench_group_norm,
    bench_layer_norm,
    bench_rms_norm,
    harness,
    report,
    shapes,
    timing,
)

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread():  # a second one only waits where the suite runs in parallel
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


SHAPE = shapes.Shape((64, 256), "small, for the test of the harness")
OPS = {op.name: op for op in command.parse_arguments([]).ops}
LAYER_NORM, RMS_NORM = OPS["layer_norm"], OPS["rms_norm"]
BATCH_NORM, BATCH_NORM_EVAL, BATCH_NORM_ADD_RELU = bench_batch_norm.OPS
GROUP_NORM, GROUP_NORM_SILU = bench_group_norm.OPS
INSTANCE_NORM, SWITCH_NORM = OPS["instance_norm"], OPS["switch_norm"]
PLANE_OPS = [op for op in OPS.values() if op.shapes != "rows"]
PLANES = shapes.in_both_layouts(shapes.Shape((4, 64, 12, 11), "small, for the test of the harness"))


def candidate(name, function, has_backward=True):
    return harness.Candidate(name, function, "test", has_backward)


def measure(*candidates, op=LAYER_NORM, shape=SHAPE, dtype=torch.float32, **options):
    options = {"rounds": 5, "block_seconds": 0.002, **options}
    return harness.measure(op, shape, dtype, CPU, list(candidates), **options)


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
        (BATCH_NORM_ADD_RELU, "forward", 3, 256, 2 + 4),
        (BATCH_NORM_ADD_RELU, "backward", 5, 256, 4),
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


@pytest.mark.parametrize("layout", ["contiguous", "strided", "unaligned"])
def test_inputs_have_the_layout_that_the_shape_names(layout):
    inputs = harness.make_inputs(RMS_NORM, replace(SHAPE, layout=layout), torch.float32, CPU, seed=0)
    x = inputs.leaves[0]
    cols = SHAPE.sizes[1]
    assert x.shape == SHAPE.sizes and x.is_leaf
    assert x.stride() == ((3 * cols if layout == "strided" else cols), 1)
    assert (x.data_ptr() % 16 != 0) == (layout == "unaligned")


@pytest.mark.parametrize("shape", PLANES, ids=str)
def test_feature_maps_and_their_gradients_have_one_layout(shape):
    inputs = harness.make_inputs(BATCH_NORM_ADD_RELU, shape, torch.bfloat16, CPU, seed=0)
    by_name = dict(zip(BATCH_NORM_ADD_RELU.inputs, inputs.inputs, strict=True))
    maps = [by_name["x"], by_name["residual"], *inputs.upstream]
    memory_format = torch.channels_last if shape.layout == "channels_last" else torch.contiguous_format
    assert len(maps) == 3
    assert all(t.shape == shape.sizes and t.is_contiguous(memory_format=memory_format) for t in maps)
    assert by_name["weight"].shape == by_name["running_var"].shape == (64,)
    assert [name for name, t in by_name.items() if not t.requires_grad] == ["running_mean", "running_var"]
    assert by_name["running_var"].min() > 0


@pytest.mark.parametrize("shape", PLANES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("op", PLANE_OPS, ids=lambda op: op.name)
def test_candidates_for_feature_maps_are_right(op, dtype, shape):
    candidates = op.candidates(["aten", "unfused", "reference"])
    assert [c.name for c in candidates][:2] == ["torchfastnorm", "aten"]
    inputs = harness.make_inputs(op, shape, dtype, CPU, seed=0)
    wrong = {c.name: harness.check(op, c, inputs)[0] for c in candidates}
    assert not any(wrong.values()), wrong


def test_running_statistics_of_candidates_are_apart():
    candidates = [*BATCH_NORM.candidates(["aten"]), candidate("again", BATCH_NORM.candidates(["aten"])[1].function)]
    cells = measure(*candidates, op=BATCH_NORM, shape=PLANES[0])  # a retained graph would see them change
    assert len(cells) == 3 and all(result.seconds for cell in cells for result in cell.results)


def test_a_part_is_checked_along_what_is_independent(monkeypatch):
    monkeypatch.setattr(harness, "CHECKED_ELEMENTS", 4 * 64 * 12 * 11 // 4)  # a quarter

    for op, dimension in ((BATCH_NORM, 1), (INSTANCE_NORM, 0)):

        def spoilt(*inputs, op=op, dimension=dimension, first=0):
            y = op.reference(*inputs)
            whole = y.shape[dimension]
            y = y.clone()
            y.narrow(dimension, first * whole // 4, whole // 4).mul_(1.5)
            return y

        inputs = harness.make_inputs(op, PLANES[0], torch.float32, CPU, seed=0)
        assert harness.check(op, candidate("seen", spoilt), inputs)[0].startswith("wrong: y off by")
        unseen = candidate("unseen", lambda *inputs, f=spoilt: f(*inputs, first=1))
        assert harness.check(op, unseen, inputs) == ("", "")


def test_a_gradient_may_differ_at_a_kink_only():
    def right(x, residual, weight, bias, *running):
        return BATCH_NORM_ADD_RELU.reference(x, residual, weight, bias, *running)

    class Through(torch.autograd.Function):
        @staticmethod
        def forward(ctx, y, share):
            ctx.share = share
            return y.clone()

        @staticmethod
        def backward(ctx, grad):
            grad = grad.clone()
            grad.flatten()[: int(ctx.share * grad.numel())] *= -1
            return grad, None

    inputs = harness.make_inputs(BATCH_NORM_ADD_RELU, PLANES[0], torch.float32, CPU, seed=0)

    def check(share):
        function = lambda x, r, *others: right(x, Through.apply(r, share), *others)  # noqa: E731
        return harness.check(BATCH_NORM_ADD_RELU, candidate("peer", function), inputs)[0]

    assert check(0.005) == ""
    assert check(0.02).startswith("wrong: gradient of residual off by")


def test_bars_and_means_keep_the_layouts_apart():
    contiguous = harness.bars("aten", contiguous=(1.15, 1.5), channels_last=(1.5, 3.0))
    assert GROUP_NORM.cpu_bars == contiguous and contiguous["aten", "channels_last", torch.bfloat16] == 3.0
    op = replace(GROUP_NORM, cpu_bars=harness.bars("aten", contiguous=(1.15, 1.5), channels_last=(4.0, 4.0)))
    cells = []
    for shape, faster in zip(PLANES, (2.0, 3.0), strict=True):
        large = replace(shape, sizes=(64, *shape.sizes[1:]))
        results = [harness.Result("torchfastnorm", "", [1.0]), harness.Result("aten", "", [faster])]
        roof = harness.Result("roof", "", [1.0])
        traffic = harness.Traffic(1, 1)
        cells.append(harness.Cell(op.name, large, "float32", "forward+backward", traffic, results, roof, 1, 1))
    lines = report.summary_table(cells, [op], CPU, "plain").splitlines()
    assert lines[1].split()[:7] == ["group_norm", "contiguous", "float32", "aten", "2.00", "1.15", "met"]
    assert lines[2].split()[:7] == ["group_norm", "channels_last", "float32", "aten", "3.00", "4", "MISSED"]
    assert "64x64x12x11 channels_last" in report.cell_table(cells, "plain")
    assert json.loads(report.as_json({}, cells, [], []))["cells"][1]["sizes"] == [64, 64, 12, 11]


def test_shapes_fit_the_ops_that_take_them(capsys):
    options = command.parse_arguments(["batch_norm", "layer_norm", "--shape", "2x3x4x5", "--shape", "8X16"])
    found = [[str(shape) for shape in shapes.given(op.shapes, options.shape)] for op in options.ops]
    assert found == [["2x3x4x5", "2x3x4x5 channels_last"], ["8x16"]]
    for op in PLANE_OPS:
        for device_type in ("cpu", "cuda"):
            chosen = [shapes.shapes_of(op.shapes, device_type, suite) for suite in ("quick", "full")]
            assert set(chosen[0]) <= set(chosen[1]) and {s.kind for s in chosen[0]} == {"contiguous", "channels_last"}
            assert all(shape.sizes[1] % bench_group_norm.GROUPS == 0 for shape in chosen[1] if "group" in op.name)
    for arguments in (["group_norm", "--shape", "8x16"], ["--shape", "8"], ["--shape", "8x0"]):
        with pytest.raises(SystemExit):
            command.parse_arguments(arguments)
    assert "group_norm is measured on NxCxHxW" in capsys.readouterr().err


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
