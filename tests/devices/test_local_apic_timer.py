"""The local APIC's timer, against the Intel SDM (3A 11.5.4)."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayvisor.vmm.clock import ManualClock
from rayvisor.vmm.devices.local_apic_timer import (
    HORIZON_NS,
    ONE_SHOT,
    PERIODIC,
    RESERVED,
    SHORTEST_NS,
    TSC_DEADLINE,
    ApicTimer,
)

US = 1_000
DIVIDE_BY_1 = 0xB
DIVISORS = {0x0: 2, 0x1: 4, 0x2: 8, 0x3: 16, 0x8: 32, 0x9: 64, 0xA: 128, 0xB: 1}
TICKS_A_NS = 3


class Bench:
    hz = TICKS_A_NS * 1_000_000_000

    def __init__(self, mode: int = ONE_SHOT, divide: int = DIVIDE_BY_1) -> None:
        self.clock = ManualClock()
        self.fired: list[int] = []
        self.timer = ApicTimer(self.clock, self, lambda: self.fired.append(self.clock.now_ns()))
        self.timer.set_mode(mode)
        self.timer.set_divide(divide)

    def now(self) -> int:
        """The TSC."""
        return TICKS_A_NS * self.clock.now_ns()

    def late(self, delta_ns: int) -> None:
        """Time passes, and the machine looks at its alarms only then."""
        self.clock._now_ns += delta_ns
        self.clock.fire_due()


@pytest.mark.parametrize(("divide", "by"), DIVISORS.items())
def test_one_shot_at_every_pace(divide: int, by: int) -> None:
    bench = Bench(ONE_SHOT, divide)
    bench.timer.set_initial(100)
    bench.clock.advance(40 * by * US)
    assert bench.timer.current() == 60
    bench.clock.advance(59 * by * US)
    assert (bench.timer.current(), bench.fired) == (1, [])
    bench.clock.advance(10_000 * by * US)
    assert bench.fired == [100 * by * US]
    assert bench.timer.current() == 0
    assert bench.timer.initial == 100


def test_a_periodic_count_keeps_its_phase() -> None:
    bench = Bench(PERIODIC)
    bench.timer.set_initial(1_000)
    bench.clock.advance(3_500 * US)
    assert bench.fired == [1_000 * US, 2_000 * US, 3_000 * US]
    assert bench.timer.current() == 500
    bench.late(3_000 * US)
    assert bench.fired[3:] == [6_500 * US], "missed ones come as one"
    bench.clock.advance(500 * US)
    assert bench.fired[4:] == [7_000 * US]


def test_a_count_of_nothing_stops_it() -> None:
    bench = Bench(PERIODIC)
    bench.timer.set_initial(100)
    bench.clock.advance(50 * US)
    bench.timer.set_initial(0)
    bench.clock.advance(1_000 * US)
    assert (bench.fired, bench.timer.current()) == ([], 0)
    assert bench.clock.next_deadline_ns() is None


def test_a_very_short_period_does_not_take_the_host() -> None:
    bench = Bench(PERIODIC)
    bench.timer.set_initial(1)
    bench.clock.advance(10 * SHORTEST_NS)
    assert 5 <= len(bench.fired) <= 11


def test_a_new_pace_goes_on_from_the_count() -> None:
    bench = Bench()
    bench.timer.set_initial(100)
    bench.clock.advance(60 * US)
    bench.timer.set_divide(0x3)
    assert bench.timer.current() == 40
    bench.clock.advance(1_000 * US)
    assert bench.fired == [(60 + 40 * 16) * US]


def test_one_shot_and_periodic_go_over_into_each_other() -> None:
    bench = Bench()
    bench.timer.set_initial(100)
    bench.clock.advance(10 * US)
    bench.timer.set_mode(PERIODIC)
    bench.clock.advance(300 * US)
    assert bench.fired == [100 * US, 200 * US, 300 * US]
    bench.timer.set_mode(ONE_SHOT)
    bench.clock.advance(300 * US)
    assert bench.fired[3:] == [400 * US]


def test_a_deadline_is_met_once_and_reads_as_nothing_then() -> None:
    bench = Bench(TSC_DEADLINE)
    bench.timer.set_deadline(TICKS_A_NS * 1_000 + 1)
    assert bench.timer.deadline() == TICKS_A_NS * 1_000 + 1
    bench.clock.advance(1_000)
    assert bench.fired == []
    bench.clock.advance(10_000)
    assert bench.fired == [1_001], "not before the TSC is there"
    assert bench.timer.deadline() == 0


def test_a_deadline_that_has_passed_is_met_at_once() -> None:
    bench = Bench(TSC_DEADLINE)
    bench.clock.advance(5_000)
    bench.timer.set_deadline(1)
    assert bench.fired == [5_000]
    bench.clock.advance(10**9)
    assert bench.fired == [5_000]


def test_a_deadline_of_nothing_disarms() -> None:
    bench = Bench(TSC_DEADLINE)
    bench.timer.set_deadline(1 << 40)
    bench.timer.set_deadline(0)
    assert bench.clock.next_deadline_ns() is None


def test_the_latest_deadline_is_out_of_reach_and_no_trouble() -> None:
    bench = Bench(TSC_DEADLINE)
    bench.timer.set_deadline((1 << 64) - 1)
    assert bench.clock.next_deadline_ns() == HORIZON_NS
    bench.clock.advance(HORIZON_NS)
    assert bench.fired == []
    assert bench.clock.next_deadline_ns() == 2 * HORIZON_NS


@pytest.mark.parametrize("mode", [ONE_SHOT, PERIODIC, RESERVED])
def test_a_deadline_needs_its_mode(mode: int) -> None:
    bench = Bench(mode)
    bench.timer.set_deadline(1)
    assert (bench.timer.deadline(), bench.fired) == (0, [])


def test_a_count_needs_its_mode_and_leaving_it_disarms() -> None:
    bench = Bench(TSC_DEADLINE)
    bench.timer.set_initial(100)
    assert (bench.timer.initial, bench.timer.current()) == (0, 0)
    bench.timer.set_deadline(1 << 40)
    bench.timer.set_mode(ONE_SHOT)
    assert bench.timer.deadline() == 0
    bench.timer.set_initial(100)
    bench.timer.set_mode(TSC_DEADLINE)
    bench.clock.advance(10**9)
    assert bench.fired == []


def test_a_deadline_travels_with_the_tsc_and_not_with_the_clock() -> None:
    bench, there = Bench(TSC_DEADLINE), Bench()
    bench.timer.set_deadline(TICKS_A_NS * 9_000)
    bench.clock.advance(4_000)
    there.clock.advance(4_000)
    there.timer.restore(bench.timer.snapshot())
    there.clock.advance(4_999)
    assert there.fired == []
    there.clock.advance(10)
    assert there.fired == [9_000]


class Ticking:
    """The counts, tick by tick."""

    def __init__(self, mode: int) -> None:
        self.mode = mode
        self.initial = self.count = self.fired = 0

    def write(self, initial: int) -> None:
        self.initial = self.count = initial

    def tick(self) -> None:
        if self.count:
            self.count -= 1
            if not self.count:
                self.fired += 1
                self.count = self.initial if self.mode == PERIODIC else 0


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, 400)),
        st.tuples(st.just("mode"), st.sampled_from([ONE_SHOT, PERIODIC])),
        st.tuples(st.just("wait"), st.integers(0, 700)),
    ),
    max_size=30,
)


@given(steps=STEPS, divide=st.sampled_from(sorted(DIVISORS)))
def test_counts_are_those_of_the_model(steps: list[tuple[str, int]], divide: int) -> None:
    bench, model = Bench(ONE_SHOT, divide), Ticking(ONE_SHOT)
    short = False
    for kind, value in steps:
        if kind == "write":
            bench.timer.set_initial(value)
            model.write(value)
        elif kind == "mode":
            bench.timer.set_mode(value)
            model.mode = value
        else:
            for _ in range(value):
                bench.clock.advance(DIVISORS[divide] * US)
                model.tick()
        assert bench.timer.current() == model.count
        short = short or model.initial * DIVISORS[divide] * US < SHORTEST_NS
        if not short:
            assert len(bench.fired) == model.fired
        moved = Bench()
        moved.clock.advance(bench.clock.now_ns())
        moved.timer.restore(replace(bench.timer.snapshot()))
        assert moved.timer.current() == model.count
