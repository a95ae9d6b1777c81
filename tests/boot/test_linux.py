"""What a Linux kernel is told: boot_params, command line, initrd, memory map."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from rayvisor.vmm.boot import load
from rayvisor.vmm.errors import LoaderError
from rayvisor.vmm.memory import GuestRam
from rayvisor.vmm.spec import BootSource
from tests.support.kernel_files import Part, bz_image, elf_file, payload

if TYPE_CHECKING:
    from rayvisor.vmm.cpu_state import CpuState

MIB, GIB = 1 << 20, 1 << 30
VMLINUX = elf_file([Part(16 * MIB, b"\x90" * 64)], 16 * MIB)
VMLINUX_32 = elf_file([Part(16 * MIB, b"\x90" * 64)], 16 * MIB, bits=32)


def params(ram: GuestRam, cpu: CpuState) -> bytes:
    return ram.read(cpu.gpr[6], 4096)


def u32(data: bytes, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 4], "little")


def map_of(zero_page: bytes) -> list[tuple[int, int, int]]:
    return [struct.unpack_from("<QQI", zero_page, 0x2D0 + 20 * i) for i in range(zero_page[0x1E8])]


def test_a_bare_vmlinux_gets_a_header(ram: GuestRam) -> None:
    page = params(ram, load(ram, BootSource(VMLINUX)))
    assert page[0x1FE:0x200] == b"\x55\xaa"
    assert page[0x202:0x208] == b"HdrS\x0f\x02"
    assert page[0x210] == 0xFF  # a loader without a number
    assert page[0x211] == 1  # loaded high; not KASLR_FLAG
    assert page[0x1EF] == 0  # sentinel
    assert page[6:0x40] == bytes(0x3A)  # screen_info: no screen
    assert u32(page, 0x23C) == 0  # hardware_subarch: a PC
    assert page[0x250:0x258] == bytes(8)  # no setup_data


def test_a_bzimage_gives_its_own_header_but_not_its_wishes(ram: GuestRam) -> None:
    image = bytearray(bz_image(payload(VMLINUX, "gzip"), loadflags=0xFF, version=0x20D))
    image[0x20E:0x210] = b"\x34\x12"  # kernel_version
    image[0x23C:0x240] = b"\x09\0\0\0"
    image[0x250:0x258] = b"\xff" * 8
    page = params(ram, load(ram, BootSource(bytes(image))))
    assert page[0x20E:0x210] == b"\x34\x12"
    assert page[0x206:0x208] == b"\x0d\x02"
    assert page[0x211] == 1
    assert u32(page, 0x23C) == 0
    assert page[0x250:0x258] == bytes(8)
    assert page[0x1F1] == image[0x1F1]


def test_the_memory_map_covers_ram_and_no_more(ram: GuestRam) -> None:
    page = params(ram, load(ram, BootSource(VMLINUX)))
    assert map_of(page) == [
        (0, 0x9_FC00, 1),
        (0x9_FC00, 0x400, 2),
        (0xC_0000, 0x4_0000, 2),
        (0x10_0000, 63 * MIB, 1),
    ]
    assert u32(page, 0x1E0) == 63 << 10
    assert int.from_bytes(page[2:4], "little") == 63 << 10


def test_memory_above_the_hole_is_in_the_map() -> None:
    ram = GuestRam(5 * GIB)
    page = params(ram, load(ram, BootSource(VMLINUX, initrd=b"initrd")))
    assert map_of(page)[-2:] == [(MIB, 3 * GIB - MIB, 1), (4 * GIB, 2 * GIB, 1)]
    assert u32(page, 0x218) == 2 * GIB - 4096  # initrd_addr_max is 7FFFFFFFh
    ram.close()


def table_at(ram: GuestRam, gpa: int) -> bytes:
    """An ACPI table, whose bytes must add up to nothing."""
    table = ram.read(gpa, u32(ram.read(gpa, 8), 4))
    assert sum(table) & 0xFF == 0
    return table


def test_the_acpi_tables_list_one_processor_and_its_apic(ram: GuestRam) -> None:
    page = params(ram, load(ram, BootSource(VMLINUX)))
    gpa = int.from_bytes(page[0x70:0x78], "little")
    assert any(start <= gpa < start + n and kind == 2 for start, n, kind in map_of(page))
    rsdp = ram.read(gpa, 36)
    assert rsdp[:8] == b"RSD PTR "
    assert sum(rsdp[:20]) & 0xFF == sum(rsdp) & 0xFF == 0
    xsdt = table_at(ram, int.from_bytes(rsdp[24:32], "little"))
    assert (xsdt[:4], len(xsdt)) == (b"XSDT", 36 + 8)
    madt = table_at(ram, int.from_bytes(xsdt[36:], "little"))
    assert (madt[:4], u32(madt, 36), u32(madt, 40)) == (b"APIC", 0xFEE00000, 1)
    # A local APIC: processor 0, ID 0, enabled. NMIs of all processors come in at LINT1.
    assert madt[44:] == bytes([0, 8, 0, 0, 1, 0, 0, 0, 4, 6, 0xFF, 0, 0, 1])


def test_nobody_who_searches_finds_the_acpi_tables(ram: GuestRam) -> None:
    load(ram, BootSource(VMLINUX))
    firmware = ram.read(0xC0000, 0x40000)
    assert not any(firmware[at : at + 8] == b"RSD PTR " for at in range(0, len(firmware), 16))


def test_the_command_line(ram: GuestRam) -> None:
    page = params(ram, load(ram, BootSource(VMLINUX, cmdline="console=ttyS0 grüße=\udcff")))
    wanted = "console=ttyS0 grüße=".encode() + b"\xff\0"
    assert ram.read(u32(page, 0x228), len(wanted)) == wanted
    assert u32(page, 0x238) == 2047
    assert u32(page, 0xC8) == 0


@pytest.mark.parametrize("count", [0, 1, 255, 2047])
def test_command_lines_up_to_the_limit(ram: GuestRam, count: int) -> None:
    page = params(ram, load(ram, BootSource(VMLINUX, cmdline="x" * count)))
    assert ram.read(u32(page, 0x228), count + 1) == b"x" * count + b"\0"


@pytest.mark.parametrize(
    ("fields", "cmdline", "message"),
    [
        ({}, "x" * 2048, "2048 bytes, this kernel's limit is 2047"),
        ({"cmdline_size": 100}, "x" * 101, "101 bytes, this kernel's limit is 100"),
        ({"version": 0x205, "loadflags": 1}, "x" * 256, "limit is 255"),
        ({"cmdline_size": 0xFFFF_FFFF}, "x" * MIB, "the command line of 1.0 MiB does not fit"),
        ({}, "a\0b", "NUL character at 1"),
        ({}, "a\ud800b", "cannot be encoded"),
    ],
)
def test_impossible_command_lines(
    ram: GuestRam, fields: dict[str, int], cmdline: str, message: str
) -> None:
    image = bz_image(payload(VMLINUX, "gzip"), **fields)
    with pytest.raises(LoaderError, match=message):
        load(ram, BootSource(image, cmdline=cmdline))


def test_the_initrd_lies_high_and_aligned(ram: GuestRam) -> None:
    initrd = bytes(range(256)) * 100
    page = params(ram, load(ram, BootSource(VMLINUX, initrd=initrd)))
    at = u32(page, 0x218)
    assert at == 64 * MIB - 28672
    assert ram.read(at, len(initrd)) == initrd
    assert u32(page, 0x21C) == len(initrd)
    assert page[0xC0:0xC8] == bytes(8)


def test_no_initrd_leaves_its_fields_zero(ram: GuestRam) -> None:
    image = bytearray(bz_image(payload(VMLINUX, "gzip")))
    image[0x218:0x220] = b"\xff" * 8
    page = params(ram, load(ram, BootSource(bytes(image))))
    assert page[0x218:0x220] == bytes(8)


@pytest.mark.parametrize("limit", [0x2FF_FFFF, 0x200_1234])
def test_the_kernels_limit_for_the_initrd_holds(ram: GuestRam, limit: int) -> None:
    image = bz_image(payload(VMLINUX, "gzip"), initrd_addr_max=limit)
    page = params(ram, load(ram, BootSource(image, initrd=b"x" * 5000)))
    end = u32(page, 0x218) + 5000
    assert end <= limit + 1
    assert limit + 1 - end < 8192


def test_a_32_bit_vmlinux_keeps_its_initrd_in_low_memory() -> None:
    ram = GuestRam(GIB)
    page = params(ram, load(ram, BootSource(VMLINUX_32, initrd=b"x")))
    assert u32(page, 0x218) == 0x3800_0000 - 4096
    ram.close()


def test_an_initrd_larger_than_memory_names_both(ram: GuestRam) -> None:
    message = "initrd of 64.0 MiB is larger than the machine's memory of 64.0 MiB"
    with pytest.raises(LoaderError, match=message):
        load(ram, BootSource(VMLINUX, initrd=bytes(64 * MIB + 1)))


def test_an_initrd_that_only_the_kernel_keeps_out_names_both(ram: GuestRam) -> None:
    message = "initrd of 50.0 MiB does not fit into the machine's 64.0 MiB of RAM beside"
    with pytest.raises(LoaderError, match=message):
        load(ram, BootSource(VMLINUX, initrd=bytes(50 * MIB)))


def test_low_structures_give_way_to_the_kernel(ram: GuestRam) -> None:
    low = Part(0x1000, b"\xaa" * 0x9_0000)
    image = elf_file([low, Part(16 * MIB, b"\x90" * 64)], 16 * MIB)
    cpu = load(ram, BootSource(image, cmdline="quiet"))
    page = params(ram, cpu)
    assert ram.read(0x1000, len(low.content)) == low.content
    for address in (cpu.gpr[6], cpu.cr3, cpu.gdtr.base, u32(page, 0x228)):
        assert 0x9_1000 <= address < 0x9_FC00


def test_a_kernel_that_fills_conventional_memory_is_refused(ram: GuestRam) -> None:
    image = elf_file([Part(0x1000, b"x", memory_bytes=0x9_E000)], 0x1000)
    with pytest.raises(LoaderError, match="does not fit"):
        load(ram, BootSource(image))


def test_an_entry_above_4_gib_is_refused() -> None:
    ram = GuestRam(4 * GIB)
    with pytest.raises(LoaderError, match="lies above 4 GiB"):
        load(ram, BootSource(elf_file([Part(4 * GIB, b"x")], 4 * GIB)))
    ram.close()


def test_modules_are_refused(ram: GuestRam) -> None:
    with pytest.raises(LoaderError, match="modules are for Multiboot kernels"):
        load(ram, BootSource(VMLINUX, modules=(("a", b"b"),)))


def test_loading_again_over_used_memory_gives_the_same(ram: GuestRam) -> None:
    source = BootSource(VMLINUX, initrd=b"abc" * 1000, cmdline="quiet")
    first = load(ram, source)
    low = ram.read(0, 0x1_0000)
    for start, count in ram.usable():
        ram.write(start, b"\x5a" * count)
    assert load(ram, source) == first
    untouched = (0xFF, 0x5A)
    for before, after in zip(low, ram.read(0, 0x1_0000), strict=True):
        assert before == after or (before, after) == untouched
