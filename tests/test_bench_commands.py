"""Every subcommand of the benchmark from its command line to its files, on tiny sizes; every error it may end in."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from bench_cases import CPU, OPS, RMS_NORM, candidate, one_thread  # noqa: F401

from bench import latency, machine, memory, noise, registry, results, roofline
from bench import run as running
from bench.cells import Result
from bench.cli import main
from bench.inputs import make_inputs


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Blocks of a millisecond, and a machine that is always quiet."""
    monkeypatch.setattr(noise, "listen", lambda device: noise.Noise(0.01, 0.0))
    request = running.Request
    monkeypatch.setattr(running, "Request", lambda *a, **k: replace(request(*a, **k), block_seconds=1e-3))
    monkeypatch.setattr(roofline, "LARGEST", {"cpu": 1 << 20, "cuda": 1 << 20})


def ended(capsys, *arguments: str) -> tuple[int, str]:
    capsys.readouterr()
    status = main(list(arguments))
    return status, capsys.readouterr().err


def test_run(tmp_path, capsys):
    arguments = ["run", "layer_norm", "batch_norm_add_relu", "--shape", "32x64", "--shape", "4x16x6X5", "--rounds", "3"]
    arguments += ["--device", "cpu", "--dtype", "float32", "--baseline", "aten", "--baseline", "unfused"]
    assert main([*arguments, "--output", str(tmp_path)]) == 0
    found = results.load(tmp_path / "results.json")
    assert found["machine"]["noise"] == {"spread": 0.01, "foreign_load": 0.0, "too_noisy": False}
    cells = results.cells_of(found)
    assert len(cells) == 9 and all(cell.ours.seconds and cell.results[1].seconds for cell in cells)
    assert {str(cell.shape) for cell in cells} == {"32x64", "4x16x6x5", "4x16x6x5 channels_last"}
    assert {stream["mix"] for stream in found["streams"]} == {"1R1W", "2R1W", "3R1W", "4R1W", "2R2W"}
    for key in ("device", "date", "commit", "versions", "command", "cpu", "build", "allocator"):
        assert key in found["machine"]
    text = (tmp_path / "results.md").read_text()
    assert "| layer_norm " in text and "Roofs, GB/s" in text and (tmp_path / "results.png").stat().st_size > 1000
    output = capsys.readouterr().out
    assert "batch_norm_add_relu" in output and "2R1W+2R2W" in output


def test_run_names_wrong_and_failing_baselines(tmp_path, capsys, monkeypatch):
    def broken(*inputs):
        raise NotImplementedError("only 3072 columns")

    def planted(names):
        wrong = candidate("aten", lambda x, weight: 1.1 * RMS_NORM.reference(x, weight))
        return [*RMS_NORM.candidates([]), wrong, candidate("liger", broken)]

    monkeypatch.setitem(registry.OPS, "rms_norm", replace(RMS_NORM, candidates=planted))
    assert (
        main(["run", "rms_norm", "--shape", "8x32", "--dtype", "float32", "--rounds", "2", "--output", str(tmp_path)])
        == 0
    )
    output = capsys.readouterr().out
    assert "not timed: rms_norm 8x32 float32, aten: wrong: y off by 10 %" in output
    assert "not timed: rms_norm 8x32 float32, liger: failed: NotImplementedError: only 3072 columns" in output
    ours, *others = json.loads((tmp_path / "results.json").read_text())["cells"][0]["candidates"]
    assert ours["seconds"] and not any(other["seconds"] for other in others)


def test_an_absent_baseline_is_not_passed_over(capsys):
    arguments = ["rms_norm", "--baseline", "aten", "--baseline", "unfused", "--device", "cpu"]
    for command in (["run", "--rounds", "1", "--shape", "8x32"], ["memory", "--shape", "8x32"]):
        assert main([*command, *arguments]) == 0
        output = capsys.readouterr().out
        assert "not measured: unfused: not installed, or without these ops" in output and "aten: not" not in output


