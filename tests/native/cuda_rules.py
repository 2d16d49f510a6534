"""What the compiled kernels must look like. tests/native/cuda_check.py applies every rule whose `kernel` matches
(re.search) the demangled name, e.g. "row_forward_warp<float, float, float, false, true, 2>", on every architecture.

A rule names a figure of cuda_check.Kernel, an order and a limit; `why` ends the message when it is broken.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rule:
    kernel: str
    figure: str
    order: str  # "==", ">=" or "<="
    limit: float
    why: str


# Functions that the compiler calls instead of an instruction. Any other is a broken rule: a single-precision division
# or square root with its slow path in a hot loop costs more than the memory access it waits for.
ALLOWED_CALLS = {
    "barrier_sync_0": "how code for sm_80 brings a warp together before a barrier",
    "shflsync_bfly_p": "the same before a shuffle",
    "shflsync_up_p": "the same before a shuffle",
}
ALLOWED_CALLS_IN_DOUBLE = {
    "dblrcp_rn_slowpath_v3": "1 / v: once a row",
    "dsqrt_rn_f64_mediumpath_v1": "sqrt(v): once a row",
    "div_rn_f64_full": "a / b: once a row",
}

SAME = r"<(float|double|__half|__nv_bfloat16), \1, \1,"  # x, h and y of one type: all in vectors of 16 bytes
HALF_IN = r"<(__half|__nv_bfloat16), float, \1,"  # x and y in 8 bytes, h in 16

# sm_120 alone: two values are spilled before the loop, at any limit of registers from 64 to 80.
KNOWN_SPILL = r"^row_forward_block<__half, __half, __half, true, \(Residency\)1>"
NOT_KNOWN = rf"^(?!{KNOWN_SPILL[1:]})"

RULES = (
    Rule(NOT_KNOWN, "local", "==", 0, "a spill, or an array indexed at run time: traffic to memory"),
    Rule(NOT_KNOWN, "stack", "==", 0, "a spill, or an array indexed at run time: traffic to memory"),
    Rule(KNOWN_SPILL, "local", "<=", 2, "more than what is known to be spilled"),
    Rule(KNOWN_SPILL, "stack", "<=", 8, "more than what is known to be spilled"),
    Rule("", "other calls", "==", 0, "a slow path; cuda_rules.py lists those that are allowed"),
    Rule("^(?!.*double)", "fp64", "==", 0, "double precision runs at 1/2 to 1/64 of the rate"),
    # 16-byte accesses: all vectors that a thread has in flight, at least once (the aligned path), and every output.
    Rule(rf"^row_forward_warp{SAME}", "ldg128", ">=", 4, "x is read in 16-byte pieces, 64 bytes in flight a thread"),
    Rule(rf"^row_forward_warp{SAME}", "stg128", ">=", 4, "y is written in 16-byte pieces"),
    Rule(rf"^row_forward_block{SAME}", "ldg128", ">=", 1, "x is read in 16-byte pieces"),
    Rule(rf"^row_forward_block{SAME}.*Residency\)1", "ldg128", ">=", 4, "64 bytes in flight a thread"),
    Rule(rf"^row_forward_block{SAME}", "stg128", ">=", 1, "y is written in 16-byte pieces"),
    Rule(rf"^row_forward_\w+{HALF_IN}", "ldg128", ">=", 1, "the residual is read in 16-byte pieces"),
    Rule(rf"^row_forward_\w+{HALF_IN}", "ldg64", ">=", 1, "x is read in 8-byte pieces"),
    Rule(rf"^row_forward_\w+{HALF_IN}", "stg128", ">=", 1, "the sum is written in 16-byte pieces"),
    Rule(rf"^row_backward_\w+{SAME}", "ldg128", ">=", 2, "grad_y and h are read in 16-byte pieces"),
    Rule(rf"^row_backward_(warp|block|columns){SAME}", "stg128", ">=", 1, "grad_h is written in 16-byte pieces"),
    Rule(rf"^row_backward_\w+{HALF_IN}", "ldg128", ">=", 1, "h is read in 16-byte pieces"),
    Rule(rf"^row_backward_\w+{HALF_IN}", "ldg64", ">=", 1, "grad_y is read in 8-byte pieces"),
    # Planes: x (and grad_y) on their way in four vectors a thread, what is kept in shared memory, y and grad_x out.
    Rule(r"^plane_forward<", "ldg128", ">=", 4, "x is read in 16-byte pieces, 64 bytes in flight a thread"),
    Rule(r"^plane_backward<", "ldg128", ">=", 8, "x and grad_y are read so, 128 bytes in flight a thread"),
    Rule(r"^plane_(forward|backward)<", "stg128", ">=", 1, "y or grad_x is written in 16-byte pieces"),
    Rule(r"^plane_", "shared", "<=", 4096, "plane_static_bytes in plane_tiles.h: the launch would fail"),
    Rule(r"^plane_forward<.*Team\)1>", "registers", "<=", 128, "512 threads of the grid team are to be resident"),
    # Whitening: both tensors of moments and the one of a step in four vectors a thread, on the path of aligned rows; a
    # step of 32 x 32 results is 8 products of three parts (double: of four), the smallest of transform are 16 x 16.
    Rule(r"^whitening_moments<", "ldg128", ">=", 8, "u and v are read in 16-byte pieces, 128 bytes in flight a thread"),
    Rule(r"^whitening_transform<", "ldg128", ">=", 4, "u is read in 16-byte pieces, 64 bytes in flight a thread"),
    Rule(r"^whitening_transform<", "stg128", ">=", 1, "y is written in 16-byte pieces"),
    Rule(r"^whitening_moments<", "mma", ">=", 24, "tensor cores multiply"),
    Rule(r"^whitening_transform<", "mma", ">=", 8, "tensor cores multiply"),
    Rule(r"^whitening_moments<", "blocks", ">=", 3, "moments_blocks in whitening_tiles.h"),
    Rule(r"^whitening_transform<", "blocks", ">=", 4, "transform_blocks in whitening_tiles.h"),
    # Resident blocks that csrc/cuda/row_plan.cpp counts on: a cooperative launch with fewer fails.
    # Dynamic shared memory is planned beside at most this much (forward_static_bytes, backward_static_bytes).
    Rule("^row_forward_block", "shared", "<=", 2048, "with the planned dynamic shared memory the launch would fail"),
    Rule("^row_backward_block", "shared", "<=", 10240, "with the planned dynamic shared memory the launch would fail"),
    Rule("^row_forward_warp", "blocks", ">=", 5, "forward_warp_blocks in row_tiles.h"),
    Rule("^row_backward_warp", "blocks", ">=", 1, "backward_warp_blocks in row_tiles.h: the launch is cooperative"),
    Rule("^row_backward_block", "registers", "<=", 128, "512 threads in all are to be resident, in blocks of any size"),
)
