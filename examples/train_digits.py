"""Train three small networks on handwritten digits, once with torch.nn's norms and once with torchfastnorm's.

    python examples/train_digits.py [--epochs 20] [--device cpu] [--dtype float32] [--output demo_output]

The data are the 1,797 images of 8 x 8 pixels that come with scikit-learn; nothing is downloaded. The convolutional
network normalises channels (LayerNorm) and whole feature maps (LayerNorm over channels, height and width); the
transformer is pre-norm, with RMSNorm in its blocks and LayerNorm before its head; the residual network has InstanceNorm
in its stem, BatchNorm in its blocks and GroupNorm before its head. `torchfastnorm.convert` makes the second copy of
each network; there the norms of the residual network also apply the activations that follow them, and those of its
blocks the addition in between. Both copies start from the same parameters and see the same batches in the same order,
epoch by epoch in turn, so that their losses and times can be compared. The losses part slowly: the norms round
differently in the last bit, and training amplifies any difference. With --dtype float64 there is less to amplify.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

try:
    import matplotlib
    import sklearn.datasets
    import sklearn.model_selection
    import tabulate
    import tqdm
except ModuleNotFoundError as error:
    sys.exit(f"The demo needs {error.name}. `make demo` installs it, or: pip install '.[demo]'")

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import torchfastnorm

matplotlib.use("Agg")
from matplotlib import pyplot

CLASSES = 10
BATCH = 64
COLOURS = {"torch.nn": "#e9a08c", "torchfastnorm": "#2a6f97"}


class ChannelsLast(nn.Module):
    """Apply a norm to the channels of an image: (N, C, H, W) -> (N, H, W, C) -> norm -> back."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, image: Tensor) -> Tensor:
        return self.norm(image.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvBlock(nn.Module):
    """Depthwise convolution, LayerNorm over channels, two pointwise convolutions, residual (as ConvNeXt's block)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels),
            ChannelsLast(nn.LayerNorm(channels)),
            nn.Conv2d(channels, 2 * channels, 1),
            nn.GELU(),
            nn.Conv2d(2 * channels, channels, 1),
        )

    def forward(self, image: Tensor) -> Tensor:
        return image + self.body(image)


def convolutional_network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.LayerNorm((32, 8, 8)),
        ConvBlock(32),
        ConvBlock(32),
        nn.Conv2d(32, 64, 2, stride=2),
        nn.LayerNorm((64, 4, 4)),
        ConvBlock(64),
        ConvBlock(64),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.LayerNorm(64),
        nn.Linear(64, CLASSES),
    )


class TransformerBlock(nn.Module):
    """Pre-norm attention and MLP; queries and keys are normalised too, one row per head."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.RMSNorm(width, eps=1e-6)
        self.query_norm = nn.RMSNorm(width // heads, eps=1e-6)
        self.key_norm = nn.RMSNorm(width // heads, eps=1e-6)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.mlp_norm = nn.RMSNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        # The queries and keys are strided views of one product: their norms read them in place.
        query, key, value = (
            self.query_key_value(self.attention_norm(tokens)).unflatten(-1, (3, self.heads, -1)).unbind(2)
        )
        query, key = self.query_norm(query), self.key_norm(key)
        heads = F.scaled_dot_product_attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
        tokens = tokens + self.attention_out(heads.transpose(1, 2).flatten(2))
        return tokens + self.mlp(self.mlp_norm(tokens))


class Transformer(nn.Module):
    """A vision transformer whose tokens are the sixteen 2 x 2 patches of an image."""

    def __init__(self, width: int = 64, depth: int = 3, heads: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, stride=2)
        self.position = nn.Parameter(0.02 * torch.randn(16, width))
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        tokens = self.patches(image).flatten(2).transpose(1, 2) + self.position
        return self.head(self.norm(self.blocks(tokens)).mean(1))


class ResidualBlock(nn.Module):
    """ResNet's basic block: the second norm is followed by an addition and a ReLU."""

    def __init__(self, channels_in: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        )
        self.norm = nn.BatchNorm2d(channels)
        nn.init.zeros_(self.norm.weight)  # the block begins as its shortcut
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, image: Tensor) -> Tensor:
        if isinstance(self.norm, torchfastnorm.BatchNorm2d):  # norm, addition and ReLU in one call
            return self.norm(self.body(image), self.shortcut(image))
        return F.relu(self.norm(self.body(image)) + self.shortcut(image))


def residual_network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 24, 3, padding=1, bias=False),
        nn.InstanceNorm2d(24, affine=True),
        nn.ReLU(inplace=True),
        ResidualBlock(24, 24),
        ResidualBlock(24, 48, stride=2),
        ResidualBlock(48, 48),
        nn.Conv2d(48, 64, 1, bias=False),
        nn.GroupNorm(8, 64),
        nn.SiLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, CLASSES),
    )


