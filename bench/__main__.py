"""python -m bench: measure torchfastnorm's ops against ATen, torch.compile and any installed peer."""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from pathlib import Path

from . import allocator

DTYPES = ("float32", "bfloat16", "float16", "float64")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    import torch

    from . import (
        baselines,
        bench_batch_norm,
        bench_batch_renorm,
        bench_batch_whitening,
        bench_group_norm,
        bench_instance_norm,
        bench_layer_norm,
        bench_rms_norm,
        bench_switch_norm,
        machine,
        shapes,
    )

    modules = (bench_layer_norm, bench_rms_norm, bench_batch_norm, bench_group_norm, bench_instance_norm)
    modules += (bench_batch_renorm, bench_switch_norm, bench_batch_whitening)
    ops = {op.name: op for module in modules for op in module.OPS}
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.split(": ", 1)[1])
    parser.add_argument("ops", nargs="*", metavar="OP", help=f"of {', '.join(ops)} (default: all)")
    parser.add_argument(
        "--suite", choices=("quick", "full"), default="quick", help="few shapes or all (default: quick)"
    )
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda, cuda:1, ..."
    )
    # fmt: off
    parser.add_argument("--dtype", action="append", choices=DTYPES, help="may be repeated (default: float32, bfloat16)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    parser.add_argument("--baseline", action="append", choices=baselines.NAMES,
                        help="may be repeated (default: aten, unfused, installed peers, with --suite full compile)")
    parser.add_argument("--shape", action="append", metavar="ROWSxCOLS|NxCxHxW",
                        help="measure this instead of the suite's; feature maps in both layouts; may be repeated")
    # fmt: on
    parser.add_argument("--rounds", type=int, help="rounds per cell (default: 9; with --suite full 15)")
    parser.add_argument("--time-limit", type=float, metavar="SECONDS", help="begin no further cell after this long")
    parser.add_argument("--output", metavar="DIR", help="write results there; 'auto': bench/results/<device>")
    parser.add_argument("--print-output-folder", action="store_true", help="print what 'auto' stands for, and exit")
    options = parser.parse_args(arguments)

    unknown = [name for name in options.ops if name not in ops]
    if unknown:
        parser.error(f"no op is called {', '.join(unknown)}; there are {', '.join(ops)}")
    try:
        options.device = torch.device(options.device)
        torch.empty(1, device=options.device)
    except (RuntimeError, AssertionError) as error:
        parser.error(f"--device {options.device} cannot be used: {str(error).splitlines()[0]}")
    if options.device.type == "cuda":
        torch.cuda.set_device(options.device)
    if options.threads is not None:
        if options.threads < 1:
            parser.error(f"--threads must be at least 1, got {options.threads}")
        torch.set_num_threads(options.threads)
    if options.shape:
        try:
            options.shape = [tuple(map(int, text.lower().split("x"))) for text in options.shape]
            assert all(2 <= len(sizes) <= 5 and min(sizes) > 0 for sizes in options.shape)
        except (ValueError, AssertionError):
            parser.error("--shape takes two to five positive numbers, for example 4096x1024 or 32x64x56x56")
        for name in options.ops:
            if not shapes.given(ops[name].shapes, options.shape):
                wanted = "ROWSxCOLS" if ops[name].shapes == "rows" else "NxCxHxW"
                parser.error(f"{name} is measured on {wanted}, and no --shape has that form")
    full = options.suite == "full"
    options.ops = [ops[name] for name in options.ops or ops]
    options.dtype = [getattr(torch, name) for name in options.dtype or ("float32", "bfloat16")]
    options.rounds = options.rounds or (15 if full else 9)
    options.baseline = options.baseline or [n for n in baselines.NAMES if n != "reference" and (full or n != "compile")]
    automatic = machine.ROOT / "bench" / "results" / machine.slug(machine.device_name(options.device))
    options.automatic_output = automatic
    options.output = automatic if options.output == "auto" else Path(options.output) if options.output else None
    return options


