"""explain of whitening: its plans equal what is launched, and their bytes what is moved."""

from __future__ import annotations

import pytest
import torch

import torchfastnorm
from torchfastnorm.explain import GPU, launch_plans, legal_plans

IMITATED = GPU("imitated", 4, 227 * 1024, 16, 1e12)  # what sim.backend() pretends to be
SHAPES = [((3, 8, 20, 20), 2), ((2, 64, 12, 12), 1), ((1, 70, 16, 16), 1)]


@pytest.mark.backends("sim")
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
@pytest.mark.parametrize("channels_last", (False, True))
@pytest.mark.parametrize("shape, groups", SHAPES)
def test_plans_and_bytes_are_those_of_the_launches(backend, shape, groups, channels_last, dtype):
    """Distinct 32-byte sectors, times their size, equal the bytes less what is read again (which caches serve)."""
    import sim

    layout = torch.channels_last if channels_last else torch.contiguous_format
    x, grad_y = (t.to(dtype).contiguous(memory_format=layout) for t in torch.randn(2, *shape).unbind())
    x.requires_grad_()
    plans = launch_plans("batch_whitening", shape, dtype, num_groups=groups, channels_last=channels_last, gpu=IMITATED)
    with sim.backend(sm_count=IMITATED.multiprocessors, count_sectors=True):
        width = shape[1] // groups
        y = torchfastnorm.batch_whitening(x, training=True, num_channels=width, method="iternorm")
        of_forward, launched = sim.counters(), sim.launches()
        sim.reset_counters()
        y.backward(grad_y)
        of_backward, launched = sim.counters(), launched + sim.launches()
    assert len(plans) == len(launched) == 6
    for plan, launch in zip(plans, launched, strict=True):
        assert (launch.name, launch.grid[0], launch.block[0]) == (plan.kernel, plan.grid, plan.block)
        assert launch.smem == plan.shared_bytes
        counters = (of_forward if plan.direction == "forward" else of_backward)[plan.kernel]
        seen = 32 * (counters.loads.sectors + counters.stores.sectors)
        # Each tensor once, and of what is small beside them not more than the plan says.
        assert least_bytes(plan, shape, dtype) <= seen <= plan.bytes - plan.reread_bytes + 1024


def least_bytes(plan, shape, dtype):
    """What no kernel could do without: each tensor once."""
    tensor = torch.Size(shape).numel() * dtype.itemsize
    second = plan.direction == "backward"
    tensors = {"whitening_moments": 1 + second, "whitening_transform": 2 + second, "whitening_finish": 0}
    return tensors[plan.kernel] * tensor


def test_its_plans_cannot_be_chosen():
    with pytest.raises(ValueError, match="cannot be chosen"):
        legal_plans("batch_whitening", (8, 64, 7, 7), torch.float32, False)


@pytest.mark.parametrize("groups", (0, 3))
def test_errors(groups):
    with pytest.raises(ValueError, match=f"num_groups={groups} does not divide"):
        torchfastnorm.explain("batch_whitening", (8, 64, 7, 7), num_groups=groups, gpu="H100")


def test_text(capsys):
    torchfastnorm.explain("batch_whitening", (64, 256, 56, 56), torch.bfloat16, num_groups=4, gpu="H100")
    text = capsys.readouterr().out
    kernels = ["whitening_moments", "whitening_finish", "whitening_transform"]
    assert [line.split()[1].rstrip(":") for line in text.splitlines() if "grid" in line] == 2 * kernels
    assert "occupancy at least 0%" not in text
