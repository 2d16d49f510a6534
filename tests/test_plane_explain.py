"""explain and launch_plans for norms of feature maps: equal to what is launched; what fits on the chip is read once."""

from __future__ import annotations

import pytest
import sim
import torch
from conftest import TestBackend

import torchfastnorm
from torchfastnorm import functional
from torchfastnorm.explain import GPU, GPUS, launch_plans

IMITATED = GPU("imitated", 4, 227 * 1024, 16, 1e12)  # what sim.backend() pretends to be
OPS = ("batch_norm", "batch_renorm", "group_norm", "instance_norm", "switch_norm")
LAYOUTS = (False, True)
SHAPES = ((3, 8, 48), (2, 16, 1024), (2, 8, 4096), (40, 64, 1))


def call(op: str, x: torch.Tensor, residual: torch.Tensor | None, training: bool = True) -> torch.Tensor:
    fused = {"residual": residual, "activation": "none" if residual is None else "relu"}
    if op in ("batch_norm", "batch_renorm"):
        running = (torch.zeros(x.shape[1]), torch.ones(x.shape[1]))
        return getattr(functional, op)(x, *running, training=training, **fused)
    if op == "switch_norm":
        running = (torch.zeros(x.shape[1]), torch.zeros(x.shape[1]))
        return functional.switch_norm(x, torch.ones(3), torch.ones(3), *running, training=True, **fused)
    return functional.group_norm(x, 4, **fused) if op == "group_norm" else functional.instance_norm(x, **fused)


def make(shape: tuple[int, ...], last: bool) -> torch.Tensor:
    x = torch.randn(shape)
    return (x.transpose(1, 2).contiguous().transpose(1, 2) if last else x).requires_grad_()


