"""Linux: boot_params, command line and initrd, and the two entries that need no real mode.

Source: Documentation/arch/x86/boot.rst and zero-page.rst of the kernel. Not modelled: the
16-bit entry, EFI, setup_data, a video mode (screen_info stays zero, which the kernel takes for
"no VGA"), initrds above 4 GiB.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rayvisor.vmm.boot import acpi, e820, elf, entry
from rayvisor.vmm.boot.plan import EBDA_START, MemoryPlan, size_text
from rayvisor.vmm.errors import LoaderError
from rayvisor.vmm.memory import EXTENDED_START, LOW_END, PAGE_BYTES

if TYPE_CHECKING:
    from mmap import mmap

    from rayvisor.vmm.cpu_state import CpuState
    from rayvisor.vmm.spec import BootSource

HEADER_START: Final = 0x1F1
HEADER_MAX_END: Final = 0x290
BOOT_FLAG: Final = 0xAA55
HEADER_MAGIC: Final = b"HdrS"

_SIGNATURE_AT: Final = 0x1FE
_ACPI_RSDP: Final = 0x070
_EXT_RAMDISK_IMAGE, _EXT_RAMDISK_SIZE, _EXT_CMD_LINE_PTR = 0x0C0, 0x0C4, 0x0C8
_EXT_MEM_K, _ALT_MEM_K, _E820_ENTRIES, _E820_TABLE = 0x002, 0x1E0, 0x1E8, 0x2D0
_VID_MODE, _MAGIC_AT, _VERSION, _TYPE_OF_LOADER, _LOADFLAGS = 0x1FA, 0x202, 0x206, 0x210, 0x211
_CODE32_START, _RAMDISK_IMAGE, _RAMDISK_SIZE = 0x214, 0x218, 0x21C
_EXT_LOADER, _CMD_LINE_PTR, _CMDLINE_SIZE = 0x226, 0x228, 0x238
_HARDWARE_SUBARCH, _SETUP_DATA = 0x23C, 0x250
_LOADER_UNDEFINED, _LOADED_HIGH, _VIDEO_NORMAL = 0xFF, 0x01, 0xFFFF
_U32_MAX: Final = 0xFFFF_FFFF


@dataclass(frozen=True, slots=True)
class Protocol:
    """What a kernel's setup header asks of its loader; the defaults are for a bare vmlinux.

    `header` is the setup header as it stands in the file, from offset 1F1h on. The highest
    address an initrd may use is `initrd_max`; a command line has at most `cmdline_max` bytes.
    """

    initrd_max: int
    cmdline_max: int = 2047
    version: int = 0x20F
    header: bytes = b""


VMLINUX: Final = {32: Protocol(initrd_max=0x37FF_FFFF), 64: Protocol(initrd_max=0x7FFF_FFFF)}
"""By word size. A 32-bit kernel wants its initrd in low memory, 896 MiB less its own needs."""


def start_vmlinux(
    plan: MemoryPlan, image: memoryview, source: BootSource, protocol: Protocol | None = None
) -> CpuState:
    """Place the kernel ELF file `image` and enter it as its decompressor would.

    Raises:
        LoaderError: the ELF file is unusable, or something does not fit.
    """
    kernel = elf.parse(image)
    elf.place(plan, image, kernel)
    return start(plan, source, protocol or VMLINUX[kernel.bits], bits=kernel.bits, rip=kernel.entry)


def start(
    plan: MemoryPlan,
    source: BootSource,
    protocol: Protocol,
    *,
    bits: int,
    rip: int,
    code_start: int = EXTENDED_START,
) -> CpuState:
    """Write what a kernel that is already in memory is told, and enter it at `rip`.

    Args:
        plan: Where the kernel lies already.
        source: The command line and the initrd.
        protocol: The kernel's own wishes.
        bits: 64 to enter in long mode, 32 for protected mode.
        rip: The physical address of the entry.
        code_start: Where the protected-mode part of a bzImage lies.

    Raises:
        LoaderError: the command line is too long, or something does not fit.
    """
    if rip > _U32_MAX:
        raise LoaderError(f"the kernel's entry {rip:#x} lies above 4 GiB: link it below")
    params = bytearray(PAGE_BYTES)
    _put_header(params, protocol)
    _u32(params, _CODE32_START, code_start)
    _put_memory(params, plan)
    struct.pack_into("<Q", params, _ACPI_RSDP, acpi.write(plan.ram))
    _put_cmdline(params, plan, source.cmdline, protocol)
    _put_initrd(params, plan, source.initrd, protocol)
    address = plan.low(len(params), "boot_params")
    plan.ram.write(address, memoryview(params))
    mode = entry.long_mode if bits == 64 else entry.protected_mode
    return mode(plan, rip=rip, registers={"rsi": address})


def _u32(params: bytearray, offset: int, value: int) -> None:
    struct.pack_into("<I", params, offset, value)


def _put_header(params: bytearray, protocol: Protocol) -> None:
    header = protocol.header[: HEADER_MAX_END - HEADER_START]
    params[HEADER_START : HEADER_START + len(header)] = header
    struct.pack_into("<H", params, _SIGNATURE_AT, BOOT_FLAG)
    params[_MAGIC_AT : _MAGIC_AT + len(HEADER_MAGIC)] = HEADER_MAGIC
    struct.pack_into("<H", params, _VERSION, protocol.version)
    struct.pack_into("<H", params, _VID_MODE, _VIDEO_NORMAL)
    params[_TYPE_OF_LOADER] = _LOADER_UNDEFINED
    # No other flag: KASLR_FLAG is the decompressor's to set, the heap is the 16-bit code's.
    params[_LOADFLAGS] = _LOADED_HIGH
    struct.pack_into("<H", params, _EXT_LOADER, 0)
    _u32(params, _HARDWARE_SUBARCH, 0)
    struct.pack_into("<Q", params, _SETUP_DATA, 0)


def _put_memory(params: bytearray, plan: MemoryPlan) -> None:
    entries = e820.memory_map(plan.ram)
    params[_E820_ENTRIES] = len(entries)
    table = b"".join(item.pack() for item in entries)
    params[_E820_TABLE : _E820_TABLE + len(table)] = table
    extended_kib = (min(plan.ram.size_bytes, LOW_END) - EXTENDED_START) >> 10
    struct.pack_into("<H", params, _EXT_MEM_K, min(extended_kib, 0xFFFF))
    _u32(params, _ALT_MEM_K, extended_kib)


def cmdline_bytes(text: str) -> bytes:
    """`text` as a guest gets it, without its terminating NUL.

    Raises:
        LoaderError: it cannot be a C string.
    """
    try:
        line = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise LoaderError(f"the command line cannot be encoded: {error.reason}") from error
    if b"\0" in line:
        raise LoaderError(f"the command line has a NUL character at {line.index(0)}: remove it")
    return line


def _put_cmdline(params: bytearray, plan: MemoryPlan, text: str, protocol: Protocol) -> None:
    line = cmdline_bytes(text)
    if len(line) > protocol.cmdline_max:
        raise LoaderError(
            f"the command line has {len(line)} bytes, this kernel's limit is "
            f"{protocol.cmdline_max}: shorten it"
        )
    address = plan.low(len(line) + 1, "the command line", align=16)
    plan.ram.write(address, line + b"\0")
    _u32(params, _CMD_LINE_PTR, address)
    _u32(params, _EXT_CMD_LINE_PTR, 0)
    _u32(params, _CMDLINE_SIZE, min(protocol.cmdline_max, EBDA_START))


def _put_initrd(
    params: bytearray, plan: MemoryPlan, initrd: bytes | mmap, protocol: Protocol
) -> None:
    address = 0
    if initrd:
        what = "the initrd"
        if len(initrd) > plan.ram.size_bytes:
            raise LoaderError(
                f"the initrd of {size_text(len(initrd))} is larger than the machine's memory of "
                f"{size_text(plan.ram.size_bytes)}: give it more memory"
            )
        address = plan.highest(len(initrd), what, min(protocol.initrd_max + 1, LOW_END))
        plan.ram.write(address, memoryview(initrd))
    _u32(params, _RAMDISK_IMAGE, address & _U32_MAX)
    _u32(params, _RAMDISK_SIZE, len(initrd) & _U32_MAX)
    _u32(params, _EXT_RAMDISK_IMAGE, address >> 32)
    _u32(params, _EXT_RAMDISK_SIZE, len(initrd) >> 32)
