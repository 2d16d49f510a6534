"""SwitchNorm of instance, layer and batch in training: the eager formula is all that others have; bars."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

import torchfastnorm
from torchfastnorm import reference

from .baselines import ours_and, torch_baselines
from .cells import Candidate, Op, Traffic, bars
from .planes import traffic

EPS, MOMENTUM = 1e-5, 0.9
INPUTS = ("x", "mean_weight", "var_weight", "weight", "bias", "running_mean", "running_var")


def of(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def norm(x: Tensor, p: Tensor, q: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        return function(x, p, q, mean, var, weight, bias, True, MOMENTUM, EPS)

    return norm


def candidates(names: Sequence[str]) -> list[Candidate]:
    plain = of(reference.switch_norm)
    return ours_and(of(torchfastnorm.switch_norm), torch_baselines(plain, plain), names)


def bytes_of(direction: str, sizes: tuple[int, ...], size: int) -> Traffic:
    """Statistics of planes before and after mixing, of samples and of channels; the logits are nothing."""
    samples, channels = sizes[:2]
    return traffic(direction, sizes, size, 2 * samples * channels + samples + channels, training=True)


OPS = [
    Op("switch_norm", INPUTS, candidates, of(reference.switch_norm), bytes_of,
       bars("aten", contiguous=(5.0, 5.0), channels_last=(5.0, 5.0)), shapes="batch_norm", independent=None),
]  # fmt: skip
