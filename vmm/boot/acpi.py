"""The ACPI tables that tell Linux of its local APIC: RSDP, XSDT and MADT, no more.

Source: ACPI 6.5, 5.2.5 to 5.2.12. Linux takes an interrupt through the local APIC's timer only
where a table lists the processor, and Debian's cloud kernel reads no MultiProcessor table. There
is no FADT and no DSDT, for nothing here has power management: the kernel reads what is there,
finds no more, and goes on without an ACPI interpreter. Because a system that wants all of ACPI
would be misled, the tables are not put where one would search: the boot protocol alone names them.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from rayvisor.vmm.devices.local_apic import BASE_GPA

if TYPE_CHECKING:
    from rayvisor.vmm.memory import GuestRam

RSDP_GPA: Final = 0xE_8008
"""In the firmware's memory, and not on one of the 16-byte boundaries that are searched."""
_XSDT_GPA, _MADT_GPA = 0xE_8040, 0xE_8080
_CHECKSUM_AT: Final = 9
_HEADER_BYTES: Final = 36
_OEM: Final = (b"RAYVSR", b"RAYVISOR", 1, b"RAYV", 1)
_RSDP_REVISION, _RSDP_V1_BYTES, _RSDP_BYTES = 2, 20, 36
_PCAT_COMPATIBLE: Final = 1  # there are two 8259As, too
_LOCAL_APIC, _LOCAL_APIC_NMI = 0, 4
_ENABLED, _ALL_PROCESSORS, _LINT1 = 1, 0xFF, 1


def _sum_to_zero(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([-sum(data) & 0xFF]) + data[at + 1 :]


def _table(signature: bytes, revision: int, body: bytes) -> bytes:
    count = _HEADER_BYTES + len(body)
    header = struct.pack("<4sIBB6s8sI4sI", signature, count, revision, 0, *_OEM)
    return _sum_to_zero(header + body, _CHECKSUM_AT)


def _madt() -> bytes:
    body = struct.pack("<II", BASE_GPA, _PCAT_COMPATIBLE)
    body += struct.pack("<BBBBI", _LOCAL_APIC, 8, 0, 0, _ENABLED)
    body += struct.pack("<BBBHB", _LOCAL_APIC_NMI, 6, _ALL_PROCESSORS, 0, _LINT1)
    return _table(b"APIC", 5, body)


def _rsdp() -> bytes:
    start = struct.pack("<8sB6sBI", b"RSD PTR ", 0, _OEM[0], _RSDP_REVISION, 0)
    whole = _sum_to_zero(start, 8) + struct.pack("<IQBxxx", _RSDP_BYTES, _XSDT_GPA, 0)
    return _sum_to_zero(whole, 32)


def write(ram: GuestRam) -> int:
    """Write the tables into the firmware's memory; the RSDP's address."""
    ram.write(RSDP_GPA, _rsdp())
    ram.write(_XSDT_GPA, _table(b"XSDT", 1, struct.pack("<Q", _MADT_GPA)))
    ram.write(_MADT_GPA, _madt())
    return RSDP_GPA
