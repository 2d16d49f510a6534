"""The command line, `python -m bench --help`: options and their errors. What is done stands in modules named alike.

Exit status: 0; 1 if compare found something slower, or train losses that differ; 2: bad input; 3: a noisy machine.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .errors import BadInput
from .shapes import LAYOUTS

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "bfloat16", "float16", "float64")
MODELS = ("resnet50", "convnext_t", "vit_s", "llama", "unet")


def options(*names: str) -> Callable[[Any], Any]:
    """Those of the options that several commands share."""
    shared = {
        "device": click.option("--device", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)"),
        "threads": click.option("--threads", type=click.IntRange(1), help="CPU threads (default: torch's)"),
        "dtype": click.option("--dtype", "dtypes", multiple=True, type=click.Choice(DTYPES),
                              help="may be repeated (default: float32, bfloat16)"),
        "baseline": click.option("--baseline", "baselines", multiple=True, metavar="NAME",
                                 help="aten, cudnn, compile, compile_max, unfused, reference or a peer's name; "
                                 "may be repeated (default: all that are installed but reference; "
                                 "compile and compile_max with --suite full or models alone)"),
        "shape": click.option("--shape", "shapes", multiple=True, metavar="ROWSxCOLS|NxCxHxW",
                              help="instead of the suite's; feature maps in both layouts; may be repeated"),
        "layout": click.option("--layout", "layouts", multiple=True, type=click.Choice(LAYOUTS),
                               help="shapes of this layout alone; may be repeated"),
        "suite": click.option("--suite", type=click.Choice(("quick", "models", "full")), default="quick",
                              help="few shapes, the norms of named networks, or all (default: quick)"),
        "rounds": click.option("--rounds", type=click.IntRange(1), help="rounds per figure"),
        "output": click.option("--output", metavar="DIR", help="write results there; 'auto': bench/results/<device>"),
        "force": click.option("--force", is_flag=True, help="measure on a noisy machine too; the result says so"),
    }  # fmt: skip

    def decorate(command: Any) -> Any:
        for name in reversed(names):
            command = shared[name](command)
        return command

    return decorate


def to_device(text: str | None, threads: int | None = None) -> torch.device:
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    name = text or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise BadInput(f"--device {name} cannot be used: {str(error).splitlines()[0]}") from None
    if device.type not in ("cpu", "cuda"):
        raise BadInput(f"--device {name}: there are cpu and cuda")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def to_folder(text: str | None, device: torch.device) -> Path | None:
    from . import machine

    return machine.result_folder(device) if text == "auto" else Path(text) if text else None


def to_dtypes(names: Sequence[str]) -> list[torch.dtype]:
    import torch

    return [getattr(torch, name) for name in names or ("float32", "bfloat16")]


def to_baselines(names: Sequence[str], compiled: bool) -> list[str]:
    from . import baselines

    unknown = [name for name in names if name not in baselines.NAMES]
    if unknown:
        raise BadInput(f"no baseline is called {', '.join(unknown)}; there are {', '.join(baselines.NAMES)}")
    slow = () if compiled else baselines.SLOW_TO_COMPILE
    return list(names) or [name for name in baselines.NAMES if name != "reference" and name not in slow]


def to_shapes(texts: Sequence[str]) -> list[tuple[int, ...]]:
    from . import shapes

    try:
        return [shapes.parse(text) for text in texts]
    except ValueError:
        raise BadInput("--shape takes two to five positive numbers, for example 4096x1024 or 32x64x56x56") from None


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def commands() -> None:
    """Measure torchfastnorm against ATen, torch.compile and any installed peer."""


@commands.command()
@click.argument("ops", nargs=-1, metavar="[OP]...")
@options("suite", "device", "threads", "dtype", "layout", "baseline", "shape", "rounds", "output", "force")
@click.option("--direction", "directions", multiple=True, metavar="NAME",
              type=click.Choice(("forward", "backward", "forward+backward")), help="default: all three")  # fmt: skip
@click.option("--rotate/--no-rotate", default=None,
              help="go through as many buffers as three times the last cache holds (default: on GPUs)")  # fmt: skip
@click.option("--time-limit", type=float, metavar="SECONDS", help="begin no further cell after this long")
@click.option("--print-output-folder", is_flag=True, help="print what 'auto' stands for, and exit")
def run(ops, suite, device, threads, dtypes, layouts, baselines, shapes, rounds, output, force,
        directions, rotate, time_limit, print_output_folder) -> int:  # fmt: skip
    """Time every cell: op, shape, dtype, direction."""
    from . import registry
    from . import run as running

    device = to_device(device, threads)
    if print_output_folder:
        print(to_folder("auto", device))
        return 0
    request = running.Request(
        registry.chosen(ops), device, suite, to_dtypes(dtypes), to_baselines(baselines, suite != "quick"),
        layouts, to_shapes(shapes), directions or running.DIRECTIONS, rounds or (15 if suite == "full" else 9),
        rotate, time_limit,
    )  # fmt: skip
    running.command(request, ops, to_folder(output, device), force)
    return 0


@commands.command()
@click.argument("before", type=click.Path(path_type=Path))
@click.argument("after", type=click.Path(path_type=Path))
@click.option("--threshold", type=click.FloatRange(0), default=0.05,
              help="what counts at least as a change, however small the spread (default: 0.05)")  # fmt: skip
@click.option("--relative-to", metavar="NAME",
              help="a baseline, or 'roof': divide by its time, which takes out how fast the machine was")  # fmt: skip
def compare(before: Path, after: Path, threshold: float, relative_to: str | None) -> int:
    """What got faster or slower from BEFORE to AFTER; exit status 1 when anything got slower."""
    from . import compare as comparison
    from . import results, tables

    found = comparison.changes(results.load(before), results.load(after), threshold, relative_to)
    tables.show(comparison.change_table(found))
    print(comparison.summary(found))
    return int(comparison.got_worse(found))


@commands.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--output", type=click.Path(path_type=Path), help="where to write (default: DIR)")
def report(folder: Path, output: Path | None) -> int:
    """One HTML page, and PNG files, of all results below DIR."""
    from . import report as reporting

    for path in reporting.write(folder, output or folder):
        print(path)
    return 0


@commands.command()
@options("device", "threads", "rounds", "output", "force")
@click.option("--largest", type=click.IntRange(1), metavar="MB", help="move no more than this in a call")
def roofline(device, threads, rounds, output, force, largest) -> int:
    """The roofs alone: stream mixes by size and threads."""
    from . import roofline as roofs

    device = to_device(device, threads)
    sizes = [size for size in roofs.sizes(device) if largest is None or size <= largest << 20]
    return _finish("roofline", "streams", device, output, force, roofs.table,
                   lambda: roofs.measure(device, sizes, roofs.thread_counts(device), rounds or 9))  # fmt: skip


@commands.command()
@click.argument("ops", nargs=-1, metavar="[OP]...")
@options("device", "baseline", "rounds", "output", "force")
def latency(ops, device, baselines, rounds, output, force) -> int:
    """The cost of a call on a small input, of every op (default: against aten and compile)."""
    from . import latency as latencies
    from . import registry

    device, chosen = to_device(device), registry.chosen(ops)
    names = to_baselines(baselines or ("aten", "compile"), True)
    return _finish("latency", "calls", device, output, force, latencies.table,
                   lambda: latencies.measure(chosen, device, names, rounds or 9),
                   absent=registry.absent(chosen, names))  # fmt: skip


@commands.command()
@click.argument("ops", nargs=-1, metavar="[OP]...")
@options("suite", "device", "dtype", "layout", "baseline", "shape", "output")
def memory(ops, suite, device, dtypes, layouts, baselines, shapes, output) -> int:
    """Bytes kept for the backward (default: against aten and unfused)."""
    from . import memory as kept
    from . import registry
    from . import run as running

    device, names = to_device(device), to_baselines(baselines or ("aten", "unfused"), True)
    request = running.Request(registry.chosen(ops), device, suite, to_dtypes(dtypes), names, layouts, to_shapes(shapes))
    work = running.work_of(request, ops)
    return _finish("memory", "kept", device, output, None, kept.table, lambda: kept.measure(work, device, names),
                   absent=registry.absent(request.ops, names))  # fmt: skip


@commands.command()
@click.argument("op")
@options("device", "dtype", "shape", "layout", "rounds", "output")
@click.option("--direction", type=click.Choice(("forward", "backward")), default="forward", show_default=True)
@click.option("--gpu", metavar="NAME", help="without a GPU: list the plans for this one (default: H100)")
@click.option("--rows", "most", type=click.IntRange(1), default=20, show_default=True, help="of each table")
@click.option(
    "--save", is_flag=True, help="keep the best plan in this device's tuning table, if it beats the heuristic"
)
def sweep(op, device, dtypes, shapes, layouts, rounds, output, direction, gpu, most, save) -> int:
    """Every legal launch plan of an op; timed on a GPU, listed elsewhere."""
    from . import machine, registry, results, tables
    from . import run as running
    from . import sweep as sweeping

    device = to_device(device)
    if save and device.type != "cuda":
        raise BadInput("--save keeps what was timed, and nothing is timed without a GPU")
    request = running.Request(registry.chosen([op]), device, "quick", to_dtypes(dtypes), (), layouts, to_shapes(shapes))
    if not shapes:
        request = dataclasses.replace(request, shapes=[running.shapes_of(request, request.ops[0])[0].sizes])
    record, found = machine.describe(device), []
    for case in running.work_of(request, [op]):
        records = sweeping.measure(*case, device, direction == "backward", gpu, rounds or 5)
        tables.show(sweeping.table(records, most))
        found += records
        if save:
            path = sweeping.save(records, device, date=record["date"], commit=record["commit"])
            print(f"tuned: {path}" if path else "the heuristic's plan is as good as any")
    if device.type != "cuda":
        print("not measured: there is no GPU here")
    folder = to_folder(output, device)
    if folder:
        results.write(results.document("sweep", record, plans=found, not_measured=[]), folder / f"sweep-{op}.json")
        print(f"results: {folder / f'sweep-{op}.json'}")
    return 0


@commands.command()
@click.option("--model", required=True, type=click.Choice(MODELS))
@options("device", "threads", "rounds", "output", "force")
@click.option("--batch", type=click.IntRange(1))
@click.option("--image", type=click.IntRange(8), help="edge of the pictures, or number of tokens")
@click.option("--width", type=click.IntRange(8))
@click.option("--depth", type=click.IntRange(0), help="blocks of a stage, or of the network")
@click.option("--mode", "modes", multiple=True, type=click.Choice(("eager", "compiled")), help="default: both")
@click.option("--layout", "layouts", multiple=True, type=click.Choice(LAYOUTS[:2]), help="default: both")
@click.option("--dtype", type=click.Choice(DTYPES[:2]), default="float32", help="bfloat16: under autocast")
@click.option("--data", type=click.Choice(("synthetic", "digits")), default="synthetic")
@click.option("--fold-activations", is_flag=True, help="let convert put activations into the norms before them")
def train(model, device, threads, rounds, output, force, batch, image, width, depth, modes, layouts, dtype, data,
          fold_activations) -> int:  # fmt: skip
    """Training steps of a whole network, torch.nn's norms against converted ones."""
    import torch

    from . import train as training

    device = to_device(device, threads)
    sizes = training.sizes_of(model, device.type, batch=batch, image=image, width=width, depth=depth)
    kind = getattr(torch, dtype)
    steps: list[dict[str, Any]] = []

    def measure() -> list[dict[str, Any]]:
        steps.extend(training.measure(model, sizes, device, modes or ("eager", "compiled"), layouts or LAYOUTS[:2],
                                      kind, data, rounds or 5, fold_activations))  # fmt: skip
        return steps

    _finish("train", "steps", device, output, force, training.table, measure, f"train-{model}")
    wrong = training.disagreements(steps, kind)
    tolerance = training.LOSS_TOLERANCE[kind]
    print(*(f"differs: {text}" for text in wrong), sep="\n", end="\n" if wrong else "")
    verdict = "DIFFER" if wrong else "agree"
    print(f"losses of {training.COMPARED_STEPS} steps {verdict} (within {tolerance:g} of the first)")
    return int(bool(wrong))


def _finish(kind: str, key: str, device: torch.device, output: str | None, force: bool | None,
            table: Callable[[list[dict[str, Any]]], Any], measure: Callable[[], list[dict[str, Any]]],
            file: str | None = None, absent: Sequence[str] = ()) -> int:  # fmt: skip
    """Measures, shows and writes. `force` None: noise does not matter to what is measured."""
    from . import machine, results, tables
    from .noise import refuse_if_noisy

    record = machine.describe(device)
    if force is not None:
        record["noise"] = refuse_if_noisy(device, force)
    found = measure()
    tables.show(table(found))
    print(*(f"not measured: {text}" for text in absent), sep="\n", end="\n" if absent else "")
    folder = to_folder(output, device)
    if folder:
        path = folder / f"{file or kind}.json"
        results.write(results.document(kind, record, **{key: found}, not_measured=list(absent)), path)
        print(f"results: {path}")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    try:
        return commands.main(arguments, prog_name="python -m bench", standalone_mode=False) or 0
    except click.ClickException as error:
        print(f"bench: {' '.join(error.format_message().split())}", file=sys.stderr)
        return error.exit_code
    except click.Abort:
        return 130
