"""The MC146818, against its datasheet."""

from __future__ import annotations

import calendar
import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayvisor.vmm.clock import ManualClock
from rayvisor.vmm.devices.mc146818 import Mc146818, memory_nvram
from rayvisor.vmm.devices.mc146818_time import Format, decode, encode, seconds_until_alarm
from rayvisor.vmm.errors import CorruptStateError

S = 10**9
A, B, C, D = 0x0A, 0x0B, 0x0C, 0x0D
SET, PIE, AIE, UIE, BINARY, H24 = 0x80, 0x40, 0x20, 0x10, 0x04, 0x02
IRQF, PF, AF, UF = 0x80, 0x40, 0x20, 0x10
NOON = calendar.timegm((2026, 2, 28, 12, 0, 0))
FORMATS = [Format(binary, hours24) for binary in (False, True) for hours24 in (False, True)]


class Bench:
    """A clock chip that shows 2026-02-28 12:00:00 at power-on."""

    def __init__(self, utc_ns: int = NOON * S, now_ns: int = 0) -> None:
        self.clock = ManualClock(now_ns)
        self.levels: list[bool] = []
        self.chip = Mc146818(self.clock, self.levels.append, utc_ns=utc_ns)

    def __getitem__(self, index: int) -> int:
        self.chip.write(0, index)
        return self.chip.read(1)

    def __setitem__(self, index: int, value: int) -> None:
        self.chip.write(0, index)
        self.chip.write(1, value)

    def time(self) -> tuple[int, ...]:
        """Year, month, day, hour, minute, second as the registers have them."""
        return tuple(self[i] for i in (0x32, 9, 8, 7, 4, 2, 0))

    def advance_s(self, seconds: float) -> None:
        self.clock.advance(round(seconds * S))


def test_the_time_is_bcd_and_runs() -> None:
    bench = Bench()
    assert bench.time() == (0x20, 0x26, 0x02, 0x28, 0x12, 0, 0)
    assert bench[6] == 7, "a Saturday"
    bench.advance_s(12 * 3600 - 1)
    assert bench.time() == (0x20, 0x26, 0x02, 0x28, 0x23, 0x59, 0x59)
    bench.advance_s(1)
    assert bench.time() == (0x20, 0x26, 0x03, 0x01, 0, 0, 0)
    assert bench[6] == 1


def test_the_time_does_not_depend_on_machine_time_at_power_on() -> None:
    assert Bench(now_ns=123_456_789_012).time() == Bench().time()


@given(st.integers(0, 253_402_300_799), st.sampled_from(FORMATS))
def test_the_calendar_is_the_gregorian_one(second: int, fmt: Format) -> None:
    registers = bytearray(128)
    for index, byte in encode(second, 0, fmt).items():
        registers[index] = byte
    t = time.gmtime(second)
    assert fmt.value(registers[0x32]) * 100 + fmt.value(registers[9]) == t.tm_year
    assert (fmt.value(registers[8]), fmt.value(registers[7])) == (t.tm_mon, t.tm_mday)
    assert fmt.hour_value(registers[4]) == t.tm_hour
    assert (fmt.value(registers[2]), fmt.value(registers[0])) == (t.tm_min, t.tm_sec)
    assert fmt.value(registers[6]) == (t.tm_wday + 1) % 7 + 1
    assert decode(registers, fmt) == (second, 0)


@pytest.mark.parametrize("year", [1999, 2000, 2001, 2004, 2100])
def test_every_day_of_a_year(year: int) -> None:
    first = calendar.timegm((year, 1, 1, 0, 0, 0))
    for day in range(365 + calendar.isleap(year)):
        t = time.gmtime(first + day * 86_400)
        registers = encode(first + day * 86_400, 0, FORMATS[-1])
        assert (registers[8], registers[7]) == (t.tm_mon, t.tm_mday)
        image = bytearray(128)
        for index, byte in registers.items():
            image[index] = byte
        assert decode(image, FORMATS[-1])[0] == first + day * 86_400


