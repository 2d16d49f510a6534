"""The package around the ops: its names and version, the messages of a broken build, the instruction sets."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases import OPS, Case, Op, evaluate, make_case
from checks import check
from plane_cases import LAYOUTS, PLANE_OPS, PlaneCase, PlaneOp, make_plane_case
from plane_cases import evaluate as evaluate_planes
from plane_checks import check as check_planes

import torchfastnorm

PACKAGE = Path(torchfastnorm.__file__).parent
CAPABILITIES = ("DEFAULT", "AVX2", "AVX512")


def run(code: str, *, path: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter that imports the package from `path` (default: where it is), away from the source tree."""
    places = [str(path or PACKAGE.parent), str(Path(__file__).parent)]
    variables = os.environ | {"PYTHONPATH": os.pathsep.join(places)} | environment
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, env=variables, cwd=Path(sys.prefix), check=False)


def copy_without_binary(to: Path) -> Path:
    shutil.copytree(PACKAGE, to / "torchfastnorm", ignore=shutil.ignore_patterns("_C*", "__pycache__"))
    return to


def test_public_names() -> None:
    names = {op.name for op in (*OPS, *PLANE_OPS)} | {"LayerNorm", "RMSNorm", "AddLayerNorm", "AddRMSNorm", "GroupNorm"}
    stems = ("BatchNorm", "BatchRenorm", "InstanceNorm", "SwitchNorm")
    names |= {f"{stem}{dims}d" for stem in stems for dims in (1, 2, 3)}
    names |= {"batch_whitening", "BatchWhitening", "IterNorm"}
    names |= {"batch_renorm", "switch_norm", "functional", "convert", "build_info", "__version__", "explain", "plan"}
    assert set(torchfastnorm.__all__) == names
    assert all(hasattr(torchfastnorm, name) for name in names)


@pytest.mark.parametrize("op", OPS, ids=str)
def test_functions_and_modules_are_documented(op: Op) -> None:
    assert getattr(torchfastnorm, op.name) is getattr(torchfastnorm.functional, op.name)
    text = op.function.__doc__ or ""
    for word in ("math::", "eps", "out_dtype", "Returns:", "Raises:", "RuntimeError", "normalized_shape"):
        assert word in text, f"{op}: the docstring does not mention {word}"
    assert op.module.__doc__


@pytest.mark.parametrize("op", PLANE_OPS, ids=str)
def test_plane_norms_are_documented(op: PlaneOp) -> None:
    assert getattr(torchfastnorm, op.name) is getattr(torchfastnorm.functional, op.name)
    text = op.function.__doc__ or ""
    for word in ("math::", "arxiv", "eps", "mask", "activation", "residual", "Returns:", "Raises:", "RuntimeError"):
        assert word in text, f"{op}: the docstring does not mention {word}"
    assert all(op.module(dims).__doc__ for dims in (3, 4, 5))


def test_whitening_is_documented() -> None:
    assert torchfastnorm.batch_whitening is torchfastnorm.functional.batch_whitening
    text = torchfastnorm.batch_whitening.__doc__ or ""
    methods = ("zca", "pca", "cholesky", "iternorm")
    for word in ("math::", "arxiv", "eps", "num_channels", *methods, "Returns:", "Raises:", "RuntimeError"):
        assert word in text, f"batch_whitening: the docstring does not mention {word}"
    assert torchfastnorm.IterNorm.__doc__ and torchfastnorm.BatchWhitening.__doc__


def test_version() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+([abrc.dev]+\d+)?", torchfastnorm.__version__)
    assert torchfastnorm.build_info()["version"] == torchfastnorm.__version__