NETWORKS = {"convolutional": convolutional_network, "transformer": Transformer, "residual": residual_network}


def converted(model: nn.Module) -> nn.Module:
    """A copy with this library's norms, which apply the activations that follow them."""
    model = torchfastnorm.convert(model, fold_activations=True)
    for module in model.modules():
        if isinstance(module, ResidualBlock):  # what follows its norm is no module, so convert cannot see it
            module.norm.activation = "relu"
    return model


@dataclass
class Digits:
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load_digits(device: torch.device, dtype: torch.dtype) -> Digits:
    images, labels = sklearn.datasets.load_digits(return_X_y=True)
    split = sklearn.model_selection.train_test_split(images, labels, test_size=0.2, random_state=0, stratify=labels)
    train_images, test_images = (
        torch.tensor(part / 16.0, dtype=dtype, device=device).view(-1, 1, 8, 8) for part in split[:2]
    )
    train_labels, test_labels = (torch.tensor(part, device=device) for part in split[2:])
    return Digits(train_images, train_labels, test_images, test_labels)


@dataclass
class Run:
    """One copy of a network in training, and what is recorded of it."""

    network: str
    norms: str
    model: nn.Module
    mixed: bool
    steps: int
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    test_accuracy: float = 0.0
    test_loss: float = 0.0

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, weight_decay=0.01)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, max_lr=2e-3, total_steps=self.steps)

    def precision(self, device: torch.device) -> contextlib.AbstractContextManager[object]:
        return torch.autocast(device.type, torch.bfloat16) if self.mixed else contextlib.nullcontext()

    def train_epoch(self, data: Digits, order: Tensor) -> Iterator[None]:
        """Yields after each step; only the steps are timed, not what the caller does in between."""
        device = data.train_images.device
        for index in order.split(BATCH):
            begin = time.perf_counter()
            with self.precision(device):
                loss = F.cross_entropy(self.model(data.train_images[index]), data.train_labels[index])
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.schedule.step()
            self.losses.append(loss.item())  # waits for the device, so the clock sees the whole step
            self.seconds += time.perf_counter() - begin
            yield

    @torch.no_grad()
    def test(self, data: Digits) -> None:
        self.model.eval()
        with self.precision(data.test_images.device):
            scores = self.model(data.test_images).float()
        self.test_loss = F.cross_entropy(scores, data.test_labels).item()
        self.test_accuracy = (scores.argmax(1) == data.test_labels).float().mean().item()


def pairs(runs: list[Run]) -> list[tuple[Run, Run]]:
    """For each network the run with torch.nn's norms and the run with ours."""
    return list(zip(runs[::2], runs[1::2], strict=True))