@pytest.mark.parametrize(
    ("hour", "bcd", "binary"), [(0, 0x12, 12), (11, 0x11, 11), (12, 0x92, 0x8C), (23, 0x91, 0x8B)]
)
def test_twelve_hour_clock(hour: int, bcd: int, binary: int) -> None:
    assert Format(binary=False, hours24=False).hour(hour) == bcd
    assert Format(binary=True, hours24=False).hour(hour) == binary


def test_the_format_follows_register_b() -> None:
    bench = Bench()
    bench[B] = BINARY
    assert bench.time() == (20, 26, 2, 28, 0x8C, 0, 0)


def test_set_holds_the_time_while_it_is_written() -> None:
    bench = Bench()
    bench[B] = SET | H24
    bench.advance_s(100)
    assert bench.time() == (0x20, 0x26, 0x02, 0x28, 0x12, 0, 0)
    new = {0x32: 0x19, 9: 0x99, 8: 0x12, 7: 0x31, 6: 0x03, 4: 0x23, 2: 0x59, 0: 0x58}
    for index, value in new.items():
        bench[index] = value
    bench[B] = H24
    bench.advance_s(1)
    assert bench.time() == (0x19, 0x99, 0x12, 0x31, 0x23, 0x59, 0x59)
    bench.advance_s(1)
    assert bench.time() == (0x20, 0, 0x01, 0x01, 0, 0, 0)
    assert bench[6] == 4, "the day of the week is the guest's"


def test_a_single_register_can_be_written_while_the_clock_runs() -> None:
    bench = Bench()
    bench.advance_s(0.25)
    bench[4] = 0x23
    bench[2] = 0x59
    bench[0] = 0x59
    bench.advance_s(0.5)
    assert bench.time() == (0x20, 0x26, 0x02, 0x28, 0x23, 0x59, 0x59)
    bench.advance_s(0.25)
    assert bench.time() == (0x20, 0x26, 0x03, 0x01, 0, 0, 0)


def test_what_is_no_date_runs_over() -> None:
    bench = Bench()
    bench[7] = 0x31
    assert bench.time()[:4] == (0x20, 0x26, 0x03, 0x03)


def test_the_first_update_comes_half_a_second_after_the_divider_is_released() -> None:
    bench = Bench()
    bench.advance_s(0.3)
    bench[A] = 0x76
    bench.advance_s(10)
    assert bench[0] == 0
    bench[A] = 0x26
    bench.advance_s(0.49)
    assert bench[0] == 0
    bench.advance_s(0.02)
    assert bench[0] == 1


