"""BatchRenorm's modules: the schedule, state dicts of BatchNorm and of the packages, torch.compile, errors."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import TestBackend
from test_batch_renorm import all_dialects, make
from torch import nn

from torchfastnorm import BatchRenorm1d, BatchRenorm2d, BatchRenorm3d, batch_renorm, reference


@pytest.mark.parametrize("dims", (1, 2, 3))
def test_schedule(backend: TestBackend, dims: int) -> None:
    """The paper's: r_max 1 until step 5000, 3 from 40000; d_max 0 until 5000, 5 from 25000; counted before the step."""
    module = (BatchRenorm1d, BatchRenorm2d, BatchRenorm3d)[dims - 1](6).to(backend.device)
    x = torch.randn(8, 6, *(3,) * dims, device=backend.device) * 20 + 30
    for step, r_max, d_max in (
        (0, 1, 0),
        (5000, 1, 0),
        (15000, 2 * 15000 / 35000 + 25 / 35, 2.5),
        (25000, 2 * 25000 / 35000 + 25 / 35, 5),
        (50000, 3, 5),
    ):
        module.num_batches_tracked.fill_(step)
        module.running_mean.zero_(), module.running_var.fill_(1)
        running = module.running_mean.clone(), module.running_var.clone()
        expected = reference.batch_renorm(x, *running, module.weight, module.bias, True, r_max=r_max, d_max=d_max)
        torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-4)
        assert module.num_batches_tracked == step + 1
        torch.testing.assert_close(module.running_var, running[1])


def test_loads_a_batch_norm(backend: TestBackend) -> None:
    theirs = nn.BatchNorm2d(6, eps=1e-3).to(backend.device)
    theirs(torch.randn(4, 6, 5, 5, device=backend.device))
    ours = BatchRenorm2d(6).to(backend.device)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 6, 5, 5, device=backend.device)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))
    assert list(ours.state_dict()) == list(theirs.state_dict())


STATES = {
    "ludvb": ("weight", "bias", "running_mean", "running_std", "num_batches_tracked"),
    "torchrl": ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"),
    "sb3": ("scale", "bias", "ra_mean", "ra_var", "steps"),
}


@pytest.mark.parametrize("dialect", STATES)
def test_state_dict_of_a_package(backend: TestBackend, dialect: str) -> None:
    values = (torch.rand(6) + 0.5, torch.randn(6), torch.randn(6), torch.rand(6) + 0.5, torch.tensor(7))
    state = dict(zip(STATES[dialect], values, strict=True))
    module = nn.Sequential(BatchRenorm1d(6, dialect=dialect))
    module.load_state_dict({f"0.{name}": t for name, t in state.items()})
    found = (
        module[0].weight,
        module[0].bias,
        module[0].running_mean,
        module[0].running_var,
        module[0].num_batches_tracked,
    )
    for ours, theirs in zip(found, values, strict=True):
        assert torch.equal(ours, theirs)
    saved = module.state_dict()
    assert {f"0.{name}" for name in state} == set(saved)
    module.to(backend.device)
    copy.deepcopy(module)(torch.randn(4, 6, device=backend.device))


def test_errors(backend: TestBackend) -> None:
    arguments = make((4, 6), torch.float32, backend)
    for options, message in (
        ({"dialect": "keras"}, "unknown dialect 'keras'"),
        ({"dialect": "none"}, "unknown dialect 'none'"),
        ({"r_max": 0.5}, "r_max must be at least 1"),
        ({"d_max": -1.0}, "d_max must not be negative"),
        ({"momentum": -0.1}, "momentum must be"),
        ({"running_mean": None, "running_var": None}, "must be given"),
    ):
        before = {name: t.clone() for name, t in arguments.items()}
        with pytest.raises(ValueError, match=message):
            batch_renorm(**{**arguments, **options}, training=True)
        assert all(torch.equal(before[name], t) for name, t in arguments.items())
    with pytest.raises(ValueError, match="unknown dialect"):
        BatchRenorm2d(6, dialect="keras")


@pytest.mark.backends("cpu", "cuda")
@all_dialects
def test_compile_and_opcheck(backend: TestBackend, dialect: str) -> None:
    arguments = make((4, 6, 5, 5), torch.float32, backend)
    module = BatchRenorm2d(6, dialect=dialect, r_ramp=(0, 1), d_ramp=(0, 1)).to(backend.device)
    module.num_batches_tracked.fill_(5)
    compiled = torch.compile(copy.deepcopy(module), fullgraph=True, backend="aot_eager")
    x = arguments["input"]
    torch.testing.assert_close(compiled(x), module(x))
    running = arguments["running_mean"], arguments["running_var"]
    bounds = (3.0, 5.0, 0.0, 0.0, 0.0, 0.0)
    torch.library.opcheck(
        torch.ops.torchfastnorm.batch_renorm_with_update,
        (
            x.requires_grad_(),
            *running,
            arguments["weight"],
            arguments["bias"],
            True,
            0.1,
            1e-3,
            *bounds,
            dialect,
            None,
            "none",
            None,
            None,
        ),
    )


def test_autocast_keeps_the_dtype(backend: TestBackend) -> None:
    module = BatchRenorm2d(6).to(backend.device)
    with torch.autocast(backend.device.type, torch.bfloat16):
        assert module(torch.randn(4, 6, 5, 5, device=backend.device)).dtype == torch.float32


def test_ludvb_makes_deviations_of_the_variances_that_it_loads(backend: TestBackend) -> None:
    theirs = nn.BatchNorm2d(6)
    theirs.running_var.fill_(100.0)
    ours = BatchRenorm2d(6, dialect="ludvb")
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours.running_var, torch.full((6,), 10 + ours.eps))
    again = BatchRenorm2d(6, dialect="ludvb")
    again.load_state_dict(ours.state_dict())
    assert torch.equal(again.running_var, ours.running_var)


@pytest.mark.backends("cpu", "cuda")
@pytest.mark.parametrize("batches", (0, 5000, 15000, 50000))
def test_bounds_may_be_infinite(backend: TestBackend, batches: int) -> None:
    """Before, on and behind their ramps; by the kernels, and by the composite formula that forward mode takes."""
    module = BatchRenorm2d(6, r_max=float("inf"), d_max=float("inf")).to(backend.device)
    module.num_batches_tracked.fill_(batches)
    twin = copy.deepcopy(module)
    x = torch.randn(4, 6, 5, 5, device=backend.device) * 3 + 1
    with torch.autograd.forward_ad.dual_level():
        y = twin(torch.autograd.forward_ad.make_dual(x, torch.ones_like(x)))
        y = torch.autograd.forward_ad.unpack_dual(y).primal
    assert y.isfinite().all()
    torch.testing.assert_close(module(x), y, rtol=1e-5, atol=1e-5)
