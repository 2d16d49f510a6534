"""Check what a build contains, without a GPU: python scripts/check_build.py [--cuda]

Every op has its CPU kernel, and its CUDA kernel if the build is a CUDA build (which --cuda demands). Under a CUDA torch
the stream of the current device must be reachable, or kernels would run on the wrong one.
"""

from __future__ import annotations

import argparse
import sys

import torch

import torchfastnorm

OPS = ("layer_norm", "rms_norm", "add_layer_norm", "add_rms_norm")
OPS += (
    "batch_norm",
    "batch_norm_with_update",
    "batch_renorm",
    "batch_renorm_with_update",
    "group_norm",
    "instance_norm",
    "instance_norm_with_update",
    "switch_norm",
    "switch_norm_with_update",
)
OPS += tuple(f"{norm}_{step}" for norm in ("layer_norm", "rms_norm", "plane_norm") for step in ("forward", "backward"))


def has_kernel(op: str, key: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"torchfastnorm::{op}", key)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cuda", action="store_true", help="fail unless the CUDA kernels are in the build")
    options = parser.parse_args()

    print("torch", torch.__version__, "| torchfastnorm", torchfastnorm.__version__)
    print(torchfastnorm.build_info())
    missing = [op for op in OPS if not has_kernel(op, "CPU")]
    with_cuda = has_kernel("layer_norm_forward", "CUDA")
    if with_cuda or options.cuda:
        missing += [f"{op} (CUDA)" for op in OPS if not has_kernel(op, "CUDA")]
    if missing:
        sys.exit(f"check_build.py: no kernel is registered for {', '.join(missing)}")
    if with_cuda and torch.version.cuda and not torchfastnorm._extension._C.stream_symbol():
        sys.exit("check_build.py: torch's current-stream function was not found: kernels would run on the wrong stream")
    x = torch.randn(5, 7, dtype=torch.float64)
    torch.testing.assert_close(torchfastnorm.layer_norm(x, (7,)), torch.nn.functional.layer_norm(x, (7,)))
    x = torch.randn(5, 6, 7, dtype=torch.float64)
    torch.testing.assert_close(torchfastnorm.group_norm(x, 3), torch.nn.functional.group_norm(x, 3))
    print("all kernels are registered:", "CPU and CUDA" if with_cuda else "CPU")


if __name__ == "__main__":
    main()
