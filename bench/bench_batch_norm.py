"""BatchNorm in training, in evaluation, and with the addition and the ReLU that end a ResNet block: baselines, bars."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor
from torch.nn import functional as F

import torchfastnorm
from torchfastnorm import reference

from .baselines import cudnn, ours_and, torch_baselines, unfused
from .cells import Candidate, Op, Traffic, bars
from .planes import traffic

EPS, MOMENTUM = 1e-5, 0.1
INPUTS = ("x", "weight", "bias", "running_mean", "running_var")


def of(function: Callable[..., Tensor], training: bool) -> Callable[..., Tensor]:
    def norm(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        return function(x, mean, var, weight, bias, training, MOMENTUM, EPS)

    return norm


def candidates(training: bool) -> Callable[[Sequence[str]], list[Candidate]]:
    def chosen(names: Sequence[str]) -> list[Candidate]:
        others = torch_baselines(of(F.batch_norm, training), of(reference.batch_norm, training))
        others += cudnn(training, MOMENTUM, EPS)
        return ours_and(of(torchfastnorm.batch_norm, training), others, names)

    return chosen


def fused(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        return function(x, mean, var, weight, bias, True, MOMENTUM, EPS, residual=residual, activation="relu")

    return norm


def in_steps(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        # In place, as ResNet's code has it: no output of either step is needed for the gradients but the last.
        return F.relu(function(x, mean, var, weight, bias, True, MOMENTUM, EPS).add_(residual), inplace=True)

    return norm


def add_relu_candidates(names: Sequence[str]) -> list[Candidate]:
    others = torch_baselines(in_steps(F.batch_norm), fused(reference.batch_norm))
    return ours_and(fused(torchfastnorm.batch_norm), others + unfused(in_steps(torchfastnorm.batch_norm)), names)


def bytes_of(training: bool, residual: bool) -> Callable[[str, tuple[int, ...], int], Traffic]:
    def formula(direction: str, sizes: tuple[int, ...], size: int) -> Traffic:
        return traffic(direction, sizes, size, sizes[1], residual, training)

    return formula


OPS = [  # channels, not samples, are independent
    Op("batch_norm", INPUTS, candidates(True), of(reference.batch_norm, True), bytes_of(True, False),
       bars("aten", contiguous=(2.0, 1.8), channels_last=(1.2, 1.9)), shapes="batch_norm", independent=1),
    Op("batch_norm_eval", INPUTS, candidates(False), of(reference.batch_norm, False), bytes_of(False, False),
       shapes="batch_norm", independent=1),
    Op("batch_norm_add_relu", ("x", "residual", *INPUTS[1:]), add_relu_candidates, fused(reference.batch_norm),
       bytes_of(True, True), bars("unfused", contiguous=(1.3, 1.3), channels_last=(1.3, 1.3)),
       shapes="batch_norm", independent=1, has_kink=True),
]  # fmt: skip
