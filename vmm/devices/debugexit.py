"""The debug exit: a byte written to port 0xF4 ends the machine and becomes its exit status.

There is no datasheet; the port is the customary one of test kernels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rayvisor.vmm.devices.checking import checked_copy

if TYPE_CHECKING:
    from collections.abc import Callable

REGISTERS = 1


@dataclass(slots=True)
class DebugExitState:
    """No registers: what is written takes effect at once."""

    SCHEMA: ClassVar[tuple[str, int]] = ("debug-exit", 1)


class DebugExit:
    """Calls `leave` with the byte written (0..255)."""

    def __init__(self, leave: Callable[[int], None]) -> None:
        self._leave = leave

    def reset(self) -> None:
        """Nothing to do."""

    def read(self, offset: int) -> int:
        """Nothing answers."""
        return 0xFF

    def write(self, offset: int, value: int) -> None:
        """Leave with `value`; further bytes of a wide access do not count."""
        if offset == 0:
            self._leave(value)

    def snapshot(self) -> DebugExitState:
        """An empty state."""
        return DebugExitState()

    def restore(self, state: DebugExitState) -> None:
        """Nothing to take over.

        Raises:
            CorruptStateError: `state` is another chip's.
        """
        checked_copy(DebugExitState, state)
