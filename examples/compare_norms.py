"""Compare norms by the size of the batch they are trained with, on handwritten digits.

    python examples/compare_norms.py [--quick] [--seeds 3] [--threads 1] [--output demo_output]

The story of the papers on BatchNorm's successors: its accuracy falls where batches are small, because their statistics
are noise there; what normalises each image by itself does not notice, and SwitchNorm learns which statistics to trust.
One small convolutional network is trained with each norm at each size of batch, from several seeds: the same number of
images for all (but no more steps than --steps), a learning rate in proportion to the batch. `torchfastnorm.convert`
makes all the networks from the one with BatchNorm. The data are the 1,797 images of 8 x 8 pixels that come with
scikit-learn. Written are a table, the plot, the weights that SwitchNorm has learned, and all of it as JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

# First: it tells what is missing, and chooses matplotlib's backend.
from train_digits import CLASSES, Digits, load_digits  # isort: skip

import tabulate
import torch
import tqdm
from matplotlib import pyplot
from torch import nn
from torch.nn import functional as F

import torchfastnorm

MOMENTUM = 0.1  # of all running statistics, in torch's convention


def batch_renorm(steps: int) -> Callable[[Any], nn.Module]:
    """The paper's ramps belong to 160,000 steps: here they end half way through the training."""

    def make(norm: Any) -> nn.Module:
        ramp = (0.1 * steps, 0.5 * steps)
        return torchfastnorm.BatchRenorm2d(norm.num_features, momentum=MOMENTUM, r_ramp=ramp, d_ramp=ramp)

    return make


# What becomes of a BatchNorm2d, as a function of the number of steps; None: it stays.
NORMS: dict[str, Callable[[int], Any]] = {
    "BatchNorm": lambda steps: None,
    "LayerNorm": lambda steps: lambda norm: torchfastnorm.GroupNorm(1, norm.num_features),
    "InstanceNorm": lambda steps: "InstanceNorm2d",
    "GroupNorm": lambda steps: lambda norm: torchfastnorm.GroupNorm(8, norm.num_features),
    "SwitchNorm": lambda steps: "SwitchNorm2d",
    "BatchRenorm": batch_renorm,
    "IterNorm": lambda steps: lambda norm: torchfastnorm.IterNorm(norm.num_features, num_channels=16),
    "none": lambda steps: lambda norm: nn.Identity(),
}
COLOURS = dict(
    zip(NORMS, ("#c0392b", "#2a6f97", "#7f8c8d", "#27ae60", "#8e44ad", "#e67e22", "#16a085", "#bdc3c7"), strict=True)
)


def network(norm: str, steps: int) -> nn.Module:
    def block(channels_in: int, channels: int, stride: int) -> list[nn.Module]:
        convolution = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=norm == "none")
        return [convolution, nn.BatchNorm2d(channels, momentum=MOMENTUM), nn.ReLU(inplace=True)]

    layers = [*block(1, 32, 1), *block(32, 32, 1), *block(32, 64, 2), *block(64, 64, 1)]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, CLASSES))
    successor = NORMS[norm](steps)
    mapping = {} if successor is None else {"BatchNorm2d": successor}
    return torchfastnorm.convert(model, mapping, fold_activations=True)


@dataclass
class Run:
    """One training: what it was, and what came of it."""

    norm: str
    batch: int
    seed: int
    steps: int
    accuracy: float = 0.0  # on the test images, after the training
    seconds: float = 0.0
    switches: list[dict[str, list[float]]] = field(default_factory=list)  # of each SwitchNorm: softmaxes of its weights


def switches_of(model: nn.Module) -> list[dict[str, list[float]]]:
    norms = [module for module in model.modules() if isinstance(module, torchfastnorm.SwitchNorm2d)]
    return [{name: getattr(n, f"{name}_weight").softmax(0).tolist() for name in ("mean", "var")} for n in norms]


