"""bzImage: unpacked on the host or left to itself, and every way it can be wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rayvisor.vmm.boot import load
from rayvisor.vmm.errors import LoaderError
from rayvisor.vmm.spec import BootSource
from tests.support.kernel_files import COMPRESSIONS, Part, bz_image, elf_file, payload

if TYPE_CHECKING:
    from rayvisor.vmm.memory import GuestRam

MIB = 1 << 20
CODE = bytes(range(256)) * 64
VMLINUX = elf_file([Part(16 * MIB, CODE, memory_bytes=MIB)], 16 * MIB + 0x30)
VMLINUX_32 = elf_file([Part(16 * MIB, CODE)], 16 * MIB, bits=32)
GOOD = bz_image(payload(VMLINUX, "gzip"))


@pytest.mark.parametrize("compression", [*COMPRESSIONS, "none"])
def test_every_compression_is_unpacked_on_the_host(ram: GuestRam, compression: str) -> None:
    packed = VMLINUX if compression == "none" else payload(VMLINUX, compression)
    cpu = load(ram, BootSource(bz_image(packed)))
    assert cpu.rip == 16 * MIB + 0x30
    assert cpu.efer == 0x500
    assert ram.read(16 * MIB, len(CODE)) == CODE
    assert ram.read(16 * MIB + len(CODE), 4096) == bytes(4096)


def test_a_32_bit_kernel_is_entered_in_protected_mode(ram: GuestRam) -> None:
    cpu = load(ram, BootSource(bz_image(payload(VMLINUX_32, "xz"), xloadflags=0)))
    assert (cpu.rip, cpu.cr0, cpu.efer) == (16 * MIB, 0x11, 0)
    assert cpu.gpr[6] != 0
    assert [cpu.gpr[i] for i in (3, 5, 7)] == [0, 0, 0]  # EBX, EBP, EDI


def test_a_signature_behind_the_kernel_does_not_matter(ram: GuestRam) -> None:
    assert load(ram, BootSource(GOOD + b"signature" * 100)).rip == 16 * MIB + 0x30


@pytest.mark.parametrize(
    ("fields", "address", "offset", "cr0"),
    [
        ({}, 16 * MIB, 0x200, 0x8005_0033),
        ({"pref_address": 32 * MIB}, 32 * MIB, 0x200, 0x8005_0033),
        ({"relocatable_kernel": 0}, MIB, 0x200, 0x8005_0033),
        ({"xloadflags": 0}, 16 * MIB, 0, 0x11),
        ({"version": 0x204}, MIB, 0, 0x11),
        ({"version": 0x209}, MIB, 0, 0x11),
        ({"pref_address": 0}, MIB, 0x200, 0x8005_0033),
    ],
)
def test_an_unknown_compression_is_left_to_the_kernel(
    ram: GuestRam, fields: dict[str, int], address: int, offset: int, cr0: int
) -> None:
    image = bz_image(b"\x89LZO" + CODE, **fields)
    cpu = load(ram, BootSource(image, initrd=b"initrd"))
    code = image[1024:]
    assert ram.read(address, len(code)) == code
    assert (cpu.rip, cpu.cr0) == (address + offset, cr0)
    assert int.from_bytes(ram.read(cpu.gpr[6] + 0x214, 4), "little") == address


def test_the_decompressors_room_is_kept_free(ram: GuestRam) -> None:
    image = bz_image(b"\x89LZO", init_size=47 * MIB)
    cpu = load(ram, BootSource(image, initrd=b"x" * MIB))
    assert int.from_bytes(ram.read(cpu.gpr[6] + 0x218, 4), "little") == 63 * MIB
    with pytest.raises(LoaderError, match="does not fit"):
        load(ram, BootSource(image, initrd=b"x" * (16 * MIB)))


@pytest.mark.parametrize("count", [0x206, 0x210, 0x230, 0x26B, 0x26C, 1024, 2000, len(GOOD) - 16])
def test_every_truncation_is_noticed(ram: GuestRam, count: int) -> None:
    with pytest.raises(LoaderError, match="bzImage: truncated"):
        load(ram, BootSource(GOOD[:count]))


def test_a_bzimage_cut_at_one_sector_is_no_boot_sector(ram: GuestRam) -> None:
    with pytest.raises(LoaderError, match="bzImage cut off in its setup header"):
        load(ram, BootSource(b"MZ" + GOOD[2:512]))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"version": 0x203}, "boot protocol 2.03, 2.04 .* is the oldest"),
        ({"boot_flag": 0}, "no AA55h signature"),
        ({"loadflags": 0}, "zImage"),
        ({"syssize": 0}, "truncated: the header promises"),
        ({"syssize": 0xFFFF_FFFF}, "truncated: the header promises"),
        ({"payload_offset": 0xFFFF_FFFF}, "truncated: the payload ends at"),
        ({"payload_length": 0xFFFF_FFFF}, "truncated: the payload ends at"),
        ({"payload_length": 100}, "gzip payload is damaged|unpacks to"),
    ],
)
def test_headers_that_contradict_the_file(
    ram: GuestRam, fields: dict[str, int], message: str
) -> None:
    with pytest.raises(LoaderError, match=message):
        load(ram, BootSource(bz_image(payload(VMLINUX, "gzip"), **fields)))


@pytest.mark.parametrize(
    "fields",
    [
        {"pref_address": 0xB_0000},
        {"pref_address": (1 << 64) - 4096},
        {"init_size": 0xFFFF_FFFF},
        {"relocatable_kernel": 0, "pref_address": 1 << 40},
    ],
)
def test_impossible_places_for_the_decompressor(ram: GuestRam, fields: dict[str, int]) -> None:
    with pytest.raises(LoaderError, match=r"decompressor at .* does not lie in the machine's"):
        load(ram, BootSource(bz_image(b"\x89LZO", **fields)))


def test_what_the_payload_holds_is_checked_too(ram: GuestRam) -> None:
    arm = elf_file([Part(MIB, b"x")], MIB, machine=183)
    with pytest.raises(LoaderError, match="for ARM64"):
        load(ram, BootSource(bz_image(payload(arm, "zstd"))))
    with pytest.raises(LoaderError, match="no complete ELF header"):
        load(ram, BootSource(bz_image(payload(b"no kernel at all", "zstd"))))
