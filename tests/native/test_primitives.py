"""The shared pieces of csrc/cuda/common, each in a program of its own: plainly, under Address- and
UndefinedBehaviorSanitizer, and a thinned set under ThreadSanitizer."""

from __future__ import annotations

import os
import subprocess

import native_build
import pytest

pytestmark = pytest.mark.skipif(native_build.why_not() is not None, reason=str(native_build.why_not()))


@pytest.mark.parametrize("variant", native_build.VARIANTS)
@pytest.mark.parametrize("name", ["test_reduce", "test_vector_access"])
def test_primitives(name: str, variant: str) -> None:
    program = native_build.build(name, [native_build.NATIVE / f"{name}.cpp"], variant, program=True)
    command = [str(program), *(["few"] if variant == "tsan" else [])]
    environment = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 failures" in done.stdout
