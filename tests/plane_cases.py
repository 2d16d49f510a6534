"""What the tests of the plane family run: BatchNorm, GroupNorm and InstanceNorm, their inputs in both layouts, and one
way to evaluate a function on them, forward, backward and with the running statistics that it leaves."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import torchfastnorm
from torchfastnorm import functional, reference
from torchfastnorm.reference._plane_norm import ACTIVATIONS

FIRST, LAST = "channels_first", "channels_last"
LAYOUTS = (FIRST, LAST)


@dataclass(frozen=True)
class PlaneOp:
    name: str
    stem: str  # of the modules

    def __str__(self) -> str:
        return self.name

    @property
    def node(self) -> str:
        """The name of the node that a call leaves in the graph."""
        return f"{self.stem}Backward"

    @property
    def function(self) -> Callable[..., Any]:
        return getattr(functional, self.name)

    @property
    def reference(self) -> Callable[..., Any]:
        return getattr(reference, self.name)

    def module(self, dims: int, namespace: Any = torchfastnorm) -> type[torch.nn.Module]:
        """The module for an input of that many dimensions, ours or (namespace=torch.nn) torch's."""
        if self.name == "group_norm":
            return getattr(namespace, self.stem)
        return getattr(namespace, f"{self.stem}{max(dims, 3) - 2}d")

    def torch(self, *arguments: Any, activation: str = "none", residual: Tensor | None = None, **keywords: Any) -> Any:
        """torch.nn.functional's function and what a user of torch writes after it; there is no mask."""
        y = getattr(F, self.name)(*arguments, **keywords)
        return ACTIVATIONS[activation](y if residual is None else y + residual)


BATCH_NORM = PlaneOp("batch_norm", "BatchNorm")
GROUP_NORM = PlaneOp("group_norm", "GroupNorm")
INSTANCE_NORM = PlaneOp("instance_norm", "InstanceNorm")
PLANE_OPS = (BATCH_NORM, GROUP_NORM, INSTANCE_NORM)
PER_SAMPLE = (GROUP_NORM, INSTANCE_NORM)

LEAVES = ("x", "residual", "weight", "bias")
OF_X = ("x", "residual", "grad_y")  # tensors of x's shape


@dataclass(frozen=True)
class PlaneCase:
    op: PlaneOp
    x: Tensor
    weight: Tensor | None
    bias: Tensor | None
    grad_y: Tensor
    residual: Tensor | None = None
    mask: Tensor | None = None
    running_mean: Tensor | None = None
    running_var: Tensor | None = None
    groups: int = 1  # GroupNorm
    batch_statistics: bool = True  # training, use_input_stats
    momentum: float = 0.1
    eps: float = 1e-5
    activation: str = "none"

    def with_update(self, batches: Tensor, momentum: float | None = None) -> Tensor:
        """BatchNorm with a count of the batches, as the modules call it: momentum None is their cumulative average."""
        x, *rest, eps = self.arguments[0]
        rest[-1] = momentum
        op = torch.ops.torchfastnorm.batch_norm_with_update
        return op(x, *rest, eps, self.residual, self.activation, self.mask, batches)

    @property
    def arguments(self) -> tuple[list[Any], dict[str, Any]]:
        keywords: dict[str, Any] = {"activation": self.activation}
        if self.mask is not None:
            keywords["mask"] = self.mask
        if self.residual is not None:
            keywords["residual"] = self.residual
        if self.op is GROUP_NORM:
            return [self.x, self.groups, self.weight, self.bias, self.eps], keywords
        running = [self.running_mean, self.running_var]
        rest = [self.weight, self.bias, self.batch_statistics, self.momentum, self.eps]
        return [self.x, *running, *rest], keywords

    def replace(self, **changes: Any) -> PlaneCase:
        return dataclasses.replace(self, **changes)

    def map(self, change: Callable[[Tensor], Tensor], names: Sequence[str] | None = None) -> PlaneCase:
        """The same case with every floating tensor changed, or those of these names."""
        fields = names or [f.name for f in dataclasses.fields(self) if f.name != "mask"]
        tensors = {name: getattr(self, name) for name in fields}
        return self.replace(**{name: change(t) for name, t in tensors.items() if isinstance(t, Tensor)})

    def samples(self, samples: slice | Tensor) -> PlaneCase:
        """The same case with some of the samples only."""
        case = self.map(lambda t: t[samples], OF_X)
        several = self.mask is not None and self.mask.dim() == self.x.dim() and len(self.mask) > 1
        return case.replace(mask=self.mask[samples]) if several else case

    def in_layout(self, layout: str) -> PlaneCase:
        return self.map(lambda t: in_layout(t, layout), OF_X)

    def to(self, device: torch.device | str) -> PlaneCase:
        case = self.map(lambda t: t.to(device))
        return case if case.mask is None else case.replace(mask=case.mask.to(device))


