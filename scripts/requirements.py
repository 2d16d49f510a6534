"""Install what is missing of the requirements in pyproject.toml, and nothing else.

    python scripts/requirements.py [--torch SPEC] GROUP...
    python scripts/requirements.py --list GROUP...

A group is `build` ([build-system] requires) or the name of an optional dependency group. A requirement that the
environment already meets is left alone, and pip is not called when all are met: an environment without network
works if it is complete, and an installed torch is never replaced. Standard library only (and what pip vendors), since
it runs in environments that hold nothing yet.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    from pip._vendor import tomli as tomllib  # type: ignore[no-redef]
try:
    from packaging.requirements import Requirement
except ModuleNotFoundError:
    from pip._vendor.packaging.requirements import Requirement  # type: ignore[assignment]

ROOT = Path(__file__).resolve().parent.parent
PROJECT = "torchfastnorm"


def requirements_of(groups: list[str]) -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    tables = dict(project["project"].get("optional-dependencies", {}))
    tables["build"] = project["build-system"]["requires"]
    found: list[Requirement] = []
    for group in groups:
        if group not in tables:
            sys.exit(f"requirements.py: pyproject.toml has no group '{group}'; it has {', '.join(sorted(tables))}")
        for text in tables[group]:
            requirement = Requirement(text)
            if requirement.name == PROJECT:  # "torchfastnorm[test]" stands for that group
                found += requirements_of(sorted(requirement.extras))
            elif requirement.marker is None or requirement.marker.evaluate():
                found.append(requirement)
    return found


def installed_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def is_met(requirement: Requirement) -> bool:
    version = installed_version(requirement.name)
    return version is not None and requirement.specifier.contains(version, prereleases=True)


def pip_install(arguments: list[str], constraint: str = "") -> None:
    print("installing", *arguments, flush=True)
    command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--quiet", *arguments]
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder, "constraints.txt")
        constraints.write_text(constraint, encoding="utf-8")
        done = subprocess.run([*command, "--constraint", str(constraints)], check=False)
    if done.returncode != 0:
        sys.exit(
            f"requirements.py: pip could not install {' '.join(arguments)} for {sys.executable}.\n"
            "Install these packages there by hand, or give another environment with PYTHON=..."
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("groups", nargs="+", metavar="GROUP", help="'build' or an optional dependency group")
    parser.add_argument("--torch", default="torch", help="what to install where torch is missing, e.g. torch==2.13.0")
    parser.add_argument("--list", action="store_true", help="print the requirements instead, one a line")
    options = parser.parse_args()
    if sys.version_info < (3, 10):  # noqa: UP036 - a given PYTHON may be any
        sys.exit(f"requirements.py: Python 3.10 or newer is needed, {sys.executable} is {sys.version.split()[0]}")

    if options.list:
        print(*requirements_of(options.groups), sep="\n")
        return
    if installed_version("torch") is None:
        pip_install(options.torch.split())
    missing = sorted({str(r) for r in requirements_of(options.groups) if r.name != "torch" and not is_met(r)})
    if missing:
        # A constraint keeps pip from replacing the installed torch on behalf of another package. Were torch named among
        # the others, pip would install what torch itself lacks: gigabytes, where it came without dependencies.
        pip_install(missing, f"torch=={installed_version('torch')}")


if __name__ == "__main__":
    main()
