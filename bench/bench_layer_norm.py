"""LayerNorm, plain and with a residual: byte formula, baselines, bars."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

import torchfastnorm
from torchfastnorm import reference

from . import row_peers
from .baselines import ours_and, torch_baselines
from .cells import Candidate, Op, Traffic, bars

EPS = 1e-5


def traffic(residual: bool, direction: str, sizes: tuple[int, ...], size: int) -> Traffic:
    rows, cols = sizes
    matrix, row, parameter = rows * cols * size, rows * max(4, size), cols * size
    if direction == "forward":  # x (, residual), weight, bias -> y (, sum), mean, rstd
        matrices = 2 if residual else 1
        return Traffic(matrices * matrix + 2 * parameter, matrices * matrix + 2 * row)
    # grad_y (, grad_sum), h, mean, rstd, weight -> grad_h, grad_weight, grad_bias
    return Traffic((3 if residual else 2) * matrix + 2 * row + parameter, matrix + 2 * parameter)


def candidates(names: Sequence[str]) -> list[Candidate]:
    def ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torchfastnorm.layer_norm(x, (x.shape[-1],), weight, bias, EPS)

    def aten(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.layer_norm(x, (x.shape[-1],), weight, bias, EPS)

    def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return reference.layer_norm(x, (x.shape[-1],), weight, bias, EPS)

    others = torch_baselines(aten, plain) + row_peers.layer_norm(EPS)
    return ours_and(ours, others, names)


def add_candidates(names: Sequence[str]) -> list[Candidate]:
    def ours(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        return torchfastnorm.add_layer_norm(x, residual, (x.shape[-1],), weight, bias, EPS)

    def aten(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        total = x + residual
        return F.layer_norm(total, (x.shape[-1],), weight, bias, EPS), total

    def plain(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        return reference.add_layer_norm(x, residual, (x.shape[-1],), weight, bias, EPS)

    others = torch_baselines(aten, plain) + row_peers.add_layer_norm(EPS)
    return ours_and(ours, others, names)


OPS = [
    Op("layer_norm", ("x", "weight", "bias"), candidates,
       lambda x, w, b: reference.layer_norm(x, (x.shape[-1],), w, b, EPS),
       lambda *cell: traffic(False, *cell), bars("aten", rows=(1.4, 2.2))),
    Op("add_layer_norm", ("x", "residual", "weight", "bias"), add_candidates,
       lambda x, r, w, b: reference.add_layer_norm(x, r, (x.shape[-1],), w, b, EPS),
       lambda *cell: traffic(True, *cell), outputs=("y", "sum")),
]  # fmt: skip
