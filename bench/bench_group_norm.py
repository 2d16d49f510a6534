"""GroupNorm of 32 groups, plain and with the SiLU that follows it in diffusion models: baselines, bars."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

import torchfastnorm
from torchfastnorm import reference

from .baselines import ours_and, peer, torch_baselines, unfused
from .cells import Candidate, Op, Traffic, bars
from .planes import traffic

GROUPS, EPS = 32, 1e-5
APEX = "apex.contrib.group_norm.group_norm:cuda_group_norm_nhwc_one_pass"  # channels_last only


def bytes_of(direction: str, sizes: tuple[int, ...], size: int) -> Traffic:
    return traffic(direction, sizes, size, sizes[0] * GROUPS)


def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return reference.group_norm(x, GROUPS, weight, bias, EPS)


def plain_silu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return reference.group_norm(x, GROUPS, weight, bias, EPS, activation="silu")


def candidates(names: Sequence[str]) -> list[Candidate]:
    def ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torchfastnorm.group_norm(x, GROUPS, weight, bias, EPS)

    def aten(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.group_norm(x, GROUPS, weight, bias, EPS)

    others = torch_baselines(aten, plain)
    others += peer("liger", "liger-kernel", "liger_kernel.ops.group_norm:LigerGroupNormFunction",
                   lambda f: lambda x, w, b: f.apply(x, w, b, x.shape[1], GROUPS, EPS))  # fmt: skip
    others += peer("apex", "apex", APEX, lambda f: lambda x, w, b: f(x, GROUPS, w, b, EPS))
    return ours_and(ours, others, names)


def silu_candidates(names: Sequence[str]) -> list[Candidate]:
    def ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torchfastnorm.group_norm(x, GROUPS, weight, bias, EPS, activation="silu")

    def aten(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.silu(F.group_norm(x, GROUPS, weight, bias, EPS))

    def steps(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.silu(torchfastnorm.group_norm(x, GROUPS, weight, bias, EPS))

    others = torch_baselines(aten, plain_silu) + unfused(steps)
    others += peer("apex", "apex", APEX, lambda f: lambda x, w, b: f(x, GROUPS, w, b, EPS, "silu"))
    return ours_and(ours, others, names)


INPUTS = ("x", "weight", "bias")
OPS = [
    Op("group_norm", INPUTS, candidates, plain, bytes_of,
       bars("aten", contiguous=(1.15, 1.5), channels_last=(1.5, 3.0)), shapes="group_norm"),
    Op("group_norm_silu", INPUTS, silu_candidates, plain_silu, bytes_of, shapes="group_norm"),
]  # fmt: skip
