"""System control port B (0x61) of a PC/AT.

Source: IBM PC/AT technical reference, "System control port"; Intel 82371AB (PIIX4) 4.2.9.
Not modelled: the speaker makes no sound; parity and channel checks never occur.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rayvisor.vmm.devices.checking import checked_copy
from rayvisor.vmm.state import copied, uint

if TYPE_CHECKING:
    from collections.abc import Callable

    from rayvisor.vmm.devices.base import Clock, IrqLine

REGISTERS = 1

TIMER2_GATE, WRITABLE, REFRESH, TIMER2_OUT = 0x01, 0x0F, 0x10, 0x20
REFRESHES_PER_S_TIMES_18 = 1_193_182
"""Bit 4 toggles every 18 CLK of the interval timer, 15.085 us: the refresh request."""


@dataclass(slots=True)
class Port61State:
    """The writable bits: timer 2 gate, speaker, parity check off, channel check off."""

    SCHEMA: ClassVar[tuple[str, int]] = ("port61", 1)
    control: int = uint(4)


class Port61:
    """Gate and output of the interval timer's counter 2, and the refresh toggle.

    `set_gate2` gets bit 0 when it changes, and once from `restore`; `out2` tells the level
    of counter 2's OUT.
    """

    def __init__(self, clock: Clock, *, set_gate2: IrqLine, out2: Callable[[], bool]) -> None:
        self._clock = clock
        self._set_gate2 = set_gate2
        self._out2 = out2
        self._s = Port61State()

    def reset(self) -> None:
        """Every bit low."""
        self.write(0, 0)

    def read(self, offset: int) -> int:
        """The writable bits, the refresh toggle and counter 2's OUT."""
        if offset != 0:
            return 0xFF
        refreshes = self._clock.now_ns() * REFRESHES_PER_S_TIMES_18 // (18 * 1_000_000_000)
        return (
            self._s.control
            | (REFRESH if refreshes & 1 else 0)
            | (TIMER2_OUT if self._out2() else 0)
        )

    def write(self, offset: int, value: int) -> None:
        """Bits 0..3."""
        if offset != 0:
            return
        changed = (self._s.control ^ value) & TIMER2_GATE
        self._s.control = value & WRITABLE
        if changed:
            self._set_gate2(bool(value & TIMER2_GATE))

    def snapshot(self) -> Port61State:
        """A copy of the register."""
        return copied(self._s)

    def restore(self, state: Port61State) -> None:
        """Take over `state` and drive the gate, which the timer's own state holds as well.

        Raises:
            CorruptStateError: a field is out of range.
        """
        self._s = checked_copy(Port61State, state)
        self._set_gate2(bool(self._s.control & TIMER2_GATE))
