"""Compiles C++ for the tests into shared libraries under build/native, and only what has changed.

An object is up to date when its command and the contents of every file it was made from are those of last time (the
compiler's own list of included files says which). Processes that build at once wait for each other.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NATIVE = ROOT / "tests" / "native"
BUILD = ROOT / "build" / "native"

# -ffp-contract=off: every multiply and add rounds, so results do not depend on what the host compiler fuses.
# -fvisibility=hidden: libraries of several variants in one process keep their own state.
# TORCHFASTNORM_FEWER_TYPES: the uncommon combinations of types go through the kernel that knows them at run time.
COMMON_FLAGS = (
    "-std=c++20 -fPIC -fvisibility=hidden -fno-strict-aliasing -ffp-contract=off -g1 "
    "-Wno-unknown-pragmas -DTORCHFASTNORM_SIM"
)
VARIANTS = {
    "plain": "-O1",
    "asan": "-O1 -fno-omit-frame-pointer -DTORCHFASTNORM_FEWER_TYPES "
    "-fsanitize=address,undefined -fno-sanitize-recover=undefined",
    "tsan": "-O1 -fno-omit-frame-pointer -DTORCHFASTNORM_FEWER_TYPES -fsanitize=thread",
}


class CompileError(RuntimeError):
    pass


def compiler() -> str:
    return os.environ.get("CXX", "g++")


def cuda_include() -> Path | None:
    """The folder of NVIDIA's headers: of a toolkit, or of PyPI's nvidia-cuda-runtime and nvidia-cuda-crt."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    if nvcc := shutil.which("nvcc"):
        homes.append(str(Path(nvcc).resolve().parents[1]))
    folders = [Path(home) / "include" for home in homes if home]
    site = Path(sysconfig.get_path("purelib")) / "nvidia"
    folders += [site / "cu13" / "include", site / "cuda_runtime" / "include"]
    needed = ("cuda_bf16.h", "vector_types.h", "crt/host_defines.h")
    return next((folder for folder in folders if all((folder / name).is_file() for name in needed)), None)


def why_not() -> str | None:
    """Why the CUDA sources cannot be compiled for the CPU here; None if they can."""
    if os.uname().machine != "x86_64":
        return f"the CPU run of the CUDA kernels switches stacks on x86-64 only, this is {os.uname().machine}"
    if not shutil.which(compiler()):
        return f"no C++ compiler: {compiler()} is not on PATH"
    if cuda_include() is None:
        return "NVIDIA's headers not found: set CUDA_HOME, or pip install nvidia-cuda-runtime nvidia-cuda-crt"
    return None


def sanitizer_libraries(variant: str) -> list[str]:
    """What LD_PRELOAD must name for a library of this variant to load into an ordinary Python."""
    runtime = {"asan": ["libasan.so"], "tsan": ["libtsan.so"]}.get(variant, [])
    found = []
    for name in [*runtime, "libstdc++.so"] if runtime else []:  # the sanitizer looks for its __cxa_throw at start
        command = [compiler(), f"-print-file-name={name}"]
        found.append(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
    return found


def cuda_sources() -> list[Path]:
    """The kernels and their launchers; the files end in .cu, or in .cpp where they hold no kernel."""
    folder = ROOT / "csrc" / "cuda"
    return [*sorted(folder.rglob("*.cu")), *sorted(folder.rglob("*.cpp"))]


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _digest(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def up_to_date(output: Path, command: Sequence[str]) -> bool:
    stamp = output.with_suffix(output.suffix + ".stamp")
    if not (output.is_file() and stamp.is_file()):
        return False
    made_from = json.loads(stamp.read_text())
    if made_from["command"] != list(command):
        return False
    return all(_digest(ROOT / name) == digest for name, digest in made_from["files"].items())


def run(command: Sequence[str]) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}  # a sanitizer's
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise CompileError(f"{shlex.join(command)}\n{done.stdout}{done.stderr}")
    sys.stderr.write(done.stderr)  # warnings


def remember(output: Path, command: Sequence[str], files: Sequence[str], begin: float) -> None:
    """Note what `output` was made from, unless a file was changed after `begin`: which version of it was read?"""
    if any((ROOT / name).stat().st_mtime > begin for name in files):
        return
    made_from = {"command": list(command), "files": {name: _digest(ROOT / name) for name in files}}
    output.with_suffix(output.suffix + ".stamp").write_text(json.dumps(made_from))


def included_files(depfile: Path) -> list[str]:
    text = depfile.read_text().replace("\\\n", " ")
    return text.split(":", 1)[1].split()


def _compile(source: Path, folder: Path, flags: Sequence[str]) -> Path:
    name = str(source.relative_to(ROOT)).replace("/", "_")
    output, depfile = folder / f"{name}.o", folder / f"{name}.d"
    command = [compiler(), *flags, "-MMD", "-MF", str(depfile), "-x", "c++", "-c", str(source), "-o", str(output)]
    if not up_to_date(output, command):
        begin = time.time()
        run(command)
        remember(output, command, included_files(depfile), begin)
    return output


def build(
    name: str, sources: Sequence[Path], variant: str = "plain", more_flags: str = "", *, program: bool = False
) -> Path:
    """Compile `sources` and link them into build/native/<variant>/<name>.so, or a program; return its path."""
    if reason := why_not():
        raise CompileError(reason)
    sanitizers = [flag for flag in VARIANTS[variant].split() if flag.startswith("-fsanitize")]
    flags = [
        *f"{COMMON_FLAGS} {VARIANTS[variant]} {more_flags}".split(),
        f"-I{NATIVE}",
        f"-I{ROOT / 'csrc'}",
        "-isystem",
        str(cuda_include()),
    ]
    output = BUILD / variant / (name if program else f"{name}.so")
    folder = BUILD / variant / "objects"
    with _lock(folder):
        with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)) as pool:
            objects = list(pool.map(lambda source: str(_compile(source, folder, flags)), sources))
        shape = ["-pie"] if program else ["-shared"]
        command = [compiler(), *sanitizers, *shape, *objects, "-o", str(output), "-lpthread"]
        if not up_to_date(output, command):
            begin = time.time()
            run(command)
            remember(output, command, objects, begin)
    return output
