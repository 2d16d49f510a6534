"""RMSNorm, plain and with a residual: byte formula, baselines, bars."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

import torchfastnorm
from torchfastnorm import reference

from .baselines import ours_and, peer, torch_baselines
from .harness import Candidate, Op, Traffic, bars

EPS = 1e-6


def traffic(residual: bool, direction: str, sizes: tuple[int, ...], size: int) -> Traffic:
    rows, cols = sizes
    matrix, row, parameter = rows * cols * size, rows * max(4, size), cols * size
    if direction == "forward":  # x (, residual), weight -> y (, sum), rstd
        matrices = 2 if residual else 1
        return Traffic(matrices * matrix + parameter, matrices * matrix + row)
    # grad_y (, grad_sum), h, rstd, weight -> grad_h, grad_weight
    return Traffic((3 if residual else 2) * matrix + row + parameter, matrix + parameter)


def candidates(names: Sequence[str]) -> list[Candidate]:
    def ours(x: Tensor, weight: Tensor) -> Tensor:
        return torchfastnorm.rms_norm(x, (x.shape[-1],), weight, EPS)

    def aten(x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), weight, EPS)

    def plain(x: Tensor, weight: Tensor) -> Tensor:
        return reference.rms_norm(x, (x.shape[-1],), weight, EPS)

    others = torch_baselines(aten, plain)
    others += peer("liger", "liger-kernel", "liger_kernel.ops.rms_norm:LigerRMSNormFunction",
                   lambda f: lambda x, w: f.apply(x, w, EPS, 0.0, "llama", False))  # fmt: skip
    others += peer("quack", "quack-kernels", "quack.rmsnorm:rmsnorm", lambda f: lambda x, w: f(x, w, eps=EPS))
    others += peer("apex", "apex", "apex.normalization.fused_layer_norm:fused_rms_norm_affine",
                   lambda f: lambda x, w: f(x, w, (x.shape[-1],), EPS))  # fmt: skip
    others += peer("flashinfer", "flashinfer-python", "flashinfer.norm:rmsnorm",
                   lambda f: lambda x, w: f(x, w, EPS), has_backward=False)  # fmt: skip
    return ours_and(ours, others, names)


def add_candidates(names: Sequence[str]) -> list[Candidate]:
    def ours(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        return torchfastnorm.add_rms_norm(x, residual, (x.shape[-1],), weight, EPS)

    def aten(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        total = x + residual
        return F.rms_norm(total, (x.shape[-1],), weight, EPS), total

    def plain(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        return reference.add_rms_norm(x, residual, (x.shape[-1],), weight, EPS)

    others = torch_baselines(aten, plain)
    others += peer("liger", "liger-kernel", "liger_kernel.ops.fused_add_rms_norm:LigerFusedAddRMSNormFunction",
                   lambda f: lambda x, r, w: f.apply(x, r, w, EPS, 0.0, "llama", False))  # fmt: skip
    others += peer("quack", "quack-kernels", "quack.rmsnorm:rmsnorm",
                   lambda f: lambda x, r, w: f(x, w, residual=r, eps=EPS, prenorm=True))  # fmt: skip
    return ours_and(ours, others, names)


OPS = [
    Op("rms_norm", ("x", "weight"), candidates, lambda x, w: reference.rms_norm(x, (x.shape[-1],), w, EPS),
       lambda *cell: traffic(False, *cell), bars("aten", rows=(4.0, 8.0))),
    Op("add_rms_norm", ("x", "residual", "weight"), add_candidates,
       lambda x, r, w: reference.add_rms_norm(x, r, (x.shape[-1],), w, EPS),
       lambda *cell: traffic(True, *cell), outputs=("y", "sum")),
]  # fmt: skip
