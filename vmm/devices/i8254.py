"""The 8254 interval timer: three counters clocked at 1.193182 MHz.

Source: Intel 8254 datasheet (order number 231164). The counters themselves are in
`i8254_counter`. Not modelled: the 8254 has no RESET pin; `reset` leaves what power-on does.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from rayvisor.vmm.devices import i8254_counter as counter
from rayvisor.vmm.devices.checking import checked_copy, require
from rayvisor.vmm.devices.i8254_counter import RUNNING, CounterState
from rayvisor.vmm.state import copied, nested

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rayvisor.vmm.devices.base import Alarm, Clock, IrqLine

CLK_HZ = 1_193_182
REGISTERS = 4

CONTROL = 3
READ_BACK = 3
LATCH_COMMAND = 0
NOT_COUNT, NOT_STATUS = 0x20, 0x10

SHORTEST_PERIOD_TICKS = 60
"""Rises closer than this (50 us) reach the listener as one, as a slow CPU would see them."""

_NS = 1_000_000_000


def ticks_at(now_ns: int) -> int:
    """CLK ticks that have passed at machine time `now_ns`."""
    return now_ns * CLK_HZ // _NS


def time_of_tick_ns(tick: int) -> int:
    """The earliest machine time at which CLK tick `tick` has passed."""
    return -(-tick * _NS // CLK_HZ)


@dataclass(slots=True)
class I8254State:
    """The three counters."""

    SCHEMA: ClassVar[tuple[str, int]] = ("i8254", 1)
    counters: tuple[CounterState, ...] = nested(CounterState, 3)


class I8254:
    """Three counters with gates, latch and read-back commands; all six modes, binary and BCD.

    `outputs` are called with the level of OUT where it matters to an edge-triggered input:
    at every rise (preceded by a fall if the wire is high), and at every write. A fall that
    time alone brings is shown with the next rise. Rises that were missed because
    the machine was late are shown as one, and the next comes at its own time: the phase is
    never lost. An alarm is armed only for an output that has a listener and will rise.

    `gates` are the levels before anybody calls `set_gate`: on a PC the third is low until
    port 0x61 says otherwise.
    """

    def __init__(
        self,
        clock: Clock,
        outputs: Sequence[IrqLine | None],
        gates: tuple[bool, bool, bool] = (True, True, False),
    ) -> None:
        self._clock = clock
        self._outputs = tuple(outputs)
        self._gates = gates
        self._alarms: tuple[Alarm | None, ...] = tuple(
            None if out is None else clock.alarm(partial(self._on_alarm, n))
            for n, out in enumerate(self._outputs)
        )
        self._s = self._power_on()

    def reset(self) -> None:
        """Power-up: no counter is programmed (mode 0, OUT low); gates as constructed."""
        before = self._s.counters
        self._s = self._power_on()
        for n, out in enumerate(self._outputs):
            if out is not None and before[n].shown:
                out(False)
            self._arm(n)

    def out(self, n: int) -> bool:
        """The level of OUT of counter `n` (0..2) now."""
        now = self._tick()
        return counter.out_level(self._settled(n, now), now)

    def set_gate(self, n: int, level: bool) -> None:
        """The level of GATE of counter `n` (0..2)."""
        if level == self._s.counters[n].gate:
            return
        now = self._tick()
        self._show(n, now)
        counter.set_gate(self._s.counters[n], level, now)
        self._changed(n, now)

    def read(self, offset: int) -> int:
        """A byte of counter 0..2; the control register cannot be read."""
        if not 0 <= offset < CONTROL:
            return 0xFF
        now = self._tick()
        return counter.read_byte(self._settled(offset, now), now)

    def write(self, offset: int, value: int) -> None:
        """A byte of a count, or the control word at 3."""
        if 0 <= offset < CONTROL and counter.write_low(self._s.counters[offset], value):
            return
        now = self._tick()
        if offset == CONTROL:
            self._write_control(value, now)
        elif 0 <= offset < CONTROL:
            self._show(offset, now)
            counter.write_byte(self._s.counters[offset], value, now)
            self._changed(offset, now)

    def snapshot(self) -> I8254State:
        """A copy of the registers."""
        return _copy(self._s)

    def restore(self, state: I8254State) -> None:
        """Take over `state`, show the outputs' levels and re-arm.

        Raises:
            CorruptStateError: a field is out of range, or two contradict each other.
        """
        s = _copy(checked_copy(I8254State, state))
        for c in s.counters:
            loaded = c.counting or c.held == RUNNING
            require(CounterState, loaded, "held without a count")
            triggered = counter.mode_of(c) in counter.TRIGGERED
            require(CounterState, not triggered or c.held == RUNNING, "held by a trigger input")
            waits = triggered or (counter.mode_of(c) in counter.RELOADING and c.counting)
            require(CounterState, waits or not c.pending, "pending in a mode that never waits")
        self._s = s
        for n, out in enumerate(self._outputs):
            if out is not None:
                out(s.counters[n].shown)
            self._arm(n)

    def _power_on(self) -> I8254State:
        now = self._tick()
        return I8254State(
            counters=tuple(CounterState(gate=gate, shown_tick=now) for gate in self._gates)
        )

    def _tick(self) -> int:
        return self._clock.now_ns() * CLK_HZ // _NS

    def _write_control(self, value: int, now: int) -> None:
        n = value >> 6
        if n == READ_BACK:
            for i in range(3):
                if value >> (i + 1) & 1:
                    c = self._settled(i, now)
                    if not value & NOT_COUNT:
                        counter.latch_count(c, now)
                    if not value & NOT_STATUS:
                        counter.latch_status(c, now)
            return
        if value >> 4 & 3 == LATCH_COMMAND:
            counter.latch_count(self._settled(n, now), now)
            return
        self._show(n, now)
        counter.program(self._s.counters[n], value & 0x3F, now)
        self._changed(n, now)

    def _settled(self, n: int, now: int) -> CounterState:
        """Counter `n`, with a new count taken up if its time has come."""
        c = self._s.counters[n]
        if c.pending:
            self._show(n, now)
        return c

    def _on_alarm(self, n: int) -> None:
        c = self._s.counters[n]
        now = self._tick()
        rise = counter.next_rise(c, c.shown_tick)
        if rise is not None and rise <= now:
            self._pulse(n)
            c.shown_tick = now
        self._arm(n)

    def _show(self, n: int, now: int) -> None:
        """Settle counter `n`, and show its listener what happened to OUT until `now`."""
        c = self._s.counters[n]
        if self._outputs[n] is None:
            counter.settle(c, now)
            return
        rise = counter.next_rise(c, c.shown_tick)
        counter.settle(c, now)
        if rise is not None and rise <= now:
            self._pulse(n)
        c.shown_tick = now
        self._drive(n, now)

    def _changed(self, n: int, now: int) -> None:
        """Counter `n`, shown until `now`, has been written."""
        if self._outputs[n] is not None:
            self._drive(n, now)
            self._arm(n)

    def _drive(self, n: int, now: int) -> None:
        c = self._s.counters[n]
        level = counter.out_level(c, now)
        out = self._outputs[n]
        if level != c.shown and out is not None:
            c.shown = level
            out(level)

    def _pulse(self, n: int) -> None:
        c = self._s.counters[n]
        out = self._outputs[n]
        if out is not None:
            if c.shown:
                out(False)
            c.shown = True
            out(True)

    def _arm(self, n: int) -> None:
        alarm = self._alarms[n]
        if alarm is None:
            return
        c = self._s.counters[n]
        after = c.shown_tick
        if c.reload < SHORTEST_PERIOD_TICKS and counter.mode_of(c) in counter.RELOADING:
            after += SHORTEST_PERIOD_TICKS - c.reload
        rise = counter.next_rise(c, after)
        if rise is None:
            alarm.disarm()
        else:
            alarm.arm(time_of_tick_ns(rise))


def _copy(s: I8254State) -> I8254State:
    return copied(s, counters=tuple(copied(c) for c in s.counters))
