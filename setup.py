"""Builds torchfastnorm._C; the metadata stand in pyproject.toml. Environment variables:

FORCE_CUDA            1 or 0: with or without CUDA, whatever torch is. Unset: with, if torch has CUDA and nvcc is found.
CUDA_HOME             where bin/nvcc is. Unset: nvcc on PATH, /usr/local/cuda, PyPI's nvidia-cuda-nvcc package.
TORCH_CUDA_ARCH_LIST  as in torch, "8.0;9.0+PTX". Unset: the GPUs of this machine, or all of ARCHS that nvcc knows.
MAX_JOBS              how many files are compiled at a time.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from glob import glob
from pathlib import Path

import torch
from setuptools import setup
from torch.utils import cpp_extension

ARCHS = ("8.0", "9.0", "10.0", "12.0")
ROOT = Path(__file__).parent
VERSION = (ROOT / "torchfastnorm/_version.py").read_text().split('"')[1]
NVCC_FROM_PYPI = "pip install nvidia-cuda-nvcc nvidia-cuda-crt nvidia-nvvm nvidia-cuda-runtime nvidia-cuda-cccl"


def find_cuda() -> Path | None:
    """The CUDA toolkit to build with, or None for a build without CUDA."""
    force = os.environ.get("FORCE_CUDA", "")
    if force == "0" or (force != "1" and not torch.version.cuda):
        return None
    on_path = shutil.which("nvcc")
    from_pypi = sorted(Path(sysconfig.get_paths()["purelib"]).glob("nvidia/cu[0-9]*"), reverse=True)
    homes = [os.environ.get("CUDA_HOME"), on_path and Path(on_path).resolve().parents[1], "/usr/local/cuda", *from_pypi]
    for home in map(Path, filter(None, homes)):
        # The header too: an nvcc on PATH may be a script that lies elsewhere than its toolkit.
        if (home / "bin/nvcc").exists() and (home / "include/cuda_runtime.h").exists():
            return home
    message = f"torchfastnorm: no nvcc found: set CUDA_HOME, or: {NVCC_FROM_PYPI}"
    if force == "1":
        sys.exit(message)
    print(message + "\ntorchfastnorm: building for the CPU alone.", file=sys.stderr)
    return None


def nvcc(home: Path, option: str) -> str:
    return subprocess.run([home / "bin/nvcc", option], capture_output=True, text=True, check=True).stdout


def bindings() -> list[str]:
    """csrc/bindings by stem, row_norm.cpp with row_norm_autograd.cpp ...: torch's headers take most of the time."""
    units: dict[str, str] = {}
    for path in map(Path, sorted(glob("csrc/bindings/**/*.cpp", recursive=True))):
        stem = "python" if path.stem in ("module", "plan", "fast_entry") else path.stem  # these speak Python
        unit = next((u for u in units if stem.startswith(f"{u}_")), stem)
        units[unit] = units.get(unit, "") + f'#include "../../{path}"\n'
    files = {Path(f"build/bindings/{unit}.cpp"): text for unit, text in units.items()}
    for file, text in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists() or file.read_text() != text:  # the time stamp decides what is compiled again
            file.write_text(text)
    return [str(file) for file in files]


def extension() -> cpp_extension.CppExtension:
    # csrc/cuda/*.cpp is host code without CUDA (launch plans): part of every build.
    sources = [*bindings(), *glob("csrc/cpu/*.cpp"), *glob("csrc/cuda/*.cpp")]
    cxx = ["-O3", "-g0", "-std=c++20", "-fopenmp", "-fvisibility=hidden", f'-DTORCHFASTNORM_VERSION="{VERSION}"']
    flags = {"cxx": cxx}
    link: list[str] = []
    include: list[str] = []
    home = find_cuda()
    if home:
        cpp_extension.CUDA_HOME = str(home)  # torch leaves it None where it has no CUDA itself
        if not torch.cuda.is_available():
            known = nvcc(home, "--list-gpu-arch").split()
            archs = [arch for arch in ARCHS if f"compute_{arch.replace('.', '')}" in known]
            os.environ.setdefault("TORCH_CUDA_ARCH_LIST", ";".join(archs))
        release = re.search(r"release (\S+),", nvcc(home, "--version"))
        cxx += [
            "-DTORCHFASTNORM_CUDA",
            f'-DTORCHFASTNORM_CUDA_VERSION="{release.group(1) if release else ""}"',
            f'-DTORCHFASTNORM_CUDA_ARCHS="{os.environ.get("TORCH_CUDA_ARCH_LIST", "native")}"',
        ]
        flags["nvcc"] = ["-O3", "-std=c++20", "--expt-relaxed-constexpr", "-lineinfo", "-Xfatbin", "-compress-all"]
        flags["nvcc"] += ["-DTORCHFASTNORM_CUDA", "-Xcompiler", "-fvisibility=hidden"]
        sources += glob("csrc/cuda/*.cu")
        include = [str(home / "include")]
        # The weak stream symbol (csrc/bindings/common/backend.h) is found only if libtorch itself is linked, although
        # nothing else of it is needed. The runtime is linked in, so that no CUDA library has to be on the user's path.
        link = ["-Wl,--no-as-needed", "-ltorch", "-Wl,--as-needed", *(f"-L{home / lib}" for lib in ("lib64", "lib"))]
        link += ["-lcudart_static", "-ldl", "-lrt", "-lpthread", "-Wl,--exclude-libs,ALL"]
    return cpp_extension.CppExtension(
        "torchfastnorm._C", sorted(sources), include_dirs=include, extra_compile_args=flags, extra_link_args=link
    )


os.chdir(ROOT)
setup(ext_modules=[extension()], cmdclass={"build_ext": cpp_extension.BuildExtension})
