"""Machine time. Chips ask a `Clock`, never the host."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rayvisor.vmm.lateness import LatenessCounter

if TYPE_CHECKING:
    from collections.abc import Callable


class AlarmSlot:
    """One alarm of an `AlarmClock`; see `rayvisor.vmm.devices.base.Alarm`."""

    __slots__ = ("_clock", "deadline_ns", "fire")

    def __init__(self, clock: AlarmClock, fire: Callable[[], None]) -> None:
        self._clock = clock
        self.fire = fire
        self.deadline_ns: int | None = None

    def arm(self, deadline_ns: int) -> None:
        """Fire once at `deadline_ns` of machine time or soon after."""
        self.deadline_ns = deadline_ns
        self._clock.alarms_changed()

    def disarm(self) -> None:
        """Do not fire."""
        if self.deadline_ns is not None:
            self.deadline_ns = None
            self._clock.alarms_changed()


class AlarmClock:
    """A clock with alarms over some source of time; a machine has a handful, so no heap."""

    def __init__(self) -> None:
        self._slots: list[AlarmSlot] = []
        self._firing = False
        self.lateness = LatenessCounter()
        """How long after their deadlines alarms have fired."""
        self.on_change: Callable[[], None] = lambda: None

    def now_ns(self) -> int:
        """Machine time in nanoseconds."""
        raise NotImplementedError

    def alarm(self, fire: Callable[[], None]) -> AlarmSlot:
        """A new alarm, disarmed."""
        slot = AlarmSlot(self, fire)
        self._slots.append(slot)
        return slot

    def forget(self, slot: AlarmSlot) -> None:
        """Take an alarm away for good."""
        self._slots.remove(slot)
        self.alarms_changed()

    def alarms_changed(self) -> None:
        """Tell the machine that the next deadline may be another one."""
        if not self._firing:  # told once, when all that is due has fired
            self.on_change()

    def next_deadline_ns(self) -> int | None:
        """The earliest armed deadline, or None."""
        slot = self._earliest()
        return None if slot is None else slot.deadline_ns

    def fire_due(self) -> None:
        """Fire every alarm whose deadline has come, earliest first."""
        now = self.now_ns()
        self._firing = True
        try:
            while (slot := self._earliest()) is not None:
                deadline = slot.deadline_ns
                if deadline is None or deadline > now:
                    break
                slot.deadline_ns = None
                self.lateness.count(now - deadline)
                slot.fire()
        finally:
            self._firing = False
        self.on_change()

    def _earliest(self) -> AlarmSlot | None:
        # An idle guest comes here some tens of times a second: no lists, no lambdas.
        earliest, first_ns = None, None
        for slot in self._slots:
            deadline = slot.deadline_ns
            if deadline is not None and (first_ns is None or deadline < first_ns):
                earliest, first_ns = slot, deadline
        return earliest


class ManualClock(AlarmClock):
    """Time that moves only when told to. For tests and for deterministic replays."""

    def __init__(self, now_ns: int = 0) -> None:
        super().__init__()
        self._now_ns = now_ns

    def now_ns(self) -> int:
        """Machine time in nanoseconds."""
        return self._now_ns

    def advance(self, delta_ns: int) -> None:
        """Move on by `delta_ns`, firing each alarm at exactly its own deadline."""
        end = self._now_ns + delta_ns
        while (deadline := self.next_deadline_ns()) is not None and deadline <= end:
            self._now_ns = max(self._now_ns, deadline)
            self.fire_due()
        self._now_ns = end


class MachineClock(AlarmClock):
    """Machine time over the host's monotonic clock. Starts paused at 0."""

    def __init__(self) -> None:
        super().__init__()
        self._elapsed_ns = 0
        self._running_since_ns: int | None = None

    def now_ns(self) -> int:
        """Machine time in nanoseconds; stands still while paused."""
        if self._running_since_ns is None:
            return self._elapsed_ns
        return self._elapsed_ns + time.monotonic_ns() - self._running_since_ns

    def host_deadline_ns(self) -> int | None:
        """The next deadline on the host's monotonic clock, or None."""
        deadline = self.next_deadline_ns()
        if deadline is None or self._running_since_ns is None:
            return None
        return deadline - self._elapsed_ns + self._running_since_ns

    def start(self) -> None:
        """Let time run. Harmless when it runs."""
        if self._running_since_ns is None:
            self._running_since_ns = time.monotonic_ns()

    def stop(self) -> None:
        """Freeze time. Harmless when it stands."""
        self._elapsed_ns = self.now_ns()
        self._running_since_ns = None

    def rebase(self, now_ns: int) -> None:
        """Continue from machine time `now_ns`, as after a restore."""
        running = self._running_since_ns is not None
        self._elapsed_ns = now_ns
        self._running_since_ns = time.monotonic_ns() if running else None
        self.alarms_changed()
