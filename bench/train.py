"""`python -m bench train`: whole training steps of real architectures, torch.nn's norms against converted ones.

A step is forward, backward and SGD with momentum. Both models begin with the same weights, see the same data and must
show the same losses, within LOSS_TOLERANCE, over the first steps. The share of the norms is measured in steps of its
own, by clocks at every norm's forward and backward, in eager mode; those do not run while steps are timed.
"""

from __future__ import annotations

import copy
import itertools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import torchfastnorm

from . import networks
from .cells import Result
from .errors import BadInput
from .harness import failure_of
from .tables import DASH, Table, percent, ratio
from .timing import CpuTimer, CudaTimer, Work, interleave, keep_clean

LOSS_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 3e-2}  # of the first loss, at each of the steps compared
COMPARED_STEPS, PROFILED_STEPS = 4, 3
CLASSES = 10
LIBRARIES = ("torch.nn", "torchfastnorm")


@dataclass(frozen=True)
class Sizes:
    """`image`: its edge, or the number of tokens. `depth`: blocks of a stage, or of the network; 0: as published."""

    batch: int
    image: int
    width: int
    depth: int


SIZES = {  # on a CPU: a minute; on a GPU: as published, Llama's depth apart, which is 32
    "resnet50": (Sizes(2, 96, 64, 1), Sizes(64, 224, 64, 0)),
    "convnext_t": (Sizes(2, 96, 96, 1), Sizes(64, 224, 96, 0)),
    "vit_s": (Sizes(2, 112, 384, 4), Sizes(64, 224, 384, 12)),
    "llama": (Sizes(1, 256, 512, 2), Sizes(1, 2048, 4096, 4)),
    "unet": (Sizes(1, 32, 64, 1), Sizes(8, 64, 320, 2)),
}
WITH_FEATURE_MAPS = ("resnet50", "convnext_t", "unet")


def sizes_of(model: str, device_type: str, **given: int | None) -> Sizes:
    return replace(SIZES[model][device_type == "cuda"], **{k: v for k, v in given.items() if v is not None})


def build(model: str, sizes: Sizes) -> nn.Module:
    torch.manual_seed(0)
    if model == "vit_s":
        return networks.vit_s(CLASSES, sizes.width, sizes.depth, sizes.image)
    if model == "llama":
        return networks.llama(width=sizes.width, depth=sizes.depth)
    if model == "unet":
        return networks.unet(sizes.width, sizes.depth)
    return getattr(networks, model)(CLASSES, sizes.width, sizes.depth)


def _digits(sizes: Sizes) -> tuple[Tensor, Tensor]:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise BadInput("--data digits needs scikit-learn") from None
    digits = load_digits()
    pictures = torch.from_numpy(digits.images[: sizes.batch]).float()[:, None].expand(-1, 3, -1, -1) / 8 - 1
    pictures = F.interpolate(pictures, (sizes.image, sizes.image), mode="bilinear")
    return pictures, torch.from_numpy(digits.target[: sizes.batch])


def batch_of(model: str, sizes: Sizes, data: str) -> tuple[Tensor, Tensor]:
    """Input and target: a class, the next token, or for the U-Net the noise that was added."""
    torch.manual_seed(1)
    if model == "llama":
        if data == "digits":
            raise BadInput("digits are pictures: llama trains on synthetic tokens")
        tokens = torch.randint(0, 32000, (sizes.batch, sizes.image + 1))
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    synthetic = torch.randn(sizes.batch, 3, sizes.image, sizes.image), torch.randint(0, CLASSES, (sizes.batch,))
    pictures, classes = _digits(sizes) if data == "digits" else synthetic
    if model == "unet":
        noise = torch.randn_like(pictures)
        return pictures + noise, noise
    return pictures, classes


def loss_of(output: Tensor, target: Tensor) -> Tensor:
    if target.is_floating_point():
        return F.mse_loss(output.float(), target)
    return F.cross_entropy(output.float().flatten(0, -2), target.flatten())


def is_norm(module: nn.Module) -> bool:
    torch_norms = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)
    return isinstance(module, torch_norms) or type(module).__module__.startswith("torchfastnorm")


def stepper(model: nn.Module, x: Tensor, target: Tensor, dtype: torch.dtype, mode: str) -> Callable[[int], Tensor]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    forward = torch.compile(model) if mode == "compiled" else model

    def step(call: int) -> Tensor:
        optimizer.zero_grad()
        with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
            output = forward(x)
        loss = loss_of(output, target)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def norm_share(model: nn.Module, step: Callable[[int], Tensor], device: torch.device) -> float:
    """The norms' part of a step's time, forward and backward."""
    spans: list[tuple[Any, Any]] = []
    open_: dict[tuple[int, str], Any] = {}

    def now() -> Any:
        if device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(begin: Any, end: Any) -> float:
        return end - begin if device.type != "cuda" else begin.elapsed_time(end) / 1e3

    def begin(direction: str) -> Callable[..., None]:
        return lambda module, *_: open_.update({(id(module), direction): now()})

    def end(direction: str) -> Callable[..., None]:
        return lambda module, *_: spans.append((open_.pop((id(module), direction)), now()))

    handles = []
    for module in filter(is_norm, model.modules()):
        handles.append(module.register_forward_pre_hook(begin("forward"), prepend=True))
        handles.append(module.register_full_backward_pre_hook(begin("backward"), prepend=True))
        handles.append(module.register_forward_hook(end("forward")))
        handles.append(module.register_full_backward_hook(end("backward")))
    step(0)
    spans.clear()
    first = now()
    for call in range(PROFILED_STEPS):
        step(call)
    last = now()
    if device.type == "cuda":
        torch.cuda.synchronize()
    for handle in handles:
        handle.remove()
    return sum(seconds(*span) for span in spans) / seconds(first, last)


