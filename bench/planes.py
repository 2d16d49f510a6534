"""Bytes that the norms of feature maps have to move: each input read once, each output written once."""

from __future__ import annotations

import math

from .cells import Traffic


def traffic(
    direction: str, sizes: tuple[int, ...], size: int, sets: int, residual: bool = False, training: bool | None = None
) -> Traffic:
    """`sets`: numbers of mean and of rstd. `training`: whether running statistics are updated (None: there are none).

    A fused activation moves nothing: its derivative is computed again from x. With a residual (and ReLU, as here) one
    byte of signs for each 16 of x is written and read.
    """
    maps, parameter, statistics = math.prod(sizes) * size, sizes[1] * size, 2 * sets * max(4, size)
    inputs, read, updated = 1 + residual, training is not None, training is True
    signs = maps // 16 if residual else 0
    if direction == "forward":  # x (, residual), weight, bias (, running) -> y (, signs), mean, rstd (, running)
        written = maps + signs + statistics + 2 * updated * parameter
        return Traffic(inputs * maps + (2 + 2 * read) * parameter, written)
    # grad_y, x (, signs), mean, rstd, weight -> grad_x (, grad_residual), grad_weight, grad_bias
    return Traffic(2 * maps + signs + statistics + parameter, inputs * maps + 2 * parameter)
