"""How an op would run on a GPU: kernel, grid, block, cluster, shared memory, bytes, and the time those bytes take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch

from ._extension import _C
from ._launch_plan import GPU, GPUS, KernelPlan, occupancy
from ._plan_choice import Choice, candidates, forced
from ._plane_plans import PLANE_OPS, plane_plans
from ._whitening_plans import WHITENING_OPS, whitening_plans

__all__ = ["GPU", "GPUS", "KernelPlan", "explain", "launch_plans", "legal_plans"]


ROW_OPS = ("layer_norm", "rms_norm", "add_layer_norm", "add_rms_norm")
OPS = (*ROW_OPS, *PLANE_OPS, *WHITENING_OPS)


def _find_gpu(gpu: str | GPU | None) -> GPU:
    if isinstance(gpu, GPU):
        return gpu
    if gpu is None and torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        gpu = next((name for name in GPUS if name in properties.name), None)
        if gpu is None:
            known = ", ".join(GPUS)
            raise ValueError(f"explain: no figures for {properties.name!r}: pass gpu= one of {known}, or a GPU(...)")
    name = gpu or "H100"
    if name not in GPUS:
        raise ValueError(f"explain: unknown gpu {name!r}: pass one of {', '.join(GPUS)}, or a GPU(...)")
    return GPUS[name]


def _reason(plan: dict[str, Any], cols: int, backward: bool) -> str:
    many = f"a cluster of {plan['cluster']} blocks shares each row" if plan["cluster"] > 1 else "one block a row"
    if plan["residency"] == "warp":
        rows = 32 // plan["lanes"]
        in_flight = f", {plan['rows_in_flight']} in flight a thread" if plan["rows_in_flight"] > 1 else ""
        return f"short rows: {plan['lanes']} lanes a row, {rows} row{'s' * (rows > 1)} a warp{in_flight}"
    if plan["residency"] == "registers":
        return f"{many}; the row stays in registers, {plan['vectors']} vectors of 16 bytes a thread"
    if plan["residency"] == "streamed":
        return "the row fits nowhere on the chip: row sums first, then columns; both inputs are read twice"
    if backward:
        return f"{many}; column sums in shared memory, both inputs read again (L2)"
    kept = plan["kept_columns"]
    rest = "" if kept >= cols else f" up to {kept} columns, the rest is read again"
    return f"{many}; the row stays in shared memory{rest}"


def launch_plans(
    op: str,
    shape: Sequence[int],
    dtype: torch.dtype = torch.float32,
    *,
    normalized_dims: int = 1,
    residual_dtype: torch.dtype | None = None,
    param_dtype: torch.dtype | None = None,
    out_dtype: torch.dtype | None = None,
    num_groups: int = 32,
    channels_last: bool = False,
    training: bool = True,
    residual: bool = False,
    activation: str = "none",
    gpu: str | GPU | None = None,
    choices: Mapping[str, Choice] = {},
) -> list[KernelPlan]:
    """The launch plans of an op's forward and backward; arguments as :func:`explain`.

    ``choices`` replace, by the names of kernels, what :func:`torchfastnorm.plan` has chosen. RuntimeError: a kernel
    cannot run with one.
    """
    if op not in OPS:
        raise ValueError(f"explain: unknown op {op!r}: one of {', '.join(OPS)}")
    if op in WHITENING_OPS:
        return whitening_plans(shape, dtype, _find_gpu(gpu), num_groups, channels_last, training)
    if op in PLANE_OPS:
        param = param_dtype or dtype
        options = (num_groups, channels_last, training, residual, activation)
        return plane_plans(op, shape, dtype, param, _find_gpu(gpu), *options, choices)
    dtypes = (residual_dtype, param_dtype, out_dtype)
    return _row_plans(op, shape, dtype, normalized_dims, *dtypes, _find_gpu(gpu), choices)


def legal_plans(
    op: str, shape: Sequence[int], dtype: torch.dtype, backward: bool, **options: Any
) -> list[tuple[Choice, KernelPlan]]:
    """Every plan with which one direction of ``op`` can run, the heuristic's own first; ``options`` as of
    :func:`launch_plans`. Choices that come to the same plan are one."""
    if op in WHITENING_OPS:
        raise ValueError(f"legal_plans: the plan of {op} cannot be chosen")
    gpu = _find_gpu(options.pop("gpu", None))
    kernel = f"{'plane' if op in PLANE_OPS else 'row'}_{'backward' if backward else 'forward'}"

    def ask(choice: Choice) -> KernelPlan | None:
        try:
            return launch_plans(op, shape, dtype, **options, gpu=gpu, choices={kernel: choice})[backward]
        except RuntimeError:
            return None

    found: dict[tuple[Any, ...], tuple[Choice, KernelPlan]] = {}
    for choice in (Choice(), *candidates(kernel, gpu.multiprocessors)):
        plan = ask(choice)
        if plan is not None:
            found.setdefault((plan.kernel, plan.regime, plan.grid, plan.block, plan.cluster), (choice, plan))
    return list(found.values())


def _row_plans(
    op: str,
    shape: Sequence[int],
    dtype: torch.dtype,
    normalized_dims: int,
    residual_dtype: torch.dtype | None,
    param_dtype: torch.dtype | None,
    out_dtype: torch.dtype | None,
    device: GPU,
    choices: Mapping[str, Choice],
) -> list[KernelPlan]:
    if not 1 <= normalized_dims <= len(shape):
        raise ValueError(f"explain: normalized_dims={normalized_dims} does not fit shape {tuple(shape)}")
    add, centered = op.startswith("add_"), op.endswith("layer_norm")
    lead = len(shape) - normalized_dims
    rows, cols = prod(shape[:lead]), prod(shape[lead:])
    y_dtype, param = out_dtype or dtype, param_dtype or dtype
    h_dtype = (residual_dtype or dtype) if add else dtype
    elements = rows * cols
    statistic = 8 if h_dtype == torch.float64 else 4
    statistics = rows * statistic * (2 if centered else 1)
    sums = 2 if centered else 1
    x, h, y = (elements * t.itemsize for t in (dtype, h_dtype, y_dtype))
    plans = []
    for backward in (False, True):
        kind = "row_backward" if backward else "row_forward"
        choice = choices.get(kind, forced(kind)) or Choice()
        plan = _C.row_plan(
            backward=backward,
            centered=centered,
            rows=rows,
            cols=cols,
            x_dtype=dtype,
            h_dtype=h_dtype,
            y_dtype=y_dtype,
            param_dtype=param,
            multiprocessors=device.multiprocessors,
            shared_bytes=device.shared_bytes,
            cluster_blocks=device.cluster_blocks,
            choice=choice.numbers(kind),
        )
        if backward:
            partial = 2 * plan["partial_rows"] * sums * cols * statistic
            read = h + y + statistics + cols * param.itemsize + (h if add else 0)
            write = h + (x if dtype != h_dtype else 0) + sums * cols * param.itemsize
            moved = read + write + partial
            reread = h + y if plan["residency"] in ("shared", "streamed") else 0
        else:
            read = x + (h if add else 0) + sums * cols * param.itemsize
            write = y + (h if add else 0) + statistics
            moved = read + write
            reread = 2 * rows * (cols - plan["kept_columns"]) * h_dtype.itemsize
        shape_of_kernel = {"warp": "warp", "registers": "block", "shared": "block", "streamed": "columns"}
        name = f"{kind}_{shape_of_kernel[plan['residency']]}"
        reason = _reason(plan, cols, backward) + ("; dtypes looked up at run time" if plan["general_types"] else "")
        plans.append(
            KernelPlan(
                direction="backward" if backward else "forward",
                kernel=name,
                regime=plan["residency"],
                grid=plan["blocks"],
                block=plan["threads"],
                cluster=plan["cluster"],
                shared_bytes=plan["shared_bytes"],
                cooperative=plan["cooperative"],
                bytes=moved + reread,
                reread_bytes=reread,
                occupancy=occupancy(plan, device),
                reason=reason,
                chosen=str(choice),
            )
        )
    return plans


def explain(
    op: str,
    shape: Sequence[int],
    dtype: torch.dtype = torch.float32,
    *,
    normalized_dims: int = 1,
    residual_dtype: torch.dtype | None = None,
    param_dtype: torch.dtype | None = None,
    out_dtype: torch.dtype | None = None,
    num_groups: int = 32,
    channels_last: bool = False,
    training: bool = True,
    residual: bool = False,
    activation: str = "none",
    gpu: str | GPU | None = None,
    bandwidth: float | None = None,
) -> None:
    """Print how ``op`` runs on a GPU; no GPU is needed to ask.

    Args:
        op: "layer_norm", "rms_norm", "add_layer_norm", "add_rms_norm", "batch_norm", "batch_renorm", "batch_whitening",
            "group_norm", "instance_norm" or "switch_norm".
        shape: of the input.
        dtype: of the input.
        normalized_dims: row norms: how many of the last dimensions are normalized over.
        param_dtype: of weight and bias, where it differs from ``dtype``.
        residual_dtype, out_dtype: row norms: where they differ from ``dtype``.
        num_groups: of group_norm and batch_whitening.
        channels_last, training, residual, activation: of norms of feature maps: the layout, whether batch_norm,
            batch_renorm and batch_whitening take the batch's statistics, and what is fused.
        gpu: a name in ``GPUS``, or a ``GPU``; default: the current CUDA device, or "H100" where there is none.
        bandwidth: bytes per second to divide the bytes by; default: that of the GPU's data sheet.

    Raises:
        ValueError: an unknown op or gpu, more normalized dimensions than the shape has, or groups that do not divide
            the channels.
        RuntimeError: no kernel can run with what :func:`torchfastnorm.plan` has chosen.
    """
    device = _find_gpu(gpu)
    plans = launch_plans(
        op,
        shape,
        dtype,
        normalized_dims=normalized_dims,
        residual_dtype=residual_dtype,
        param_dtype=param_dtype,
        out_dtype=out_dtype,
        num_groups=num_groups,
        channels_last=channels_last,
        training=training,
        residual=residual,
        activation=activation,
        gpu=device,
    )
    rate = bandwidth or device.bandwidth
    print(f"{op} of {tuple(shape)}, {str(dtype).removeprefix('torch.')}, on {device.name} at {rate / 1e12:.3g} TB/s")
    print(*(plan.text(rate) for plan in plans), sep="\n")
