"""Results of the benchmark as files: compare sees what is planted, old files load, broken ones are named."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from bench_cases import LAYER_NORM, MACHINE, SHAPE, candidate, measure, one_thread, run_document, written  # noqa: F401

from bench import compare, results
from bench.cli import main

COMMITTED = sorted((Path(__file__).parent.parent / "bench" / "results").rglob("*.json"))


@pytest.mark.parametrize(("factor", "verdict", "status"), [(1.0, "same", 0), (1.3, "slower", 1), (0.7, "faster", 0)])
def test_a_planted_change_is_seen(tmp_path, capsys, factor, verdict, status):
    files = [written(tmp_path / f"{i}.json", run_document(s)) for i, s in enumerate((1e-3, factor * 1e-3))]
    assert main(["compare", *files]) == status
    assert f"6 {verdict}; time after / before, geometric mean: {factor:.3f}" in capsys.readouterr().out


def test_a_slow_down_of_one_real_cell_is_seen(tmp_path):
    def normal(x, weight, bias):
        return torch.nn.functional.layer_norm(x, (x.shape[-1],), weight, bias, 1e-5)

    def repeated(x, weight, bias):
        for _ in range(30):
            y = normal(x, weight, bias)
        return y

    documents = []
    for function in (normal, repeated):
        found = measure(candidate("torchfastnorm", function), directions=["forward"])
        documents.append(results.document("run", MACHINE, cells=[*map(results.cell_record, found)]))
    (change,) = compare.changes(*documents, threshold=0.5)
    assert change.key == (LAYER_NORM.name, str(SHAPE), "float32", "forward") and change.factor > 2
    noisy = compare.SPREADS * max(change.before.spread, change.after.spread) > 1  # on a busy machine it may be lost in
    assert change.verdict == "slower" or noisy


def test_what_the_machine_does_to_both_is_taken_out():
    before, after = run_document(1e-3, aten=2e-3), run_document(1.3e-3, aten=2.6e-3)
    assert {c.verdict for c in compare.changes(before, after)} == {"slower"}
    assert {c.verdict for c in compare.changes(before, after, relative_to="aten")} == {"same"}
    assert {c.verdict for c in compare.changes(before, after, relative_to="roof")} == {"slower"}


def test_spread_is_noise_and_a_lost_cell_is_a_regression():
    before, after = run_document(1e-3), run_document(1.1e-3)
    wide = after["cells"][0]["candidates"][0]
    wide["seconds"] = [1.1e-3 * (1 + 0.1 * (i % 3 - 1)) for i in range(9)]
    after["cells"][1]["candidates"][0].update(seconds=[], failure="wrong: y off by 3 %")
    after["cells"][2]["candidates"][0]["seconds"] = [1e-3]
    verdicts = [change.verdict for change in compare.changes(before, after)]
    assert verdicts == ["same", "lost", "unclear", "slower", "slower", "slower"]
    assert compare.got_worse([c for c in compare.changes(before, after) if c.verdict == "lost"])


def test_other_kinds_are_compared():
    call = {"op": "rms_norm", "case": "forward", "candidate": "torchfastnorm", "version": "0"}
    step = {"model": "vit_s", "library": "torchfastnorm", "mode": "eager", "layout": "contiguous", "losses": [1.0]}
    machine = MACHINE
    for kind, key, row in (("latency", "calls", call), ("train", "steps", step)):
        both = [results.document(kind, machine, **{key: [{**row, "seconds": [s, s, s]}]}) for s in (1e-6, 2e-6)]
        assert [change.verdict for change in compare.changes(*both)] == ["slower"]


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: "/".join(path.parts[-2:]))
def test_committed_results_load(path):
    found = results.load(path)
    assert found["schema"] == results.SCHEMA and found["machine"]["device_type"] == "cpu"
    cells, old = results.cells_of(found), json.loads(path.read_text())
    assert [results.cell_record(cell)["sizes"] for cell in cells] == [cell["sizes"] for cell in old.get("cells", ())]
    for cell, record in zip(cells, old.get("cells", ()), strict=True):
        first = record["candidates"][0]
        if len(first["seconds"]) > 1:
            assert cell.ours.median == first["median_seconds"] and cell.ours.spread == first["spread"]
    if "schema" not in old:
        assert len(found["calls"]) == 2 * len(old["latency"])
    if found["kind"] in compare.TIMED:
        assert {change.verdict for change in compare.changes(found, found)} <= {"same", "unclear"}
    else:
        assert found["kind"] == "memory" and found["kept"]


def _spoilt(change):
    document = copy.deepcopy(run_document(1e-3))
    change(document)
    return json.dumps(document)


BROKEN = {
    "no JSON": ("{", "is not JSON"),
    "a list": ("[]", "not a result of this benchmark"),
    "another JSON": ('{"a": 1}', "'schema' is a required property"),
    "an old one without versions": ('{"machine": {}, "cells": [], "latency": [{}]}', "not a result of this benchmark"),
    "a newer format": (_spoilt(lambda d: d.update(schema=3)), "$.schema"),
    "no cells": (_spoilt(lambda d: d.pop("cells")), "'cells' is a required property"),
    "a negative time": (_spoilt(lambda d: d["cells"][0]["roof"].update(seconds=[-1.0])), "$.cells[0].roof.seconds[0]"),
    "an unknown dtype": (_spoilt(lambda d: d["cells"][1].update(dtype="int8")), "$.cells[1].dtype"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_named(tmp_path, capsys, name):
    text, message = BROKEN[name]
    (tmp_path / "broken.json").write_text(text)
    good = written(tmp_path / "good.json", run_document(1e-3))
    assert main(["compare", good, str(tmp_path / "broken.json")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "broken.json" in error and message in error
    assert main(["report", str(tmp_path)]) == 2


def test_unlike_results_are_not_compared(tmp_path, capsys):
    threads = run_document(1e-3)
    threads["machine"] = {**threads["machine"], "threads": 2}
    latency = results.document("latency", threads["machine"], calls=[])
    memory = results.document("memory", MACHINE, kept=[])
    one = written(tmp_path / "one.json", run_document(1e-3))
    for other, message in (
        (run_document(1e-3, device="Other CPU"), "different devices cannot be compared: Test CPU and Other CPU"),
        (threads, "different numbers of threads"),
        (latency, "different kinds"),
        (run_document(1e-3, op="rms_norm"), "no cell in common"),
    ):
        assert main(["compare", one, written(tmp_path / "other.json", other)]) == 2
        assert message in capsys.readouterr().err
    assert main(["compare", *[written(tmp_path / "memory.json", memory)] * 2]) == 2
    assert "no times to compare" in capsys.readouterr().err
    assert main(["compare", one, one, "--relative-to", "liger"]) == 2
    assert "no cell was measured with liger" in capsys.readouterr().err
    assert main(["compare", one, str(tmp_path / "absent.json")]) == 2
    assert "absent.json cannot be read: No such file" in capsys.readouterr().err


def test_nothing_is_written_that_could_not_be_read(tmp_path):
    document = run_document(1e-3)
    document["cells"][0]["layout"] = "diagonal"
    with pytest.raises(results.BadInput, match="layout"):
        results.write(document, tmp_path / "wrong.json")
    assert not (tmp_path / "wrong.json").exists()
