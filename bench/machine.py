"""What a result has to say about where it comes from."""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import torchfastnorm
from torchfastnorm._plan_choice import slug

from . import allocator

ROOT = Path(__file__).resolve().parent.parent


def cpu_name() -> str:
    """With family and model where the name has no number: virtual machines call many CPUs by one name, 'AMD EPYC'."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        pairs = (line.partition(":")[::2] for line in reversed(lines) if ":" in line)
        facts = {key.strip(): value.strip() for key, value in pairs}
        name = facts["model name"]
        if any(c.isdigit() for c in name):
            return name
        return f"{name} family {facts['cpu family']} model {facts['model']}"
    except (OSError, KeyError):
        return platform.processor() or platform.machine()


def device_name(device: torch.device) -> str:
    """A CPU's with the vector instructions in use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{cpu_name()}, {torchfastnorm.build_info()['cpu_capability']}"


def result_folder(device: torch.device) -> Path:
    return ROOT / "bench" / "results" / slug(device_name(device))


def _git(*arguments: str) -> str:
    try:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _caches() -> dict[str, str]:
    caches = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = ((index / leaf).read_text().strip() for leaf in ("level", "type", "size"))
        if kind != "Instruction":
            caches[f"L{level}"] = size
    return caches


def cache_bytes() -> dict[str, int]:
    """Of the CPU's levels, where the system tells."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    return {level: int(size[:-1]) * units[size[-1]] for level, size in _caches().items() if size[-1] in units}


def last_level_cache(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).L2_cache_size
    return max(cache_bytes().values(), default=32 << 20)


def _cpu() -> dict[str, Any]:
    clocks = {}
    for name in ("scaling_governor", "scaling_cur_freq", "cpuinfo_max_freq"):  # in kHz
        path = Path("/sys/devices/system/cpu/cpu0/cpufreq", name)
        if path.is_file():
            clocks[name] = path.read_text().strip()
    return {"name": cpu_name(), "cores": os.cpu_count(), "caches": _caches(), "clocks": clocks}


def _nvidia_smi(device: torch.device) -> dict[str, str]:
    """Driver and clocks (MHz), where nvidia-smi can be asked."""
    names = ["driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem", "power.limit"]
    command = ["nvidia-smi", f"--id={torch.cuda.get_device_properties(device).uuid}"]
    command += [f"--query-gpu={','.join(names)}", "--format=csv,noheader,nounits"]
    try:
        text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(names, (value.strip() for value in text.strip().split(",")), strict=False))


def _gpu(device: torch.device) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "L2": properties.L2_cache_size,
        "memory": properties.total_memory,
        **_nvidia_smi(device),
    }


def _versions() -> dict[str, str]:
    versions = {"torchfastnorm": torchfastnorm.__version__, "torch": torch.__version__}
    versions["python"] = platform.python_version()
    if torch.version.cuda:
        versions |= {"cuda": torch.version.cuda, "cudnn": str(torch.backends.cudnn.version())}
    with contextlib.suppress(metadata.PackageNotFoundError):
        versions["triton"] = metadata.version("triton")
    return versions


def describe(device: torch.device) -> dict[str, Any]:
    return {
        "device": device_name(device),
        "device_type": device.type,
        "cpu": _cpu(),
        **({"gpu": _gpu(device)} if device.type == "cuda" else {}),
        "threads": torch.get_num_threads(),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _git("rev-parse", "--short=12", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "command": " ".join(["python -m bench", *sys.argv[1:]]),
        "versions": _versions(),
        "build": torchfastnorm.build_info(),
        "system": f"{platform.system()} {platform.release().partition('-')[0]}, {' '.join(platform.libc_ver())}",
        "allocator": allocator.in_force(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }
