"""The tests of this folder compile for minutes, so a run of the whole suite leaves them out: name the folder, or a
file in it, to run them (`make native` does)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # native_build, cuda_check; the folder is a package so that this is not tests/conftest.py


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    named = [Path(config.invocation_params.dir, argument.split("::")[0]).resolve() for argument in config.args]
    return None if any(HERE in (path, *path.parents) for path in named) else True
