"""A guest that says nothing for too long hangs: what its console says is its heartbeat.

For guests without a driver for the watchdog chip. Anything that writes to the console now and then
does as the guest's half of it: a shell loop, a log.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from rayvisor.vmm.devices.base import Clock


class ConsoleHeartbeat:
    """Calls `expire` when the console has been silent for `period_ns` of machine time.

    Machine time stands still while the guest is paused or moves, so neither counts as silence.
    Booting does: the period must be longer than the longest pause in a boot's output.
    """

    def __init__(self, clock: Clock, period_ns: int, expire: Callable[[], None]) -> None:
        self._clock = clock
        self._period_ns = period_ns
        self._expire = expire
        self._alarm = clock.alarm(self._look)
        self._heard_ns = 0

    def start(self) -> None:
        """Begin to listen. The machine's thread, each time it begins to run."""
        self._heard_ns = self._clock.now_ns()
        self._alarm.arm(self._heard_ns + self._period_ns)

    def beat(self) -> None:
        """The console said something. The machine's thread."""
        # The alarm is moved when it fires: a byte costs a look at the clock and no more.
        self._heard_ns = self._clock.now_ns()

    def _look(self) -> None:
        due_ns = self._heard_ns + self._period_ns
        if due_ns > self._clock.now_ns():
            self._alarm.arm(due_ns)
            return
        self.start()
        self._expire()
