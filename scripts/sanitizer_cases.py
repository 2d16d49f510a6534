"""Every regime of the CUDA kernels once, on small data: what `make gpu` runs under compute-sanitizer.

    compute-sanitizer --tool memcheck python scripts/sanitizer_cases.py [DEVICE]

Conversions are left to the host, so that hardly a kernel but ours runs. Each case compares with the CPU backend, so
that a run under a tool that changes timing also checks values.
"""

from __future__ import annotations

import sys

import torch

import torchfastnorm
from torchfastnorm import functional

# Columns from each regime: sub-warp, warp, block, shared memory, cluster, streamed; odd ones peel heads and tails.
COLUMNS = (1, 64, 111, 256, 500, 1024, 4095, 8192, 20000, 65536, 300001)
OPS = ("layer_norm", "rms_norm", "add_layer_norm", "add_rms_norm")
# Feature maps: sub-warp planes, planes of several pieces, clusters, sets that only the whole grid can take.
PLANES = ((3, 6, 1), (3, 12, 49), (2, 12, 1000), (2, 4, 30001), (6, 12, 200001))
TOLERANCES = {torch.float32: 2e-4, torch.bfloat16: 4e-2}


def run(op: str, cols: int, dtype: torch.dtype, device: str) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(cols)
    rows = 37 if cols <= 8192 else 3

    def leaf(*shape: int) -> torch.Tensor:
        values = torch.randn(*shape, generator=generator).to(dtype).to(device)
        return values.requires_grad_()

    tensors = [leaf(rows, cols)]
    if op.startswith("add_"):
        tensors.append(leaf(rows, cols))
    weights = [leaf(cols) for _ in range(2 if op.endswith("layer_norm") else 1)]
    outputs = getattr(functional, op)(*tensors, (cols,), *weights)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    upstream = [torch.randn(rows, cols, generator=generator).to(dtype).to(device) for _ in outputs]
    gradients = torch.autograd.grad(outputs, tensors + weights, upstream)
    return [t.detach().cpu().double() for t in (*outputs, *gradients)]


def run_planes(op: str, shape: tuple[int, ...], last: bool, dtype: torch.dtype, device: str) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(shape[-1])

    def random(*sizes: int) -> torch.Tensor:
        values = torch.randn(*sizes, generator=generator).to(dtype)
        return (values.transpose(1, 2).contiguous().transpose(1, 2) if last and len(sizes) == 3 else values).to(device)

    x, residual = (random(*shape).requires_grad_() for _ in range(2))
    weight, bias = (random(shape[1]).requires_grad_() for _ in range(2))
    leaves = [x, residual, weight, bias]
    if op in ("batch_norm", "batch_renorm"):
        running = [torch.zeros(shape[1], device=device), torch.ones(shape[1], device=device)]
        activation = "relu" if op == "batch_norm" else "silu"  # with signs kept for the backward, and without
        y = getattr(functional, op)(x, *running, weight, bias, True, residual=residual, activation=activation)
    elif op == "switch_norm":
        logits = [random(3).requires_grad_() for _ in range(2)]
        running = [torch.zeros(shape[1], device=device) for _ in range(2)]
        y = functional.switch_norm(x, *logits, *running, weight, bias, True, residual=residual, activation="silu")
        leaves += logits
    elif op == "group_norm":
        y = functional.group_norm(x, 3 if shape[1] % 3 == 0 else 2, weight, bias, residual=residual, activation="gelu")
    else:
        y = functional.instance_norm(x, None, None, weight, bias, residual=residual)
    gradients = torch.autograd.grad(y, leaves, random(*shape))
    return [t.detach().cpu().double() for t in (y, *gradients)]


def compare(what: str, ours: list[torch.Tensor], expected: list[torch.Tensor], tolerance: float) -> None:
    for one, other in zip(ours, expected, strict=True):
        error = ((one - other).abs().max() / other.abs().max().clamp(min=1)).item()
        assert error <= tolerance, f"{what}: differs from the CPU by {error:.1e}"


def main() -> None:
    device = sys.argv[1] if len(sys.argv) > 1 else "cuda"
    print(torchfastnorm.build_info())
    for op in OPS:
        for cols in COLUMNS:
            for dtype, tolerance in TOLERANCES.items():
                results = (run(op, cols, dtype, where) for where in (device, "cpu"))
                compare(f"{op}, {cols} columns, {dtype}", *results, tolerance)
        print(op, "ok", flush=True)
    for op in ("batch_norm", "batch_renorm", "group_norm", "instance_norm", "switch_norm"):
        for shape in PLANES if op != "instance_norm" else PLANES[1:]:
            for last in (False, True):
                for dtype, tolerance in TOLERANCES.items():
                    results = (run_planes(op, shape, last, dtype, where) for where in (device, "cpu"))
                    compare(f"{op} of {shape}, {dtype}, channels last: {last}", *results, tolerance)
        print(op, "ok", flush=True)


if __name__ == "__main__":
    main()
