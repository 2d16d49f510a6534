"""Whitening in groups of up to 64 channels, in training: the eager formula is all that others have; bars."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor

import torchfastnorm
from torchfastnorm import reference

from .baselines import ours_and, torch_baselines
from .cells import Candidate, Op, Traffic, bars
from .planes import traffic

WIDTH = 64
INPUTS = ("x", "weight", "bias")


def of(function: Callable[..., Tensor], method: str) -> Callable[..., Tensor]:
    def norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        width = min(WIDTH, x.shape[1])
        return function(x, None, None, weight, bias, True, num_channels=width, method=method)

    return norm


def candidates(method: str, names: Sequence[str]) -> list[Candidate]:
    plain = of(reference.batch_whitening, method)
    return ours_and(of(torchfastnorm.batch_whitening, method), torch_baselines(plain, plain), names)


def bytes_of(direction: str, sizes: tuple[int, ...], size: int) -> Traffic:
    """Beside the feature maps a mean and a row of the matrix for each channel."""
    return traffic(direction, sizes, size, sizes[1] * (1 + min(WIDTH, sizes[1])) // 2)


def op(name: str, method: str, bar: float | None) -> Op:
    wanted = bars("aten", contiguous=(bar, bar), channels_last=(bar, bar)) if bar else {}
    return Op(name, INPUTS, partial(candidates, method), of(reference.batch_whitening, method), bytes_of, wanted,
              shapes="batch_norm", independent=None)  # fmt: skip


OPS = [op("iter_norm", "iternorm", 1.5), op("batch_whitening", "zca", None)]
