"""Kernel files made when a test runs: ELF, bzImage and Multiboot images, whole or wrong."""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
from dataclasses import dataclass

import lz4.block
import zstandard

_PAGE = 0x1000
_LZ4_BLOCK = 8 << 20


@dataclass(frozen=True, slots=True)
class Part:
    """One PT_LOAD segment; `memory_bytes` of None is as many as `content` has."""

    address: int
    content: bytes
    memory_bytes: int | None = None
    virtual: int | None = None
    kind: int = 1


def elf_file(
    parts: list[Part], entry: int, *, bits: int = 64, machine: int | None = None, kind: int = 2
) -> bytes:
    """An ELF file whose segments start at page boundaries of the file."""
    machine = {32: 3, 64: 62}[bits] if machine is None else machine
    header_bytes, program_bytes = (52, 32) if bits == 32 else (64, 56)
    ident = b"\x7fELF" + bytes([bits // 32, 1, 1]) + bytes(9)
    layout = "<16sHHIIIIIHHHHHH" if bits == 32 else "<16sHHIQQQIHHHHHH"
    header = struct.pack(
        layout, ident, kind, machine, 1, entry, header_bytes, 0, 0,
        header_bytes, program_bytes, len(parts), 0, 0, 0,
    )  # fmt: skip
    table, body, offset = b"", b"", _PAGE
    for part in parts:
        memory = len(part.content) if part.memory_bytes is None else part.memory_bytes
        virtual = part.address if part.virtual is None else part.virtual
        if bits == 32:
            table += struct.pack(
                "<8I", part.kind, offset, virtual, part.address, len(part.content), memory, 7, _PAGE
            )
        else:
            table += struct.pack(
                "<IIQQQQQQ", part.kind, 7, offset, virtual, part.address, len(part.content),
                memory, _PAGE,
            )  # fmt: skip
        padded = part.content + bytes(-len(part.content) % _PAGE)
        body += padded
        offset += len(padded)
    return (header + table).ljust(_PAGE, b"\0") + body


def _lz4_legacy(data: bytes) -> bytes:
    out = b"\x02\x21\x4c\x18"
    for at in range(0, len(data), _LZ4_BLOCK):
        block = lz4.block.compress(data[at : at + _LZ4_BLOCK], store_size=False)
        out += len(block).to_bytes(4, "little") + block
    return out


def _xz(data: bytes) -> bytes:
    # As the kernel's scripts/xz_wrap.sh does for x86.
    filters = [
        {"id": lzma.FILTER_X86},
        {"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 4 << 20},
    ]
    return lzma.compress(data, lzma.FORMAT_XZ, lzma.CHECK_CRC32, filters=filters)


COMPRESSIONS = {
    "gzip": lambda data: gzip.compress(data, 1),
    "xz": _xz,
    "lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE, preset=0),
    "bzip2": lambda data: bz2.compress(data, 1),
    "zstd": lambda data: zstandard.ZstdCompressor(level=1).compress(data),
    "lz4": _lz4_legacy,
}


def payload(vmlinux: bytes, compression: str) -> bytes:
    """`vmlinux` as the kernel's build packs it: compressed, and its size behind that."""
    packed = COMPRESSIONS[compression](vmlinux)
    # A gzip member ends with the size already.
    size = b"" if compression == "gzip" else len(vmlinux).to_bytes(4, "little")
    return packed + size


def bz_image(packed: bytes, **fields: int) -> bytes:
    """A bzImage with `packed` as its payload; `fields` replace header fields by name."""
    code = bytes(0x400) + packed
    code += bytes(-len(code) % 16)
    values = {
        "setup_sects": 1,
        "syssize": len(code) // 16,
        "boot_flag": 0xAA55,
        "version": 0x20F,
        "loadflags": 1,
        "code32_start": 0x10_0000,
        "initrd_addr_max": 0x7FFF_FFFF,
        "kernel_alignment": 0x20_0000,
        "relocatable_kernel": 1,
        "xloadflags": 1,
        "cmdline_size": 2047,
        "payload_offset": 0x400,
        "payload_length": len(packed),
        "pref_address": 0x100_0000,
        "init_size": 0x10_0000,
        "header_end": 0x26C,
    } | fields
    setup = bytearray((values["setup_sects"] + 1) * 512)
    setup[0x200:0x202] = bytes([0xEB, values["header_end"] - 0x202])
    setup[0x202:0x206] = b"HdrS"
    for name, (offset, code_of) in {
        "setup_sects": (0x1F1, "B"),
        "syssize": (0x1F4, "I"),
        "boot_flag": (0x1FE, "H"),
        "version": (0x206, "H"),
        "loadflags": (0x211, "B"),
        "code32_start": (0x214, "I"),
        "initrd_addr_max": (0x22C, "I"),
        "kernel_alignment": (0x230, "I"),
        "relocatable_kernel": (0x234, "B"),
        "xloadflags": (0x236, "H"),
        "cmdline_size": (0x238, "I"),
        "payload_offset": (0x248, "I"),
        "payload_length": (0x24C, "I"),
        "pref_address": (0x258, "Q"),
        "init_size": (0x260, "I"),
    }.items():
        struct.pack_into("<" + code_of, setup, offset, values[name])
    return bytes(setup) + code


def multiboot_header(flags: int = 0, addresses: tuple[int, ...] = ()) -> bytes:
    """A Multiboot 1 header with a right checksum; five `addresses` need flag bit 16."""
    magic = 0x1BADB002
    words = (magic, flags, -(magic + flags) & 0xFFFF_FFFF, *addresses)
    return struct.pack(f"<{len(words)}I", *words)
