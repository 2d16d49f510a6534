"""InstanceNorm with weight and bias: baselines, bars."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor
from torch.nn import functional as F

import torchfastnorm
from torchfastnorm import reference

from .baselines import ours_and, torch_baselines
from .cells import Candidate, Op, Traffic, bars
from .planes import traffic

EPS = 1e-5


def bytes_of(direction: str, sizes: tuple[int, ...], size: int) -> Traffic:
    return traffic(direction, sizes, size, sizes[0] * sizes[1])


def of(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return function(x, weight=weight, bias=bias, eps=EPS)

    return norm


def candidates(names: Sequence[str]) -> list[Candidate]:
    others = torch_baselines(of(F.instance_norm), of(reference.instance_norm))
    return ours_and(of(torchfastnorm.instance_norm), others, names)


OPS = [
    Op("instance_norm", ("x", "weight", "bias"), candidates, of(reference.instance_norm), bytes_of,
       bars("aten", contiguous=(2.0, 2.0), channels_last=(2.0, 2.0)), shapes="instance_norm"),
]  # fmt: skip