def main() -> None:
    options = parse_arguments()
    if options.print_output_folder:
        print(options.automatic_output)
        return

    import torch
    import tqdm

    from . import harness, latency, machine, report, shapes

    record = machine.describe(options.device)
    print(f"{record['device']}, {record['threads']} threads, torch {torch.__version__}, commit {record['commit']}")
    if record["load_average"] and record["load_average"] > 0.5 and options.device.type == "cpu":
        print(
            f"note: the load average is {record['load_average']:.1f}; disturbed rounds will be left out",
            file=sys.stderr,
        )

    def shapes_of(op: harness.Op) -> list[shapes.Shape]:
        if options.shape:
            return shapes.given(op.shapes, options.shape)
        return shapes.shapes_of(op.shapes, options.device.type, options.suite)

    # By shape first, so that a time limit cuts off the last shapes of every op, not the last ops.
    turns = itertools.zip_longest(*([(op, shape) for shape in shapes_of(op)] for op in options.ops))
    work = [(*case, dtype) for turn in turns for case in turn if case for dtype in options.dtype]
    begin = time.monotonic()
    latencies = latency.measure(options.device, options.rounds)
    cells: list[harness.Cell] = []
    skipped: list[str] = []
    bar = tqdm.tqdm(work, unit="case")
    for op, shape, dtype in bar:
        case = f"{op.name} {shape} {str(dtype).removeprefix('torch.')}"
        bar.set_description(case.ljust(44))
        if options.time_limit and time.monotonic() - begin > options.time_limit:
            skipped.append(f"{case}: time limit")
            continue
        torch._dynamo.reset()  # a shape must not inherit another's recompilation limit
        candidates = op.candidates(options.baseline)
        try:
            cells += harness.measure(op, shape, dtype, options.device, candidates, rounds=options.rounds)
        except torch.OutOfMemoryError as error:
            skipped.append(f"{case}: {str(error).splitlines()[0][:100]}")
            if options.device.type == "cuda":
                torch.cuda.empty_cache()

    ops, dtypes = ([str(getattr(x, "name", x)) for x in row] for row in (options.ops, options.dtype))
    cells.sort(key=lambda cell: (ops.index(cell.op), dtypes.index(f"torch.{cell.dtype}")))
    print(f"\n{report.cell_table(cells, 'simple')}\n")
    summary = report.summary_table(cells, options.ops, options.device, "simple")
    print(f"Forward+backward, geometric mean over the shapes above 1 MB\n{summary}\n")
    print(report.latency_table(latencies, "simple"))
    remarks = [f"not measured: {text}" for text in skipped] + [f"inaccurate: {text}" for text in report.notes(cells)]
    print(*remarks, sep="\n")

    if options.output:
        title = f"{record['device']}, {record['threads']} threads, torch {torch.__version__}, {record['date']}"
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "results.json").write_text(
            report.as_json(record, cells, latencies, skipped), encoding="utf-8"
        )
        (options.output / "results.md").write_text(
            f"# {title}\n\nCommit {record['commit']}{' with changes' if record['uncommitted_changes'] else ''}, "
            f"`{record['command']}`. How it is measured: [bench/README.md](../../README.md).\n\n"
            f"Forward+backward, geometric mean over the shapes above 1 MB:\n\n"
            f"{report.summary_table(cells, options.ops, options.device, 'github')}\n\nSmall inputs:\n\n"
            f"{report.latency_table(latencies, 'github')}\n\nEvery cell:\n\n{report.cell_table(cells, 'github')}\n\n"
            + "".join(f"- {text}\n" for text in remarks),
            encoding="utf-8",
        )
        report.plot(cells, options.output / "results.png", title)
        print(f"results: {options.output}")


if __name__ == "__main__":
    allocator.restart_with_settings()
    main()
