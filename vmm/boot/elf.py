"""Executable ELF kernels: what they are for, and their segments at physical addresses.

Source: System V ABI, edition 4.1, chapters 4 and 5, and its AMD64 supplement. Not modelled:
sections, symbols, relocation (a kernel runs where it was linked), the PVH entry note.
"""

from __future__ import annotations

import itertools
import struct
from dataclasses import dataclass
from typing import Final

from rayvisor.vmm.boot.plan import MemoryPlan, size_text
from rayvisor.vmm.errors import LoaderError

MAGIC: Final = b"\x7fELF"

_MACHINES: Final = {
    2: "SPARC", 3: "i386", 8: "MIPS", 20: "PowerPC", 21: "64-bit PowerPC", 22: "S/390",
    40: "ARM", 43: "64-bit SPARC", 50: "Itanium", 62: "x86-64", 183: "ARM64", 243: "RISC-V",
    258: "LoongArch",
}  # fmt: skip
_I386, _X86_64 = 3, 62
_KINDS: Final = {1: "object file", 2: "executable", 3: "shared object", 4: "core dump"}
_EXECUTABLE: Final = 2
_PT_LOAD, _PT_INTERP = 1, 3
_MAX_PROGRAM_HEADERS: Final = 128

_HEADER: Final = {32: struct.Struct("<16sHHIIIIIHHHHHH"), 64: struct.Struct("<16sHHIQQQIHHHHHH")}
_PROGRAM: Final = {32: struct.Struct("<8I"), 64: struct.Struct("<IIQQQQQQ")}


@dataclass(frozen=True, slots=True)
class Segment:
    """`file_bytes` of the file from `offset` on, then zeros up to `memory_bytes`, at `address`."""

    address: int
    virtual: int
    offset: int
    file_bytes: int
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Elf:
    """A kernel: 32 or 64 `bits`, its physical `entry` and its loadable segments."""

    bits: int
    entry: int
    segments: tuple[Segment, ...]

    @property
    def end(self) -> int:
        """The physical address after its last byte in memory."""
        return max(segment.address + segment.memory_bytes for segment in self.segments)


@dataclass(frozen=True, slots=True)
class _Header:
    bits: int
    kind: int
    machine: int
    entry: int
    program_offset: int
    program_entry_bytes: int
    program_count: int


def _header(image: memoryview) -> _Header:
    if bytes(image[:4]) != MAGIC or len(image) < 16:
        raise LoaderError(f"ELF: a file of {len(image)} bytes has no complete ELF header")
    if image[4] not in (1, 2) or image[5] not in (1, 2):
        raise LoaderError(f"ELF: class {image[4]} with byte order {image[5]} does not exist")
    bits = 32 * image[4]
    layout = _HEADER[bits]
    if len(image) < layout.size:
        raise LoaderError(f"ELF: truncated: a file of {len(image)} bytes has no complete header")
    if image[5] == 2:
        machine = int.from_bytes(image[18:20], "big")
        return _Header(bits, 0, machine, 0, 0, 0, 0)
    _, kind, machine, _, entry, offset, _, _, _, entry_bytes, count, *_ = layout.unpack_from(image)
    return _Header(bits, kind, machine, entry, offset, entry_bytes, count)


def describe(image: memoryview) -> str:
    """One phrase for a message, such as "a 64-bit ELF executable for ARM64"."""
    try:
        header = _header(image)
    except LoaderError:
        return "a damaged ELF file"
    kind = _KINDS.get(header.kind, "file")
    machine = _MACHINES.get(header.machine, f"machine type {header.machine}")
    return f"a {header.bits}-bit ELF {kind} for {machine}"


def parse(image: memoryview) -> Elf:
    """Read and check the headers of an x86 kernel.

    Raises:
        LoaderError: for another machine, not an executable of its own, truncated, with segments
            that contradict themselves or overlap, or with an entry outside of them.
    """
    header = _header(image)
    if (header.machine, header.bits) not in ((_I386, 32), (_X86_64, 64)):
        raise LoaderError(f"not a kernel for this machine but {describe(image)}: give an x86 one")
    if header.kind != _EXECUTABLE:
        raise LoaderError(f"not a kernel but {describe(image)}: give a vmlinux or a bzImage")
    segments = _segments(image, header)
    return Elf(header.bits, _physical_entry(header.entry, segments), segments)


