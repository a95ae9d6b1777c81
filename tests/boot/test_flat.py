"""Flat binaries and BIOS images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rayvisor.vmm.boot import load
from rayvisor.vmm.boot.flat import MAX_BYTES
from rayvisor.vmm.errors import LoaderError
from rayvisor.vmm.spec import BootSource

if TYPE_CHECKING:
    from rayvisor.vmm.memory import GuestRam

SECTOR = b"\xeb\xfe".ljust(510, b"\x90") + b"\x55\xaa"
JUMP = b"\xea\x5b\xe0\x00\xf0"


def rom(size: int, jump: bytes = JUMP) -> bytes:
    return b"".join(bytes([i % 251]) * 1024 for i in range(size // 1024))[:-16] + jump.ljust(16)


def test_a_boot_sector_starts_at_7c00(ram: GuestRam) -> None:
    cpu = load(ram, BootSource(SECTOR))
    assert (cpu.cs.base, cpu.cs.selector, cpu.rip) == (0, 0, 0x7C00)
    assert cpu.cr0 & 1 == 0
    assert cpu.gpr[2] == 0x80  # DL: the first disk
    assert cpu.gpr[4] == 0x7C00  # SP
    assert ram.read(0x7C00, 512) == SECTOR


def test_what_follows_the_boot_sector_is_loaded_too(ram: GuestRam) -> None:
    image = SECTOR + b"more" * 10_000
    load(ram, BootSource(image))
    assert ram.read(0x7C00, len(image)) == image


def test_the_bios_data_area(ram: GuestRam) -> None:
    load(ram, BootSource(SECTOR))
    assert ram.read(0x413, 2) == (639).to_bytes(2, "little")
    assert ram.read(0x40E, 2) == (0x9FC0).to_bytes(2, "little")
    assert ram.read(0x400, 2) == (0x3F8).to_bytes(2, "little")
    assert ram.read(0x417, 0xE0) == bytes(0xE0)
    assert ram.read(0x9_FC00, 1) == b"\x01"


def test_every_vector_points_at_an_iret(ram: GuestRam) -> None:
    load(ram, BootSource(SECTOR))
    vectors = ram.read(0, 1024)
    assert vectors == vectors[:4] * 256
    offset, segment = (int.from_bytes(vectors[i : i + 2], "little") for i in (0, 2))
    assert ram.read(segment * 16 + offset, 1) == b"\xcf"


@pytest.mark.parametrize("image", [b"\xf4", b"\x90" * MAX_BYTES, b"MZ\xf4", b"\x7fELF", b"HdrS"])
def test_the_flat_format_takes_anything_that_fits(ram: GuestRam, image: bytes) -> None:
    cpu = load(ram, BootSource(image, format="flat"))
    assert cpu.rip == 0x7C00
    assert ram.read(0x7C00, len(image)) == image
    assert ram.read(0x9_FC00, 1) == b"\x01"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (BootSource(b"", format="flat"), "the flat binary is empty"),
        (BootSource(bytes(MAX_BYTES + 1), format="flat"), r"of 608.0 KiB does not fit .* 608.0"),
        (BootSource(SECTOR + bytes(1 << 20)), "disk image of 1.0 MiB: there is no BIOS"),
        (BootSource(SECTOR, initrd=b"x"), "takes no initrd"),
        (BootSource(SECTOR, modules=(("a", b"b"),)), "no modules"),
        (BootSource(rom(65536), initrd=b"x"), "takes no initrd"),
    ],
)
def test_what_is_refused(ram: GuestRam, source: BootSource, message: str) -> None:
    with pytest.raises(LoaderError, match=message):
        load(ram, source)


@pytest.mark.parametrize("kib", [64, 128, 256, 4096])
def test_a_bios_ends_below_1_mib_and_starts_at_its_reset_vector(ram: GuestRam, kib: int) -> None:
    image = rom(kib << 10)
    ram.write(0xC_0000, bytes(256 << 10))
    cpu = load(ram, BootSource(image))
    assert (cpu.cs.selector, cpu.cs.base, cpu.rip) == (0xF000, 0xF_0000, 0xFFF0)
    assert ram.read(cpu.cs.base + cpu.rip, 5) == JUMP
    window = image[-(128 << 10) :]
    assert ram.read(0x10_0000 - len(window), len(window)) == window
    assert ram.read(0xC_0000, (256 << 10) - len(window)) == bytes((256 << 10) - len(window))


@pytest.mark.parametrize(
    "image", [rom(65536, b"\x90" * 5), rom(65536)[16:], rom(65536)[:-16], rom(32 << 20)]
)
def test_what_only_looks_like_a_bios_is_refused(ram: GuestRam, image: bytes) -> None:
    with pytest.raises(LoaderError, match="not a kernel"):
        load(ram, BootSource(image))


def test_a_near_jump_is_a_reset_vector_too(ram: GuestRam) -> None:
    assert load(ram, BootSource(rom(65536, b"\xe9\x00\x80"))).rip == 0xFFF0