def test_build_info() -> None:
    info = torchfastnorm.build_info()
    assert info["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert isinstance(info["cuda"], bool) and bool(info["cuda_version"]) == info["cuda"]
    assert info["compiler"] and info["cpu_capability"] in CAPABILITIES


def test_a_torch_with_cuda_gives_its_stream() -> None:
    """The weakly linked stream function must be there under a torch with CUDA: a wrong link order loses it silently."""
    if not torchfastnorm.build_info()["cuda"]:
        pytest.skip("built without CUDA")
    assert (torchfastnorm._C.stream_symbol() != 0) == (torch.version.cuda is not None)


def test_import_without_the_compiled_module(tmp_path: Path) -> None:
    result = run("import torchfastnorm", path=copy_without_binary(tmp_path))
    assert result.returncode != 0
    message = result.stderr.strip().splitlines()[-1]
    assert message.startswith("ImportError: torchfastnorm is not built")
    assert "pip install --no-build-isolation" in message
    assert "During handling" not in result.stderr and "ModuleNotFoundError" not in result.stderr


def test_import_of_a_module_that_does_not_load(tmp_path: Path) -> None:
    """Built for another torch, the usual way: an undefined symbol, or no shared library at all."""
    binary = next(PACKAGE.glob("_C*"))
    place = copy_without_binary(tmp_path)
    (place / "torchfastnorm" / binary.name).write_bytes(b"not a library")
    result = run("import torchfastnorm", path=place)
    message = result.stderr.strip().splitlines()[-1]
    assert message.startswith("ImportError: torchfastnorm") and torch.__version__ in message
    assert "pip install --no-build-isolation" in message


def test_import_of_a_module_built_for_another_torch(tmp_path: Path) -> None:
    place = copy_without_binary(tmp_path)
    code = "def build_info():\n    return {'torch': '1.13.0', 'version': '0'}\n"
    (place / "torchfastnorm" / "_C.py").write_text(code)
    result = run("import torchfastnorm", path=place)
    message = result.stderr.strip().splitlines()[-1]
    assert message.startswith("ImportError: torchfastnorm was built for torch 1.13.0")
    assert torch.__version__ in message and "pip install --no-build-isolation" in message


def test_import_is_quiet_and_light() -> None:
    """No warning, nothing printed, and no compiler stack pulled in by an import."""
    result = run("import sys, torchfastnorm; assert 'torch._inductor' not in sys.modules, 'inductor'")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_the_reference_is_not_a_fallback() -> None:
    result = run("import sys, torchfastnorm; assert 'torchfastnorm.reference' not in sys.modules")
    assert result.returncode == 0, result.stderr


def supported(capability: str) -> bool:
    flags = Path("/proc/cpuinfo").read_text()
    needed = {"DEFAULT": (), "AVX2": ("avx2", "fma", "f16c"), "AVX512": ("avx512f", "avx512bw", "avx512vl", "avx512dq")}
    return all(flag in flags for flag in needed[capability])


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_every_instruction_set_is_right(capability: str, tmp_path: Path) -> None:
    """Each level runs the same cases in a process of its own; each is held to the bounds of the fp64 oracle."""
    if not supported(capability):
        pytest.skip(f"this processor has no {capability}")
    code = f"""
import torch, torchfastnorm
from test_package import results
assert torchfastnorm.build_info()["cpu_capability"] == {capability!r}, torchfastnorm.build_info()
torch.save(results(), {str(tmp_path / "results.pt")!r})
"""
    done = run(code, TORCHFASTNORM_CPU_CAPABILITY=capability.lower())
    assert done.returncode == 0, done.stderr
    there = torch.load(tmp_path / "results.pt")
    assert there.keys() == results().keys()
    for key, computed in there.items():
        if isinstance(key[2], int):
            check(_case(*key), computed)
        else:
            check_planes(_plane_case(*key), computed)


def _case(op_name: str, dtype: torch.dtype, cols: int) -> Case:
    return make_case(next(op for op in OPS if op.name == op_name), 9, cols, dtype)


def _plane_case(op_name: str, dtype: torch.dtype, layout: str, activation: str) -> PlaneCase:
    op = next(op for op in PLANE_OPS if op.name == op_name)
    mask = "scattered" if activation == "gelu" else None
    options = {"layout": layout, "activation": activation, "residual": activation == "relu", "mask": mask}
    return make_plane_case(op, (3, 34, 9, 7), dtype, **options)


def results() -> dict[tuple, dict[str, torch.Tensor]]:
    planes = [
        (op.name, dtype, layout, activation)
        for op in PLANE_OPS
        for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16)
        for layout in LAYOUTS
        for activation in ("none", "relu", "gelu", "silu")
    ]
    keys = [
        (op.name, dtype, cols)
        for op in OPS
        for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16)
        for cols in (1, 7, 31, 64, 65, 1000, 4097)
    ]
    rows = {key: evaluate(_case(*key)) for key in keys}
    return rows | {key: evaluate_planes(_plane_case(*key)) for key in planes}
