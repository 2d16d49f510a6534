"""Build torchfastnorm._C in place, when anything that decides its bytes has changed.

    python scripts/build.py [--force]

The fingerprint covers the sources, the Python, the torch and the build variables, because setuptools compares only time
stamps: it would keep an extension that was built against another torch. Each kind of environment has its own folder of
object files, so going back and forth between two of them recompiles nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import re
import subprocess
import sys
import sysconfig
import time
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FINGERPRINT = ROOT / "build" / "fingerprint"
VARIABLES = ("FORCE_CUDA", "CUDA_HOME", "TORCH_CUDA_ARCH_LIST", "CXX", "CC", "CFLAGS", "CXXFLAGS", "LDFLAGS")


def environment_tag() -> str:
    tag = f"py{platform.python_version()}-torch{metadata.version('torch')}"
    return {"1": f"{tag}-cuda", "0": f"{tag}-cpu"}.get(os.environ.get("FORCE_CUDA", ""), tag)


def fingerprint() -> str:
    digest = hashlib.sha256()
    for text in (sys.prefix, environment_tag(), *(f"{name}={os.environ.get(name, '')}" for name in VARIABLES)):
        digest.update(text.encode() + b"\0")
    sources = [ROOT / "setup.py", ROOT / "pyproject.toml", *sorted((ROOT / "csrc").rglob("*"))]
    for path in sources:
        if path.is_file() and path.suffix != ".md":
            digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def run(command: list[str], log: Path) -> int:
    """Run the build with one line per compiled file on the terminal and everything else in a log."""
    # pip puts ninja beside this Python, which need not be on PATH.
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
    log.parent.mkdir(exist_ok=True)
    with (
        open(log, "w", encoding="utf-8", errors="replace") as kept,
        subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "PATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            kept.write(line)
            step = re.match(r"(\[\d+/\d+\]).* -c \S*?((?:csrc|build/bindings)/\S+)", line)
            if step:
                print("  ", *step.groups(), flush=True)
    return process.returncode


def explain_failure(log: Path) -> str:
    """The compiler's words without its command lines."""
    lines = [line for line in log.read_text(encoding="utf-8").splitlines() if len(line) < 400]
    first = next((i for i, line in enumerate(lines) if re.search(r"\b(error|Error)\b", line)), len(lines) - 40)
    return "\n".join(lines[max(0, first - 3) : first + 40])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--force", action="store_true", help="build even if nothing has changed")
    options = parser.parse_args()

    library = ROOT / "torchfastnorm" / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    wanted = fingerprint()
    recorded = FINGERPRINT.read_text(encoding="utf-8") if FINGERPRINT.exists() else ""
    if not options.force and library.exists() and recorded == wanted:
        return

    print(f"building {library.relative_to(ROOT)} for {environment_tag()}", flush=True)
    FINGERPRINT.unlink(missing_ok=True)
    log = ROOT / "build" / "build.log"
    begin = time.monotonic()
    command = [sys.executable, "setup.py", "build_ext", "--inplace", "--force"]
    command += ["--build-temp", str(Path("build") / environment_tag())]
    if run(command, log) != 0:
        sys.exit(f"{explain_failure(log)}\nbuild.py: the build failed; all of its output is in {log}")
    FINGERPRINT.write_text(wanted, encoding="utf-8")
    print(f"built in {time.monotonic() - begin:.0f} s: {library.stat().st_size / 1e6:.1f} MB", flush=True)


if __name__ == "__main__":
    main()
