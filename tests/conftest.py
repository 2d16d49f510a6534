"""Options, markers and fixtures. Every test that takes `backend` runs on each of the three:

cpu   the C++ backend
sim   the CUDA kernels and their launchers, executed on the CPU (tests/native); 1 to 30 million elements a second,
      so shapes shrink by `backend.limit`
cuda  the CUDA kernels on a GPU; where there is none, left out (the header of the run says so), or skipped if asked for
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch

BACKENDS = ("cpu", "sim", "cuda")


def pytest_addoption(parser: pytest.Parser) -> None:
    present = BACKENDS if torch.cuda.is_available() else BACKENDS[:-1]
    parser.addoption(
        "--backend", default=",".join(present), help="comma-separated backends to run (default: %(default)s)"
    )
    parser.addoption("--slow", action="store_true", help="also run tests marked slow (minutes, many GB of memory)")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: minutes or many GB of memory; runs with --slow")
    config.addinivalue_line("markers", "tsan: in the thinned set that runs under ThreadSanitizer")
    config.addinivalue_line("markers", "backends(*names): the backends a test makes sense on (default: all)")
    unknown = set(config.getoption("--backend").split(",")) - set(BACKENDS)
    if unknown:
        raise pytest.UsageError(f"--backend: unknown {sorted(unknown)}, choose from {BACKENDS}")
    # Workers of pytest-xdist share the machine: idle OpenMP threads that spin would take it from the others.
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))


def pytest_report_header(config: pytest.Config) -> str:
    absent = "" if torch.cuda.is_available() else " (no GPU: torch.cuda.is_available() is false)"
    return f"backends: {config.getoption('--backend')}{absent}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" in metafunc.fixturenames:
        marker = metafunc.definition.get_closest_marker("backends")
        wanted = metafunc.config.getoption("--backend").split(",")
        names = [name for name in (marker.args if marker else BACKENDS) if name in wanted]
        metafunc.parametrize("backend", names, indirect=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--slow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="slow: runs with --slow"))


@dataclass(frozen=True)
class TestBackend:
    __test__ = False  # not a test class

    name: str
    device: torch.device
    limit: int  # elements that a test may ask for without being slow

    def rows(self, cols: int, wanted: int) -> int:
        """As many rows as wanted, fewer where the backend is slow, at least two."""
        return max(2, min(wanted, self.limit // max(cols, 1)))

    def synchronize(self) -> None:
        if self.name == "cuda":
            torch.cuda.synchronize()


@contextmanager
def open_backend(name: str, **options: object) -> Iterator[TestBackend]:
    """The backend of that name for the duration of the block; `options` reach the simulated machine."""
    if name == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("no GPU: torch.cuda.is_available() is false")
        yield TestBackend(name, torch.device("cuda"), 1 << 24)
    elif name == "sim":
        import sim

        with sim.backend(**options):
            yield TestBackend(name, torch.device("cpu"), 1 << 15)
    else:
        yield TestBackend(name, torch.device("cpu"), 1 << 21)


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Iterator[TestBackend]:
    with open_backend(request.param) as opened:
        yield opened


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)
