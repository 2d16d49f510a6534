"""Keeps the map of the tree true: who may include whom, one stem per op in every layer, how long a file may be.

    bindings -> interface <- {cpu, cuda} -> math

The rules are functions of a path and a text, so that the tests below can also plant violations and see them found.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parent.parent
CSRC_SUFFIXES = {".h", ".cuh", ".cpp", ".cu"}

LAYERS_ALLOWED = {  # layer of csrc -> layers whose headers it may include besides its own
    "interface": set(),
    "math": set(),
    "cpu": {"interface", "math"},
    "cuda": {"interface", "math"},
    "bindings": {"interface"},
}
ALSO_ALLOWED = {"math": {"csrc/interface/types.h"}}  # the vocabulary: plain enums and structs
TORCH_HEADER = re.compile(r"^(torch|ATen|c10|caffe2|pybind11|Python\.h)")
CUDA_HEADER = re.compile(r"^(cuda|cooperative_groups|cub/|thrust/|nv/|mma\.h|c10/cuda|ATen/cuda)")
TORCH_IN_CPU = "csrc/cpu/common/"  # one header there brings at::vec and at::parallel_for
PORT = "csrc/cuda/common/port.h"  # the one file that spells what the CPU run of the kernels replaces
RAW_CUDA = re.compile(r"(?<!\w)__shared__(?!\w)|<<<|__cluster_dims__")

FILES_OF_AN_OP = (
    "torchfastnorm/ops/{}.py",
    "torchfastnorm/reference/{}.py",
    "tests/test_{}.py",
    "bench/bench_{}.py",
    "docs/math/{}.md",
    "csrc/interface/{}.h",
    "csrc/bindings/{}.cpp",
    "csrc/cpu/{}.cpp",
    "csrc/cuda/{}.cu",
)
ROW_NORMS = ("layer_norm", "rms_norm")
PLANE_NORMS = ("batch_norm", "batch_renorm", "group_norm", "instance_norm", "switch_norm")
WHITENING = ("batch_whitening",)
# A row norm also has an add_ form. Plane norms have a workspace in forward, too. Whitening is two passes over planes.
FUNCTIONS_OF_A_BACKEND = {
    "row": ("forward", "backward_workspace", "backward"),
    "plane": ("forward_workspace", "forward", "backward_workspace", "backward"),
    "whitening": ("moments_workspace", "moments", "transform"),
}
REFERENCES = {  # functions that a reference must have
    "row": ("{}", "add_{}"),
    "plane": ("{}",),
    "whitening": ("{}", "whitening_matrix"),
}
ONLY_OPS = ("torchfastnorm/reference/{}.py", "docs/math/{}.md", "bench/bench_{}.py")  # here every stem is an op

BUDGETS = {  # lines
    "csrc/interface/*.h": 120,
    "csrc/math/*.h": 150,
    "csrc/cuda/*.cuh": 450,
    "csrc/cuda/common/*": 450,
    "csrc/cuda/*.cu": 250,
    "csrc/cuda/*.cpp": 250,
    "csrc/cpu/*.h": 450,
    "csrc/cpu/common/*.h": 450,
    "csrc/cpu/*.cpp": 250,
    "csrc/bindings/*": 250,
    "csrc/bindings/common/*": 250,
    "torchfastnorm/ops/*.py": 250,
    "torchfastnorm/*.py": 250,
    "tests/*.py": 300,
    "bench/bench_*.py": 80,
    "setup.py": 100,
}
REFERENCE_LINES = 15  # of a function's body, docstring apart


def sources() -> list[str]:
    paths = (p for p in (ROOT / "csrc").rglob("*") if p.suffix in CSRC_SUFFIXES)
    return sorted(p.relative_to(ROOT).as_posix() for p in paths)


def without_comments(text: str) -> str:
    pattern = re.compile(r'"(?:\\.|[^"\\\n])*"|//[^\n]*|/\*.*?\*/', re.S)
    return pattern.sub(lambda m: m[0] if m[0].startswith('"') else " ", text)


def includes(path: str, text: str) -> Iterator[tuple[str, str]]:
    """(kind, target): ("system", "cstdint") or ("own", path from the root) of every include."""
    for opening, name in re.findall(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', without_comments(text), re.M):
        if opening == "<":
            yield "system", name
            continue
        parts: list[str] = []
        for part in PurePosixPath(path).parent.joinpath(name).parts:
            if part == "..":
                parts.pop()
            else:
                parts.append(part)
        yield "own", "/".join(parts)


def forbidden_includes(path: str, text: str) -> list[str]:
    layer = path.split("/")[1]
    found = []
    for kind, target in includes(path, text):
        if kind == "own":
            other = target.split("/")[1] if target.startswith("csrc/") else None
            simulated = path == PORT and target.endswith("cudasim.h")
            allowed = other == layer or other in LAYERS_ALLOWED[layer] or target in ALSO_ALLOWED.get(layer, ())
            if not (allowed or simulated):
                found.append(f"{path} includes {target}: {layer} may include {sorted(LAYERS_ALLOWED[layer])}")
        elif CUDA_HEADER.match(target):
            if layer != "cuda":
                found.append(f"{path} includes <{target}>: CUDA headers belong to csrc/cuda")
        elif TORCH_HEADER.match(target):
            if layer != "bindings" and not path.startswith(TORCH_IN_CPU):
                found.append(f"{path} includes <{target}>: torch headers belong to csrc/bindings and {TORCH_IN_CPU}")
        elif layer in ("math", "interface") and ("/" in target or target.endswith(".h")):
            found.append(f"{path} includes <{target}>: {layer} knows the standard library only")
    return found


def raw_cuda(path: str, text: str) -> list[str]:
    if not path.startswith("csrc/cuda/") or path == PORT:
        return []
    found = [f"{path}: raw {m[0]!r}, use the macros of {PORT}" for m in RAW_CUDA.finditer(without_comments(text))]
    if not path.startswith("csrc/cuda/common/") and re.search(r"(?<!\w)asm(?!\w)", without_comments(text)):
        found.append(f"{path}: inline PTX belongs behind a function of csrc/cuda/common with a host twin")
    return found


def geometry_of(op: str) -> str:
    ops_of = {"row": ROW_NORMS, "plane": PLANE_NORMS, "whitening": WHITENING}
    return next(geometry for geometry, ops in ops_of.items() if op in ops)


def functions_of(op: str) -> set[str]:
    return {f"{op}_{function}" for function in FUNCTIONS_OF_A_BACKEND[geometry_of(op)]}


def ops() -> list[str]:
    return sorted(p.stem for p in (ROOT / "torchfastnorm/ops").glob("*.py") if not p.stem.startswith("_"))


@pytest.mark.parametrize("rule", (forbidden_includes, raw_cuda), ids=lambda f: f.__name__)
def test_sources_keep_to_their_layer(rule: Callable[[str, str], list[str]]) -> None:
    paths = sources()
    assert {p.split("/")[1] for p in paths} == set(LAYERS_ALLOWED)
    assert not [violation for path in paths for violation in rule(path, (ROOT / path).read_text())]


def test_one_header_brings_torch_to_the_cpu_code() -> None:
    bring = [
        path
        for path in sources()
        if path.startswith("csrc/cpu/")
        and any(kind == "system" and TORCH_HEADER.match(t) for kind, t in includes(path, (ROOT / path).read_text()))
    ]
    assert len(bring) == 1, bring


@pytest.mark.parametrize(
    "path, text",
    (
        ("csrc/math/plant.h", "#include <ATen/ATen.h>"),
        ("csrc/math/plant.h", "#include <math.h>"),
        ("csrc/math/plant.h", '#include "../interface/row_norm.h"'),
        ("csrc/math/plant.h", '#include "../interface/plane_norm.h"'),
        ("csrc/math/plant.h", '#include "../cpu/plant.h"'),
        ("csrc/interface/plant.h", "#include <cuda_runtime.h>"),
        ("csrc/interface/plant.h", '#include "../math/normalize.h"'),
        ("csrc/cuda/plant.cu", "#include <torch/extension.h>"),
        ("csrc/cuda/plant.cu", '#include "../cpu/plant.h"'),
        ("csrc/cuda/common/plant.h", '#include "../../bindings/plant.h"'),
        ("csrc/cpu/plant.cpp", "#  include <ATen/Parallel.h>"),
        ("csrc/cpu/common/plant.h", "#include <c10/cuda/CUDAStream.h>"),
        ("csrc/bindings/plant.cpp", "#include <cuda_runtime_api.h>"),
        ("csrc/bindings/plant.cpp", '#include "../cuda/row_plan.cuh"'),
        ("csrc/bindings/common/plant.h", '#include "../../math/normalize.h"'),
    ),
)
def test_a_planted_include_is_found(path: str, text: str) -> None:
    assert forbidden_includes(path, text)
    assert not forbidden_includes(path, "// " + text)


def test_allowed_includes_are_not_reported() -> None:
    assert not forbidden_includes("csrc/math/plant.h", '#include <cmath>\n#include "../interface/types.h"')
    assert not forbidden_includes("csrc/cpu/plant.cpp", '#include "../math/normalize.h"\n#include "common/vec.h"')
    assert not forbidden_includes("csrc/cuda/plant.cu", '#include <cuda_bf16.h>\n#include "common/port.h"')
    assert not forbidden_includes("csrc/bindings/plant.cpp", '#include <torch/library.h>\n#include "common/node.h"')


@pytest.mark.parametrize(
    "text",
    (
        "__shared__ float partial[32];",
        "kernel<<<grid, block>>>(x);",
        "__cluster_dims__(2, 1, 1)",
        'asm volatile("membar.gl;");',
    ),
)
def test_planted_raw_cuda_is_found(text: str) -> None:
    assert raw_cuda("csrc/cuda/plant.cuh", text)
    assert not raw_cuda("csrc/cuda/plant.cuh", f"/* {text} */")
    assert not raw_cuda("csrc/cuda/plant.cuh", "SHARED(float, partial, [32]); launch<Rows<Load<int>>>(x);")


def test_an_op_has_its_stem_in_every_layer() -> None:
    assert {*ROW_NORMS, *PLANE_NORMS, *WHITENING} == set(ops())
    missing = [path.format(op) for op in ops() for path in FILES_OF_AN_OP if not (ROOT / path.format(op)).is_file()]
    assert not missing, f"every op needs {FILES_OF_AN_OP}"


def test_no_file_stands_for_an_op_that_is_not_there() -> None:
    strange = []
    for pattern in ONLY_OPS:
        prefix, suffix = pattern.split("{}")
        for path in ROOT.glob(pattern.format("*")):
            stem = path.relative_to(ROOT).as_posix().removeprefix(prefix).removesuffix(suffix)
            if stem not in ops() and not stem.startswith("_"):
                strange.append(path.relative_to(ROOT).as_posix())
    assert not strange


def test_the_interface_declares_what_the_backends_define() -> None:
    """Every function of the backend table is defined by both backends in the file with the op's stem."""
    table = (ROOT / "csrc/interface/backend.h").read_text()
    names = re.findall(r"decltype\(&cpu::(\w+)\)", table)
    assert len(names) == len(set(names)) and set(names) == {name for op in ops() for name in functions_of(op)}
    for name in names:
        stem = next(op for op in ops() if name in functions_of(op))
        for path in (f"csrc/cpu/{stem}.cpp", f"csrc/cuda/{stem}.cu"):
            assert re.search(rf"\b{name}\s*\(", (ROOT / path).read_text()), f"{path} does not define {name}"


@pytest.mark.parametrize("pattern", BUDGETS)
def test_files_keep_to_their_budget(pattern: str) -> None:
    paths = [p for p in ROOT.glob(pattern) if p.is_file()]
    assert paths, f"nothing matches {pattern}: the budget guards nothing"
    lengths = {p.relative_to(ROOT).as_posix(): len(p.read_text().splitlines()) for p in paths}
    over = {path: lines for path, lines in lengths.items() if lines > BUDGETS[pattern]}
    assert not over, f"over {BUDGETS[pattern]} lines: split by direction, or find the shared step"


def test_a_reference_is_short() -> None:
    for op in (*ops(), "_plane_norm"):
        tree = ast.parse((ROOT / f"torchfastnorm/reference/{op}.py").read_text())
        functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
        expected = set() if op.startswith("_") else {name.format(op) for name in REFERENCES[geometry_of(op)]}
        assert expected <= {f.name for f in functions}
        for function in functions:
            first, last = function.body[0], function.body[-1]
            assert ast.get_docstring(function)
            assert (last.end_lineno or 0) - (first.end_lineno or 0) <= REFERENCE_LINES