def in_layout(t: Tensor, layout: str) -> Tensor:
    """The same values, channels first or last in memory (channels_last, channels_last_3d, or what they are for 3-D)."""
    if layout == FIRST or t.dim() < 3:
        return t.contiguous()
    return t.movedim(1, -1).contiguous().movedim(-1, 1)


def padding_mask(shape: Sequence[int], generator: torch.Generator | None = None) -> Tensor:
    """Samples of various lengths along the last dimension: (samples, 1, ..., size), none of them empty."""
    samples, size = shape[0], shape[-1]
    lengths = torch.randint(1, size + 1, (samples,), generator=generator)
    return (torch.arange(size) < lengths[:, None]).view(samples, *[1] * (len(shape) - 2), size)


def scattered_mask(shape: Sequence[int], generator: torch.Generator | None = None) -> Tensor:
    """Two thirds of the positions count, here and there."""
    return torch.rand((shape[0], 1, *shape[2:]), generator=generator) < 2 / 3


def make_plane_case(
    op: PlaneOp,
    shape: Sequence[int],
    dtype: torch.dtype = torch.float32,
    *,
    layout: str = FIRST,
    groups: int | None = None,
    param_dtype: torch.dtype | None = None,
    running_dtype: torch.dtype | None = None,
    residual: bool | torch.dtype = False,
    mask: str | Tensor | None = None,
    affine: bool = True,
    running: bool = True,
    device: torch.device | str = "cpu",
    seed: int = 0,
    **options: Any,
) -> PlaneCase:
    """A case of ordinary values whose mean and deviation differ from channel to channel and from sample to sample, so
    that statistics of the wrong set show. `options`: activation, eps, momentum, batch_statistics.

    residual: True, or the dtype it has. mask: "padding", "scattered" or a tensor. groups: default the largest divisor
    of the channels that leaves several in a group.
    """
    generator = torch.Generator().manual_seed(seed)
    samples, channels = shape[:2]
    dims = len(shape) - 2

    def randn(size: Sequence[int], like: torch.dtype, scale: Any = 1.0, shift: Any = 0.0) -> Tensor:
        return torch.randn(tuple(size), generator=generator).mul_(scale).add_(shift).to(like)

    channel = torch.arange(channels).view(1, -1, *[1] * dims)
    sample = torch.arange(samples).view(-1, 1, *[1] * dims)
    param_dtype, running_dtype = param_dtype or dtype, running_dtype or param_dtype or dtype
    masks = {"padding": padding_mask, "scattered": scattered_mask}
    if isinstance(mask, str):
        mask = masks[mask](shape, generator)
    has_running = running and op is not GROUP_NORM
    case = PlaneCase(
        op,
        x=randn(shape, dtype, 1 + channel % 3 * 0.5, channel % 5 * 0.5 - 1 + sample % 3),
        weight=randn((channels,), param_dtype, 0.5, 1.0) if affine else None,
        bias=randn((channels,), param_dtype, 0.5) if affine else None,
        grad_y=randn(shape, dtype, 1.0, 0.25),
        residual=randn(shape, dtype if residual is True else residual, 1.0, -0.25) if residual else None,
        mask=mask,
        running_mean=randn((channels,), running_dtype) if has_running else None,
        running_var=randn((channels,), running_dtype).abs().add_(0.5) if has_running else None,
        groups=groups or default_groups(channels),
        **options,
    )
    return case.in_layout(layout).to(device)


def default_groups(channels: int) -> int:
    return next((g for g in range(channels // 2, 0, -1) if channels % g == 0), 1)


def cut(shape: Sequence[int], limit: int) -> tuple[int, ...]:
    """The shape with fewer samples, then fewer channels (an odd factor stays), until it has at most limit elements."""
    shape = list(shape)
    while torch.Size(shape).numel() > limit and shape[0] > 2:
        shape[0] = max(2, shape[0] // 2)
    while torch.Size(shape).numel() > limit and shape[1] % 2 == 0:
        shape[1] //= 2
    return tuple(shape)


def evaluate(
    case: PlaneCase, function: Callable[..., Any] | None = None, *, backward: bool = True
) -> dict[str, Tensor]:
    """Named results of one call: y, with `backward` grad_<leaf> of every leaf that is there, and the running statistics
    that the call has updated (the case's own stay as they are)."""
    leaves = {n: t.detach().requires_grad_(backward) for n in LEAVES if (t := getattr(case, n)) is not None}
    updated = case.batch_statistics and case.running_mean is not None
    own = {n: getattr(case, n).clone() for n in ("running_mean", "running_var")} if updated else {}
    arguments, keywords = case.replace(**leaves, **own).arguments
    y = (function or case.op.function)(*arguments, **keywords)
    results = {"y": y.detach()} | own
    if backward:
        grads = torch.autograd.grad(y, list(leaves.values()), case.grad_y)
        results |= {f"grad_{name}": grad for name, grad in zip(leaves, grads, strict=True)}
    return results
