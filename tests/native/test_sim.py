"""The sim backend itself: options come and go, counters count, errors of a kernel reach Python."""

from __future__ import annotations

import native_build
import pytest

pytestmark = pytest.mark.skipif(native_build.why_not() is not None, reason=str(native_build.why_not()))

torch = pytest.importorskip("torch")
torchfastnorm = pytest.importorskip("torchfastnorm")
sim = pytest.importorskip("sim")


def test_counts_what_a_forward_moves() -> None:
    x = torch.randn(8, 1024)
    with sim.backend(count_sectors=True):
        torchfastnorm.rms_norm(x, (1024,))
        (launch,) = sim.launches()
        counted = sim.counters()[launch.name]
    assert launch.block[0] % 32 == 0
    assert counted.launches == 1
    assert counted.loads.by_width == {16: 8 * 1024 // 4}
    assert counted.loads.bytes == counted.stores.bytes == 8 * 1024 * 4
    assert counted.loads.sectors == 8 * 1024 * 4 // 32


def test_counters_start_at_zero_and_can_be_reset() -> None:
    x = torch.randn(2, 64)
    with sim.backend():
        torchfastnorm.rms_norm(x, (64,))
        assert sim.counters()
        sim.reset_counters()
        assert not sim.counters()
        assert not sim.launches()
        torchfastnorm.rms_norm(x, (64,))
    with sim.backend():
        assert not sim.counters()


def test_backends_nest_and_are_restored() -> None:
    x = torch.randn(400, 64)

    def blocks() -> int:
        sim.reset_counters()
        torchfastnorm.rms_norm(x, (64,))
        return sim.launches()[-1].grid[0] if sim.launches() else 0

    with sim.backend(sm_count=1):
        small = blocks()
        with pytest.raises(ZeroDivisionError), sim.backend(sm_count=2):
            assert blocks() > small
            1 / 0  # noqa: B018
        assert blocks() == small
    assert blocks() == 0  # the C++ backend launches nothing


def test_a_kernel_error_reaches_python() -> None:
    x = torch.randn(2, 20000)
    with (
        sim.backend(max_cluster=0, shared_bytes=1000),
        pytest.raises(RuntimeError, match="shared memory"),
    ):
        torchfastnorm.rms_norm(x, (20000,))
    with sim.backend():  # and leaves the simulation usable
        assert torchfastnorm.rms_norm(x, (20000,)).isfinite().all()


def test_the_orders_are_the_ones_asked_for() -> None:
    with pytest.raises(ValueError, match="backwards"), sim.backend(order="backwards"):
        pass
