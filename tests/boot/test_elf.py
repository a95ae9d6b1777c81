"""ELF kernels: where they land, and every way they can be wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rayvisor.vmm.boot import load
from rayvisor.vmm.boot.elf import describe, parse
from rayvisor.vmm.errors import LoaderError
from rayvisor.vmm.spec import BootSource
from tests.support.kernel_files import Part, elf_file

if TYPE_CHECKING:
    from rayvisor.vmm.memory import GuestRam

MIB = 1 << 20
TEXT = Part(16 * MIB, b"\x90" * 5000, virtual=0xFFFF_FFFF_8100_0000)
DATA = Part(18 * MIB, b"data" * 100, memory_bytes=3 * MIB, virtual=0xFFFF_FFFF_8120_0000)


def refused(ram: GuestRam, image: bytes) -> str:
    with pytest.raises(LoaderError) as caught:
        load(ram, BootSource(image))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("bits", [32, 64])
def test_segments_land_at_their_physical_addresses(ram: GuestRam, bits: int) -> None:
    parts = [TEXT, DATA]
    if bits == 32:
        parts = [Part(p.address, p.content, p.memory_bytes) for p in parts]
    cpu = load(ram, BootSource(elf_file(parts, 16 * MIB + 0x10, bits=bits)))
    assert cpu.rip == 16 * MIB + 0x10
    assert cpu.efer == (0x500 if bits == 64 else 0)
    assert ram.read(16 * MIB, 5000) == TEXT.content
    assert ram.read(16 * MIB + 5000, 16) == b"\xff" * 16
    assert ram.read(18 * MIB, 3 * MIB) == DATA.content.ljust(3 * MIB, b"\0")
    assert ram.read(21 * MIB, 16) == b"\xff" * 16


def test_a_virtual_entry_is_translated(ram: GuestRam) -> None:
    cpu = load(ram, BootSource(elf_file([TEXT, DATA], 0xFFFF_FFFF_8100_0040)))
    assert cpu.rip == 16 * MIB + 0x40


def test_segments_that_touch_do_not_overlap() -> None:
    parsed = parse(memoryview(elf_file([Part(MIB, b"x" * 4096), Part(MIB + 4096, b"y")], MIB)))
    assert parsed.end == MIB + 4097


@pytest.mark.parametrize(
    ("parts", "entry", "message"),
    [
        ([Part(MIB, b"x" * 8192), Part(MIB + 4096, b"y")], MIB, "0x100000 .8.0 KiB. and 0x101000 "),
        ([Part(100 * MIB, b"x")], 100 * MIB, "does not lie in the machine's RAM of 64.0 MiB"),
        ([Part(63 * MIB, b"x", 2 * MIB)], 63 * MIB, "does not lie in the machine's RAM"),
        ([Part(0xB_8000, b"x")], 0xB_8000, "does not lie in the machine's RAM"),
        ([Part((1 << 64) - 4096, b"x")], (1 << 64) - 4096, "does not lie in the machine's RAM"),
        ([Part(MIB, b"x", (1 << 64) - 1)], MIB, "does not lie in the machine's RAM"),
        ([Part(0x400, b"x")], 0x400, "overlaps the BIOS data area"),
        ([Part(MIB, b"xyz", 2)], MIB, "segment 0 has 3 bytes in the file but only 2 in memory"),
        ([Part(MIB, b"x")], 2 * MIB, "entry point 0x200000 lies in no segment"),
        ([], MIB, "without loadable segments"),
        ([Part(MIB, b"x", kind=4)], MIB, "without loadable segments"),
        ([Part(MIB, b"/lib/ld.so", kind=3), Part(MIB, b"x")], MIB, "not a kernel but a program"),
        ([Part(MIB, b"")] * 129, MIB, "129 program headers: a kernel has at most 128"),
    ],
)
def test_impossible_segments(ram: GuestRam, parts: list[Part], entry: int, message: str) -> None:
    with pytest.raises(LoaderError, match=message):
        load(ram, BootSource(elf_file(parts, entry)))


@pytest.mark.parametrize("bits", [32, 64])
def test_every_truncation_is_noticed(ram: GuestRam, bits: int) -> None:
    image = elf_file([Part(MIB, b"x" * 4096)], MIB, bits=bits)
    for count in (5, 16, 51, 63, 70, 80, 100, 4096, 5000, len(image) - 1):
        message = refused(ram, image[:count])
        assert "truncated" in message or "no complete" in message


@pytest.mark.parametrize(
    ("machine", "bits", "kind", "message"),
    [
        (183, 64, 2, "a 64-bit ELF executable for ARM64"),
        (40, 32, 2, "a 32-bit ELF executable for ARM"),
        (243, 64, 3, "a 64-bit ELF shared object for RISC-V"),
        (4711, 64, 2, "machine type 4711"),
        (62, 32, 2, "a 32-bit ELF executable for x86-64"),
        (3, 64, 2, "a 64-bit ELF executable for i386"),
        (62, 64, 1, "a 64-bit ELF object file for x86-64"),
        (62, 64, 3, "a 64-bit ELF shared object for x86-64"),
        (62, 64, 4, "a 64-bit ELF core dump for x86-64"),
        (62, 64, 99, "a 64-bit ELF file for x86-64"),
    ],
)
def test_what_is_not_an_x86_kernel_is_named(
    ram: GuestRam, machine: int, bits: int, kind: int, message: str
) -> None:
    image = elf_file([Part(MIB, b"x")], MIB, bits=bits, machine=machine, kind=kind)
    assert message in refused(ram, image)


def test_big_endian_files_are_named() -> None:
    image = bytearray(elf_file([Part(MIB, b"x")], MIB, bits=64))
    image[5] = 2
    image[18:20] = (22).to_bytes(2, "big")
    assert describe(memoryview(image)) == "a 64-bit ELF file for S/390"
    with pytest.raises(LoaderError, match="S/390"):
        parse(memoryview(image))


def test_damage_in_the_first_bytes(ram: GuestRam) -> None:
    image = bytearray(elf_file([Part(MIB, b"x")], MIB))
    image[4] = 7
    assert "class 7" in refused(ram, bytes(image))
    assert describe(memoryview(image)) == "a damaged ELF file"
    image[4], image[54] = 2, 99
    assert "program headers of 99 bytes, not 56" in refused(ram, bytes(image))
