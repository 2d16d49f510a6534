"""RMSNorm, plain and with a residual: byte formula, baselines, bars."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

import torchfastnorm
from torchfastnorm import reference

from . import row_peers
from .baselines import ours_and, torch_baselines
from .cells import Candidate, Op, Traffic, bars

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

    others = torch_baselines(aten, plain) + row_peers.rms_norm(EPS)
    return ours_and(ours, others, names)


def add_candidates(names: Sequence[str]) -> list[Candidate]:
    def ours(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        return torchfastnorm.add_rms_norm(x, residual, (x.shape[-1],), weight, EPS)

    def aten(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        total = x + residual
        return F.rms_norm(total, (x.shape[-1],), weight, EPS), total

    def plain(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        return reference.add_rms_norm(x, residual, (x.shape[-1],), weight, EPS)

    others = torch_baselines(aten, plain) + row_peers.add_rms_norm(EPS)
    return ours_and(ours, others, names)


OPS = [
    Op("rms_norm", ("x", "weight"), candidates, lambda x, w: reference.rms_norm(x, (x.shape[-1],), w, EPS),
       lambda *cell: traffic(False, *cell), bars("aten", rows=(4.0, 8.0))),
    Op("add_rms_norm", ("x", "residual", "weight"), add_candidates,
       lambda x, r, w: reference.add_rms_norm(x, r, (x.shape[-1],), w, EPS),
       lambda *cell: traffic(True, *cell), outputs=("y", "sum")),
]  # fmt: skip
