"""Format the C++ and CUDA sources by .clang-format, or with --check only report what differs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("csrc", "tests/native")
SUFFIXES = {".h", ".cpp", ".cu", ".cuh"}


def main() -> int:
    tool = shutil.which("clang-format", path=sysconfig.get_path("scripts") + os.pathsep + os.environ.get("PATH", ""))
    if tool is None:
        sys.exit("clang_format.py: clang-format is missing; pip install clang-format")
    files = [p for folder in FOLDERS for p in sorted((ROOT / folder).rglob("*")) if p.suffix in SUFFIXES]
    mode = ["--dry-run", "-Werror"] if "--check" in sys.argv[1:] else ["-i"]
    return subprocess.run([tool, *mode, *map(str, files)], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
