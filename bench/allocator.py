"""Keep glibc from giving memory back to the system between two calls on the CPU.

By default glibc maps large blocks anew and unmaps them when they are freed, so that the first touch of every page
faults into the kernel: a 32 MB output then costs several times the norm that fills it, and every candidate looks
alike. The settings are read when a process starts, hence the fresh start. harness.py counts page faults, so that a
system where this has no effect shows.
"""

from __future__ import annotations

import os
import sys

SETTINGS = {
    "MALLOC_MMAP_MAX_": "0",  # never a mapping of its own for a block
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),  # never shrink the heap
    "MALLOC_TOP_PAD_": str(1 << 26),  # grow it in large steps
    "MALLOC_ARENA_MAX": "1",  # one heap for all threads: the others are limited in size
}


def restart_with_settings() -> None:
    """Start this Python program anew with the settings, unless the environment has them (or values of its own)."""
    missing = {name: value for name, value in SETTINGS.items() if name not in os.environ}
    if sys.platform == "linux" and missing:
        sys.stdout.flush()
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **missing})


def in_force() -> dict[str, str]:
    return {name: os.environ[name] for name in SETTINGS if name in os.environ}
