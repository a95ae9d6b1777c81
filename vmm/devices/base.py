"""What a chip may know of the rest of the machine, and what the machine asks of a chip."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

IrqLine = Callable[[bool], None]
"""An interrupt wire: called with its level. Calling it with the level it has is harmless."""

ByteSink = Callable[[bytes], None]
"""Where a chip's output bytes go. It never blocks."""


class Alarm(Protocol):
    """A one-shot callback at a machine time. Firing disarms it."""

    def arm(self, deadline_ns: int) -> None:
        """Fire once at machine time `deadline_ns` or soon after; replaces an earlier deadline."""

    def disarm(self) -> None:
        """Do not fire. Harmless when not armed."""


class Clock(Protocol):
    """Machine time: starts at 0 at power-on, stands still while the machine is paused."""

    def now_ns(self) -> int:
        """Machine time in nanoseconds. Never runs backwards."""
        ...

    def alarm(self, fire: Callable[[], None]) -> Alarm:
        """A new alarm, disarmed, that calls `fire` on the machine's own thread."""
        ...


class Device(Protocol):
    """A chip with byte-wide registers: five verbs, and nothing about where it is wired.

    A chip belongs to its machine's thread. It never raises for what a guest does: accesses
    that real hardware ignores are ignored, reads of nothing give 0xFF.
    """

    def reset(self) -> None:
        """The state that the chip's RESET pin leaves."""

    def read(self, offset: int) -> int:
        """The byte at register `offset` (0..count-1 of the range it is mapped at)."""
        ...

    def write(self, offset: int, value: int) -> None:
        """Write the byte `value` (0..255) to register `offset`."""

    def snapshot(self) -> Any:  # noqa: ANN401 - each chip has its own state class
        """A copy of the registers: a dataclass as rayvisor.vmm.state describes."""
        ...

    def restore(self, state: Any) -> None:  # noqa: ANN401 - each chip has its own state class
        """Take over `state`, drive the output lines and re-arm alarms accordingly.

        Raises:
            CorruptStateError: `state` is untrusted and is checked first; on error the
                chip is unchanged.
        """
