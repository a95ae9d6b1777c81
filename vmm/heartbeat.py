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
    """Calls `expire` with the reason when the console was silent for `period_s` of machine time.

    A period of 0 is for ever.

    Machine time stands still while the guest is paused or moves, so neither counts as silence.
    Booting does: the period must be longer than the longest pause in a boot's output.
    """

    def __init__(self, clock: Clock, period_s: float, expire: Callable[[str], None]) -> None:
        self._clock = clock
        self._period_ns = int(period_s * 1e9)
        self._expire = expire
        self._alarm = clock.alarm(self._look)
        self._heard_ns = 0

    def start(self) -> None:
        """Begin to listen. The machine's thread, each time it begins to run."""
        self._heard_ns = self._clock.now_ns()
        if self._period_ns:
            self._alarm.arm(self._heard_ns + self._period_ns)

    def set_period(self, period_s: float) -> None:
        """Wait so long from now on, beginning now. The machine's thread."""
        self._alarm.disarm()
        self._period_ns = int(period_s * 1e9)
        self.start()

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
        self._expire(f"its console said nothing for {self._period_ns / 1e9:g} s")