def train(options: argparse.Namespace, data: Digits) -> list[Run]:
    mixed = options.dtype == "bfloat16"
    steps = options.epochs * -(-len(data.train_images) // BATCH)
    runs = []
    for name, network in NETWORKS.items():
        torch.manual_seed(options.seed)
        model = network().to(data.train_images.device, data.train_images.dtype)
        runs.append(Run(name, "torch.nn", model, mixed, steps))
        runs.append(Run(name, "torchfastnorm", converted(model), mixed, steps))

    for pair in pairs(runs):
        orders = torch.Generator().manual_seed(options.seed)
        bars = [
            tqdm.tqdm(total=steps, desc=f"{r.network} with {r.norms}".ljust(34), unit="step", position=i)
            for i, r in enumerate(pair)
        ]
        for epoch in range(options.epochs):
            order = torch.randperm(len(data.train_images), generator=orders).to(data.train_images.device)
            # Taking turns at who goes first keeps warm caches from favouring one of the two.
            for turn in (0, 1) if epoch % 2 == 0 else (1, 0):
                for _ in pair[turn].train_epoch(data, order):
                    bars[turn].update()
                bars[turn].set_postfix(loss=f"{pair[turn].losses[-1]:.4f}")
        for run, bar in zip(pair, bars, strict=True):
            bar.close()
            run.test(data)
    return runs


def largest_difference(ours: Run, theirs: Run) -> float:
    return max(abs(a - b) for a, b in zip(ours.losses, theirs.losses, strict=True))


def table(runs: list[Run]) -> str:
    rows = []
    for theirs, ours in pairs(runs):
        for run in (theirs, ours):
            gap = f"{largest_difference(ours, theirs):.1e}" if run is ours else ""
            accuracy = f"{100 * run.test_accuracy:.2f} %"
            rows.append([run.network, run.norms, accuracy, f"{run.test_loss:.4f}", f"{run.seconds:.2f}", gap])
    headers = [
        "network",
        "norms",
        "test accuracy",
        "test loss",
        "seconds",
        "largest difference\nof the training losses",
    ]
    aligned = ("left", "left", "right", "right", "right", "right")
    return tabulate.tabulate(rows, headers, tablefmt="rounded_outline", colalign=aligned, disable_numparse=True)


def plot(runs: list[Run], path: Path, subtitle: str) -> None:
    pyplot.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True})
    pyplot.rcParams.update({"grid.alpha": 0.25, "axes.titleweight": "bold", "axes.titlelocation": "left"})
    columns = pairs(runs)
    size = (5.5 * len(columns), 6.4)
    figure, axes = pyplot.subplots(
        2, len(columns), figsize=size, sharex=True, height_ratios=(2, 1), layout="constrained", squeeze=False
    )
    for column, (theirs, ours) in enumerate(columns):
        upper, lower = axes[0, column], axes[1, column]
        for run, width, style in ((theirs, 3.2, "-"), (ours, 1.2, "-")):
            label = f"{run.norms}: accuracy {100 * run.test_accuracy:.2f} %, {run.seconds:.1f} s"
            upper.plot(run.losses, style, color=COLOURS[run.norms], linewidth=width, label=label)
        upper.set_yscale("log")
        upper.set_title(f"{ours.network.capitalize()} network")
        upper.legend(frameon=False, loc="upper right")
        gaps = [abs(a - b) for a, b in zip(ours.losses, theirs.losses, strict=True)]
        lower.semilogy([gap if gap > 0 else float("nan") for gap in gaps], ".", markersize=2.5, color="#555555")
        lower.set_xlabel("training step")
    axes[0, 0].set_ylabel("training loss")
    axes[1, 0].set_ylabel("difference of\nthe losses")
    figure.suptitle(f"Handwritten digits, the same training with two sets of norms\n{subtitle}", fontsize=11)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], epilog="Writes a plot and a JSON file.")
    parser.add_argument("--epochs", type=int, default=20, help="passes over the 1,437 training images (default 20)")
    parser.add_argument("--device", default="cpu", help="where to train, e.g. cpu, cuda, cuda:1 (default cpu)")
    parser.add_argument(
        "--dtype",
        default="float32",
        choices=("float32", "float64", "bfloat16"),
        help="bfloat16 trains float32 parameters under torch.autocast (default float32)",
    )
    parser.add_argument(
        "--threads", type=int, default=1, help="CPU threads; networks this small gain nothing from more (default 1)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the parameters and of the data order (default 0)")
    parser.add_argument("--output", type=Path, default=Path("demo_output"), help="folder for the results (demo_output)")
    options = parser.parse_args()
    if options.epochs < 1:
        parser.error(f"--epochs must be at least 1, got {options.epochs}")
    if options.threads < 1:
        parser.error(f"--threads must be at least 1, got {options.threads}")
    torch.set_num_threads(options.threads)
    try:
        torch.empty(1, device=options.device)
    except (RuntimeError, AssertionError) as error:
        parser.error(f"--device {options.device} cannot be used: {str(error).splitlines()[0]}")
    try:
        options.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--output {options.output} cannot be used: {error.strerror}")
    return options


def main() -> None:
    options = parse_arguments()
    device = torch.device(options.device)
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"CPU, {options.threads} thread{'s' * (options.threads > 1)}"
    )
    subtitle = f"{name}, {options.dtype}, torch {torch.__version__}, torchfastnorm {torchfastnorm.__version__}"
    print(subtitle)
    data = load_digits(device, torch.float64 if options.dtype == "float64" else torch.float32)
    runs = train(options, data)

    print(f"\n{table(runs)}\n")
    picture, record = options.output / "train_digits.png", options.output / "train_digits.json"
    plot(runs, picture, subtitle)
    fields = [{k: v for k, v in vars(run).items() if k not in ("model", "optimizer", "schedule")} for run in runs]
    record.write_text(
        json.dumps({"setting": subtitle, "seed": options.seed, "runs": fields}, indent=1), encoding="utf-8"
    )
    print(f"plot: {picture}\ndata: {record}")


if __name__ == "__main__":
    main()
