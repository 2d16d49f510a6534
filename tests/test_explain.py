"""explain and launch_plans: the plans of every regime, equal to what is launched, and their bytes to what is moved."""

from __future__ import annotations

import pytest
import torch

import torchfastnorm
from torchfastnorm.explain import GPU, GPUS, launch_plans

IMITATED = GPU("imitated", 4, 227 * 1024, 16, 1e12)  # what sim.backend() pretends to be

REGIMES = [  # columns of bfloat16 on an H100; kernel, block, cluster of forward and of backward
    (1, ("row_forward_warp", 128, 1), ("row_backward_warp", 512, 1)),
    (256, ("row_forward_warp", 128, 1), ("row_backward_warp", 512, 1)),
    (257, ("row_forward_warp", 128, 1), ("row_backward_warp", 256, 1)),
    (1024, ("row_forward_warp", 128, 1), ("row_backward_warp", 256, 1)),
    (1025, ("row_forward_block", 64, 1), ("row_backward_block", 96, 1)),
    (4096, ("row_forward_block", 128, 1), ("row_backward_block", 256, 1)),
    (8192, ("row_forward_block", 256, 1), ("row_backward_block", 512, 1)),
    (8200, ("row_forward_block", 288, 1), ("row_backward_block", 288, 2)),
    (16384, ("row_forward_block", 512, 1), ("row_backward_block", 512, 2)),
    (65536, ("row_forward_block", 512, 4), ("row_backward_block", 512, 8)),
    (131072, ("row_forward_block", 512, 8), ("row_backward_block", 512, 16)),
    (524288, ("row_forward_block", 768, 16), ("row_backward_columns", 256, 1)),
    (1048576, ("row_forward_block", 768, 16), ("row_backward_columns", 256, 1)),
]


@pytest.mark.parametrize(("cols", "forward", "backward"), REGIMES)
def test_regime_by_length(cols, forward, backward):
    plans = launch_plans("layer_norm", (64, cols), torch.bfloat16, gpu="H100")
    assert [(plan.kernel, plan.block, plan.cluster) for plan in plans] == [forward, backward]


@pytest.mark.parametrize("cols", [64, 1000, 5000, 40000, 300000])
@pytest.mark.parametrize("gpu", ["A100", "H100", "RTX 5090"])
def test_only_the_grid_depends_on_rows(cols, gpu):
    def without_rows(rows):
        plan = launch_plans("layer_norm", (rows, cols), torch.float32, gpu=gpu)[0]
        return plan.kernel, plan.block, plan.cluster, plan.shared_bytes, plan.reason

    assert len({without_rows(rows) for rows in (1, 2, 131, 133, 10_000_000)}) == 1


def test_a_device_without_clusters_gets_none():
    for cols in (5000, 50_000, 500_000):
        assert all(plan.cluster == 1 for plan in launch_plans("rms_norm", (8, cols), torch.float32, gpu="A100"))


@pytest.mark.parametrize("gpu", ["A100", "H100", "RTX 5090"])
def test_dynamic_and_static_shared_memory_fit_together(gpu):
    """What the kernels declare statically (at most 2 KB forward, 10 KB backward) counts against the same limit."""
    limit = GPUS[gpu].shared_bytes
    for cols in (*range(5000, 70_000, 111), *range(70_000, 1_000_000, 1111)):
        forward, backward = launch_plans("layer_norm", (8, cols), torch.float32, gpu=gpu)
        assert forward.shared_bytes <= limit - 2048 and backward.shared_bytes <= limit - 10240


SHAPES = [(37, 64), (9, 1024), (5, 4096), (3, 16384), (3, 65536)]


