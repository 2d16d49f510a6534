"""Compiles csrc/cuda with nvcc for every architecture and reads what came out: registers, spills, shared memory,
theoretical occupancy, widths of memory accesses, calls of slow paths. Needs no GPU.

    python tests/native/cuda_check.py [--arch sm_90 ...] [--all] [FILE.cu ...]

Prints a table of the kernels, by family with the worst figures of its instances (--all: every instance; that table
is written to build/cuda-check/kernels.txt in any case), then every broken rule of cuda_rules.py. Exit status: 0, or 1
if a rule is broken, or 2 if a tool is missing. Needs nvcc, and cuobjdump of the toolkit or of PyPI.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from operator import eq, ge, le
from pathlib import Path

import cuda_rules
import native_build

BUILD = native_build.ROOT / "build" / "cuda-check"
ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "sm_120")
NVCC_FLAGS = ("-O3", "-std=c++20", "--expt-relaxed-constexpr")  # those of setup.py that decide about the code


@dataclass(frozen=True)
class Multiprocessor:
    """What one holds at once (CUDA C++ programming guide, "technical specifications per compute capability")."""

    threads: int
    blocks: int
    shared: int  # bytes; each block takes 1 KB more than it asks for
    registers: int = 65536


MULTIPROCESSORS = {
    "sm_80": Multiprocessor(2048, 32, 164 * 1024),
    "sm_90": Multiprocessor(2048, 32, 228 * 1024),
    "sm_100": Multiprocessor(2048, 32, 228 * 1024),
    "sm_120": Multiprocessor(1536, 24, 100 * 1024),
}


@dataclass(frozen=True)
class Kernel:
    name: str
    arch: str
    registers: int
    stack: int
    local: int  # bytes of local memory, and instructions that access it
    shared: int  # static, without what the system reserves
    threads: int  # the most a block may have
    instructions: dict[str, int]
    calls: list[str]  # slow paths that the compiler brought in

    @property
    def blocks(self) -> int:
        """Blocks of `threads` threads that one multiprocessor holds, without dynamic shared memory."""
        sm = MULTIPROCESSORS[self.arch]
        warps = -(-self.threads // 32)
        # Registers are given out to warps in units of 256, and to each of the four partitions alike.
        registers_per_warp = -(-self.registers * 32 // 256) * 256
        by_registers = sm.registers // registers_per_warp // 4 * 4 // warps
        by_shared = sm.shared // (self.shared + 1024)
        return min(sm.threads // (warps * 32), sm.blocks, by_registers, by_shared)

    @property
    def occupancy(self) -> float:
        return self.blocks * self.threads / MULTIPROCESSORS[self.arch].threads

    def count(self, opcode: str, part: str | None = None) -> int:
        return sum(
            count
            for name, count in self.instructions.items()
            if re.fullmatch(opcode, name.split(".")[0]) and (part is None or part in name.split("."))
        )

    def figures(self) -> dict[str, float]:
        allowed = set(cuda_rules.ALLOWED_CALLS)
        if "double" in self.name:
            allowed |= set(cuda_rules.ALLOWED_CALLS_IN_DOUBLE)
        return {
            "registers": self.registers,
            "stack": self.stack,
            "local": self.local,
            "shared": self.shared,
            "threads": self.threads,
            "blocks": self.blocks,
            "occupancy": self.occupancy,
            "ldg": self.count("LDG"),
            "ldg128": self.count("LDG", "128"),
            "ldg64": self.count("LDG", "64"),
            "stg": self.count("STG"),
            "stg128": self.count("STG", "128"),
            "lds+sts": self.count("LDS|STS"),
            "shfl": self.count("SHFL"),
            "bar": self.count("BAR|UCGABAR_ARV"),
            "mufu": self.count("MUFU"),
            "mma": self.count("[HD]MMA"),
            "fp64": self.count("D(ADD|MUL|FMA|SETP|MNMX)"),
            "calls": self.count("CALL"),
            "other calls": sum(name not in allowed for name in self.calls),
            "instructions": sum(self.instructions.values()),
        }


# ---- tools


class MissingToolError(RuntimeError):
    pass


def find_tool(name: str, remedy: str) -> str:
    """CUDA_HOME, PATH, a toolkit's usual place, then PyPI's packages (of this environment)."""
    site = Path(sysconfig.get_path("purelib")) / "nvidia"
    homes = [os.environ.get("CUDA_HOME"), "/usr/local/cuda", *sorted(site.glob("cu[0-9]*"), reverse=True)]
    candidates = [os.environ.get(name.upper()), shutil.which(name)]
    candidates += [str(Path(home) / "bin" / name) for home in homes if home]
    for candidate in candidates:
        if candidate and os.access(candidate, os.X_OK):
            return candidate
    raise MissingToolError(f"{name} not found on PATH, in CUDA_HOME or in this environment: {remedy}")


def find_nvcc() -> str:
    packages = "nvidia-cuda-nvcc nvidia-cuda-crt nvidia-nvvm nvidia-cuda-runtime nvidia-cuda-cccl"
    return find_tool("nvcc", f"install a CUDA toolkit, or pip install {packages}")


def find_cuobjdump() -> str:
    return find_tool("cuobjdump", "pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm")


def output_of(command: Sequence[str], stdin: str | None = None) -> str:
    # cuobjdump runs nvdisasm, which PyPI puts beside it.
    path = f"{Path(command[0]).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        command, input=stdin, capture_output=True, text=True, check=False, env={**os.environ, "PATH": path}
    )
    if done.returncode:
        raise native_build.CompileError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout


# ---- one cubin


def compile_cubin(source: Path, arch: str, more_flags: Sequence[str] = (), name: str = "") -> Path:
    folder = BUILD / arch
    folder.mkdir(parents=True, exist_ok=True)
    output = folder / f"{name or source.stem}.cubin"
    depfile = output.with_suffix(".d")
    flags = [*NVCC_FLAGS, *more_flags, f"-I{native_build.ROOT / 'csrc'}", f"-arch={arch}", "-cubin"]
    command = [find_nvcc(), *flags, "-MMD", "-MF", str(depfile), str(source), "-o", str(output)]
    if not native_build.up_to_date(output, command):
        begin = time.time()
        native_build.run(command)
        native_build.remember(output, command, native_build.included_files(depfile), begin)
    return output


def read_cubin(cubin: Path, arch: str) -> list[Kernel]:
    cache = cubin.with_suffix(".json")
    command = [find_cuobjdump(), "read", str(Path(__file__).stat().st_mtime_ns)]
    if not native_build.up_to_date(cache, command):
        begin = time.time()
        cache.write_text(json.dumps([asdict(kernel) for kernel in disassemble(cubin, arch)]))
        native_build.remember(cache, command, [str(cubin)], begin)
    return [Kernel(**raw) for raw in json.loads(cache.read_text())]


def disassemble(cubin: Path, arch: str) -> list[Kernel]:
    cuobjdump = find_cuobjdump()
    usage = output_of([cuobjdump, "-res-usage", str(cubin)])
    elf = output_of([cuobjdump, "-elf", str(cubin)])
    sass = output_of([cuobjdump, "-sass", str(cubin)])
    resources = {
        name: {key: int(value) for key, value in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", line)}
        for name, line in re.findall(r"Function (\S+):\n\s+(REG:.*)", usage)
    }
    demangled = dict(zip(resources, output_of(["c++filt"], "\n".join(resources)).splitlines(), strict=True))
    instructions, calls, threads = read_sass(sass), read_calls(elf), read_threads(elf)
    kernels = []
    for name, resource in resources.items():
        found = instructions[name]
        local = sum(count for opcode, count in found.items() if re.match(r"(LDL|STL)\b", opcode))
        reserved = 0 if arch == "sm_80" else 1024
        kernels.append(
            Kernel(
                short_name(demangled[name]),
                arch,
                resource["REG"],
                resource["STACK"],
                resource["LOCAL"] + local,
                max(resource["SHARED"] - reserved, 0),
                threads.get(name, 1024),
                dict(found),
                calls.get(name, []),
            )
        )
    return kernels


def short_name(demangled: str) -> str:
    """Without return type, namespace and arguments."""
    name = re.sub(r"^void ", "", demangled).replace("torchfastnorm::cuda::", "").replace("torchfastnorm::", "")
    depth = 0
    for i, character in enumerate(name):
        depth += (character == "<") - (character == ">")
        if character == "(" and depth == 0 and i > 0:
            return name[:i]
    return name


def read_sass(sass: str) -> dict[str, Counter[str]]:
    """Opcodes of every function, with their modifiers, "LDG.E.128.CONSTANT"."""
    functions: dict[str, Counter[str]] = {}
    current: Counter[str] = Counter()
    instruction = re.compile(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?\s*([A-Z][A-Z0-9_.]+)")
    for line in sass.splitlines():
        if match := instruction.match(line):
            current[match[1]] += 1
        elif match := re.search(r"Function : (\S+)", line):
            current = functions.setdefault(match[1], Counter())
    return functions


def read_calls(elf: str) -> dict[str, list[str]]:
    """The slow paths in each kernel's section, from symbols such as $__internal_0_$__cuda_sm20_div_s64."""
    in_section: dict[str, list[str]] = {}
    kernel_of: dict[str, str] = {}
    symbol = re.compile(r"^\s*0x[0-9a-f]+(?:\s+\S+){4}\s+0x([0-9a-f]+)\s+(\S+)$")  # section, name
    for line in elf.splitlines():
        if not (match := symbol.match(line)):
            continue
        section, name = match[1], match[2]
        if slow_path := re.search(r"__internal_\d+_\$__cuda_sm\d+x?_(\w+)", name):
            in_section.setdefault(section, []).append(slow_path[1])
        elif name.startswith(".text."):
            kernel_of[section] = name.removeprefix(".text.")
    return {kernel_of[section]: names for section, names in in_section.items()}


