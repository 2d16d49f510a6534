"""python -m bench sweep: plans are listed without a GPU, the best is marked and kept, wrong words are errors."""

from __future__ import annotations

import json

import pytest
import torch

pytest.importorskip("rich")
pytest.importorskip("click")
pytest.importorskip("jsonschema")
from bench import cli, registry, results, sweep
from bench.shapes import Shape
from torchfastnorm._plan_choice import Choice, read_table

CPU = torch.device("cpu")
ROWS = Shape((64, 4096), "for the test of the sweep")


def records(op="layer_norm", shape=ROWS, backward=False):
    return sweep.measure(registry.OPS[op], shape, torch.bfloat16, CPU, backward, "H100", 3)


def timed(planted):
    """As if measured: the heuristic's plan takes 10 us, `planted` 8, the others 12."""
    found = records()
    for number, record in enumerate(found):
        record["seconds"] = {0: 10e-6, planted: 8e-6}.get(number, 12e-6)
    return found


def test_without_a_gpu_plans_are_listed_and_nothing_is_timed(tmp_path, capsys):
    arguments = ["sweep", "layer_norm", "--device", "cpu", "--shape", "64x4096", "--dtype", "bfloat16", "--rows", "3"]
    assert cli.main([*arguments, "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("not measured") == 4 and "heuristic" in printed and "row_forward_block" in printed
    found = results.load(tmp_path / "sweep-layer_norm.json")
    assert found["plans"][0]["heuristic"] and {record["seconds"] for record in found["plans"]} == {None}


@pytest.mark.parametrize(
    "op, shape, kernel",
    (
        ("add_rms_norm", ROWS, "row_backward"),
        ("batch_norm_add_relu", Shape((8, 64, 14, 14), ""), "plane_backward"),
        ("group_norm_silu", Shape((8, 64, 14, 14), "", "channels_last"), "plane_backward"),
        ("switch_norm", Shape((8, 64, 14, 14), ""), "plane_backward"),
    ),
)
def test_every_kind_of_op(op, shape, kernel):
    found = records(op, shape, backward=True)
    assert len(found) > 3 and {record["kind"] for record in found} == {kernel}
    assert [record["heuristic"] for record in found] == [True] + [False] * (len(found) - 1)


def test_the_best_is_marked():
    found = timed(planted=5)
    assert sweep.best(found) is found[5]
    rows = sweep.table(found, 4).rows
    assert [row[2] for row in rows[:2]] == ["best", "heuristic"] and len(rows) == 4
    assert rows[0][-2] == "8.0" and rows[0][-1] == f"{found[5]['plan']['bytes'] / 8e-6 / 1e9:,.0f}"


def test_what_beats_the_heuristic_is_kept_beside_the_others(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHFASTNORM_PLANS", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB")
    path = sweep.save(timed(planted=5), torch.device("cuda"), date="today")
    assert path == tmp_path / "nvidia-h100-80gb.json"
    other = timed(planted=7)
    for record in other:
        record["sizes"] = {"cols": 8192}
    sweep.save(other, torch.device("cuda"))
    sweep.save(timed(planted=9), torch.device("cuda"))
    kept = {entry.sizes["cols"]: entry.choice for entry in read_table(path)}
    assert kept == {4096: Choice(**records()[9]["choice"]), 8192: Choice(**records()[7]["choice"])}
    assert json.loads(path.read_text())["device"] == "NVIDIA H100 80GB"
    assert sweep.save(timed(planted=0), torch.device("cuda")) is None


@pytest.mark.parametrize(
    "arguments, message",
    (
        (["iter_norm"], "cannot be chosen"),
        (["layer_norm", "--save"], "nothing is timed without a GPU"),
        (["layer_norm", "--gpu", "H1000"], "unknown gpu 'H1000'"),
        (["layernorm"], "layernorm"),
    ),
)
def test_errors_are_one_line_and_status_2(arguments, message, capsys):
    assert cli.main(["sweep", *arguments, "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
