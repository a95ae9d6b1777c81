"""System control port A (0x92) of a PS/2 and everything after it: fast A20 and fast reset.

Source: IBM PS/2 hardware interface technical reference, "System control port A". Not modelled:
the security lock and the fixed-disk light (bits 3, 6 and 7) are plain bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rayvisor.vmm.devices.checking import checked_copy
from rayvisor.vmm.state import copied, uint

if TYPE_CHECKING:
    from collections.abc import Callable

REGISTERS = 1

FAST_RESET, FAST_A20 = 0x01, 0x02


@dataclass(slots=True)
class Port92State:
    """The byte last written."""

    SCHEMA: ClassVar[tuple[str, int]] = ("port92", 1)
    control: int = uint(8)


class Port92:
    """`a20` gets bit 1 when it changes, and once from `restore`; a rise of bit 0 calls `reset`.

    On a PC, address line 20 is let through if either this or the keyboard controller says so.
    """

    def __init__(self, *, a20: Callable[[bool], None], reset: Callable[[], None]) -> None:
        self._a20 = a20
        self._reset = reset
        self._s = Port92State()

    def reset(self) -> None:
        """Every bit low."""
        self.write(0, 0)

    def read(self, offset: int) -> int:
        """The byte last written."""
        return self._s.control if offset == 0 else 0xFF

    def write(self, offset: int, value: int) -> None:
        """Bit 1 is A20, a rise of bit 0 pulses the CPU's reset line."""
        if offset != 0:
            return
        changed = self._s.control ^ value
        self._s.control = value
        if changed & FAST_A20:
            self._a20(bool(value & FAST_A20))
        if changed & value & FAST_RESET:
            self._reset()

    def snapshot(self) -> Port92State:
        """A copy of the register."""
        return copied(self._s)

    def restore(self, state: Port92State) -> None:
        """Take over `state` and drive A20.

        Raises:
            CorruptStateError: a field is out of range.
        """
        self._s = checked_copy(Port92State, state)
        self._a20(bool(self._s.control & FAST_A20))
