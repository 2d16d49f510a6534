"""Launch plans chosen by hand: every legal one runs and is right, an impossible one says why, tables are read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import sim
import torch

import torchfastnorm
from torchfastnorm import _plan_choice
from torchfastnorm._extension import _C
from torchfastnorm._plan_choice import Choice, TunedPlan
from torchfastnorm.explain import GPU, launch_plans, legal_plans

IMITATED = GPU("imitated", 4, 227 * 1024, 16, 1e12)  # what sim.backend() pretends to be
needs_sim = pytest.mark.skipif(sim.why_not() is not None, reason=f"no sim backend: {sim.why_not()}")


@pytest.fixture(autouse=True)
def nothing_left():
    yield
    _C.forget_tuned_plans()


def row_norm(x, grad_y):
    leaf, weight = x.clone().requires_grad_(), torch.ones(x.shape[1], requires_grad=True)
    y = torchfastnorm.layer_norm(leaf, (x.shape[1],), weight, weight)
    return (y, *torch.autograd.grad(y, (leaf, weight), grad_y))


def plane_norm(x, grad_y):
    leaf, weight = x.clone(memory_format=torch.preserve_format).requires_grad_(), torch.ones(8, requires_grad=True)
    y = torchfastnorm.group_norm(leaf, 4, weight, weight)
    return (y, *torch.autograd.grad(y, (leaf, weight), grad_y))


def thinned(plans, count=12):
    """Some of them, the first and all regimes among them."""
    kept = {plan.regime: (choice, plan) for choice, plan in plans}
    return [*kept.values(), *plans[:: max(1, len(plans) // count)]]


@needs_sim
@pytest.mark.parametrize("backward", (False, True))
@pytest.mark.parametrize("cols", (200, 3000))
def test_every_plan_of_rows_runs_as_it_says(cols, backward):
    x, grad_y = torch.randn(2, 9, cols).unbind()
    expected = row_norm(x, grad_y)
    plans = legal_plans("layer_norm", x.shape, x.dtype, backward, gpu=IMITATED)
    assert {plan.regime for _, plan in plans} >= {"registers", "shared"} | ({"streamed"} if backward else set())
    kernel = "row_backward" if backward else "row_forward"
    for choice, plan in thinned(plans):
        with sim.backend():
            _plan_choice._force(kernel, choice)
            try:
                got = row_norm(x, grad_y)
            finally:
                _plan_choice._force(kernel, None)
            launch = next(one for one in sim.launches() if one.name == plan.kernel)
        assert (launch.grid[0], launch.block[0], launch.cluster) == (plan.grid, plan.block, plan.cluster), choice
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@needs_sim
@pytest.mark.parametrize("backward", (False, True))
@pytest.mark.parametrize("channels_last", (False, True))
def test_every_plan_of_planes_runs_as_it_says(channels_last, backward):
    x, grad_y = torch.randn(2, 3, 8, 20, 9).unbind()
    if channels_last:
        x, grad_y = (t.to(memory_format=torch.channels_last) for t in (x, grad_y))
    expected = plane_norm(x, grad_y)
    options = {"num_groups": 4, "channels_last": channels_last, "gpu": IMITATED}
    plans = legal_plans("group_norm", x.shape, x.dtype, backward, **options)
    assert {plan.regime for _, plan in plans} == {"cluster", "grid"}
    kernel = "plane_backward" if backward else "plane_forward"
    for choice, plan in thinned(plans, 8):
        with sim.backend(), torchfastnorm.plan(kernel, **vars(choice)):
            got = plane_norm(x, grad_y)
            launch = next(one for one in sim.launches() if one.name == kernel)
        assert (launch.grid[0], launch.block[0], launch.cluster) == (plan.grid, plan.block, plan.cluster), choice
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_the_heuristic_comes_first_and_nothing_twice():
    plans = legal_plans("rms_norm", (512, 4096), torch.bfloat16, False, gpu="H100")
    assert plans[0][0] == Choice() and plans[0][1] == launch_plans("rms_norm", (512, 4096), torch.bfloat16)[0]
    launches = [(p.kernel, p.regime, p.grid, p.block, p.cluster) for _, p in plans]
    assert len(launches) == len(set(launches)) > 20


@needs_sim
def test_an_impossible_plan_says_why_and_is_gone_afterwards():
    x = torch.randn(4, 20000)
    with sim.backend():
        with torchfastnorm.plan("row_forward", regime="warp"):
            with pytest.raises(RuntimeError, match="this plan cannot run: a row is too long for a warp"):
                torchfastnorm.layer_norm(x, (20000,))
            with (
                torchfastnorm.plan("row_forward", cluster=3),
                pytest.raises(RuntimeError, match="cluster=3 is no power of two"),
            ):
                torchfastnorm.layer_norm(x, (20000,))
            assert _plan_choice.forced("row_forward") == Choice("warp")
        torchfastnorm.layer_norm(x, (20000,))
    assert _plan_choice.forced("row_forward") is None


@pytest.mark.parametrize(
    "arguments, message",
    (
        ({"kernel": "row"}, "unknown kernel 'row'"),
        ({"kernel": "row_forward", "regime": "cluster"}, "no regime 'cluster'"),
        ({"kernel": "plane_forward", "threads": -32}, "threads must be positive"),
    ),
)
def test_wrong_words(arguments, message):
    with pytest.raises(ValueError, match=message), torchfastnorm.plan(**arguments):
        pass


def test_explain_tells_the_choice(capsys):
    with torchfastnorm.plan("row_forward", regime="registers", cluster=4):
        torchfastnorm.explain("layer_norm", (1024, 16384), torch.bfloat16, gpu="H100")
    printed = capsys.readouterr().out
    assert "cluster 4" in printed and "chosen by hand: regime=registers, cluster=4" in printed
    assert "occupancy at least" in printed


ENTRY = TunedPlan("row_forward", "float32", {"cols": 3000}, Choice("registers", cluster=2))


@needs_sim
def test_a_tuning_table_is_for_its_calls_alone(tmp_path):
    path = tmp_path / "device.json"
    planes = {"sets": "group", "channels": 8, "spatial": 180, "channels_last": False, "groups": 4}
    _plan_choice.save_table(path, "device", [ENTRY, TunedPlan("plane_forward", "float32", planes, Choice("grid"))])
    _plan_choice.use_plans(_plan_choice.read_table(path))
    with sim.backend():
        for rows in (1, 9):
            torchfastnorm.layer_norm(torch.randn(rows, 3000), (3000,))
            assert sim.launches()[-1].cluster == 2
        torchfastnorm.layer_norm(torch.randn(9, 3001), (3001,))
        assert sim.launches()[-1].cluster == 1
        torchfastnorm.group_norm(torch.randn(3, 8, 20, 9), 4)
        assert sim.launches()[-1].cooperative
        torchfastnorm.group_norm(torch.randn(3, 8, 20, 8), 4)
        assert not sim.launches()[-1].cooperative


@needs_sim
def test_a_tuned_plan_gives_way_where_it_cannot_run():
    """A table does not know how many rows there are, nor what is fused."""
    many = TunedPlan("row_forward", "float32", {"cols": 3000}, Choice("registers", cluster=2, blocks=1056))
    backward = TunedPlan("row_backward", "float32", {"cols": 3000}, Choice("registers", blocks=132))
    impossible = TunedPlan("row_forward", "float32", {"cols": 9000}, Choice("warp"))
    _plan_choice.use_plans([many, backward, impossible])
    with sim.backend():
        for rows in (1, 9):
            x = torch.randn(rows, 3000)
            got = row_norm(x, x)
            assert sim.launches()[-2].grid[0] <= 2 * rows
            with torchfastnorm.plan("row_forward"), torchfastnorm.plan("row_backward"):
                torch.testing.assert_close(got, row_norm(x, x), rtol=1e-4, atol=1e-4)
        torchfastnorm.layer_norm(torch.randn(2, 9000), (9000,))
        assert sim.launches()[-1].name == "row_forward_block"
        torchfastnorm.layer_norm(torch.randn(0, 3000), (3000,))


@pytest.mark.parametrize(
    "text", ("{", "{}", '{"plans": [{"kernel": "row"}]}', json.dumps({"plans": [{**vars(ENTRY), "choice": {"a": 1}}]}))
)
def test_what_is_no_table(tmp_path, text):
    (tmp_path / "table.json").write_text(text)
    with pytest.raises(ValueError, match="is no tuning table"):
        _plan_choice.read_table(tmp_path / "table.json")


def test_tables_are_read_when_cuda_starts(tmp_path, monkeypatch):
    """For each device by its name, from the user's folder."""
    _plan_choice.save_table(tmp_path / "nvidia-h100.json", "NVIDIA H100", [ENTRY])
    monkeypatch.setenv("TORCHFASTNORM_PLANS", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: ("NVIDIA H100", "Other", "NVIDIA H100")[device])
    used = []
    monkeypatch.setattr(_plan_choice, "use_plans", lambda plans, device: used.append((plans, device)))
    _plan_choice._load_for_devices()
    assert used == [([ENTRY], 0), ([ENTRY], 2)]


def test_import_starts_no_cuda():
    code = "import torch, torchfastnorm; assert not torch.cuda.is_initialized()"
    root = Path(torchfastnorm.__file__).parents[1]
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(root)})
