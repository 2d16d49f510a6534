"""The benchmark itself: a slow-down is seen, a wrong candidate is named and not timed, the byte formulas hold."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import pytest
import torch
from bench_cases import (
    BATCH_NORM,
    BATCH_NORM_ADD_RELU,
    CPU,
    GROUP_NORM,
    INSTANCE_NORM,
    OPS,
    PLANE_OPS,
    PLANES,
    RMS_NORM,
    SHAPE,
    candidate,
    measure,
    one_thread,  # noqa: F401
)

from bench import (
    baselines,
    bench_group_norm,
    bench_layer_norm,
    cells,
    harness,
    model_shapes,
    roofs,
    shapes,
    tables,
    timing,
)
from bench import check as checking
from bench.inputs import make_inputs


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
        assert "wrong: y off by" in tables.cell_table([cell]).markdown()


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


@pytest.mark.parametrize("layout", ["contiguous", "strided", "unaligned"])
def test_inputs_have_the_layout_that_the_shape_names(layout):
    inputs = make_inputs(RMS_NORM, replace(SHAPE, layout=layout), torch.float32, CPU, seed=0)
    x = inputs.leaves[0]
    cols = SHAPE.sizes[1]
    assert x.shape == SHAPE.sizes and x.is_leaf
    assert x.stride() == ((3 * cols if layout == "strided" else cols), 1)
    assert (x.data_ptr() % 16 != 0) == (layout == "unaligned")


@pytest.mark.parametrize("shape", PLANES, ids=str)
def test_feature_maps_and_their_gradients_have_one_layout(shape):
    inputs = make_inputs(BATCH_NORM_ADD_RELU, shape, torch.bfloat16, CPU, seed=0)
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
    inputs = make_inputs(op, shape, dtype, CPU, seed=0)
    wrong = {c.name: checking.check(op, c, inputs)[0] for c in candidates}
    assert not any(wrong.values()), wrong


def test_running_statistics_of_candidates_are_apart():
    candidates = [*BATCH_NORM.candidates(["aten"]), candidate("again", BATCH_NORM.candidates(["aten"])[1].function)]
    cells = measure(*candidates, op=BATCH_NORM, shape=PLANES[0])  # a retained graph would see them change
    assert len(cells) == 3 and all(result.seconds for cell in cells for result in cell.results)


def test_a_part_is_checked_along_what_is_independent(monkeypatch):
    monkeypatch.setattr(checking, "CHECKED_ELEMENTS", 4 * 64 * 12 * 11 // 4)  # a quarter

    for op, dimension in ((BATCH_NORM, 1), (INSTANCE_NORM, 0)):

        def spoilt(*inputs, op=op, dimension=dimension, first=0):
            y = op.reference(*inputs)
            whole = y.shape[dimension]
            y = y.clone()
            y.narrow(dimension, first * whole // 4, whole // 4).mul_(1.5)
            return y

        inputs = make_inputs(op, PLANES[0], torch.float32, CPU, seed=0)
        assert checking.check(op, candidate("seen", spoilt), inputs)[0].startswith("wrong: y off by")
        unseen = candidate("unseen", lambda *inputs, f=spoilt: f(*inputs, first=1))
        assert checking.check(op, unseen, inputs) == ("", "")


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

    inputs = make_inputs(BATCH_NORM_ADD_RELU, PLANES[0], torch.float32, CPU, seed=0)

    def check(share):
        function = lambda x, r, *others: right(x, Through.apply(r, share), *others)  # noqa: E731
        return checking.check(BATCH_NORM_ADD_RELU, candidate("peer", function), inputs)[0]

    assert check(0.005) == ""
    assert check(0.02).startswith("wrong: gradient of residual off by")


def test_bars_and_means_keep_the_layouts_apart():
    contiguous = cells.bars("aten", contiguous=(1.15, 1.5), channels_last=(1.5, 3.0))
    assert GROUP_NORM.cpu_bars == contiguous and contiguous["aten", "channels_last", torch.bfloat16] == 3.0
    op = replace(GROUP_NORM, cpu_bars=cells.bars("aten", contiguous=(1.15, 1.5), channels_last=(4.0, 4.0)))
    found = []
    for shape, faster in zip(PLANES, (2.0, 3.0), strict=True):
        large = replace(shape, sizes=(64, *shape.sizes[1:]))
        results = [cells.Result("torchfastnorm", "", [1.0]), cells.Result("aten", "", [faster])]
        roof = cells.Result("roof", "", [1.0])
        found.append(
            cells.Cell(op.name, large, "float32", "forward+backward", cells.Traffic(1, 1), results, roof, "1R1W")
        )
    rows = tables.summary_table(found, {op.name: op}, "cpu").rows
    assert rows[0][:6] == ["group_norm", "contiguous", "float32", "aten", "2.00", "1.15 met"]
    assert rows[1][:6] == ["group_norm", "channels_last", "float32", "aten", "3.00", "4 MISSED"]
    assert tables.summary_table(found, {op.name: op}, "cuda").rows[0][5] == "-"
    assert "64x64x12x11 channels_last" in tables.cell_table(found).markdown()


def test_suites_fit_the_ops():
    for op in PLANE_OPS:
        for device_type in ("cpu", "cuda"):
            chosen = [shapes.shapes_of(op.shapes, device_type, suite) for suite in ("quick", "full")]
            assert set(chosen[0]) <= set(chosen[1]) and {s.kind for s in chosen[0]} == {"contiguous", "channels_last"}
            assert all(shape.sizes[1] % bench_group_norm.GROUPS == 0 for shape in chosen[1] if "group" in op.name)
    names = ("ResNet-50", "ConvNeXt-T", "ViT-S", "ViT-B", "Llama 7-8B", "Stable Diffusion", "nnU-Net")
    found = [model_shapes.of(op.name, op.shapes, d) for op in OPS.values() for d in ("cpu", "cuda")]
    reasons = {shape.reason for chosen in found for shape in chosen}
    assert all(any(reason.startswith(name) for reason in reasons) for name in names)
    assert all(reason.startswith(names) and ": " in reason for reason in reasons)


def test_roofs_have_the_mix_of_the_cell():
    def mixes(name, sizes, direction):
        return roofs.roof_of(OPS[name], shapes.Shape(sizes, ""), 4, direction, CPU, 1)[1]

    rows, planes = (2048, 1024), (8, 64, 32, 32)
    assert mixes("layer_norm", rows, "forward+backward") == "1R1W+2R1W"
    assert mixes("add_rms_norm", rows, "forward+backward") == "2R2W+3R1W"
    assert mixes("batch_norm", planes, "forward+backward") == "1R1W+2R1W"
    assert mixes("batch_norm_add_relu", planes, "forward+backward") == "2R1W+2R2W"
    for name, mix in roofs.MIXES.items():
        assert name == f"{mix.reads}R{mix.writes}W"
        roofs.stream(name, 4096, CPU, sets=2)(1)


def test_buffers_are_rotated_past_the_cache(monkeypatch):
    monkeypatch.setattr(harness, "last_level_cache", lambda device: 1 << 20)
    seen = set()

    def spy(x, weight, bias):
        seen.add(x.data_ptr())
        return right(x, weight, bias)

    for rotate, expected in ((None, 1), (True, 24)):  # 3 MB in sets of 64 x 256 x 4 x 2 bytes and a little
        seen.clear()
        cell = measure(candidate("ours", spy), directions=["forward"], rotate=rotate, rounds=2, block_seconds=0.02)[0]
        assert cell.sets == expected and (len(seen) == 1) == (expected == 1)


def test_disturbed_rounds_are_left_out_only_if_enough_remain():
    times = {"ours": [1.0, 9.0, 1.0, 1.0]}
    assert timing.keep_clean(times, [True, False, True, True]) == {"ours": [1.0, 1.0, 1.0]}
    assert timing.keep_clean(times, [True, False, True, False]) == times


def test_an_installed_peer_that_cannot_be_imported_is_reported():
    assert baselines.peer("apex", "no-such-package-of-that-name", "apex:norm", lambda f: f) == []
    broken = baselines.peer("broken", "torch", "torch.no_such_module:norm", lambda f: f)
    cell = measure(candidate("ours", right), *broken, directions=["forward"])[0]
    assert cell.results[1].failure.startswith("failed: ImportError: torch.no_such_module:norm")
    assert any("broken: failed: ImportError" in note for note in tables.notes([cell]))
