"""The watchdog: what its manual says of time-outs, starting and stopping."""

from __future__ import annotations

import pytest

from rayvisor.vmm.clock import ManualClock
from rayvisor.vmm.devices.ib700 import START, STOP, Ib700, Ib700State, timeout_ns
from rayvisor.vmm.errors import CorruptStateError

SECOND = 1_000_000_000


class Bench:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.expired: list[int] = []
        self.chip = Ib700(self.clock, lambda: self.expired.append(self.clock.now_ns()))


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.mark.parametrize(
    ("value", "seconds"), [(0x0, 30), (0x1, 28), (0x5, 20), (0xA, 10), (0xE, 2), (0xF, 0)]
)
def test_the_manuals_table(bench: Bench, value: int, seconds: int) -> None:
    assert timeout_ns(value) == seconds * SECOND
    bench.chip.write(START, value | 0xF0)  # only four bits count
    bench.clock.advance(31 * SECOND)
    assert bench.expired == [seconds * SECOND]


def test_it_counts_only_when_started(bench: Bench) -> None:
    bench.clock.advance(100 * SECOND)
    assert bench.expired == []


def test_a_guest_that_feeds_it_lives(bench: Bench) -> None:
    for _ in range(10):
        bench.chip.write(START, 0xE)
        bench.clock.advance(2 * SECOND - 1)
    assert bench.expired == []
    bench.clock.advance(1)
    assert len(bench.expired) == 1


def test_it_can_be_stopped_and_expires_once(bench: Bench) -> None:
    bench.chip.write(START, 0xE)
    bench.chip.write(STOP, 0)
    bench.clock.advance(100 * SECOND)
    assert bench.expired == []
    bench.chip.write(START, 0xE)
    bench.clock.advance(100 * SECOND)
    assert len(bench.expired) == 1


def test_a_reset_stops_it(bench: Bench) -> None:
    bench.chip.write(START, 0xE)
    bench.chip.reset()
    bench.clock.advance(100 * SECOND)
    assert bench.expired == []


def test_what_is_left_travels(bench: Bench) -> None:
    bench.chip.write(START, 0xA)
    bench.clock.advance(7 * SECOND)
    there = Bench()
    there.clock.advance(7 * SECOND)
    there.chip.restore(bench.chip.snapshot())
    there.clock.advance(3 * SECOND - 1)
    assert there.expired == []
    there.clock.advance(1)
    assert there.expired == [10 * SECOND]


def test_a_deadline_of_one_that_stands_is_refused(bench: Bench) -> None:
    with pytest.raises(CorruptStateError, match="although it stands"):
        bench.chip.restore(Ib700State(running=False, deadline_ns=5))