@pytest.mark.backends("sim")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("op", ["layer_norm", "rms_norm", "add_layer_norm", "add_rms_norm"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_plans_and_bytes_are_those_of_the_launches(backend, op, shape, dtype):
    """Launches equal the plan; the distinct 32-byte sectors that they touch, times their size, equal its bytes."""
    import sim

    cols = shape[1]
    inputs = [torch.randn(shape).to(dtype).requires_grad_() for _ in range(2 if op.startswith("add") else 1)]
    parameters = [torch.randn(cols).to(dtype).requires_grad_() for _ in range(2 if op.endswith("layer_norm") else 1)]
    moved, launched = [], []
    with sim.backend(sm_count=IMITATED.multiprocessors, count_sectors=True):
        outputs = getattr(torchfastnorm, op)(*inputs, (cols,), *parameters)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        for direction in range(2):
            if direction == 1:
                sim.reset_counters()
                torch.autograd.grad(outputs, inputs + parameters, [torch.randn_like(y) for y in outputs])
            moved.append(sum(32 * (c.loads.sectors + c.stores.sectors) for c in sim.counters().values()))
            launched.append(sim.launches()[0])
    for plan, launch, seen in zip(launch_plans(op, shape, dtype, gpu=IMITATED), launched, moved, strict=True):
        assert launch.name in (plan.kernel, "row_backward_sums")
        if launch.name == plan.kernel:
            assert (launch.grid[0], launch.block[0], launch.cluster) == (plan.grid, plan.block, plan.cluster)
            assert (launch.smem, launch.cooperative) == (plan.shared_bytes, plan.cooperative)
        # What is read again comes from a cache: the same sectors. Statistics of few rows fill part of a sector.
        once = plan.bytes - plan.reread_bytes
        assert once <= seen <= 1.02 * once + 1024


def test_text(capsys):
    torchfastnorm.explain("add_rms_norm", (4096, 8192), torch.bfloat16, gpu="H200", bandwidth=4e12)
    text = capsys.readouterr().out
    moved = 4 * 4096 * 8192 * 2 + 8192 * 2 + 4096 * 4
    assert "on H200 at 4 TB/s" in text
    assert f"{moved:,} bytes: {moved / 4e12 * 1e6:.2f} us" in text
    assert "row_forward_block: grid 4096, block 256" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("batch_nrom", (2, 3)), "unknown op 'batch_nrom'"),
        (("layer_norm", (2, 3), torch.float32, "H1000"), "unknown gpu 'H1000'"),
    ],
)
def test_errors(arguments, message):
    op, shape, *rest = arguments
    options = {"gpu": rest[1]} if len(rest) > 1 else {}
    with pytest.raises(ValueError, match=message):
        torchfastnorm.explain(op, shape, *rest[:1], **options)


def test_too_many_normalized_dims():
    with pytest.raises(ValueError, match="normalized_dims=3"):
        torchfastnorm.explain("layer_norm", (2, 3), normalized_dims=3, gpu="H100")


def test_a_backward_has_no_more_clusters_than_the_device_holds():
    """132 multiprocessors make 16 clusters of 8; where GPCs hold 15, a sixteenth would take a turn of its own."""
    types, cols = [torch.bfloat16] * 4, 65536
    for rows, known, clusters in ((1000, 0, 16), (1000, 15, 15), (7, 15, 7)):
        plan = torchfastnorm._C.row_plan(True, True, rows, cols, *types, 132, 227 * 1024, 16,
                                         resident_clusters=(60, 30, known, 7))  # fmt: skip
        assert (plan["cluster"], plan["blocks"], plan["partial_rows"]) == (8, 8 * clusters, clusters)


def test_small_blocks_are_no_more_than_shared_memory_holds():
    """An RTX 5090's multiprocessor has 100 KB, and a block of a backward 10 KB."""
    for regime, dtype in ((0, torch.float32), (1, torch.float64)):  # warp, registers
        plan = torchfastnorm._C.row_plan(True, True, 10**6, 64, *[dtype] * 4, 170, 99 * 1024, 8, (regime, 32, 0, 0))
        assert plan["cooperative"] and plan["threads"] == 32
        assert plan["blocks"] * (plan["static_bytes"] + 1024) <= 170 * 100 * 1024