def test_a_time_limit_skips_and_says_so(capsys):
    arguments = ["run", "rms_norm", "--shape", "8x32", "--rounds", "1", "--time-limit", "1e-9", "--device", "cpu"]
    assert main(arguments) == 0
    assert "not measured: rms_norm 8x32 bfloat16: time limit" in capsys.readouterr().out


def test_layouts_and_suites_choose_the_shapes():
    def chosen(name, **options):
        return running.shapes_of(running.Request([OPS[name]], CPU, **options), OPS[name])

    assert {s.layout for s in chosen("batch_norm", layouts=["channels_last"])} == {"channels_last"}
    assert {s.layout for s in chosen("layer_norm", suite="full", layouts=["strided"])} == {"strided"}
    assert all("ResNet-50" in s.reason for s in chosen("switch_norm", suite="models"))
    assert [s.sizes[1] for s in chosen("add_rms_norm", suite="models")] == [4096]


def test_a_noisy_machine_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(noise, "listen", lambda device: noise.Noise(0.4, 1.5))
    command = ["run", "rms_norm", "--shape", "8x32", "--rounds", "1", "--dtype", "float32", "--device", "cpu"]
    status, error = ended(capsys, *command)
    assert status == 3 and error.count("\n") == 1
    assert "too noisy to tell: other processes take 1.50 of a core" in error and "copy varies by 40 %" in error
    assert main([*command, "--force"]) == 0
    assert noise.refuse_if_noisy(CPU, True)["too_noisy"]
    assert not noise.Noise(0.01, 1.5).complaint(torch.device("cuda"))  # the host's load is nothing to a GPU


def test_noise_is_heard():
    heard = noise.Noise(Result("", "", [1.0, 2.0, 1.0, 3.0, 1.0, 2.0]).spread, 0.0)
    assert "varies" in heard.complaint(CPU)


def test_roofline(tmp_path, capsys):
    assert main(["roofline", "--rounds", "2", "--threads", "1", "--device", "cpu", "--output", str(tmp_path)]) == 0
    found = results.load(tmp_path / "roofline.json")
    assert {s["bytes"] for s in found["streams"]} == {16 << 10, 64 << 10, 256 << 10, 1 << 20}
    assert "4R1W" in capsys.readouterr().out
    status, error = ended(capsys, "roofline", "--largest", "0")
    assert status == 2 and "--largest" in error


def test_levels_follow_the_caches(monkeypatch):
    monkeypatch.setattr(machine, "cache_bytes", lambda: {"L1": 32 << 10, "L2": 1 << 20, "L3": 8 << 20})
    found = [roofline.level(total, 2, CPU) for total in (64 << 10, 65 << 10, 2 << 20, 4 << 20, 16 << 20)]
    assert found == ["L1", "L2", "L2", "L3", "DRAM"]


def test_latency(tmp_path, monkeypatch):
    measure = latency.measure_op
    monkeypatch.setattr(latency, "measure_op", lambda *arguments: measure(*arguments, block_seconds=1e-4))
    assert main(["latency", "--baseline", "aten", "--rounds", "1", "--device", "cpu", "--output", str(tmp_path)]) == 0
    calls = results.load(tmp_path / "latency.json")["calls"]
    assert {call["op"] for call in calls} == set(OPS) and all(call["seconds"] for call in calls)
    assert {call["candidate"] for call in calls} == {"torchfastnorm", "aten"}
    modules = {call["op"] for call in calls if call["case"] == "module forward+backward"}
    assert modules == set(latency.MODULES)


