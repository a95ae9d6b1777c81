"""The timer of a local APIC: one-shot and periodic counts, and a deadline of the TSC.

Source: Intel SDM 3A 11.5.4. The counts run at the core crystal clock that CPUID leaf 15H tells of,
divided. Not modelled: counts that expire faster than every 50 us reach the processor as one, as a
slow processor would see them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final, Protocol

from rayvisor.vmm.state import copied, ranged, uint

if TYPE_CHECKING:
    from collections.abc import Callable

    from rayvisor.vmm.devices.base import Clock

ONE_SHOT, PERIODIC, TSC_DEADLINE, RESERVED = range(4)
"""Bits 18:17 of the timer's entry in the local vector table."""

CRYSTAL_HZ: Final = 1_000_000
CRYSTAL_NS: Final = 1_000_000_000 // CRYSTAL_HZ
SHORTEST_NS: Final = 50_000
HORIZON_NS: Final = 1 << 60
"""The timer looks again after this long, 36 years, at the latest."""


class Tsc(Protocol):
    """The processor's time stamp counter."""

    hz: int

    def now(self) -> int:
        """Its value, modulo 2**64."""
        ...


@dataclass(slots=True)
class ApicTimerState:
    """The registers, and when the count was what `count` says.

    A count of 0 has run out; `deadline` is in ticks of the TSC, 0 for none.
    """

    SCHEMA: ClassVar[tuple[str, int]] = ("local-apic-timer", 1)
    mode: int = ranged(ONE_SHOT, RESERVED, ONE_SHOT)
    divide: int = uint(4)
    initial: int = uint(32)
    count: int = uint(32)
    since_ns: int = uint(62)
    deadline: int = uint(64)


class ApicTimer:
    """Calls `fire` each time that it expires. Its owner checks a state before `restore`."""

    def __init__(self, clock: Clock, tsc: Tsc, fire: Callable[[], None]) -> None:
        self._clock = clock
        self._tsc = tsc
        self._fire = fire
        self._alarm = clock.alarm(self._look)
        self._s = ApicTimerState()

    def reset(self) -> None:
        """Nothing counts."""
        self._s = ApicTimerState()
        self._alarm.disarm()

    @property
    def initial(self) -> int:
        """The initial count."""
        return self._s.initial

    @property
    def mode(self) -> int:
        """What the timer's entry in the local vector table says."""
        return self._s.mode

    @property
    def divide(self) -> int:
        """The divide configuration register."""
        return self._s.divide

    def set_mode(self, mode: int) -> None:
        """One-shot and periodic counts go over into each other; a deadline ends with its mode."""
        s = self._s
        if mode == s.mode:
            return
        self._settle()
        if max(mode, s.mode) >= TSC_DEADLINE:
            s.initial = s.count = s.deadline = 0
        s.mode = mode
        self._arm()

    def set_divide(self, value: int) -> None:
        """Bits 3, 1 and 0 of `value` count; a count that runs goes on at the new pace."""
        self._settle()
        s = self._s
        s.count, s.since_ns = self.current(), self._clock.now_ns()
        s.divide = value & 0xB
        self._arm()

    def set_initial(self, value: int) -> None:
        """Start to count down from `value`, or stop at 0. Ignored where a deadline is used."""
        s = self._s
        if s.mode >= TSC_DEADLINE:
            return
        self._settle()
        s.initial = s.count = value
        s.since_ns = self._clock.now_ns()
        self._arm()

    def current(self) -> int:
        """The count now."""
        s = self._s
        left = s.count - self._ticks()
        if left > 0 or not s.count:
            return max(left, 0)
        return s.initial - -left % s.initial if s.mode == PERIODIC and s.initial else 0

    def deadline(self) -> int:
        """The TSC at which it expires, or 0."""
        self._settle()
        return self._s.deadline

    def set_deadline(self, tsc: int) -> None:
        """Expire when the TSC has reached `tsc`, at once if it has; 0 for never."""
        s = self._s
        if s.mode != TSC_DEADLINE:
            return
        self._settle()
        s.deadline = tsc
        self._look()

    def lend(self) -> int:
        """The deadline, or 0, which somebody else waits for from now on."""
        self._alarm.disarm()
        return self._s.deadline

    def take_back(self, deadline: int) -> None:
        """Wait for the deadline again, which may be another by now, or 0."""
        self._s.deadline = deadline
        self._arm()

    def snapshot(self) -> ApicTimerState:
        """A copy of the registers."""
        return copied(self._s)

    def restore(self, state: ApicTimerState) -> None:
        """Take over a state that has been checked, and re-arm."""
        self._s = copied(state)
        self._arm()

    def _period_ns(self) -> int:
        divide = self._s.divide
        shift = (divide & 3 | (divide & 8) >> 1) + 1 & 7
        return CRYSTAL_NS << shift

    def _ticks(self) -> int:
        """Ticks of the divided clock since the count was `count`."""
        return max(0, self._clock.now_ns() - self._s.since_ns) // self._period_ns()

    def _look(self) -> None:
        self._settle()
        self._arm()

    def _settle(self) -> None:
        """Expire if that is due; what was missed because the machine was late comes as one."""
        s = self._s
        if s.deadline:
            if self._tsc.now() >= s.deadline:
                s.deadline = 0
                self._fire()
            return
        over = self._ticks() - s.count
        if not s.count or over < 0:
            return
        if s.mode == PERIODIC and s.initial:
            s.since_ns += (s.count + over // s.initial * s.initial) * self._period_ns()
            s.count = s.initial
        else:
            s.count = 0
        self._fire()

    def _arm(self) -> None:
        s = self._s
        now_ns = self._clock.now_ns()
        if s.deadline:
            left = max(0, s.deadline - self._tsc.now())
            self._alarm.arm(now_ns + min(-(-left * 1_000_000_000 // self._tsc.hz), HORIZON_NS))
        elif s.count:
            due_ns = s.since_ns + s.count * self._period_ns()
            if s.mode == PERIODIC and s.initial * self._period_ns() < SHORTEST_NS:
                due_ns = max(due_ns, now_ns + SHORTEST_NS)
            self._alarm.arm(due_ns)
        else:
            self._alarm.disarm()
