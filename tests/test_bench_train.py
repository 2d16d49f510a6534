"""Training steps of whole networks: built as published, converted, timed, and their losses compared."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from bench_cases import CPU, one_thread  # noqa: F401
from torch import nn

from bench import networks, results, train
from bench.cli import MODELS, main

TINY = {
    "resnet50": train.Sizes(4, 32, 8, 1),
    "convnext_t": train.Sizes(2, 32, 8, 1),
    "vit_s": train.Sizes(2, 16, 64, 1),
    "llama": train.Sizes(1, 8, 64, 1),
    "unet": train.Sizes(1, 16, 8, 1),
}
NORMS = {"resnet50": 1 + 4 * 4, "convnext_t": 1 + 3 + 4 + 1, "vit_s": 3, "llama": 3, "unet": 2 * 9 + 1}


@pytest.mark.parametrize("model", TINY)
def test_every_network_trains_alike_with_converted_norms(model):
    steps = train.measure(model, TINY[model], CPU, modes=["eager"], rounds=1)
    layouts = ["contiguous", "channels_last"] if model in train.WITH_FEATURE_MAPS else ["contiguous"]
    assert [(s["library"], s["layout"]) for s in steps] == [(n, o) for o in layouts for n in train.LIBRARIES]
    assert all(s["seconds"] and s["norms"] == NORMS[model] and 0 < s["norm_share"] < 1 for s in steps)
    assert all(s["losses"][-1] < s["losses"][0] for s in steps)
    assert train.disagreements(steps, torch.float32) == []


@pytest.mark.parametrize(("model", "millions", "norms"), [
    ("resnet50", 25.557, 53), ("convnext_t", 28.589, 23), ("vit_s", 22.051, 25),
])  # fmt: skip
def test_networks_have_the_published_numbers_of_parameters(model, millions, norms):
    with torch.device("meta"):
        network = getattr(networks, model)()
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 3) == millions
    assert sum(map(train.is_norm, network.modules())) == norms


def test_the_command_line_offers_every_network():
    assert tuple(train.SIZES) == MODELS == tuple(TINY)


def test_a_planted_wrong_norm_is_seen(monkeypatch, capsys):
    class Unscaled(nn.LayerNorm):
        def forward(self, x):
            return 1.2 * super().forward(x)

    def convert(model, **_):
        for module in model.modules():
            if type(module) is nn.LayerNorm:
                module.__class__ = Unscaled
        return model

    monkeypatch.setattr(train.torchfastnorm, "convert", convert)
    arguments = ["--batch", "2", "--image", "16", "--width", "64", "--depth", "1", "--mode", "eager", "--rounds", "1"]
    assert main(["train", "--model", "vit_s", "--device", "cpu", "--force", *arguments]) == 1
    output = capsys.readouterr().out
    assert "differs: vit_s, eager, contiguous: loss" in output and "losses of 4 steps DIFFER" in output


def test_command(tmp_path, capsys):
    arguments = ["--batch", "8", "--image", "64", "--width", "8", "--depth", "1", "--mode", "eager", "--rounds", "2"]
    arguments += ["--layout", "channels_last", "--fold-activations"]
    command = ["train", "--model", "resnet50", "--device", "cpu", "--force", *arguments, "--output", str(tmp_path)]
    if importlib.util.find_spec("sklearn"):
        # It runs. On so few digits rounding decides what is learnt: torch.nn's own losses in its two layouts part, too.
        assert main([*command, "--data", "digits"]) in (0, 1)
        capsys.readouterr()
    assert main([*command, "--dtype", "bfloat16"]) == 0
    steps = results.load(tmp_path / "train-resnet50.json")["steps"]
    assert [s["library"] for s in steps] == ["torch.nn", "torchfastnorm"] and steps[0]["dtype"] == "bfloat16"
    assert "losses of 4 steps agree (within 0.03 of the first)" in capsys.readouterr().out
    assert main(["train", "--model", "llama", "--data", "digits", "--device", "cpu", "--force"]) == 2
    assert "digits are pictures" in capsys.readouterr().err


def test_compiled_steps(monkeypatch):
    """That each mode is compiled; inductor itself takes a minute, so a backend that compiles nothing stands in."""
    compiled = []
    original = torch.compile

    def compile_(model, **options):
        compiled.append(type(model))
        return original(model, backend="aot_eager", **options)

    monkeypatch.setattr(torch, "compile", compile_)
    steps = train.measure("vit_s", TINY["vit_s"], CPU, modes=["compiled"], rounds=1)
    assert compiled == [networks.ViT] * 2 and all(s["seconds"] and "norm_share" not in s for s in steps)
    assert train.disagreements(steps, torch.float32) == []


def test_a_network_that_fails_to_compile_says_so(monkeypatch):
    def compile_(model, **_):
        def call(x):
            raise RuntimeError("no compiler here")

        return call

    monkeypatch.setattr(torch, "compile", compile_)
    steps = train.measure("vit_s", TINY["vit_s"], CPU, modes=["compiled"], rounds=1)
    assert all(s["failure"] == "failed: RuntimeError: no compiler here" and not s["seconds"] for s in steps)
    assert len(train.disagreements(steps, torch.float32)) == 2 and "no compiler here" in train.table(steps).rows[0][5]
