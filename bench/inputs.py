"""The tensors that a cell is measured on: normal random numbers in the layout that its shape names."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .cells import Op
from .shapes import Shape


@dataclass
class Inputs:
    """One set of buffers: the op's inputs, and the gradients of its outputs."""

    inputs: list[Tensor]
    upstream: list[Tensor]

    @property
    def leaves(self) -> list[Tensor]:
        return [t for t in self.inputs if t.requires_grad]


def make_inputs(op: Op, shape: Shape, dtype: torch.dtype, device: torch.device, seed: int) -> Inputs:
    generator = torch.Generator(device).manual_seed(seed)

    def random(*size: int) -> Tensor:
        return torch.randn(*size, dtype=torch.float32, device=device, generator=generator).to(dtype)

    def like_x() -> Tensor:
        samples, *others = shape.sizes
        if shape.layout == "channels_last":
            return random(samples, *others[1:], others[0]).movedim(-1, 1)
        if shape.layout == "strided":
            return random(samples, 3, *others)[:, 0]
        if shape.layout == "unaligned":
            return random(shape.elements() + 1)[1:].view(shape.sizes)
        return random(*shape.sizes)

    def make(name: str) -> Tensor:
        if name == "running_var":
            return random(shape.sizes[1]).square_().add_(0.5)
        if name in ("x", "residual"):
            values = like_x()
        else:
            values = random(3 if name in ("mean_weight", "var_weight") else shape.sizes[1])
        return values.requires_grad_(not name.startswith("running"))

    inputs = [make(name) for name in op.inputs]
    if shape.kind == "rows":
        shape = replace(shape, layout="contiguous")  # as the outputs are
    return Inputs(inputs, [like_x() for _ in op.outputs])


def as_tuple(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(outputs) if isinstance(outputs, tuple | list) else (outputs,)


def backward(outputs: tuple[Tensor, ...], inputs: Inputs, retain_graph: bool) -> tuple[Tensor, ...]:
    return torch.autograd.grad(outputs, inputs.leaves, inputs.upstream, retain_graph=retain_graph)
