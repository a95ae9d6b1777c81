"""The memory map that a PC's firmware reports (ACPI 6.5 section 15, INT 15h AX=E820h)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from rayvisor.vmm.boot.plan import EBDA_START
from rayvisor.vmm.memory import CONVENTIONAL_END, EXTENDED_START, SHADOW_START, GuestRam

USABLE: Final = 1
RESERVED: Final = 2


@dataclass(frozen=True, slots=True)
class Entry:
    """`count` bytes from `start` on are of `kind` (USABLE or RESERVED)."""

    start: int
    count: int
    kind: int

    def pack(self) -> bytes:
        """The 20 bytes of an address range descriptor."""
        return struct.pack("<QQI", self.start, self.count, self.kind)


def memory_map(ram: GuestRam) -> tuple[Entry, ...]:
    """The map of a machine with `ram`, ascending and without overlaps.

    Not modelled: ACPI tables, and with them types 3 and 4.
    """
    entries = [
        Entry(EBDA_START, CONVENTIONAL_END - EBDA_START, RESERVED),
        Entry(SHADOW_START, EXTENDED_START - SHADOW_START, RESERVED),
    ]
    for start, count in ram.usable():
        end = EBDA_START if start < EBDA_START else start + count
        entries.append(Entry(start, end - start, USABLE))
    return tuple(sorted(entries, key=lambda entry: entry.start))
