"""The C++ test programs of this folder: the shared pieces of csrc/cuda/common and the norms through their
launchers, without torch. Plainly, under Address- and UndefinedBehaviorSanitizer, and a thinned set under
ThreadSanitizer."""

from __future__ import annotations

import os
import subprocess

import native_build
import pytest

pytestmark = pytest.mark.skipif(native_build.why_not() is not None, reason=str(native_build.why_not()))

NEEDS_KERNELS = {"test_row_norm", "test_plane_kernels", "test_whitening_kernels"}
PROGRAMS = ["test_reduce", "test_vector_access", "test_matrix_multiply", *sorted(NEEDS_KERNELS)]


@pytest.mark.parametrize("variant", native_build.VARIANTS)
@pytest.mark.parametrize("name", PROGRAMS)
def test_program(name: str, variant: str) -> None:
    sources = [native_build.NATIVE / f"{name}.cpp", *(native_build.cuda_sources() if name in NEEDS_KERNELS else [])]
    program = native_build.build(name, sources, variant, program=True)
    environment = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}
    which = {"plain": "all", "asan": "few", "tsan": "fewest" if name in NEEDS_KERNELS else "few"}[variant]
    command = [str(program), which]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 failures" in done.stdout