def measure(
    model: str,
    sizes: Sizes,
    device: torch.device,
    modes: Sequence[str] = ("eager", "compiled"),
    layouts: Sequence[str] = ("contiguous", "channels_last"),
    dtype: torch.dtype = torch.float32,
    data: str = "synthetic",
    rounds: int = 5,
    fold_activations: bool = False,
) -> list[dict[str, Any]]:
    timer: CpuTimer | CudaTimer = CudaTimer() if device.type == "cuda" else CpuTimer()
    x, target = (t.to(device) for t in batch_of(model, sizes, data))
    found = []
    for mode, layout in itertools.product(modes, layouts):
        torch._dynamo.reset()
        last = layout == "channels_last"
        if last and model not in WITH_FEATURE_MAPS:
            continue
        memory_format = torch.channels_last if last else torch.contiguous_format
        with device:
            start = build(model, sizes)
        if last:
            start = start.to(memory_format=memory_format)
        inputs = x.contiguous(memory_format=memory_format) if x.dim() == 4 else x
        models = {"torch.nn": copy.deepcopy(start)}
        models["torchfastnorm"] = torchfastnorm.convert(start, fold_activations=fold_activations)
        steps: dict[str, Work] = {}
        records: dict[str, dict[str, Any]] = {}
        for name, one in models.items():
            norms = sum(map(is_norm, one.modules()))
            records[name] = {"model": model, "library": name, "mode": mode, "layout": layout, "sizes": asdict(sizes)}
            records[name] |= {"dtype": str(dtype).removeprefix("torch."), "norms": norms, "losses": [], "seconds": []}
            step = stepper(one, inputs, target, dtype, mode)
            try:
                records[name]["losses"] = [step(call).item() for call in range(COMPARED_STEPS)]
                if mode == "eager":
                    records[name]["norm_share"] = norm_share(one, step, device)
                steps[name] = step
            except Exception as error:  # compilation may fail in any way; the table says how
                records[name]["failure"] = failure_of(error)
        times = keep_clean(*interleave(steps, timer, rounds, block_seconds=0.0)) if steps else {}
        for name, record in records.items():
            found.append({**record, "seconds": times.get(name, [])})
    return found


def disagreements(steps: list[dict[str, Any]], dtype: torch.dtype) -> list[str]:
    """Where the losses of the two libraries differ by more than the tolerance, a step that failed included."""
    found = []
    for mode, layout in dict.fromkeys((s["mode"], s["layout"]) for s in steps):
        theirs, ours = (next(s for s in steps if (s["library"], s["mode"], s["layout"]) == (name, mode, layout))
                        for name in LIBRARIES)  # fmt: skip
        where = f"{ours['model']}, {mode}, {layout}"
        found += [f"{where}, {s['library']} {s['failure']}" for s in (theirs, ours) if s.get("failure")]
        for step, (a, b) in enumerate(zip(theirs["losses"], ours["losses"], strict=False)):
            if not abs(a - b) <= LOSS_TOLERANCE[dtype] * theirs["losses"][0]:
                found.append(f"{where}: loss {a:.6g} and {b:.6g} at step {step}")
                break
    return found


def table(steps: list[dict[str, Any]]) -> Table:
    rows = []
    for record in steps:
        timed = Result("", "", record["seconds"])
        case = (record["model"], record["mode"], record["layout"], record.get("dtype"), record.get("sizes"))
        theirs = [s for s in steps if s["library"] == "torch.nn" and s["seconds"] and timed.seconds
                  and (s["model"], s["mode"], s["layout"], s.get("dtype"), s.get("sizes")) == case]  # fmt: skip
        row = [record["model"], record["library"], record["mode"], record["layout"], record.get("dtype", DASH)]
        row += [record.get("failure") or f"{1e3 * timed.median:,.1f}", percent(timed.spread)]
        row += [ratio(statistics.median(theirs[0]["seconds"]) / timed.median) if theirs else DASH]
        row += [percent(record.get("norm_share", math.nan)), str(record.get("norms", DASH))]
        rows.append([*row, f"{record['losses'][-1]:.5f}" if record["losses"] else DASH])
    headers = ["model", "norms of", "mode", "layout", "dtype", "ms per step", "±", "torch.nn / this", "in norms"]
    return Table("Training steps", [*headers, "norms", "last loss compared"], rows)