def test_uip_announces_the_update() -> None:
    bench = Bench()
    assert bench[A] == 0x26
    bench.clock.advance(S - 2_228_001)
    assert bench[A] == 0x26
    bench.clock.advance(1)
    assert bench[A] == 0xA6
    bench.clock.advance(2_227_999)
    assert (bench[A], bench[0]) == (0xA6, 0)
    bench.clock.advance(1)
    assert (bench[A], bench[0]) == (0x26, 1)
    bench[B] = SET | H24
    bench.clock.advance(S - 1)
    assert bench[A] == 0x26, "no update while SET"
    quarter_past = Bench(utc_ns=NOON * S + S // 4)
    quarter_past.clock.advance(S * 3 // 4 - 1)
    assert quarter_past[A] == 0xA6


def test_register_c_tells_what_happened_and_forgets() -> None:
    bench = Bench()
    bench[A] = 0x20
    bench[C]
    assert bench[C] == 0
    bench.advance_s(1)
    assert bench[C] == UF, "no IRQF: nothing is enabled"
    assert bench[C] == 0
    assert bench.levels == []


@pytest.mark.parametrize(
    ("rate", "hz"), [(1, 256), (2, 128), (3, 8192), (6, 1024), (8, 256), (15, 2)]
)
def test_the_periodic_interrupt_keeps_its_rate(rate: int, hz: int) -> None:
    bench = Bench()
    bench[A] = 0x20 | rate
    bench[B] = PIE | H24
    count = 0
    while bench.clock.now_ns() < 3 * S:
        deadline = bench.clock.next_deadline_ns()
        assert deadline is not None
        bench.clock.advance(deadline - bench.clock.now_ns())
        assert bench[C] & (IRQF | PF) == IRQF | PF
        assert bench.levels[-2:] == [True, False]
        count += 1
    assert count == 3 * hz


def test_rate_zero_is_no_periodic_interrupt() -> None:
    bench = Bench()
    bench[A] = 0x20
    bench[B] = PIE | H24
    assert bench.clock.next_deadline_ns() is None


def test_the_line_stays_up_until_register_c_is_read() -> None:
    bench = Bench()
    bench[B] = UIE | H24
    bench.advance_s(10)
    assert bench.levels == [True]
    assert bench.clock.next_deadline_ns() is None, "nothing to wake for"
    assert bench[C] & ~PF == IRQF | UF
    assert bench.levels == [True, False]
    assert bench.clock.next_deadline_ns() == 11 * S


def test_interrupts_come_with_the_seconds_wherever_those_begin() -> None:
    bench = Bench(utc_ns=NOON * S + S // 4, now_ns=10 * S)
    bench[A] = 0x2F
    bench[B] = UIE | H24
    assert bench.clock.next_deadline_ns() == 10 * S + S * 3 // 4
    bench[1], bench[3], bench[5] = 0x10, 0xFF, 0xFF
    bench[B] = AIE | H24
    assert bench.clock.next_deadline_ns() == 19 * S + S * 3 // 4
    bench[B] = PIE | H24
    assert bench.clock.next_deadline_ns() == 10 * S + S // 4
    bench.advance_s(0.25)
    assert bench[C] == IRQF | PF


def test_enabling_an_interrupt_that_is_due_raises_the_line() -> None:
    bench = Bench()
    bench.advance_s(1)
    bench[B] = UIE | H24
    assert bench.levels == [True]
    bench[B] = H24
    assert bench.levels == [True, False]


def test_an_idle_clock_wakes_nobody() -> None:
    bench = Bench()
    assert bench.clock.next_deadline_ns() is None
    bench[1], bench[3], bench[5] = 0, 0, 0x13
    bench[B] = AIE | H24
    assert bench.clock.next_deadline_ns() == 3600 * S


def test_the_alarm_comes_at_its_time_every_day() -> None:
    bench = Bench()
    bench[1], bench[3], bench[5] = 0x30, 0x15, 0x13
    bench[B] = AIE | H24
    bench.advance_s(75 * 60 + 29)
    assert bench.levels == []
    bench.advance_s(1)
    assert bench.levels == [True]
    assert bench[C] & AF
    assert bench.clock.next_deadline_ns() == (86_400 + 75 * 60 + 30) * S


@pytest.mark.parametrize(
    ("second", "minute", "hour", "wait_s"),
    [
        (0xFF, 0xFF, 0xFF, 1),
        (0xC0, 0xC0, 0xC0, 1),
        (0x00, 0xFF, 0xFF, 60),
        (0x30, 0xC0, 0xC0, 30),
        (0x00, 0x00, 0xFF, 3600),
        (0xFF, 0x05, 0xFF, 300),
        (0x00, 0x00, 0x12, 86_400),
        (0x59, 0x59, 0x11, 86_399),
        (0x60, 0xFF, 0xFF, None),
        (0x1A, 0xFF, 0xFF, None),
        (0xFF, 0x60, 0xFF, None),
        (0xFF, 0xFF, 0x24, None),
    ],
)
def test_alarm_bytes_and_their_dont_care(
    second: int, minute: int, hour: int, wait_s: int | None
) -> None:
    fmt = Format(binary=False, hours24=True)
    assert seconds_until_alarm(12 * 3600, (second, minute, hour), fmt) == wait_s


@given(
    st.integers(0, 86_399),
    st.tuples(st.integers(0, 0xFF), st.integers(0, 0xFF), st.integers(0, 0xFF)),
    st.sampled_from(FORMATS),
)
def test_the_alarm_is_the_first_second_that_matches(
    after: int, alarm: tuple[int, int, int], fmt: Format
) -> None:
    wait = seconds_until_alarm(after, alarm, fmt)

    def matches(second: int) -> bool:
        registers = encode(second, 0, fmt)
        shown = registers[0], registers[2], registers[4]
        return all(a >= 0xC0 or a == r for a, r in zip(alarm, shown, strict=True))

    if wait is None:
        assert not any(matches(second) for second in range(0, 86_400, 997))
    else:
        assert 1 <= wait <= 86_400
        assert matches(after + wait)
        assert not any(matches(after + s) for s in range(max(1, wait - 70), wait))


def test_set_clears_uie() -> None:
    bench = Bench()
    bench[B] = UIE | H24
    bench[B] = SET | UIE | H24
    assert bench[B] == SET | H24


def test_registers_c_and_d_are_read_only() -> None:
    bench = Bench()
    bench[C] = 0xFF
    bench[D] = 0
    assert (bench[C], bench[D]) == (0, 0x80)


def test_the_address_latch_has_the_nmi_mask_and_cannot_be_read() -> None:
    bench = Bench()
    bench.chip.write(0, 0x80 | 0x40)
    assert bench.chip.nmi_masked
    assert bench.chip.read(0) == 0xFF
    bench.chip.write(1, 0x5A)
    assert bench[0x40] == 0x5A
    assert not bench.chip.nmi_masked


def test_reset_stops_interrupts_and_keeps_time_and_memory() -> None:
    bench = Bench()
    bench[0x40] = 0x5A
    bench[B] = UIE | PIE | AIE | H24
    bench.advance_s(5)
    bench.chip.reset()
    assert bench.levels == [True, False]
    assert (bench[B], bench[C], bench[0x40]) == (H24, 0, 0x5A)
    assert bench.time() == (0x20, 0x26, 0x02, 0x28, 0x12, 0, 0x05)


def test_memory_sizes_in_cmos() -> None:
    cmos = memory_nvram(256 << 20, 5 << 30)
    assert int.from_bytes(cmos[0x15:0x17], "little") == 640
    assert int.from_bytes(cmos[0x17:0x19], "little") == 63 << 10
    assert cmos[0x30:0x32] == cmos[0x17:0x19]
    assert int.from_bytes(cmos[0x34:0x36], "little") == 240 << 4
    assert int.from_bytes(cmos[0x5B:0x5E], "little") == 5 << 14
    assert int.from_bytes(cmos[0x2E:0x30], "big") == sum(cmos[0x10:0x2E])
    assert len(cmos) == 128
    small = memory_nvram(512 << 10)
    assert int.from_bytes(small[0x15:0x17], "little") == 512
    assert not any(small[0x17:0x19])


def test_the_time_travels_with_the_snapshot() -> None:
    bench = Bench()
    bench.advance_s(1234.5)
    copy = Bench(utc_ns=0)
    copy.chip.restore(bench.chip.snapshot())
    copy.clock._now_ns = bench.clock.now_ns()
    bench.advance_s(0.5)
    copy.advance_s(0.5)
    assert copy.time() == bench.time() == (0x20, 0x26, 0x02, 0x28, 0x12, 0x20, 0x35)


@pytest.mark.parametrize(
    "change",
    [{"cmos": b"\0" * 127}, {"reg_c": 1}, {"reg_b": SET | UIE}, {"phase_ns": S}, {"reg_a": 0xA6}],
)
def test_contradictions_are_refused(change: dict[str, object]) -> None:
    bench = Bench()
    before = bench.chip.snapshot()
    with pytest.raises(CorruptStateError):
        bench.chip.restore(replace(before, **change))  # type: ignore[arg-type]
    assert bench.chip.snapshot() == before
