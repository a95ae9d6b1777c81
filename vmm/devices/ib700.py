"""The watchdog of the IB700 single-board computer: two ports, a down counter, a reset.

Source: iBASE IB700 user's manual, "Watchdog timer configuration": a write to port 443H sets the
time-out and starts the timer, or starts it again; a write to port 441H stops it. The low four bits
of what is written are the time-out, 0FH being 0 seconds, 0EH 2 seconds, and so on down to 0 being
30 seconds. Linux drives it by `ib700wdt`. Not modelled: nothing, the chip has no more. Reads give
ones, as a port that nothing answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final

from rayvisor.vmm.devices.checking import checked_copy, require
from rayvisor.vmm.state import copied, flag, uint

if TYPE_CHECKING:
    from collections.abc import Callable

    from rayvisor.vmm.devices.base import Clock

REGISTERS: Final = 2
"""Offsets: 0 start (port 0x443), 1 stop (port 0x441)."""

START, STOP = 0, 1
STEP_NS: Final = 2_000_000_000
LONGEST_NS: Final = 15 * STEP_NS


def timeout_ns(value: int) -> int:
    """The time-out that a byte written to the start port asks for."""
    return LONGEST_NS - (value & 0x0F) * STEP_NS


@dataclass(slots=True)
class Ib700State:
    """Whether it counts, and the machine time at which it expires."""

    SCHEMA: ClassVar[tuple[str, int]] = ("ib700", 1)
    running: bool = flag()
    deadline_ns: int = uint(62)


class Ib700:
    """Calls `expire` when the guest has let the time-out pass; it has stopped counting then.

    Machine time counts: a guest that is paused, or on its way to another host, is not late.
    """

    def __init__(self, clock: Clock, expire: Callable[[], None]) -> None:
        self._clock = clock
        self._expire = expire
        self._alarm = clock.alarm(self._expired)
        self._s = Ib700State()

    def reset(self) -> None:
        """Stopped, as after power-on."""
        self._s = Ib700State()
        self._alarm.disarm()

    def read(self, offset: int) -> int:
        """Nothing answers."""
        return 0xFF

    def write(self, offset: int, value: int) -> None:
        """Start or start again at 0, stop at 1."""
        if offset == START:
            deadline_ns = self._clock.now_ns() + timeout_ns(value)
            self._s = Ib700State(running=True, deadline_ns=deadline_ns)
            self._alarm.arm(deadline_ns)
        elif offset == STOP:
            self.reset()

    def snapshot(self) -> Ib700State:
        """A copy of the registers."""
        return copied(self._s)

    def restore(self, state: Ib700State) -> None:
        """Take over `state` and re-arm.

        Raises:
            CorruptStateError: a field is out of range, or it stands and has a deadline.
        """
        s = checked_copy(Ib700State, state)
        require(Ib700State, s.running or not s.deadline_ns, "a deadline, although it stands")
        self._s = s
        if s.running:
            self._alarm.arm(s.deadline_ns)
        else:
            self._alarm.disarm()

    def _expired(self) -> None:
        self._s = Ib700State()
        self._expire()