def test_memory(tmp_path):
    arguments = ["--shape", "64x256", "--shape", "4x64x8x8", "--dtype", "float32", "--device", "cpu"]
    assert main(["memory", *arguments, "--output", str(tmp_path)]) == 0
    kept = results.load(tmp_path / "memory.json")["kept"]
    assert {record["op"] for record in kept} == set(OPS) and not any("failure" in record for record in kept)
    by_key = {(r["op"], r["layout"], r["candidate"]): r for r in kept}
    matrix, maps = 64 * 256 * 4, 4 * 64 * 8 * 8 * 4
    ours = by_key["layer_norm", "contiguous", "torchfastnorm"]
    assert ours["new_bytes"] == 2 * 64 * 4  # mean and rstd; the input and the weight are there in any case
    assert matrix + 256 * 4 <= ours["saved_bytes"] - ours["new_bytes"] <= matrix + 2 * 256 * 4
    fused, steps = (by_key["group_norm_silu", "channels_last", name] for name in ("torchfastnorm", "unfused"))
    assert steps["saved_bytes"] - fused["saved_bytes"] >= maps - 1024  # the SiLU's input


def test_storages_are_counted_once():
    inputs = make_inputs(RMS_NORM, latency.ROWS, torch.float32, CPU, seed=0)

    class Keep(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight):
            new = torch.ones(100)
            ctx.save_for_backward(x, x.view(-1), new, new[:10], weight)
            return x * 1

        @staticmethod
        def backward(ctx, grad):
            return grad, torch.zeros_like(ctx.saved_tensors[-1])

    assert memory.kept(candidate("twice", Keep.apply), inputs) == (4 * (8 * 64 + 64 + 100), 400)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "no_norm"], "no op is called no_norm; there are layer_norm, "),
        (["latency", "no_norm"], "no op is called no_norm"),
        (["memory", "no_norm"], "no op is called no_norm"),
        (["run", "--shape", "8"], "--shape takes two to five positive numbers"),
        (["run", "--shape", "8x0"], "--shape takes two to five positive numbers"),
        (["run", "--shape", "8xa"], "--shape takes two to five positive numbers"),
        (["run", "group_norm", "--shape", "8x16"], "nothing to measure for group_norm, which takes shapes NxCxHxW"),
        (["run", "rms_norm", "--layout", "channels_last"], "nothing to measure for rms_norm, which takes shapes ROWS"),
        (["run", "--device", "tpu"], "--device tpu cannot be used"),
        (["run", "--device", "cuda:77"], "--device cuda:77 cannot be used"),
        (["run", "--device", "meta"], "--device meta: there are cpu and cuda"),
        (["run", "--baseline", "oneflow"], "no baseline is called oneflow"),
        (["run", "--dtype", "int8"], "'int8' is not one of"),
        (["run", "--suite", "huge"], "'huge' is not one of"),
        (["run", "--threads", "0"], "--threads"),
        (["run", "--rounds", "0"], "--rounds"),
        (["train"], "Missing option '--model'"),
        (["train", "--model", "alexnet"], "'alexnet' is not one of"),
        (["report", "/nonexistent"], "/nonexistent is not a folder"),
        (["sing"], "No such command 'sing'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_status_two(capsys, arguments, message):
    status, error = ended(capsys, *arguments)
    assert status == 2 and message in error and len(error.strip().splitlines()) == 1


def test_an_empty_folder_has_no_report(tmp_path, capsys):
    status, error = ended(capsys, "report", str(tmp_path))
    assert status == 2 and "holds no results" in error


def test_help_of_every_command(capsys):
    for name in ("run", "compare", "report", "roofline", "latency", "memory", "train"):
        assert main([name, "--help"]) == 0
        assert f"bench {name}" in capsys.readouterr().out
    assert main(["run", "--print-output-folder", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.strip() == str(machine.result_folder(CPU))


@pytest.mark.parametrize(
    "model, name", [("AMD EPYC", "AMD EPYC family 26 model 2"), ("AMD EPYC 9654", "AMD EPYC 9654")]
)
def test_cpus_of_one_name_are_told_apart(monkeypatch, model, name):
    first = f"processor\t: 0\ncpu family\t: 26\nmodel\t\t: 2\nmodel name\t: {model}\n"
    monkeypatch.setattr(machine.Path, "read_text", lambda *_, **__: f"{first}\n{first.replace('0', '1', 1)}")
    assert machine.cpu_name() == name
