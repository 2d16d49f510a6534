"""What a result has to say about where it comes from."""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

import torchfastnorm

from . import allocator

ROOT = Path(__file__).resolve().parent.parent


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((r|tm)\)", "", name.lower())).strip("-")


def _git(*arguments: str) -> str:
    try:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _cpu() -> dict[str, Any]:
    caches = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = ((index / leaf).read_text().strip() for leaf in ("level", "type", "size"))
        if kind != "Instruction":
            caches[f"L{level}"] = size
    return {"name": device_name(torch.device("cpu")), "cores": os.cpu_count(), "caches": caches}


def _gpu(device: torch.device) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "L2": properties.L2_cache_size,
        "memory": properties.total_memory,
    }


def describe(device: torch.device) -> dict[str, Any]:
    return {
        "device": device_name(device),
        "cpu": _cpu(),
        **({"gpu": _gpu(device)} if device.type == "cuda" else {}),
        "threads": torch.get_num_threads(),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _git("rev-parse", "--short=12", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "command": " ".join(["python -m bench", *sys.argv[1:]]),
        "versions": {
            "torchfastnorm": torchfastnorm.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "build": torchfastnorm.build_info(),
        "system": platform.platform(),
        "allocator": allocator.in_force(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }
