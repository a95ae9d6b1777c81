"""One of the three counters of an 8254: its registers, and what they mean at a CLK tick.

Source: Intel 8254 datasheet (order number 231164), "Mode definitions". Nothing here counts:
the counting element and OUT are computed from the tick at which the count was loaded, so
no tick is ever lost. Not modelled: OUT of mode 1 falls at the trigger instead of up to one CLK
later, and the counting element read in the CLK before a load shows the count being loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rayvisor.vmm.state import flag, ranged, sint, uint

MODES = (0, 1, 2, 3, 4, 5, 2, 3)
"""The mode that bits M2..M0 of the control word select."""
RELOADING = (2, 3)
TRIGGERED = (1, 5)

RW_LSB, RW_MSB, RW_BOTH = 1, 2, 3
RUNNING = -1
TICK_BITS = 53
"""Bits of a tick number: 239 years, and as nanoseconds still below 2**63."""


@dataclass(slots=True)
class CounterState:
    """Times are in CLK ticks since machine time 0.

    `control` is the low six bits of the control word (RW, M, BCD). While `counting`, the count
    `reload` (65536 or 10000 for a written 0) was loaded at tick `origin`, and `held` is
    RUNNING, or the ticks that had elapsed when the gate stopped it. `parked` is the counting
    element otherwise. `pending` is a count of mode 2 or 3 that waits for the end of the cycle,
    or one of mode 1 or 5 that waits for a trigger (0: none).
    """

    SCHEMA: ClassVar[tuple[str, int]] = ("i8254-counter", 1)
    control: int = ranged(1 << 4, 0x3F, RW_BOTH << 4)
    gate: bool = flag(default=True)
    counting: bool = flag()
    reload: int = ranged(1, 1 << 16, 1 << 16)
    origin: int = sint(TICK_BITS + 1)
    held: int = ranged(RUNNING, (1 << TICK_BITS) - 1, RUNNING)
    pending: int = ranged(0, 1 << 16, 0)
    switch: int = sint(TICK_BITS + 1)
    """The tick at which `pending` of mode 2 or 3 is loaded, unless the gate stops the count."""
    parked: int = uint(16)
    low_byte: int = uint(8)
    write_high: bool = flag()
    read_high: bool = flag()
    count_latched: bool = flag()
    output_latch: int = uint(16)
    status_latched: bool = flag()
    status_latch: int = uint(8)
    shown: bool = flag()
    shown_tick: int = uint(TICK_BITS)
    """Whoever listens to OUT was shown level `shown`, and every rise up to `shown_tick`."""


def mode_of(c: CounterState) -> int:
    """The mode, 0..5."""
    return MODES[c.control >> 1 & 7]


def program(c: CounterState, control: int, now: int) -> None:
    """A control word for this counter (its low six bits): everything but the gate starts over."""
    c.parked = _element(c, now)
    c.control = control
    c.counting = c.write_high = c.read_high = c.count_latched = c.status_latched = False
    c.pending = 0
    c.held = RUNNING


def write_low(c: CounterState, value: int) -> bool:
    """A byte into the count register, if it is one that only waits for the next: whether it was."""
    if c.write_high or c.control >> 4 != RW_BOTH or mode_of(c) == 0:
        return False
    c.low_byte = value
    c.write_high = True
    return True


def write_byte(c: CounterState, value: int, now: int) -> None:
    """A byte into the count register that `write_low` leaves: it does something to the counter.

    The first of two bytes does so only in mode 0, where it stops the count.
    """
    access = c.control >> 4
    if access == RW_BOTH and not c.write_high:
        c.low_byte = value
        c.write_high = True
        if c.counting and c.held == RUNNING:
            c.held = max(0, now - c.origin)
        return
    c.write_high = False
    raw = value << 8 | c.low_byte if access == RW_BOTH else value << 8 * (access == RW_MSB)
    _write_count(c, _decode(raw, c.control & 1), now)


def set_gate(c: CounterState, level: bool, now: int) -> None:
    """A new level of GATE: enables counting in modes 0, 2, 3 and 4, triggers in 1, 2, 3 and 5."""
    c.gate = level
    mode = mode_of(c)
    if level and mode in TRIGGERED + RELOADING:
        if c.pending:
            c.reload, c.pending = c.pending, 0
            c.counting = True
        c.origin = now + 1
        c.held = RUNNING
    elif mode in TRIGGERED or not c.counting:
        pass
    elif not level:
        settle(c, now)
        if c.held == RUNNING:
            c.held = max(0, now - c.origin)
            # The strobe of mode 4 is one CLK long whatever the gate does.
            if mode == 4 and c.held == c.reload:
                c.held += 1
    elif c.held != RUNNING and not (mode == 0 and c.write_high):
        c.origin = max(c.origin, now - c.held)
        c.held = RUNNING


def settle(c: CounterState, now: int) -> None:
    """Take up the count that replaced `reload` at the end of a cycle that is over by `now`."""
    if c.pending and _switches(c) and c.switch <= now:
        c.origin = _origin_after_switch(c)
        c.reload, c.pending = c.pending, 0


def out_level(c: CounterState, now: int) -> bool:
    """The level of OUT. The counter must be settled."""
    mode = mode_of(c)
    if mode == 0:
        return c.counting and not c.write_high and _elapsed(c, now) >= c.reload
    if not c.counting:
        return True
    elapsed = _elapsed(c, now)
    if mode == 1:
        return elapsed >= c.reload
    if mode in RELOADING:
        if not c.gate or c.reload == 1:
            return True
        position = elapsed % c.reload
        return position != c.reload - 1 if mode == 2 else position < _high_ticks(c.reload)
    return elapsed != c.reload


def next_rise(c: CounterState, after: int) -> int | None:
    """The first tick later than `after` at which OUT rises if nothing is written, or None.

    The counter need not be settled.
    """
    if not c.counting or c.held != RUNNING:
        return None
    mode = mode_of(c)
    if mode in RELOADING:
        return _next_cycle(c, after)
    rise = c.origin + c.reload + (mode >= 4)
    return rise if rise > after else None


def read_byte(c: CounterState, now: int) -> int:
    """The latched status, else a byte of the latched count, else of the counting element."""
    if c.status_latched:
        c.status_latched = False
        return c.status_latch
    access = c.control >> 4
    value = c.output_latch if c.count_latched else _element(c, now)
    high = access == RW_MSB or (access == RW_BOTH and c.read_high)
    if access == RW_BOTH:
        c.read_high = not c.read_high
    if access != RW_BOTH or high:
        c.count_latched = False
    return value >> 8 if high else value & 0xFF


def latch_count(c: CounterState, now: int) -> None:
    """Freeze the count for reading; ignored while an earlier one is unread."""
    if not c.count_latched:
        c.output_latch = _element(c, now)
        c.count_latched = True


def latch_status(c: CounterState, now: int) -> None:
    """Freeze OUT, the null count flag and the control word; ignored while one is unread."""
    if not c.status_latched:
        null_count = not c.counting or bool(c.pending) or c.write_high or now < c.origin
        c.status_latch = out_level(c, now) << 7 | null_count << 6 | c.control
        c.status_latched = True


def _write_count(c: CounterState, count: int, now: int) -> None:
    mode = mode_of(c)
    if mode in TRIGGERED:
        c.pending = count
    elif mode in RELOADING and c.counting and (c.held != RUNNING or now >= c.origin):
        c.pending = count
        if c.held == RUNNING:
            c.switch = _end_of_cycle(c, now)
    else:
        if not c.counting or mode not in RELOADING:
            c.origin = now + 1
        c.reload = count
        c.counting = True
        c.held = RUNNING if c.gate else 0


def _decode(raw: int, bcd: int) -> int:
    """Ticks that the written count stands for. Digits above 9 count as what they weigh."""
    if not bcd:
        return raw or 1 << 16
    ones, tens, hundreds, thousands = (raw >> s & 0xF for s in (0, 4, 8, 12))
    return (ones + 10 * tens + 100 * hundreds + 1000 * thousands) % 10_000 or 10_000


def _elapsed(c: CounterState, now: int) -> int:
    return max(0, now - c.origin) if c.held == RUNNING else c.held


def _high_ticks(reload: int) -> int:
    return (reload + 1) // 2


def _element(c: CounterState, now: int) -> int:
    """The counting element as it is read: 16 bits, or four digits."""
    if not c.counting:
        return c.parked
    elapsed, reload, mode = _elapsed(c, now), c.reload, mode_of(c)
    if mode == 2:
        value = reload - elapsed % reload
    elif mode == 3:
        position = elapsed % reload
        high = _high_ticks(reload)
        into_half = position if position < high else position - high
        value = (reload & ~1) - 2 * into_half
    else:
        value = reload - elapsed
    if not c.control & 1:
        return value & 0xFFFF
    value %= 10_000
    return value % 10 | value // 10 % 10 << 4 | value // 100 % 10 << 8 | value // 1000 << 12


def _switches(c: CounterState) -> bool:
    return c.counting and c.held == RUNNING and mode_of(c) in RELOADING


def _end_of_cycle(c: CounterState, now: int) -> int:
    """The tick at which the cycle (mode 2) or the half cycle (mode 3) in progress ends."""
    position = (now - c.origin) % c.reload
    if mode_of(c) == 3 and position < _high_ticks(c.reload):
        return now - position + _high_ticks(c.reload)
    return now - position + c.reload


def _origin_after_switch(c: CounterState) -> int:
    """When a cycle of `pending` would have begun so that it is in phase at `switch`."""
    if mode_of(c) == 3 and (c.switch - c.origin) % c.reload:
        return c.switch - _high_ticks(c.pending)
    return c.switch


def _next_cycle(c: CounterState, after: int) -> int | None:
    rise = _next_multiple(c.origin, c.reload, after)
    if c.pending and (rise is None or rise > c.switch):
        rise = _next_multiple(_origin_after_switch(c), c.pending, max(after, c.switch))
    return rise


def _next_multiple(origin: int, period: int, after: int) -> int | None:
    if period == 1:
        return None
    return origin + max(1, (after - origin) // period + 1) * period
