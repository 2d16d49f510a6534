"""What the norms of feature maps share in Python: the way through ``torch.ops``, and the fake kernels.

Every call goes first to the op's fast entry, a C function that takes plain arguments and answers ``NotImplemented`` to
anything else; :func:`call_op` is the way for the rest, and names wrong types as ``torch.nn.functional`` does. A call
that updates running statistics goes to ``<op>_with_update``, whose schema says what it writes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch._prims_common import suggest_memory_format
from torch.compiler import is_compiling
from torch.overrides import has_torch_function

from .._extension import _C

Activation = Literal["none", "relu", "leaky_relu", "elu", "silu", "gelu", "gelu_tanh"]
ACTIVATIONS: tuple[str, ...] = get_args(Activation)


SIGNED = ("relu", "leaky_relu")  # with a residual: keeps_signs() of csrc/interface/plane_signs.h
RENORMED_VALUES = 6  # csrc/math/renorm.h


class Sets(IntEnum):
    """Which planes are normalized together (csrc/interface/plane_norm.h)."""

    BATCH = 0
    GROUP = 1
    INSTANCE = 2


TYPES: dict[str, tuple[str, tuple[type, ...]]] = {
    "Tensor": ("Tensor", (Tensor,)),
    "float": ("float", (float, int, torch.SymFloat)),
    "int": ("int", (int, torch.SymInt)),
    "bool": ("bool", (bool,)),
    "str": ("str", (str,)),
}


def _check_types(name: str, op: Any, values: Sequence[Any]) -> None:
    for argument, value in zip(op._schema.arguments, values, strict=True):
        kind = str(argument.type)
        if kind.startswith("Optional["):
            if value is None:
                continue
            kind = kind[len("Optional[") : -1]
        expected, types = TYPES[kind]
        if not isinstance(value, types) or (kind == "int" and isinstance(value, bool)):
            raise TypeError(f"{name}(): argument '{argument.name}' must be {expected}, not {type(value).__name__}")


def call_op(name: str, updates: bool, *values: Any) -> Any:
    """Call ``torch.ops.torchfastnorm.<name>``, or ``<name>_with_update`` where running statistics are written."""
    ops = torch.ops.torchfastnorm
    op = getattr(ops, f"{name}_with_update" if updates else name).default
    if not is_compiling() and not has_torch_function(values):
        _check_types(name, op, values)
    return op(*values)


def dense(x: Tensor) -> Tensor:
    """As dense() of csrc/bindings/common/planes.h: ``x`` itself, or its copy in a layout that the backends read."""
    if x.dim() in (4, 5):
        return x.contiguous(memory_format=suggest_memory_format(x))
    last = x.dim() > 1 and x.movedim(1, -1).is_contiguous()
    return x if last else x.contiguous()


def _sign_bytes(dense: Tensor) -> int:
    """As sign_bytes() of csrc/interface/plane_signs.h."""
    samples, channels = dense.shape[0], dense.shape[1] if dense.dim() > 1 else 0
    spatial = math.prod(dense.shape[2:])
    planes = spatial != 1 and dense.is_contiguous()
    runs, elements = (channels, spatial) if planes else (spatial, channels)
    of_byte = 16 // dense.element_size()
    return samples * runs * ((elements + of_byte - 1) // of_byte) + 3


def _check(sets: int, arguments: dict[str, Any]) -> None:
    names = ("running_mean", "running_var", "num_batches_tracked", "weight", "bias", "residual", "mask")
    _C.check_plane_norm(
        arguments["input"],
        *(arguments.get(name) for name in names),
        sets,
        arguments.get("groups", arguments.get("num_groups", 1)),
        arguments.get("batch_statistics", arguments.get("training", arguments.get("use_input_stats", True))),
        arguments.get("momentum", 0.0),
        arguments["eps"],
        arguments["activation"],
        *_renorm_of(arguments),
        arguments.get("mean_weight"),
        arguments.get("var_weight"),
        arguments.get("moving_average", True),
    )


BOUNDS = ("r_max", "d_max", "r_begin", "r_end", "d_begin", "d_end")


def _renorm_of(arguments: dict[str, Any]) -> tuple[str, Sequence[float]]:
    """Of BatchRenorm's public op or of the inner one; of other ops what stands for none."""
    if "dialect" in arguments:
        return arguments["dialect"], [arguments[name] for name in BOUNDS]
    return arguments.get("renorm", "none"), arguments.get("bounds", [0.0] * len(BOUNDS))


