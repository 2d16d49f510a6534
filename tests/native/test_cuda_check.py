"""cuda_check finds what it is there for: a spill, a lost 16-byte access, a slow path, double precision, each planted
in a kernel that otherwise keeps every rule."""

from __future__ import annotations

import cuda_check
import native_build
import pytest


def why_not() -> str | None:
    try:
        cuda_check.find_nvcc(), cuda_check.find_cuobjdump()
    except cuda_check.MissingToolError as error:
        return str(error)
    return None


pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

PLANTS = {
    "": set(),
    "PLANT_SPILL": {"local", "stack"},
    "PLANT_NARROW_LOAD": {"ldg128"},
    "PLANT_SLOW_DIVISION": {"other calls"},
    "PLANT_DOUBLE": {"fp64"},
}


@pytest.mark.parametrize("plant", PLANTS)
def test_planted_code_breaks_its_rule(plant: str) -> None:
    source = native_build.NATIVE / "planted_cuda.cu"
    for arch in ("sm_80", "sm_90"):
        cubin = cuda_check.compile_cubin(source, arch, [f"-D{plant}"] if plant else [], name=f"planted_cuda_{plant}")
        (kernel,) = cuda_check.read_cubin(cubin, arch)
        assert kernel.name == "row_forward_block<float, float, float, false>"
        assert kernel.threads == 1024
        broken = {message.split(": ")[1].split(" is ")[0] for message in cuda_check.broken_rules(kernel)}
        assert PLANTS[plant] <= broken, broken
        assert broken <= PLANTS[plant] | {"local"}, broken


def test_occupancy() -> None:
    def kernel(arch: str, registers: int, threads: int, shared: int = 0) -> cuda_check.Kernel:
        return cuda_check.Kernel("k", arch, registers, 0, 0, shared, threads, {}, [])

    # NVIDIA's cuda_occupancy.h gives the same: 44 registers are 48 of them, 256 threads take 12288, 5 blocks fit.
    assert (kernel("sm_90", 44, 256).blocks, kernel("sm_90", 44, 256).occupancy) == (5, 0.625)
    assert kernel("sm_90", 32, 1024).blocks == 2
    assert kernel("sm_120", 32, 1024).blocks == 1
    assert kernel("sm_80", 255, 256).blocks == 1
    assert kernel("sm_90", 32, 32).blocks == 32
    assert kernel("sm_80", 32, 128, shared=48 * 1024).blocks == 3


def test_short_name() -> None:
    long = "void torchfastnorm::cuda::row_forward<float, (torchfastnorm::Residency)1>(torchfastnorm::cuda::A<int>)"
    assert cuda_check.short_name(long) == "row_forward<float, (Residency)1>"
