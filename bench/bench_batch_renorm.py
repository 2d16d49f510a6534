"""BatchRenorm in training, its bounds at their ends: the eager formula is all that others have; bars."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

import torchfastnorm
from torchfastnorm import reference

from .baselines import ours_and, torch_baselines
from .cells import Candidate, Op, Traffic, bars
from .planes import traffic

EPS, MOMENTUM = 1e-3, 0.01
INPUTS = ("x", "weight", "bias", "running_mean", "running_var")


def of(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def norm(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        return function(x, mean, var, weight, bias, True, MOMENTUM, EPS)

    return norm


def candidates(names: Sequence[str]) -> list[Candidate]:
    plain = of(reference.batch_renorm)
    return ours_and(of(torchfastnorm.batch_renorm), torch_baselines(plain, plain), names)


def bytes_of(direction: str, sizes: tuple[int, ...], size: int) -> Traffic:
    return traffic(direction, sizes, size, sizes[1], training=True)


OPS = [
    Op("batch_renorm", INPUTS, candidates, of(reference.batch_renorm), bytes_of,
       bars("aten", contiguous=(4.0, 4.0), channels_last=(4.0, 4.0)), shapes="batch_norm", independent=1),
]  # fmt: skip