def _names(name: str) -> list[str]:
    return [argument.name for argument in getattr(torch.ops.torchfastnorm, name).default._schema.arguments]


def register_fakes(name: str, sets: Sets, updates: bool) -> None:
    """Register what ``name`` and, if ``updates``, ``<name>_with_update`` return, without the values."""
    names = _names(name)

    def fake(*values: Any) -> Tensor:
        arguments = dict(zip(names, values, strict=True))
        _check(sets, arguments)
        return torch.empty_like(dense(arguments["input"]))

    for op in (name, f"{name}_with_update")[: 1 + updates]:
        torch.library.register_fake(f"torchfastnorm::{op}")(fake)


def _register_inner_fakes() -> None:
    names = _names("plane_norm_forward")

    def forward(input: Tensor, *values: Any) -> tuple[Tensor | None, ...]:
        arguments = dict(zip(names, (input, *values), strict=True))
        sets = arguments["sets"]
        _check(sets, arguments)
        samples, channels = input.shape[0], input.shape[1] if input.dim() > 1 else 0
        count = channels
        if arguments["mean_weight"] is not None:
            # Of each plane after mixing; then of planes, samples and channels, to mix (csrc/interface/plane_norm.h).
            count = 2 * samples * channels + samples + channels
        elif arguments["batch_statistics"] and sets != Sets.BATCH:
            count = samples * (arguments["groups"] if sets == Sets.GROUP else channels)
        dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
        mean = torch.empty((count,), dtype=dtype, device=input.device)
        corrects = arguments["renorm"] != "none" and arguments["batch_statistics"]
        rstd = mean.new_empty((RENORMED_VALUES * count if corrects else count,))
        y = torch.empty_like(dense(input))
        by_batch = sets == Sets.BATCH or not (arguments["batch_statistics"] or arguments["mean_weight"] is not None)
        keeps_signs = (
            arguments["residual"] is not None
            and arguments["activation"] in SIGNED
            and (by_batch or math.prod(input.shape[2:]) != 1)
        )
        signs = torch.empty((_sign_bytes(y),), dtype=torch.uint8, device=y.device) if keeps_signs else None
        return y, mean, rstd, signs

    torch.library.register_fake("torchfastnorm::plane_norm_forward")(forward)
    torch.library.register_fake("torchfastnorm::plane_norm_forward_with_update")(forward)

    @torch.library.register_fake("torchfastnorm::plane_norm_backward")
    def backward(grad_y: Tensor, input: Tensor, *values: Any) -> tuple[Tensor | None, ...]:
        mean_weight, var_weight, param_dtype, wanted = values[-4:]
        channels = input.shape[1] if input.dim() > 1 else 0

        def param() -> Tensor:
            return torch.empty((channels,), dtype=param_dtype, device=input.device)

        def like() -> Tensor:
            return torch.empty_like(dense(input))

        def logits(weight: Tensor) -> Callable[[], Tensor]:
            return lambda: weight.new_empty(weight.shape)

        makers = (like, like, param, param, logits(mean_weight), logits(var_weight))
        return tuple(make() if want else None for make, want in zip(makers, wanted, strict=True))


_register_inner_fakes()


class PlaneNorm(nn.Module):
    """What this library's Modules add to torch.nn's: ``activation``, and ``bias=`` on every torch.

    A mixin, to stand before torch.nn's class. ``activation`` is an attribute of the class, so that a module of torch.nn
    becomes one of these by a change of its class alone.
    """

    activation: Activation = "none"

    def _set_options(self, bias: bool, activation: Activation) -> None:
        if not bias:
            self.register_parameter("bias", None)
        if activation not in ACTIVATIONS:
            names = ", ".join(ACTIVATIONS)
            raise ValueError(f"{type(self).__name__}: unknown activation {activation!r}; one of {names}")
        if activation != "none":
            self.activation = activation

    def reset_parameters(self) -> None:
        # As torch's newer releases do; the older ones do not expect a weight without a bias.
        reset_running_stats = getattr(self, "reset_running_stats", None)
        if reset_running_stats is not None:
            reset_running_stats()
        for name, value in (("weight", 1.0), ("bias", 0.0)):
            parameter = getattr(self, name)
            if parameter is not None:
                nn.init.constant_(parameter, value)

    def extra_repr(self) -> str:
        activation = "" if self.activation == "none" else f", activation={self.activation}"
        return super().extra_repr() + activation
