"""Which guest memory a loader has given away, so that nothing lands on top of anything else."""

from __future__ import annotations

import bisect
from typing import TYPE_CHECKING, Final

from rayvisor.vmm.errors import LoaderError
from rayvisor.vmm.memory import CONVENTIONAL_END, EXTENDED_START, HIGH_START, PAGE_BYTES, GuestRam

if TYPE_CHECKING:
    from collections.abc import Iterator

LOW_START: Final = 0x1000
"""The first page is the firmware's: interrupt vectors and BIOS data area."""
EBDA_START: Final = CONVENTIONAL_END - 0x400
"""The extended BIOS data area: the last KiB of conventional memory, as BIOSes have it."""


def size_text(count: int) -> str:
    """`count` bytes for a message, such as "300.0 MiB"."""
    if count < 1 << 10:
        return f"{count} bytes"
    for shift, unit in ((30, "GiB"), (20, "MiB")):
        if count >= 1 << shift:
            return f"{count / (1 << shift):.1f} {unit}"
    return f"{count / (1 << 10):.1f} KiB"


class MemoryPlan:
    """Hands out RAM that belongs to the operating system and is not in use yet.

    Attributes:
        ram: The memory being filled.
    """

    def __init__(self, ram: GuestRam) -> None:
        """Start with all usable RAM free."""
        self.ram: Final = ram
        self._usable: Final = ram.usable()
        self._taken: list[tuple[int, int, str]] = []

    def claim(self, start: int, count: int, what: str) -> None:
        """Take exactly `count` bytes at `start` for `what`.

        Raises:
            LoaderError: part of it is not usable RAM, or is taken.
        """
        end = start + count
        where = f"{what} at {start:#x}..{end:#x}"
        if count <= 0 or not any(a <= start and end <= a + n for a, n in self._usable):
            raise LoaderError(
                f"{where} does not lie in the machine's RAM of {size_text(self.ram.size_bytes)}: "
                "give it more memory, or a kernel linked elsewhere"
            )
        at = bisect.bisect(self._taken, (start, end, what))
        for other_start, other_end, other in self._taken[max(at - 1, 0) : at + 1]:
            if start < other_end and other_start < end:
                raise LoaderError(f"{where} overlaps {other} at {other_start:#x}..{other_end:#x}")
        self._taken.insert(at, (start, end, what))

    def free(self, low: int, high: int) -> Iterator[tuple[int, int]]:
        """The free (start, end) pieces of usable RAM within low..high, ascending."""
        for start, count in self._usable:
            at, end = max(start, low), min(start + count, high)
            for taken_start, taken_end, _ in self._taken:
                if taken_end <= at:
                    continue
                if taken_start >= end:
                    break
                if taken_start > at:
                    yield at, taken_start
                at = taken_end
            if at < end:
                yield at, end

    def low(self, count: int, what: str, align: int = PAGE_BYTES) -> int:
        """`lowest` in conventional memory, above the firmware's first page."""
        return self.lowest(count, what, LOW_START, EBDA_START, align)

    def lowest(
        self, count: int, what: str, low: int, high: int = HIGH_START, align: int = PAGE_BYTES
    ) -> int:
        """Take `count` (1 or more) bytes as low as possible within low..high; returns the address.

        Raises:
            LoaderError: no free piece is large enough.
        """
        for start, end in self.free(low, high):
            at = start + -start % align
            if at + count <= end:
                self.claim(at, count, what)
                return at
        raise self._no_room(count, what)

    def highest(self, count: int, what: str, high: int, align: int = PAGE_BYTES) -> int:
        """Take `count` (1 or more) bytes as high as possible from 1 MiB to `high`.

        Raises:
            LoaderError: no free piece is large enough.
        """
        for start, end in reversed(list(self.free(EXTENDED_START, high))):
            at = (end - count) // align * align
            if at >= start:
                self.claim(at, count, what)
                return at
        raise self._no_room(count, what)

    def _no_room(self, count: int, what: str) -> LoaderError:
        return LoaderError(
            f"{what} of {size_text(count)} does not fit into the machine's "
            f"{size_text(self.ram.size_bytes)} of RAM beside the kernel: give it more memory"
        )
