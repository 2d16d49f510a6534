"""The cost of a call on a small input (8 x 64), where the kernel is nothing and the way to it is all: against ATen.

One thread, float32. On a GPU the time is that of the host to queue the work, not that of the work.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

import torchfastnorm

from .timing import CpuTimer, Work, interleave, keep_clean

ROWS, COLS = 8, 64


@dataclass
class Latency:
    op: str
    case: str
    ours: float  # seconds
    aten: float
    speedup: float  # median over rounds of ATen's time / ours within a round
    clean_rounds: int


def _works(
    norm: Callable[..., torch.Tensor], module: nn.Module, has_bias: bool, device: torch.device
) -> dict[str, Work]:
    generator = torch.Generator(device).manual_seed(0)
    x, grad_y = (torch.randn(ROWS, COLS, device=device, generator=generator) for _ in range(2))
    leaf = x.clone().requires_grad_()
    parameters = [torch.ones(COLS, device=device, requires_grad=True) for _ in range(2 if has_bias else 1)]
    constants = [parameter.detach() for parameter in parameters]
    shape, eps = (COLS,), 1e-5

    def both(call: int) -> None:
        torch.autograd.backward((norm(leaf, shape, *parameters, eps),), (grad_y,))

    def module_both(call: int) -> None:
        torch.autograd.backward((module(leaf),), (grad_y,))

    return {
        "forward without gradients": lambda call: norm(x, shape, *constants, eps),
        "forward": lambda call: norm(leaf, shape, *parameters, eps),
        "forward+backward": both,
        "module forward": lambda call: module(leaf),
        "module forward+backward": module_both,
    }


def measure(device: torch.device, rounds: int) -> list[Latency]:
    norms = {
        "layer_norm": (torchfastnorm.layer_norm, torch.nn.functional.layer_norm, nn.LayerNorm(COLS)),
        "rms_norm": (torchfastnorm.rms_norm, torch.nn.functional.rms_norm, nn.RMSNorm(COLS, eps=1e-5)),
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    timer = CpuTimer()
    found = []
    try:
        for op, (ours, aten, module) in norms.items():
            module.to(device)
            has_bias = op == "layer_norm"
            ours_works = _works(ours, torchfastnorm.convert(copy.deepcopy(module)), has_bias, device)
            aten_works = _works(aten, module, has_bias, device)
            for case in ours_works:
                pair = {"ours": ours_works[case], "aten": aten_works[case]}
                times, clean = interleave(pair, timer, rounds, block_seconds=0.015)
                times = keep_clean(times, clean)
                ratio = statistics.median(a / b for a, b in zip(times["aten"], times["ours"], strict=True))
                medians = (statistics.median(times["ours"]), statistics.median(times["aten"]))
                found.append(Latency(op, case, *medians, ratio, sum(clean)))
    finally:
        torch.set_num_threads(threads)
    return found
