"""Every kind of bug that the CPU run of the CUDA kernels is meant to find, planted, and found by the tool that the
table names; the same kernel without the bug passes every tool.

error   cudasim throws, in any build, with this message
orders  the result is NaN, or differs between orders of threads, warps and blocks
asan    Address- or UndefinedBehaviorSanitizer reports this
tsan    ThreadSanitizer reports a data race
"""

from __future__ import annotations

import functools
import os
import re
import subprocess
from pathlib import Path

import native_build
import pytest

pytestmark = pytest.mark.skipif(native_build.why_not() is not None, reason=str(native_build.why_not()))

CAUGHT_BY: dict[str, dict[str, str]] = {
    "barrier_before_read": {"orders": "nan", "tsan": "data race"},
    "barrier_before_write": {"orders": "differ", "tsan": "data race"},
    "shuffle_is_no_syncwarp": {"tsan": "data race"},
    "add_from_several_blocks": {"tsan": "data race"},
    "fence_before_ticket": {"tsan": "data race"},
    "grid_sync_between_stages": {"orders": "differ", "tsan": "data race"},
    "cluster_sync_before_exit": {"orders": "nan", "asan": "heap-use-after-free", "tsan": "data race"},
    "cluster_sync_before_use": {"error": "the other block may not have started"},
    "read_in_bounds": {"asan": "heap-buffer-overflow"},
    "write_in_bounds": {"asan": "heap-buffer-overflow"},
    "static_shared_in_bounds": {"asan": "index 64 out of bounds|heap-buffer-overflow"},
    "dynamic_shared_in_bounds": {"asan": "heap-buffer-overflow"},
    "aligned_load": {"error": "load of 16 bytes at a misaligned address"},
    "aligned_raw_access": {"asan": "misaligned address"},
    "aligned_shared_access": {"asan": "misaligned address"},
    "shared_memory_is_set": {"orders": "nan"},
    "wide_row_offset": {"asan": "signed integer overflow"},
    "barrier_for_all": {"error": r"deadlock .*\n.*32 threads in __syncthreads\(\) at .*planted_bugs.cpp:\d+"},
    "one_barrier": {"error": "reached from two places"},
    "no_exit_before_barrier": {"error": "40 threads wait for others that never arrive"},
    "shuffle_for_all": {"error": "32 threads in __shfl_xor_sync"},
    "lane_in_mask": {"error": "the calling lane is not in its mask"},
    "source_in_mask": {"error": "reads a lane that is not in its mask"},
    "fixed_order": {"orders": "differ"},
    "block_size": {"error": "invalid block of 2048 threads"},
    "shared_size": {"error": "232449 bytes of dynamic shared memory, the device has 232448"},
    "cluster_size": {"error": "cluster of 8 blocks, the device allows 0"},
    "grid_of_whole_clusters": {"error": "the grid is not a multiple of the cluster"},
    "cooperative_grid_fits": {"error": "a cooperative grid of 3 blocks, the device holds 2"},
    "grid_sync_is_cooperative": {"error": "in a launch that is not cooperative"},
}
ORDERS = (("forward", 1), ("reverse", 1), ("random", 1), ("random", 2), ("random", 3))


@functools.cache
def program(variant: str) -> Path:
    source = native_build.NATIVE / "planted_bugs.cpp"
    return native_build.build("planted_bugs", [source], variant, "-Wno-array-bounds", program=True)


def run(variant: str, bug: str, kind: str, order: str = "forward", seed: int = 1) -> subprocess.CompletedProcess[str]:
    command = [str(program(variant)), bug, kind, order, str(seed)]
    environment = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}
    environment |= {"ASAN_OPTIONS": "detect_leaks=0", "TSAN_OPTIONS": "exitcode=66"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=120)


@pytest.mark.parametrize(("bug", "tool"), [(bug, tool) for bug, tools in CAUGHT_BY.items() for tool in tools])
def test_bug_is_caught(bug: str, tool: str) -> None:
    expected = CAUGHT_BY[bug][tool]
    if tool == "error":
        done = run("plain", bug, "bug")
        assert done.returncode == 3, done
        assert re.search(expected, done.stdout), done.stdout
    elif tool == "orders":
        results = {run("plain", bug, "bug", *order).stdout.strip() for order in ORDERS}
        assert ("nan" in results) if expected == "nan" else len(results) > 1, results
    else:
        done = run(tool, bug, "bug")
        assert done.returncode not in (0, 3), done
        assert re.search(expected, done.stderr), done.stderr


@pytest.mark.parametrize("bug", CAUGHT_BY)
def test_twin_is_silent(bug: str) -> None:
    plain = [run("plain", bug, "twin", *order) for order in ORDERS]
    assert [done.returncode for done in plain] == [0] * len(ORDERS), plain
    assert len({done.stdout for done in plain}) == 1
    assert plain[0].stdout != "nan\n"
    for variant in ("asan", "tsan"):
        done = run(variant, bug, "twin")
        assert (done.returncode, done.stdout, done.stderr) == (0, plain[0].stdout, ""), done


def test_the_table_is_complete() -> None:
    text = (native_build.NATIVE / "planted_bugs.cpp").read_text()
    assert set(re.findall(r'^    \{"(\w+)",', text, re.MULTILINE)) == set(CAUGHT_BY)