def _segments(image: memoryview, header: _Header) -> tuple[Segment, ...]:
    layout = _PROGRAM[header.bits]
    if header.program_count > _MAX_PROGRAM_HEADERS:
        raise LoaderError(
            f"ELF: {header.program_count} program headers: a kernel has at most "
            f"{_MAX_PROGRAM_HEADERS}"
        )
    if header.program_count and header.program_entry_bytes != layout.size:
        raise LoaderError(
            f"ELF: program headers of {header.program_entry_bytes} bytes, not {layout.size}"
        )
    table_end = header.program_offset + header.program_count * layout.size
    if table_end > len(image):
        raise LoaderError(
            f"ELF: truncated: the program headers end at byte {table_end}, the file at {len(image)}"
        )
    segments = []
    for index in range(header.program_count):
        fields = layout.unpack_from(image, header.program_offset + index * layout.size)
        if header.bits == 64:
            kind, _, offset, virtual, address, file_bytes, memory_bytes, _ = fields
        else:
            kind, offset, virtual, address, file_bytes, memory_bytes, _, _ = fields
        if kind == _PT_INTERP:
            raise LoaderError(
                f"not a kernel but a program ({describe(image)} with an interpreter): "
                "give a vmlinux or a bzImage"
            )
        if kind != _PT_LOAD or memory_bytes == file_bytes == 0:
            continue
        segment = Segment(address, virtual, offset, file_bytes, memory_bytes)
        _check_segment(index, segment, len(image))
        segments.append(segment)
    if not segments:
        raise LoaderError(f"ELF: nothing to load: {describe(image)} without loadable segments")
    _check_overlap(segments)
    return tuple(segments)


def _check_segment(index: int, segment: Segment, image_bytes: int) -> None:
    if segment.file_bytes > segment.memory_bytes:
        raise LoaderError(
            f"ELF: segment {index} has {segment.file_bytes} bytes in the file "
            f"but only {segment.memory_bytes} in memory"
        )
    if segment.offset + segment.file_bytes > image_bytes:
        raise LoaderError(
            f"ELF: truncated: segment {index} ends at byte {segment.offset + segment.file_bytes}, "
            f"the file at {image_bytes}"
        )


def _check_overlap(segments: list[Segment]) -> None:
    ordered = sorted(segments, key=lambda segment: segment.address)
    for first, second in itertools.pairwise(ordered):
        if first.address + first.memory_bytes > second.address:
            raise LoaderError(
                f"ELF: the segments at {first.address:#x} ({size_text(first.memory_bytes)}) and "
                f"{second.address:#x} overlap"
            )


def _physical_entry(entry: int, segments: tuple[Segment, ...]) -> int:
    for segment in segments:
        if 0 <= entry - segment.address < segment.memory_bytes:
            return entry
    # A kernel may name its entry by the virtual address it is linked at.
    for segment in segments:
        if 0 <= entry - segment.virtual < segment.memory_bytes:
            return entry - segment.virtual + segment.address
    raise LoaderError(f"ELF: the entry point {entry:#x} lies in no segment")


def place(plan: MemoryPlan, image: memoryview, elf: Elf) -> None:
    """Copy the segments of `elf`, parsed from `image`, to their physical addresses.

    Raises:
        LoaderError: a segment does not lie in free usable RAM. Nothing has been written then.
    """
    for segment in elf.segments:
        plan.claim(segment.address, segment.memory_bytes, "the kernel's segment")
    for segment in elf.segments:
        content = image[segment.offset : segment.offset + segment.file_bytes]
        plan.ram.write(segment.address, content)
        plan.ram.zero(
            segment.address + segment.file_bytes, segment.memory_bytes - segment.file_bytes
        )
