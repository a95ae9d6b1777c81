"""Multiboot 1: kernels, modules, information."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from rayvisor.vmm.boot import load
from rayvisor.vmm.boot.multiboot import find
from rayvisor.vmm.errors import LoaderError
from rayvisor.vmm.memory import GuestRam
from rayvisor.vmm.spec import BootSource
from tests.support.kernel_files import Part, elf_file, multiboot_header

if TYPE_CHECKING:
    from rayvisor.vmm.cpu_state import CpuState

MIB, GIB = 1 << 20, 1 << 30
ADDRESSES = 1 << 16
TEXT = multiboot_header() + b"\x90" * 100
KERNEL = elf_file([Part(MIB, TEXT), Part(2 * MIB, b"data", 0x1234)], MIB + 12, bits=32)


def u32(ram: GuestRam, address: int) -> int:
    return int.from_bytes(ram.read(address, 4), "little")


def string(ram: GuestRam, address: int) -> bytes:
    return ram.read(address, 256).split(b"\0")[0]


def info(ram: GuestRam, cpu: CpuState) -> tuple[int, ...]:
    """The information structure as words."""
    return struct.unpack("<30I", ram.read(cpu.gpr[3], 120))


def test_the_machine_state(ram: GuestRam) -> None:
    cpu = load(ram, BootSource(KERNEL))
    assert (cpu.rip, cpu.gpr[0], cpu.cr0) == (MIB + 12, 0x2BADB002, 0x11)
    assert (cpu.cs.limit, cpu.cs.access, cpu.ss.access) == (0xFFFF_FFFF, 0xC09B, 0xC093)
    assert cpu.rflags & (1 << 17 | 1 << 9) == 0
    assert ram.read(MIB, len(TEXT)) == TEXT
    assert ram.read(2 * MIB, 0x1234) == b"data".ljust(0x1234, b"\0")


def test_the_information(ram: GuestRam) -> None:
    words = info(ram, cpu := load(ram, BootSource(KERNEL, cmdline="kernel arg")))
    assert words[0] == 0b10_0100_1101
    assert words[1] == 639
    assert words[2] == 63 << 10
    assert string(ram, words[4]) == b"kernel arg"
    assert words[5] == 0
    assert string(ram, words[16]) == b"rayvisor"
    assert 0x1000 <= cpu.gpr[3] < 0x9_FC00


def memory_map(ram: GuestRam, words: tuple[int, ...]) -> list[tuple[int, int, int]]:
    at, end, entries = words[12], words[12] + words[11], []
    while at < end:
        size = u32(ram, at)
        entries.append(struct.unpack("<QQI", ram.read(at + 4, 20)))
        at += size + 4
    assert at == end
    return entries


def test_the_memory_map() -> None:
    ram = GuestRam(4 * GIB)
    assert memory_map(ram, info(ram, load(ram, BootSource(KERNEL)))) == [
        (0, 0x9_FC00, 1),
        (0x9_FC00, 0x400, 2),
        (0xC_0000, 0x4_0000, 2),
        (MIB, 3 * GIB - MIB, 1),
        (4 * GIB, GIB, 1),
    ]
    ram.close()


def test_modules_lie_above_the_kernel_in_order(ram: GuestRam) -> None:
    modules = (("first -v", b"1" * 5000), ("", b""), ("third", b"3"))
    words = info(ram, load(ram, BootSource(KERNEL, modules=modules, initrd=b"initrd")))
    assert words[5] == 4
    wanted = (("", b"initrd"), *modules)
    last = 2 * MIB + 0x1234
    for index, (text, content) in enumerate(wanted):
        start, end, name, reserved = struct.unpack("<4I", ram.read(words[6] + 16 * index, 16))
        assert start % 4096 == 0
        assert start >= last
        assert ram.read(start, end - start) == content
        assert string(ram, name) == text.encode()
        assert reserved == 0
        last = max(end, start + 1)
    assert last < 3 * MIB


def test_load_addresses_win_over_elf(ram: GuestRam) -> None:
    body = bytearray(elf_file([Part(MIB, b"x")], MIB, bits=32))
    addresses = (3 * MIB + 64, 3 * MIB, 3 * MIB + 200, 3 * MIB + 300, 3 * MIB + 128)
    header = multiboot_header(ADDRESSES, addresses)
    body[128 : 128 + len(header)] = header
    ram.write(3 * MIB, b"\xff" * 400)
    cpu = load(ram, BootSource(bytes(body)))
    assert cpu.rip == 3 * MIB + 128
    assert ram.read(3 * MIB, 400) == bytes(body[64:264]) + bytes(100) + b"\xff" * 100


def test_load_addresses_of_zero_mean_the_whole_file(ram: GuestRam) -> None:
    image = multiboot_header(ADDRESSES, (MIB, MIB, 0, 0, MIB + 32)) + b"\x90" * 1000
    cpu = load(ram, BootSource(image))
    assert cpu.rip == MIB + 32
    assert ram.read(MIB, len(image)) == image


@pytest.mark.parametrize(
    ("addresses", "message"),
    [
        ((MIB, MIB + 4, 0, 0, MIB), "does not fit a header at 0x100000"),
        ((MIB + 4, MIB, 0, 0, MIB), "does not fit a header"),
        ((MIB, MIB, MIB + 4000, 0, MIB), "asks for 3.9 KiB from byte 0, the file has 100 bytes"),
        ((MIB, MIB, MIB - 1, 0, MIB), "asks for 0 bytes"),
        ((MIB, MIB, MIB + 50, MIB + 49, MIB), "the bss ends at 0x100031, before the data"),
        ((MIB, MIB, 0, 0, MIB - 1), "entry point 0xfffff lies outside"),
        ((MIB, MIB, 0, 0, MIB + 100), "entry point 0x100064 lies outside"),
        ((MIB, MIB, 0, 65 * MIB, MIB), "does not lie in the machine's RAM"),
        ((0x400, 0x400, 0, 0, 0x400), "overlaps the BIOS data area"),
        ((0xFFFF_FFF0, 0xFFFF_FFF0, 0, 0, 0xFFFF_FFF0), "does not lie in the machine's RAM"),
    ],
)
def test_impossible_load_addresses(ram: GuestRam, addresses: tuple[int, ...], message: str) -> None:
    image = multiboot_header(ADDRESSES, addresses).ljust(100, b"\x90")
    with pytest.raises(LoaderError, match=message):
        load(ram, BootSource(image))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (multiboot_header(), "neither an ELF file nor load addresses"),
        (multiboot_header(1 << 5), "requires unknown features .flags 0x20."),
        (multiboot_header(ADDRESSES), "truncated: the file ends within"),
        (elf_file([Part(4 * GIB, multiboot_header())], 4 * GIB), "does not lie in|out of 32-bit"),
    ],
)
def test_impossible_headers(ram: GuestRam, image: bytes, message: str) -> None:
    with pytest.raises(LoaderError, match=message):
        load(ram, BootSource(image))


def test_an_entry_out_of_32_bit_reach_is_refused() -> None:
    ram = GuestRam(4 * GIB)
    image = elf_file([Part(4 * GIB, multiboot_header())], 4 * GIB)
    with pytest.raises(LoaderError, match="out of 32-bit code's reach"):
        load(ram, BootSource(image))
    ram.close()


def test_modules_larger_than_memory_are_named(ram: GuestRam) -> None:
    message = "module 'disk.img' of 64.0 MiB does not fit into the machine's 64.0 MiB"
    with pytest.raises(LoaderError, match=message):
        load(ram, BootSource(KERNEL, modules=(("disk.img", bytes(64 * MIB)),)))


def test_optional_requirements_are_met(ram: GuestRam) -> None:
    text = multiboot_header(0b111)
    load(ram, BootSource(elf_file([Part(MIB, text)], MIB, bits=32)))


def test_the_header_is_searched_where_the_specification_says() -> None:
    header = multiboot_header()
    for offset, found in ((0, True), (4, True), (8180, True), (8184, False), (2, False)):
        assert (find(memoryview(bytes(offset) + header)) is not None) == found
    wrong = header[:8] + bytes(4)
    decoy = find(memoryview(wrong + bytes(4) + header))
    assert decoy is not None
    assert decoy.offset == 16


def test_the_format_multiboot_insists(ram: GuestRam) -> None:
    image = elf_file([Part(MIB, b"x")], MIB, bits=32)
    with pytest.raises(LoaderError, match="not a Multiboot kernel but a 32-bit ELF executable"):
        load(ram, BootSource(image, format="multiboot"))


def test_the_format_elf_ignores_the_header(ram: GuestRam) -> None:
    cpu = load(ram, BootSource(KERNEL, format="elf"))
    assert (cpu.gpr[0], cpu.gpr[3]) == (0, 0)
    assert cpu.gpr[6] != 0
