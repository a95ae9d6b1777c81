"""The 8254, against the waveforms of its datasheet."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rayvisor.vmm.devices.i8254 import I8254State
from rayvisor.vmm.devices.i8254_counter import CounterState
from rayvisor.vmm.errors import CorruptStateError
from tests.support.timer_bench import BOTH, LSB, MSB, Bench


def test_mode_0_counts_down_and_stays_high() -> None:
    bench = Bench()
    bench.program(0x10, 4)
    assert bench.wave(9) == "____/////"
    bench.program(0x10, 4)
    assert bench.counts(7) == [4, 3, 2, 1, 0, 0xFF, 0xFE]


def test_mode_0_gate_stops_the_count_and_leaves_out_alone() -> None:
    bench = Bench()
    bench.program(0x10, 4)
    assert bench.counts(2) == [4, 3]
    bench.chip.set_gate(0, False)
    assert bench.counts(3) == [3, 3, 3]
    bench.chip.set_gate(0, True)
    assert bench.counts(3) == [2, 1, 0]
    assert bench.chip.out(0)
    bench.chip.set_gate(0, False)
    assert bench.wave(3) == "///"


def test_mode_0_a_count_written_with_the_gate_low_is_loaded() -> None:
    bench = Bench(gate=False)
    bench.program(0x10, 3)
    assert bench.counts(3) == [3, 3, 3]
    bench.chip.set_gate(0, True)
    assert bench.wave(4) == "__//"


def test_mode_0_a_two_byte_count_stops_at_its_first_byte() -> None:
    bench = Bench()
    bench.program(BOTH, 2)
    bench.step(10)
    assert bench.chip.out(0)
    bench.chip.write(0, 5)
    assert not bench.chip.out(0)
    before = bench.latch()
    bench.step(10)
    assert bench.latch() == before
    bench.chip.write(0, 0)
    assert bench.wave(7) == "_____//"


def test_mode_1_is_a_retriggerable_one_shot() -> None:
    bench = Bench(gate=False)
    bench.program(0x12, 3)
    assert bench.wave(3) == "///"
    bench.chip.set_gate(0, True)
    assert bench.wave(5) == "___//"
    bench.chip.set_gate(0, False)
    bench.chip.set_gate(0, True)
    assert bench.wave(2) == "__"
    bench.chip.set_gate(0, False)
    bench.chip.set_gate(0, True)
    assert bench.wave(5) == "___//"


def test_mode_1_takes_a_new_count_at_the_next_trigger() -> None:
    bench = Bench(gate=False)
    bench.program(0x12, 2)
    bench.chip.set_gate(0, True)
    bench.chip.write(0, 4)
    assert bench.wave(4) == "__//"
    bench.chip.set_gate(0, False)
    bench.chip.set_gate(0, True)
    assert bench.wave(6) == "____//"


def test_mode_2_is_low_for_the_last_clk_of_each_period() -> None:
    bench = Bench()
    bench.program(0x14, 3)
    assert bench.wave(10) == "//_//_//_/"
    bench.program(0x14, 3)
    assert bench.counts(7) == [3, 2, 1, 3, 2, 1, 3]


def test_mode_2_takes_a_new_count_at_the_end_of_the_period() -> None:
    bench = Bench()
    bench.program(0x14, 4)
    assert bench.counts(2) == [4, 3]
    bench.chip.write(0, 5)
    assert bench.counts(8) == [2, 1, 5, 4, 3, 2, 1, 5]


def test_mode_2_gate_low_raises_out_and_a_rise_reloads() -> None:
    bench = Bench()
    bench.program(0x14, 3)
    assert bench.wave(3) == "//_"
    bench.chip.set_gate(0, False)
    assert bench.chip.out(0)
    assert bench.wave(3) == "///"
    bench.chip.set_gate(0, True)
    assert bench.wave(4) == "//_/"


def test_mode_3_even_counts_are_high_and_low_for_half() -> None:
    bench = Bench()
    bench.program(0x16, 4)
    assert bench.wave(9) == "//__//__/"
    bench.program(0x16, 4)
    assert bench.counts(6) == [4, 2, 4, 2, 4, 2]


def test_mode_3_odd_counts_are_high_for_one_clk_more() -> None:
    bench = Bench()
    bench.program(0x16, 5)
    assert bench.wave(10) == "///__///__"
    bench.program(0x16, 5)
    assert bench.counts(7) == [4, 2, 0, 4, 2, 4, 2]


def test_mode_3_takes_a_new_count_at_the_end_of_the_half_cycle() -> None:
    bench = Bench()
    bench.program(0x16, 4)
    assert bench.wave(1) == "/"
    bench.chip.write(0, 8)
    assert bench.wave(10) == "/____////_"


@pytest.mark.parametrize("into", range(1, 5))
def test_mode_3_a_new_count_waits_for_the_half_cycle_it_is_written_in(into: int) -> None:
    bench = Bench()
    bench.program(0x16, 5)
    before = bench.wave(into)
    bench.chip.write(0, 8)
    expected = "///__////__" if into > 3 else "///____////"
    assert before + bench.wave(11 - into) == expected


def test_mode_3_gate_low_raises_out_and_a_rise_reloads() -> None:
    bench = Bench()
    bench.program(0x16, 6)
    assert bench.wave(4) == "///_"
    bench.chip.set_gate(0, False)
    assert bench.wave(2) == "//"
    bench.chip.set_gate(0, True)
    assert bench.wave(7) == "///___/"


def test_mode_4_strobes_once() -> None:
    bench = Bench()
    bench.program(0x18, 3)
    assert bench.wave(8) == "///_////"
    bench.program(0x18, 3)
    assert bench.counts(6) == [3, 2, 1, 0, 0xFF, 0xFE]


def test_mode_4_is_retriggered_by_a_new_count_and_held_by_the_gate() -> None:
    bench = Bench()
    bench.program(0x18, 3)
    bench.step(2)
    bench.chip.write(0, 3)
    assert bench.wave(5) == "///_/"
    bench.chip.write(0, 2)
    bench.step(1)
    bench.chip.set_gate(0, False)
    assert bench.wave(4) == "////"
    bench.chip.set_gate(0, True)
    assert bench.wave(4) == "/_//"


def test_mode_4_the_strobe_is_one_clk_long_whatever_the_gate_does() -> None:
    bench = Bench()
    bench.program(0x18, 3)
    assert bench.wave(4) == "///_"
    bench.chip.set_gate(0, False)
    assert bench.wave(2) == "//"
    assert bench.chip.read(0) == 0xFF
    bench.chip.set_gate(0, True)
    assert bench.wave(3) == "///"


def test_mode_5_and_1_count_on_when_the_gate_falls() -> None:
    for control, wave in ((0x1A, "//_/"), (0x12, "__//")):
        bench = Bench(gate=False)
        bench.program(control, 3)
        bench.chip.set_gate(0, True)
        bench.step()
        bench.chip.set_gate(0, False)
        assert bench.wave(4) == wave


def test_mode_5_strobes_after_a_trigger() -> None:
    bench = Bench(gate=False)
    bench.program(0x1A, 3)
    assert bench.wave(5) == "/////"
    bench.chip.set_gate(0, True)
    assert bench.wave(6) == "///_//"
    bench.chip.set_gate(0, False)
    bench.chip.set_gate(0, True)
    assert bench.wave(6) == "///_//"


@pytest.mark.parametrize(("m", "mode"), [(6, 2), (7, 3)])
def test_the_high_mode_bit_does_not_matter_in_modes_2_and_3(m: int, mode: int) -> None:
    one, other = Bench(), Bench()
    one.program(LSB | m << 1, 5)
    other.program(LSB | mode << 1, 5)
    assert one.wave(12) == other.wave(12)
    assert one.status() & 0x0E == m << 1


def test_a_count_of_zero_is_the_longest() -> None:
    bench = Bench()
    bench.program(BOTH, 0)
    bench.step(65536)
    assert not bench.chip.out(0)
    bench.step()
    assert bench.chip.out(0)
    bench.program(BOTH | 1, 0)
    bench.step(10_000)
    assert not bench.chip.out(0)
    bench.step()
    assert bench.chip.out(0)


def test_bcd_counts_in_tens() -> None:
    bench = Bench()
    bench.program(BOTH | 0x01, 0x1000)
    bench.step()
    assert bench.latch() == 0x1000
    bench.step()
    assert bench.latch() == 0x0999
    bench.step(999)
    assert bench.chip.out(0)
    bench.step()
    assert bench.latch() == 0x9999


@pytest.mark.parametrize(("written", "ticks"), [(0x1234, 1234), (0x9876, 9876), (0x00A0, 100)])
def test_bcd_digits_weigh_what_they_should(written: int, ticks: int) -> None:
    bench = Bench()
    bench.program(BOTH | 0x01, written)
    bench.step(ticks)
    assert not bench.chip.out(0)
    bench.step()
    assert bench.chip.out(0)


def test_single_byte_access_sets_the_other_byte_to_zero() -> None:
    bench = Bench()
    bench.program(MSB, 0x0200)
    bench.step(11)
    assert bench.chip.read(0) == 0x01
    bench.chip.write(3, 0)
    assert bench.chip.read(0) == 0x01
    bench.step(0x1F7)
    assert bench.chip.out(0)


def test_both_bytes_are_read_in_turn_and_a_latch_freezes_them() -> None:
    bench = Bench()
    bench.program(BOTH | 0x04, 0x1234)
    bench.step(0x35)
    assert bench.latch() == 0x1200
    bench.chip.write(3, 0)
    bench.step(1)
    bench.chip.write(3, 0)
    assert bench.chip.read(0) == 0x00
    bench.step(5)
    assert bench.chip.read(0) == 0x12
    assert bench.chip.read(0) == 0xFA, "past the latch the count goes on"


def test_read_back_latches_counts_of_several_counters() -> None:
    bench = Bench()
    bench.program(BOTH | 0x04, 1000, 0)
    bench.program(BOTH | 0x04, 2000, 1)
    bench.step(101)
    bench.chip.write(3, 0xC0 | 0x10 | 0x06)
    bench.step(50)
    assert bench.chip.read(0) | bench.chip.read(0) << 8 == 900
    assert bench.chip.read(1) | bench.chip.read(1) << 8 == 1900
    assert bench.chip.read(0) | bench.chip.read(0) << 8 < 900


def test_read_back_gives_status_before_count() -> None:
    bench = Bench()
    bench.program(BOTH | 0x04, 1000)
    bench.step(101)
    bench.chip.write(3, 0xC2)
    bench.step(7)
    assert bench.chip.read(0) == 0x80 | BOTH | 0x04
    assert bench.chip.read(0) | bench.chip.read(0) << 8 == 900


def test_a_second_latch_waits_until_the_first_is_read() -> None:
    bench = Bench()
    bench.program(BOTH | 0x04, 1000)
    bench.step(101)
    bench.chip.write(3, 0xC2)
    bench.step(100)
    bench.program(BOTH | 0x04, 1000, 1)
    bench.chip.write(3, 0xC2)
    bench.chip.write(3, 0)
    bench.chip.read(0)
    assert bench.chip.read(0) | bench.chip.read(0) << 8 == 900


def test_status_tells_out_and_the_null_count() -> None:
    bench = Bench()
    bench.chip.write(3, LSB | 0x04)
    assert bench.status() == 0xC0 | LSB | 0x04
    bench.chip.write(0, 3)
    assert bench.status() & 0x40, "written, and not yet loaded"
    bench.step()
    assert not bench.status() & 0x40
    bench.chip.write(0, 5)
    assert bench.status() & 0x40
    bench.step(3)
    assert not bench.status() & 0x40
    bench.step(4)
    assert not bench.status() & 0x80


def test_the_control_register_cannot_be_read() -> None:
    assert Bench().chip.read(3) == 0xFF


def test_counter_2_needs_its_gate() -> None:
    bench = Bench()
    bench.program(BOTH, 100, 2)
    bench.step(500)
    assert not bench.chip.out(2)
    bench.chip.set_gate(2, True)
    bench.step(99)
    assert not bench.chip.out(2)
    bench.step(1)
    assert bench.chip.out(2)


@pytest.mark.parametrize("control", [0x14, 0x16])
def test_a_count_of_1_leaves_out_high(control: int) -> None:
    bench = Bench()
    bench.program(control, 1)
    assert bench.wave(5) == "/////"
    assert bench.clock.next_deadline_ns() is None


@pytest.mark.parametrize(
    "counter",
    [
        CounterState(held=3),
        CounterState(control=0x32, counting=True, held=3),
        CounterState(pending=3),
        CounterState(control=0x34, pending=3),
        CounterState(control=0x0F),
        CounterState(reload=0),
    ],
)
def test_contradictions_are_refused(counter: CounterState) -> None:
    bench = Bench()
    before = bench.chip.snapshot()
    forged = replace(before, counters=(CounterState(), counter, CounterState()))
    with pytest.raises(CorruptStateError):
        bench.chip.restore(forged)
    assert bench.chip.snapshot() == before
    assert isinstance(before, I8254State)
