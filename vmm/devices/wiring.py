"""What joins wires on a board where no chip does."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rayvisor.vmm.devices.base import IrqLine


class WiredOr:
    """A wire that is high while any of its inputs is, as address line 20 of a PC.

    It has no state: the chips at its inputs drive it anew when they are restored.
    """

    def __init__(self, output: IrqLine) -> None:
        self._output = output
        self._high = 0
        self._inputs = 0

    def input(self, *, high: bool = False) -> IrqLine:
        """Another input, which has the level `high` until it is driven."""
        bit = 1 << self._inputs
        self._inputs += 1
        if high:
            self._high |= bit

        def drive(level: bool) -> None:
            self._high = self._high | bit if level else self._high & ~bit
            self._output(self._high != 0)

        return drive