def read_threads(elf: str) -> dict[str, int]:
    """__launch_bounds__ of each kernel."""
    threads = {}
    for section in re.split(r"\n\.section |\n(?=\.nv\.info\.)", elf):
        name = re.match(r"\.nv\.info\.(\S+)", section)
        bounds = re.search(r"EIATTR_MAX_THREADS\s+Format:\s+EIFMT_SVAL\s+Value:\s+((?:0x[0-9a-f]+ ?){3})", section)
        if name and bounds:
            x, y, z = (int(value, 16) for value in bounds[1].split())
            threads[name[1]] = x * y * z
    return threads


# ---- rules and tables

ORDERS: dict[str, Callable[[float, float], bool]] = {"==": eq, ">=": ge, "<=": le}


def broken_rules(kernel: Kernel, rules: Sequence[cuda_rules.Rule] = cuda_rules.RULES) -> list[str]:
    figures = kernel.figures()
    messages = []
    for rule in rules:
        if re.search(rule.kernel, kernel.name) and not ORDERS[rule.order](figures[rule.figure], rule.limit):
            what = ", ".join(kernel.calls) if rule.figure == "other calls" else f"{figures[rule.figure]:g}"
            messages.append(
                f"{kernel.arch} {kernel.name}: {rule.figure} is {what}, wanted {rule.order} {rule.limit:g}: {rule.why}"
            )
    return messages