@pytest.mark.backends("sim")
@pytest.mark.parametrize("with_residual", (False, True))
@pytest.mark.parametrize("last", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_plans_are_what_is_launched(backend: TestBackend, op: str, shape, last: bool, with_residual: bool) -> None:
    if op == "instance_norm" and shape[-1] == 1:
        pytest.skip("torch rejects instances of one element")
    x, residual = make(shape, last), make(shape, last) if with_residual else None
    y = call(op, x, residual)
    y.backward(torch.ones_like(y))
    launched = [entry for entry in sim.launches() if entry.name in ("plane_forward", "plane_backward")]
    fused = {"residual": with_residual, "activation": "relu" if with_residual else "none"}
    plans = launch_plans(op, shape, num_groups=4, channels_last=last, gpu=IMITATED, **fused)
    for launch, plan in zip(launched, plans, strict=True):
        assert (launch.name, launch.grid[0], launch.block[0]) == (plan.kernel, plan.grid, plan.block)
        assert (launch.cluster, launch.smem) == (plan.cluster, plan.shared_bytes)
        assert launch.cooperative == plan.cooperative


@pytest.mark.backends("sim")
@pytest.mark.parametrize("last", LAYOUTS)
@pytest.mark.parametrize("op", OPS)
def test_what_fits_on_the_chip_is_read_once(backend: TestBackend, op: str, last: bool) -> None:
    """Accesses of 16 bytes are those to x, grad_y, y and grad_x: each moves exactly once.

    Those of whole grids are also to the table of entries: less than another read of a tensor would take.
    """
    shape = (2, 16, 1024)
    x = make(shape, last)
    plans = launch_plans(op, shape, num_groups=4, channels_last=last, gpu=IMITATED)
    assert [plan.reread_bytes for plan in plans] == [0, 0]
    # Each plane of switch_norm waits for all the others.
    assert all(plan.cooperative == (op == "switch_norm") for plan in plans)
    y = call(op, x, None)
    y.backward(torch.ones_like(y))
    forward, backward = (sim.counters()[name] for name in ("plane_forward", "plane_backward"))
    vectors = x.numel() // 4
    for traffic, tensors in ((forward.loads, 1), (forward.stores, 1), (backward.loads, 2), (backward.stores, 1)):
        entries = vectors // 4 if op == "switch_norm" else 0
        assert tensors * vectors <= traffic.by_width[16] <= tensors * vectors + entries


@pytest.mark.backends("sim")
def test_evaluation_is_one_pass(backend: TestBackend) -> None:
    x = make((4, 8, 2048), False)
    y = call("batch_norm", x, None, training=False)
    y.backward(torch.ones_like(y))
    plans = launch_plans("batch_norm", x.shape, training=False, gpu=IMITATED)
    assert not any(plan.cooperative or plan.reread_bytes for plan in plans)
    for name, inputs in (("plane_forward", 1), ("plane_backward", 2)):
        assert sim.counters()[name].loads.by_width[16] == inputs * x.numel() // 4


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("last", LAYOUTS)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("activation", ("relu", "silu"))  # backward keeps two tensors; three
def test_shared_memory_fits(op: str, last: bool, gpu: str, activation: str) -> None:
    """What the kernels declare statically (at most 4 KB) counts against the same limit."""
    for spatial in (1, 49, 3136, 50176, 2_000_001):
        for channels in (64, 320, 2048):
            for dtype in (torch.bfloat16, torch.float64):
                fused = {"residual": True, "activation": activation}
                plans = launch_plans(op, (8, channels, spatial), dtype, channels_last=last, gpu=gpu, **fused)
                assert all(plan.shared_bytes <= GPUS[gpu].shared_bytes - 4096 for plan in plans)
                assert all(plan.cluster <= max(1, GPUS[gpu].cluster_blocks) for plan in plans)


@pytest.mark.parametrize("last", LAYOUTS)
def test_signs_take_the_place_of_the_residual(last: bool) -> None:
    """A byte for 16 of x, written by the forward and read by the backward."""
    shape, tensor = (8, 64, 56, 56), 8 * 64 * 56 * 56 * 2
    options = {"channels_last": last, "gpu": "H100", "residual": True}
    relu, silu = (launch_plans("batch_norm", shape, torch.bfloat16, activation=a, **options) for a in ("relu", "silu"))
    forward, backward = ([plan.bytes - plan.reread_bytes for plan in pair] for pair in zip(relu, silu, strict=True))
    assert forward[0] - forward[1] == tensor // 16
    assert backward[1] - backward[0] == tensor - tensor // 16


def test_group_plans_do_not_depend_on_the_batch() -> None:
    for last in LAYOUTS:
        for spatial in (49, 4096, 500_000):
            plans = [
                launch_plans("group_norm", (samples, 64, spatial), channels_last=last, gpu="H100")
                for samples in (1, 3, 4000)
            ]
            kept = {tuple((plan.block, plan.cluster) for plan in pair) for pair in plans}
            assert len(kept) == 1


@pytest.mark.parametrize("last", LAYOUTS)
def test_switch_norm_needs_the_whole_grid(last: bool) -> None:
    """In evaluation too: layers and instances come from the input. Its statistics are also of layers and channels."""
    shape, switched = (8, 64, 3136), []
    for training in (True, False):
        plans = launch_plans("switch_norm", shape, channels_last=last, training=training, gpu="H100")
        assert all(plan.cooperative and plan.cluster == 1 and "four grid barriers" in plan.reason for plan in plans)
        switched.append([plan.bytes for plan in plans])
    assert switched[0] == switched[1]


def test_explain_prints_and_rejects(capsys: pytest.CaptureFixture[str]) -> None:
    torchfastnorm.explain("batch_norm", (64, 256, 56, 56), torch.bfloat16, gpu="H100", activation="relu", residual=True)
    assert "plane_forward" in capsys.readouterr().out
    with pytest.raises(ValueError, match="does not divide"):
        torchfastnorm.explain("group_norm", (2, 30, 5), num_groups=4)
    with pytest.raises(ValueError, match="needs a shape"):
        torchfastnorm.explain("instance_norm", (5,))
