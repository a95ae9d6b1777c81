"""Flat binaries: boot sectors and other raw code at 0000:7C00, and BIOS images at the reset vector.

Sources: BIOS Boot Specification 1.01 section 6.5 (registers at a boot sector's start), Intel
SDM 3A 9.1.4 (the first instruction). Not modelled: BIOS services (see firmware.py), and a ROM
window below 4 GiB.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rayvisor.vmm.boot import entry, firmware
from rayvisor.vmm.boot.plan import EBDA_START, MemoryPlan, size_text
from rayvisor.vmm.errors import LoaderError
from rayvisor.vmm.memory import EXTENDED_START

if TYPE_CHECKING:
    from rayvisor.vmm.cpu_state import CpuState

LOAD_ADDRESS: Final = 0x7C00
MAX_BYTES: Final = EBDA_START - LOAD_ADDRESS

_SECTOR_BYTES: Final = 512
_BOOT_SIGNATURE: Final = b"\x55\xaa"
_FIRST_DISK: Final = 0x80

_ROM_UNIT_BYTES: Final = 64 << 10
_ROM_MAX_BYTES: Final = 16 << 20
_ROM_WINDOW_BYTES: Final = 128 << 10
_JUMPS: Final = (0xE9, 0xEA)
_ROM_CODE_BASE: Final = 0xF_0000


def is_boot_sector(image: memoryview) -> bool:
    """Whether `image` starts with a sector that ends in 55h AAh."""
    return bytes(image[_SECTOR_BYTES - 2 : _SECTOR_BYTES]) == _BOOT_SIGNATURE


def is_rom(image: memoryview) -> bool:
    """Whether `image` is as large as a BIOS and has a jump at its reset vector."""
    size = len(image)
    return 0 < size <= _ROM_MAX_BYTES and size % _ROM_UNIT_BYTES == 0 and image[size - 16] in _JUMPS


def load(plan: MemoryPlan, image: memoryview) -> CpuState:
    """Put `image` at 0000:7C00 and start it there in real mode, DL = 80h, stack below it.

    Raises:
        LoaderError: it is empty or does not fit below 639 KiB.
    """
    if not image:
        raise LoaderError("the flat binary is empty")
    if len(image) > MAX_BYTES:
        raise LoaderError(
            f"the flat binary of {size_text(len(image))} does not fit between 0000:7C00 and the "
            f"end of conventional memory: it may have {size_text(MAX_BYTES)}"
        )
    firmware.write(plan)
    plan.claim(LOAD_ADDRESS, len(image), "the flat binary")
    plan.ram.write(LOAD_ADDRESS, image)
    registers = {"rdx": _FIRST_DISK, "rsp": LOAD_ADDRESS}
    return entry.real_mode(code_base=0, ip=LOAD_ADDRESS, registers=registers)


def load_rom(plan: MemoryPlan, image: memoryview) -> CpuState:
    """Put the last 128 KiB of the BIOS `image` below 1 MiB and start it as RESET does."""
    window = image[-_ROM_WINDOW_BYTES:]
    plan.ram.write(EXTENDED_START - len(window), window)
    return entry.reset_vector(_ROM_CODE_BASE)