COLUMNS = ("registers", "local", "shared", "threads", "blocks", "ldg", "ldg128", "stg", "stg128")
MORE_COLUMNS = ("lds+sts", "shfl", "bar", "mufu", "mma", "fp64", "calls", "instructions")


def table(kernels: Sequence[Kernel], columns: Sequence[str]) -> str:
    from tabulate import tabulate

    rows = []
    for kernel in kernels:
        figures = kernel.figures()
        rows.append([kernel.arch, kernel.name, *(figures[column] for column in columns), f"{kernel.occupancy:.0%}"])
    return tabulate(rows, headers=["arch", "kernel", *columns, "occupancy"])


def summary(kernels: Sequence[Kernel]) -> str:
    """One line a family and architecture: fewest to most of each figure."""
    from tabulate import tabulate

    families: dict[tuple[str, str], list[Kernel]] = {}
    for kernel in kernels:
        families.setdefault((kernel.name.split("<")[0], kernel.arch), []).append(kernel)
    rows = []
    for (family, arch), members in sorted(families.items(), key=lambda item: (item[0][0], int(item[0][1][3:]))):
        figures = [kernel.figures() for kernel in members]
        occupancies = [kernel.occupancy for kernel in members]
        row: list[object] = [family, arch, len(members)]
        for column in COLUMNS:
            low, high = min(f[column] for f in figures), max(f[column] for f in figures)
            row.append(f"{low:g}" if low == high else f"{low:g}-{high:g}")
        low, high = min(occupancies), max(occupancies)
        row.append(f"{low:.0%}" if low == high else f"{low:.0%}-{high:.0%}")
        rows.append(row)
    return tabulate(rows, headers=["kernel", "arch", "instances", *COLUMNS, "occupancy"], disable_numparse=True)


def check(sources: Sequence[Path], architectures: Sequence[str]) -> list[Kernel]:
    find_nvcc(), find_cuobjdump()
    jobs = [(source, arch) for source in sources for arch in architectures]
    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)) as pool:
        found = pool.map(lambda job: read_cubin(compile_cubin(*job), job[1]), jobs)
        return [kernel for kernels in found for kernel in kernels]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="*", type=Path, metavar="FILE.cu", help="default: all of csrc/cuda")
    parser.add_argument("--arch", nargs="+", default=ARCHITECTURES, choices=ARCHITECTURES)
    parser.add_argument("--all", action="store_true", help="print every instance of every kernel")
    options = parser.parse_args()
    sources = options.sources or sorted((native_build.ROOT / "csrc" / "cuda").rglob("*.cu"))
    try:
        kernels = check([source.resolve() for source in sources], options.arch)
        every = table(kernels, COLUMNS + MORE_COLUMNS)
        print(every if options.all else summary(kernels))
    except (MissingToolError, ModuleNotFoundError) as error:
        print(f"cuda_check: {error}", file=sys.stderr)
        return 2
    (BUILD / "kernels.txt").write_text(every + "\n")
    broken = [message for kernel in kernels for message in broken_rules(kernel)]
    print(f"\n{len(kernels)} kernels, {len(broken)} broken rules; every figure in {BUILD / 'kernels.txt'}")
    print(*broken, sep="\n")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
