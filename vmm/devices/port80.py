"""Port 0x80: the diagnostic code of a PC's power-on self test, and the port to waste time on.

Source: IBM PC/AT technical reference (manufacturing test port; page register 0 of the DMA).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rayvisor.vmm.devices.checking import checked_copy
from rayvisor.vmm.state import copied, uint

REGISTERS = 1


@dataclass(slots=True)
class Port80State:
    """The byte last written."""

    SCHEMA: ClassVar[tuple[str, int]] = ("port80", 1)
    code: int = uint(8)


class Port80:
    """Remembers the byte last written, and gives it back."""

    def __init__(self) -> None:
        self._s = Port80State()

    @property
    def code(self) -> int:
        """The byte last written."""
        return self._s.code

    def reset(self) -> None:
        """Code 0."""
        self._s = Port80State()

    def read(self, offset: int) -> int:
        """The byte last written."""
        return self._s.code if offset == 0 else 0xFF

    def write(self, offset: int, value: int) -> None:
        """A diagnostic code."""
        if offset == 0:
            self._s.code = value

    def snapshot(self) -> Port80State:
        """A copy of the register."""
        return copied(self._s)

    def restore(self, state: Port80State) -> None:
        """Take over `state`.

        Raises:
            CorruptStateError: a field is out of range.
        """
        self._s = checked_copy(Port80State, state)
