"""What a PC's firmware leaves in memory below 1 MiB, as far as there is a firmware.

Sources: IBM PC/AT Technical Reference (interrupt vectors, BIOS data area), BIOS Boot
Specification 1.01. Not modelled: BIOS services. Every real-mode interrupt vector points at an
IRET, so that code that calls them goes on without having been served.
"""

from __future__ import annotations

import struct
from typing import Final

from rayvisor.vmm.boot.plan import EBDA_START, MemoryPlan
from rayvisor.vmm.memory import CONVENTIONAL_END

_AREA_BYTES: Final = 0x500
_VECTORS: Final = 256
_IRET_SEGMENT, _IRET_OFFSET = 0xF000, 0xFF53  # where the IBM PC's BIOS has its dummy handler
_IRET: Final = b"\xcf"
_COM1, _EBDA_SEGMENT, _MEMORY_KIB = 0x400, 0x40E, 0x413
_COM1_PORT: Final = 0x3F8


def write(plan: MemoryPlan) -> None:
    """Write interrupt vectors and BIOS data, and take the memory they stand in.

    Raises:
        LoaderError: some of it is taken.
    """
    plan.claim(0, _AREA_BYTES, "the BIOS data area")
    plan.claim(EBDA_START, CONVENTIONAL_END - EBDA_START, "the extended BIOS data area")
    ram = plan.ram
    ram.zero(0, _AREA_BYTES)
    ram.zero(EBDA_START, CONVENTIONAL_END - EBDA_START)
    ram.write(0, struct.pack("<HH", _IRET_OFFSET, _IRET_SEGMENT) * _VECTORS)
    ram.write((_IRET_SEGMENT << 4) + _IRET_OFFSET, _IRET)
    ram.write(_COM1, struct.pack("<H", _COM1_PORT))
    ram.write(_EBDA_SEGMENT, struct.pack("<H", EBDA_START >> 4))
    ram.write(_MEMORY_KIB, struct.pack("<H", EBDA_START >> 10))
    ram.write(EBDA_START, b"\x01")  # its size in KiB
