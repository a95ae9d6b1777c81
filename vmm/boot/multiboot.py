"""Multiboot 1 kernels with modules: GRUB's protocol for anything that is not Linux.

Source: Multiboot Specification 0.6.96. The image is an ELF file, or has load addresses in its
Multiboot header (the "a.out kludge"), which then win. Not modelled: video modes (a kernel that
would like one starts without), drives, APM and VBE tables, ELF section headers.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rayvisor.vmm.boot import e820, elf, entry
from rayvisor.vmm.boot.linux import cmdline_bytes
from rayvisor.vmm.boot.plan import EBDA_START, MemoryPlan, size_text
from rayvisor.vmm.errors import LoaderError
from rayvisor.vmm.memory import EXTENDED_START, LOW_END

if TYPE_CHECKING:
    from rayvisor.vmm.cpu_state import CpuState
    from rayvisor.vmm.spec import BootSource

LOADER_NAME: Final = b"rayvisor"
BOOT_MAGIC: Final = 0x2BADB002

_HEADER_MAGIC: Final = 0x1BADB002
_SEARCH_BYTES: Final = 8192
_HEADER_BYTES: Final = 12
_ADDRESSES_BYTES: Final = 20
_KNOWN_REQUIREMENTS: Final = 0x0007  # page-aligned modules, memory information, video mode
_REQUIREMENTS: Final = 0xFFFF
_HAS_ADDRESSES: Final = 1 << 16

_INFO_BYTES: Final = 120
_MODULE: Final = struct.Struct("<4I")
_MMAP: Final = struct.Struct("<I")
_INFO_MEMORY, _INFO_CMDLINE, _INFO_MODULES = 1 << 0, 1 << 2, 1 << 3
_INFO_MMAP, _INFO_LOADER_NAME = 1 << 6, 1 << 9
_FLAGS, _MEM_LOWER, _MEM_UPPER, _CMDLINE, _MODS_COUNT, _MODS_ADDR = 0, 4, 8, 16, 20, 24
_MMAP_LENGTH, _MMAP_ADDR, _BOOT_LOADER_NAME = 44, 48, 64


@dataclass(frozen=True, slots=True)
class Header:
    """Where the Multiboot header lies in the file, and its flags."""

    offset: int
    flags: int


def find(image: memoryview) -> Header | None:
    """The Multiboot header: in the first 8 KiB, 4-byte aligned, with a sum of 0."""
    head = bytes(image[:_SEARCH_BYTES])
    magic = _HEADER_MAGIC.to_bytes(4, "little")
    at = head.find(magic)
    while at >= 0:
        if at % 4 == 0 and at + _HEADER_BYTES <= len(head):
            _, flags, checksum = struct.unpack_from("<3I", head, at)
            if (_HEADER_MAGIC + flags + checksum) & 0xFFFF_FFFF == 0:
                return Header(at, flags)
        at = head.find(magic, at + 1)
    return None


def load(plan: MemoryPlan, image: memoryview, source: BootSource, header: Header) -> CpuState:
    """Place the kernel, its modules and the information structure.

    An initrd counts as the first module.

    Raises:
        LoaderError: the kernel demands what is not there, contradicts itself, or something does
            not fit.
    """
    unknown = header.flags & _REQUIREMENTS & ~_KNOWN_REQUIREMENTS
    if unknown:
        raise LoaderError(f"Multiboot: the kernel requires unknown features (flags {unknown:#x})")
    if header.flags & _HAS_ADDRESSES:
        rip, end = _place_by_addresses(plan, image, header)
    elif bytes(image[:4]) == elf.MAGIC:
        kernel = elf.parse(image)
        elf.place(plan, image, kernel)
        rip, end = kernel.entry, kernel.end
    else:
        raise LoaderError("Multiboot: neither an ELF file nor load addresses in the header")
    if rip >= 1 << 32:
        raise LoaderError(f"Multiboot: the entry point {rip:#x} is out of 32-bit code's reach")
    info = _write_info(plan, source, end)
    registers = {"rax": BOOT_MAGIC, "rbx": info}
    return entry.protected_mode(plan, rip=rip, registers=registers)


def _place_by_addresses(plan: MemoryPlan, image: memoryview, header: Header) -> tuple[int, int]:
    """Load as the header's five addresses say; returns the entry and the end in memory."""
    at = header.offset + _HEADER_BYTES
    if at + _ADDRESSES_BYTES > len(image):
        raise LoaderError("Multiboot: truncated: the file ends within the Multiboot header")
    header_at, start, data_end, bss_end, rip = struct.unpack_from("<5I", image, at)
    offset = header.offset - (header_at - start)
    if header_at < start or offset < 0:
        raise LoaderError(
            f"Multiboot: load address {start:#x} does not fit a header at {header_at:#x}"
        )
    count = (data_end or start + len(image) - offset) - start
    if count <= 0 or offset + count > len(image):
        raise LoaderError(
            f"Multiboot: truncated: the header asks for {size_text(max(count, 0))} from byte "
            f"{offset}, the file has {len(image)} bytes"
        )
    end = bss_end or start + count
    if end < start + count:
        raise LoaderError(f"Multiboot: the bss ends at {bss_end:#x}, before the data")
    if not start <= rip < end:
        raise LoaderError(f"Multiboot: the entry point {rip:#x} lies outside of the kernel")
    plan.claim(start, end - start, "the kernel")
    plan.ram.write(start, image[offset : offset + count])
    plan.ram.zero(start + count, end - start - count)
    return rip, end


def _string(plan: MemoryPlan, text: bytes, what: str) -> int:
    address = plan.low(len(text) + 1, what, align=4)
    plan.ram.write(address, text + b"\0")
    return address


def _write_info(plan: MemoryPlan, source: BootSource, kernel_end: int) -> int:
    modules = source.modules
    if source.initrd:
        modules = (("", bytes(source.initrd)), *modules)
    entries = bytearray()
    for text, content in modules:
        what = f"module {text or 'without a name'!r}"
        # Right above the kernel and in order: where kernels that map little memory look.
        start = plan.lowest(max(len(content), 1), what, max(kernel_end, EXTENDED_START), LOW_END)
        plan.ram.write(start, content)
        name = _string(plan, cmdline_bytes(text), "the string of a module")
        entries += _MODULE.pack(start, start + len(content), name, 0)
    mmap = bytearray()
    for item in e820.memory_map(plan.ram):
        packed = item.pack()
        mmap += _MMAP.pack(len(packed)) + packed
    info = bytearray(_INFO_BYTES)

    def put(offset: int, value: int) -> None:
        struct.pack_into("<I", info, offset, value)

    def table(content: bytearray, what: str) -> int:
        address = plan.low(max(len(content), 1), what, align=4)
        plan.ram.write(address, memoryview(content))
        return address

    flags = _INFO_MEMORY | _INFO_CMDLINE | _INFO_MODULES | _INFO_MMAP | _INFO_LOADER_NAME
    put(_FLAGS, flags)
    put(_MEM_LOWER, EBDA_START >> 10)
    put(_MEM_UPPER, (min(plan.ram.size_bytes, LOW_END) - EXTENDED_START) >> 10)
    put(_CMDLINE, _string(plan, cmdline_bytes(source.cmdline), "the command line"))
    put(_MODS_COUNT, len(modules))
    put(_MODS_ADDR, table(entries, "the module list"))
    put(_MMAP_LENGTH, len(mmap))
    put(_MMAP_ADDR, table(mmap, "the memory map"))
    put(_BOOT_LOADER_NAME, _string(plan, LOADER_NAME, "the boot loader's name"))
    return table(info, "the Multiboot information")
