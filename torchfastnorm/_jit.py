"""TORCHFASTNORM_JIT=1: the compiled module is brought up to date with csrc/ when the package is imported.

For work on kernels in a checkout: edit a .cuh, run again, and only what includes it is compiled. Flags are setup.py's;
objects lie in build/jit. The first import compiles everything, for the GPU of this machine alone if there is one.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import sys
from pathlib import Path
from types import ModuleType

import torch
from torch.utils import cpp_extension

ROOT = Path(__file__).resolve().parent.parent
NAME = "torchfastnorm._C"


def _setup_script() -> ModuleType:
    path = ROOT / "setup.py"
    if not (ROOT / "csrc").is_dir() or not path.is_file():
        raise ImportError(f"TORCHFASTNORM_JIT=1 needs a checkout, and {ROOT} holds no csrc; unset it, or use `pip -e`")
    spec = importlib.util.spec_from_file_location("torchfastnorm_setup", path)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def _units(sources: list[str], folder: Path) -> list[str]:
    """A file for each source that includes it: objects are named after their files, which must then differ."""
    units = []
    for source in sources:
        unit = folder / "units" / source.replace("/", "-")
        text = f'#include "{ROOT / source}"\n'
        if not unit.exists() or unit.read_text(encoding="utf-8") != text:
            unit.parent.mkdir(parents=True, exist_ok=True)
            unit.write_text(text, encoding="utf-8")
        units.append(str(unit))
    return units


def load() -> ModuleType:
    """Compile what has changed and import it as ``torchfastnorm._C``.

    Raises:
        ImportError: there is no source beside the package.
        RuntimeError: it does not compile; the message is the compiler's.
    """
    if NAME in sys.modules:
        return sys.modules[NAME]
    before = Path.cwd()
    os.chdir(ROOT)
    try:
        extension = _setup_script().extension()
    finally:
        os.chdir(before)
    flags = {name: [shlex.quote(f) for f in values] for name, values in extension.extra_compile_args.items()}
    folder = ROOT / "build" / "jit" / f"py{sys.version_info.major}.{sys.version_info.minor}-torch{torch.__version__}"
    module: ModuleType = cpp_extension.load(
        "_C",
        _units(extension.sources, folder),
        extra_cflags=flags["cxx"],
        extra_cuda_cflags=flags.get("nvcc"),
        extra_ldflags=extension.extra_link_args,
        extra_include_paths=extension.include_dirs,
        build_directory=str(folder),
        with_cuda="nvcc" in flags,
    )
    sys.modules[NAME] = module
    return module