def train(run: Run, data: Digits, learning_rate: float) -> None:
    torch.manual_seed(run.seed)
    model = network(run.norm, run.steps)
    rate = learning_rate * run.batch / 32
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, run.steps)
    begin = time.perf_counter()
    step = 0
    while step < run.steps:
        order = torch.randperm(len(data.train_images))
        for index in order[: len(order) // run.batch * run.batch].split(run.batch):
            loss = F.cross_entropy(model(data.train_images[index]), data.train_labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            step += 1
            if step == run.steps:
                break
    run.seconds = time.perf_counter() - begin
    with torch.no_grad():
        scores = model.eval()(data.test_images)
    run.accuracy = (scores.argmax(1) == data.test_labels).float().mean().item()
    run.switches = switches_of(model)


def accuracies(runs: list[Run], norm: str, batch: int) -> list[float]:
    return [100 * run.accuracy for run in runs if (run.norm, run.batch) == (norm, batch)]


def table(runs: list[Run], batches: list[int]) -> str:
    def cell(norm: str, batch: int) -> str:
        values = accuracies(runs, norm, batch)
        spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        return f"{statistics.mean(values):.1f}{spread}"

    rows = [[norm, *(cell(norm, batch) for batch in batches)] for norm in NORMS]
    headers = ["test accuracy in %", *(f"batch {batch}" for batch in batches)]
    return tabulate.tabulate(rows, headers, tablefmt="rounded_outline", disable_numparse=True, stralign="right")


def table_of_switches(runs: list[Run], batches: list[int]) -> str:
    """instance / layer / batch, averaged over the seeds."""
    rows = []
    for statistic in ("mean", "var"):
        layers = next(len(run.switches) for run in runs if run.switches)
        for layer in range(layers):
            row = [f"{statistic}, norm {layer + 1}"]
            for batch in batches:
                found = [r.switches[layer][statistic] for r in runs if r.switches and r.batch == batch]
                averages = [statistics.mean(column) for column in zip(*found, strict=True)]
                row.append(" / ".join(f"{value:.2f}" for value in averages))
            rows.append(row)
    headers = ["instance / layer / batch", *(f"batch {batch}" for batch in batches)]
    return tabulate.tabulate(rows, headers, tablefmt="rounded_outline", disable_numparse=True, stralign="right")


def plot(runs: list[Run], batches: list[int], path: Path, subtitle: str) -> None:
    pyplot.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True})
    pyplot.rcParams.update({"grid.alpha": 0.25})
    figure, axes = pyplot.subplots(figsize=(8, 5.2), layout="constrained")
    for norm in NORMS:
        values = [accuracies(runs, norm, batch) for batch in batches]
        means = [statistics.mean(v) for v in values]
        axes.plot(batches, means, "o-", color=COLOURS[norm], label=norm, linewidth=2, markersize=4)
        axes.fill_between(batches, [min(v) for v in values], [max(v) for v in values], color=COLOURS[norm], alpha=0.12)
    axes.set_xscale("log", base=2)
    axes.set_xticks(batches, [str(batch) for batch in batches])
    axes.set_xlabel("images in a batch")
    axes.set_ylabel("test accuracy in % (band: all seeds)")
    axes.legend(frameon=False, ncols=2)
    axes.set_title(f"Handwritten digits: which norm minds small batches?\n{subtitle}", loc="left", fontsize=11)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], epilog="Writes a plot and a JSON file.")
    parser.add_argument("--quick", action="store_true", help="one seed, three sizes of batch, fewer steps")
    parser.add_argument("--seeds", type=int, help="trainings of each kind (default 3, quick 1)")
    parser.add_argument("--batches", type=int, nargs="+", help="sizes of batch (default 1 2 4 8 32 128, quick 2 8 32)")
    parser.add_argument("--epochs", type=int, help="passes over the 1,437 training images (default 5, quick 2)")
    parser.add_argument("--steps", type=int, help="at most so many (default 1000, quick 400)")
    parser.add_argument("--learning-rate", type=float, default=0.05, help="for a batch of 32 (default 0.05)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1: the network is small)")
    parser.add_argument("--output", type=Path, default=Path("demo_output"), help="folder for the results (demo_output)")
    options = parser.parse_args()
    usual = {"seeds": (3, 1), "batches": ([1, 2, 4, 8, 32, 128], [2, 8, 32]), "epochs": (5, 2), "steps": (1000, 400)}
    for name, values in usual.items():
        if getattr(options, name) is None:
            setattr(options, name, values[options.quick])
    for name in ("seeds", "epochs", "steps", "threads"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(options, name)}")
    if any(not 1 <= batch <= 1437 for batch in options.batches):
        parser.error(f"--batches must be between 1 and 1437, got {options.batches}")
    options.output.mkdir(parents=True, exist_ok=True)
    return options


def main() -> None:
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    data = load_digits(torch.device("cpu"), torch.float32)
    images = len(data.train_images)

    def steps(batch: int) -> int:
        return min(options.steps, options.epochs * (images // batch))

    runs = [Run(n, b, s, steps(b)) for s in range(options.seeds) for b in options.batches for n in NORMS]
    with tqdm.tqdm(total=sum(run.steps for run in runs), unit="step") as bar:
        for run in runs:
            bar.set_description(f"{run.norm}, batch {run.batch}, seed {run.seed}".ljust(36))
            train(run, data, options.learning_rate)
            bar.update(run.steps)
    subtitle = (
        f"{options.seeds} seeds, {options.epochs} epochs, at most {options.steps} steps, torch {torch.__version__}"
    )
    print(f"\n{subtitle}\n{table(runs, options.batches)}\n\nWhat SwitchNorm has learned to trust")
    print(table_of_switches(runs, options.batches))
    picture, record = options.output / "compare_norms.png", options.output / "compare_norms.json"
    plot(runs, options.batches, picture, subtitle)
    record.write_text(json.dumps({"setting": subtitle, "runs": [asdict(r) for r in runs]}, indent=1), encoding="utf-8")
    print(f"plot: {picture}\ndata: {record}")


if __name__ == "__main__":
    main()
