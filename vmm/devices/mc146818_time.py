"""Between seconds since 1970 and the clock registers of an MC146818.

Source: Motorola MC146818A datasheet, table 3 (register formats); the century byte at 0x32
is IBM's. The calendar is the Gregorian one, without the chip's daylight-saving option.
"""

from __future__ import annotations

from typing import NamedTuple

SECONDS, MINUTES, HOURS, DAY_OF_WEEK, DAY, MONTH, YEAR, CENTURY = 0, 2, 4, 6, 7, 8, 9, 0x32
TIME_REGISTERS = (SECONDS, MINUTES, HOURS, DAY_OF_WEEK, DAY, MONTH, YEAR, CENTURY)

DAY_S = 86_400
PM = 0x80
DONT_CARE = 0xC0


class Format(NamedTuple):
    """How register B says that the time is written: DM and 24/12."""

    binary: bool
    hours24: bool

    def number(self, value: int) -> int:
        """The register byte of a number below 100."""
        return value if self.binary else value // 10 % 10 << 4 | value % 10

    def value(self, byte: int) -> int:
        """The number in a register byte; digits above 9 count as what they weigh."""
        return byte if self.binary else (byte >> 4) * 10 + (byte & 0xF)

    def hour(self, hour: int) -> int:
        """The hours register for 0..23."""
        if self.hours24:
            return self.number(hour)
        return self.number((hour + 11) % 12 + 1) | (PM if hour >= 12 else 0)

    def hour_value(self, byte: int) -> int:
        """The hour in an hours register."""
        if self.hours24:
            return self.value(byte)
        return self.value(byte & ~PM) % 12 + (12 if byte & PM else 0)


def encode(second: int, weekday_shift: int, fmt: Format) -> dict[int, int]:
    """The time registers at `second` since 1970.

    `weekday_shift` (0..6) is how far the guest has set the day of the week from Sunday = 1.
    """
    day_number, second_of_day = divmod(second, DAY_S)
    year, month, day = _civil(day_number)
    hour, rest = divmod(second_of_day, 3600)
    return {
        SECONDS: fmt.number(rest % 60),
        MINUTES: fmt.number(rest // 60),
        HOURS: fmt.hour(hour),
        DAY_OF_WEEK: fmt.number((day_number + 4 + weekday_shift) % 7 + 1),
        DAY: fmt.number(day),
        MONTH: fmt.number(month),
        YEAR: fmt.number(year % 100),
        CENTURY: fmt.number(year // 100 % 100),
    }


def decode(registers: bytes | bytearray, fmt: Format) -> tuple[int, int]:
    """Seconds since 1970 and the weekday shift of the time registers in `registers`.

    What is no date (the 31st of February, minute 70) runs over into the next unit.
    """
    year = fmt.value(registers[CENTURY]) * 100 + fmt.value(registers[YEAR])
    months = year * 12 + fmt.value(registers[MONTH]) - 1
    day_number = _days(months // 12, months % 12 + 1) + fmt.value(registers[DAY]) - 1
    second = (
        day_number * DAY_S
        + fmt.hour_value(registers[HOURS]) * 3600
        + fmt.value(registers[MINUTES]) * 60
        + fmt.value(registers[SECONDS])
    )
    weekday = fmt.value(registers[DAY_OF_WEEK]) - 1
    return second, (weekday - second // DAY_S - 4) % 7


def seconds_until_alarm(after: int, alarm: tuple[int, int, int], fmt: Format) -> int | None:
    """From second `after` to the next one, at least 1 later, that the alarm registers match.

    `alarm` are the seconds, minutes and hours alarm bytes; the two highest bits of one set
    mean any value. None if no time ever matches.
    """
    second_byte, minute_byte, hour_byte = alarm
    seconds = [v for v in range(60) if second_byte >= DONT_CARE or fmt.number(v) == second_byte]
    minutes = [v for v in range(60) if minute_byte >= DONT_CARE or fmt.number(v) == minute_byte]
    hours = [v for v in range(24) if hour_byte >= DONT_CARE or fmt.hour(v) == hour_byte]
    if not (seconds and minutes and hours):
        return None
    start = (after + 1) % DAY_S
    hour, rest = divmod(start, 3600)
    minute, second = divmod(rest, 60)
    found = _first_at_least((hour, minute, second), (hours, minutes, seconds))
    if found is None:
        return DAY_S - start + hours[0] * 3600 + minutes[0] * 60 + seconds[0] + 1
    return found[0] * 3600 + found[1] * 60 + found[2] - start + 1


def _first_at_least(
    start: tuple[int, int, int], allowed: tuple[list[int], list[int], list[int]]
) -> tuple[int, int, int] | None:
    """The smallest (hour, minute, second) out of `allowed` that is not before `start`."""
    hours, minutes, seconds = allowed
    for hour in (h for h in hours if h >= start[0]):
        if hour > start[0]:
            return hour, minutes[0], seconds[0]
        for minute in (m for m in minutes if m >= start[1]):
            if minute > start[1]:
                return hour, minute, seconds[0]
            for second in (s for s in seconds if s >= start[2]):
                return hour, minute, second
    return None


def _days(year: int, month: int) -> int:
    """Days from 1970-01-01 to the first of a month (1..12) of the Gregorian calendar."""
    # Years are counted from March, so that the leap day is the last one.
    y = year - (month <= 2)
    day_of_year = (153 * ((month + 9) % 12) + 2) // 5
    return 365 * y + y // 4 - y // 100 + y // 400 + day_of_year - 719_468


def _civil(day_number: int) -> tuple[int, int, int]:
    """Year, month and day of a day counted from 1970-01-01."""
    shifted = day_number + 719_468
    era, day_of_era = divmod(shifted, 146_097)
    year_of_era = (
        day_of_era - day_of_era // 1_460 + day_of_era // 36_524 - day_of_era // 146_096
    ) // 365
    day_of_year = day_of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    shifted_month = (5 * day_of_year + 2) // 153
    day = day_of_year - (153 * shifted_month + 2) // 5 + 1
    month = (shifted_month + 2) % 12 + 1
    return era * 400 + year_of_era + (month <= 2), month, day
