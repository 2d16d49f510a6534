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


def main() -> None:
    device = sys.argv[1] if len(sys.argv) > 1 else "cuda"
    print(torchfastnorm.build_info())
    for op in OPS:
        for cols in COLUMNS:
            for dtype, tolerance in TOLERANCES.items():
                for ours, expected in zip(run(op, cols, dtype, device), run(op, cols, dtype, "cpu"), strict=True):
                    scale = expected.abs().max().clamp(min=1)
                    error = ((ours - expected).abs().max() / scale).item()
                    assert error <= tolerance, f"{op}, {cols} columns, {dtype}: differs from the CPU by {error:.1e}"
        print(op, "ok", flush=True)


if __name__ == "__main__":
    main()
