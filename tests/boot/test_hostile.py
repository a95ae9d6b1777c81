"""Kernel files that somebody has tampered with: a LoaderError in one line, or a sound vCPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayvisor.vmm.boot import FORMATS, load
from rayvisor.vmm.errors import LoaderError
from rayvisor.vmm.memory import GuestRam
from rayvisor.vmm.spec import BootSource
from rayvisor.vmm.state import check
from tests.support.kernel_files import (
    COMPRESSIONS,
    Part,
    bz_image,
    elf_file,
    multiboot_header,
    payload,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1 << 20
VMLINUX = elf_file([Part(16 * MIB, b"\x90" * 600), Part(18 * MIB, b"d", 9000)], 16 * MIB)
VMLINUX_32 = elf_file([Part(MIB, b"\x90" * 600)], MIB, bits=32)
MULTIBOOT = elf_file([Part(MIB, multiboot_header(3) + b"\x90" * 99)], MIB + 12, bits=32)
KLUDGE = multiboot_header(1 << 16, (MIB, MIB, 0, 2 * MIB, MIB + 32)) + b"\x90" * 99
SEEDS = {
    "bzimage": bz_image(payload(VMLINUX, "gzip")),
    "bzimage-32": bz_image(payload(VMLINUX_32, "xz"), xloadflags=0),
    "bzimage-own": bz_image(b"\x89LZO" + b"\x90" * 600),
    "vmlinux": VMLINUX,
    "vmlinux-32": VMLINUX_32,
    "multiboot": MULTIBOOT,
    "kludge": KLUDGE,
    "sector": b"\xeb\xfe".ljust(510, b"\x90") + b"\x55\xaa",
}
PAYLOADS = {name: payload(VMLINUX, name) for name in COMPRESSIONS}
INTERESTING = (0, 1, 0x7F, 0xFF, 0x1000, 0xA_0000, MIB, 16 * MIB, 0x7FFF_FFFF, 0xFFFF_FFFF)

numbers = st.sampled_from(INTERESTING) | st.integers(0, 0xFFFF_FFFF)
headers = st.integers(0, 0x280)
edits = st.lists(
    st.tuples(headers | st.integers(0, 0x2000), st.sampled_from([1, 2, 4, 8]), numbers),
    min_size=1,
    max_size=6,
)


@pytest.fixture(scope="module")
def shared_ram() -> Iterator[GuestRam]:
    memory = GuestRam(32 * MIB)
    yield memory
    memory.close()


def attempt(ram: GuestRam, source: BootSource) -> None:
    """Load; anything but a LoaderError of one line, or a state in range, fails."""
    try:
        cpu = load(ram, source)
    except LoaderError as error:
        text = str(error)
    else:
        check(cpu)
        text = "loaded"
    assert "\n" not in text
    assert len(text) < 400


def edited(seed: bytes, changes: list[tuple[int, int, int]]) -> bytes:
    image = bytearray(seed)
    for offset, width, value in changes:
        if offset + width <= len(image):
            image[offset : offset + width] = value.to_bytes(8, "little")[:width]
    return bytes(image)


@pytest.mark.parametrize("name", SEEDS)
@given(changes=edits, keep=st.floats(0, 1) | st.just(1.0), wanted=st.sampled_from(FORMATS))
def test_edited_and_cut_kernels(
    shared_ram: GuestRam, name: str, changes: list[tuple[int, int, int]], keep: float, wanted: str
) -> None:
    image = edited(SEEDS[name], changes)
    attempt(shared_ram, BootSource(image[: int(len(image) * keep)], format=wanted))


@pytest.mark.parametrize("compression", COMPRESSIONS)
@given(changes=edits)
def test_edited_payloads(
    shared_ram: GuestRam, compression: str, changes: list[tuple[int, int, int]]
) -> None:
    packed = PAYLOADS[compression]
    # Edits fall anywhere in the payload, the size word at its end most of all.
    places = [(offset % (len(packed) + 4), width, value) for offset, width, value in changes]
    attempt(shared_ram, BootSource(bz_image(edited(packed, places))))


@given(inner=edits)
def test_edited_kernels_inside_a_sound_payload(
    shared_ram: GuestRam, inner: list[tuple[int, int, int]]
) -> None:
    attempt(shared_ram, BootSource(bz_image(payload(edited(VMLINUX, inner), "zstd"))))


@given(
    st.binary(max_size=2000),
    st.text(max_size=300),
    st.binary(max_size=100),
    st.lists(st.tuples(st.text(max_size=20), st.binary(max_size=50)), max_size=3).map(tuple),
    st.sampled_from(FORMATS),
    st.sampled_from([*SEEDS.values(), b""]),
)
def test_anything_at_all(
    shared_ram: GuestRam,
    junk: bytes,
    cmdline: str,
    initrd: bytes,
    modules: tuple[tuple[str, bytes], ...],
    wanted: str,
    head: bytes,
) -> None:
    attempt(shared_ram, BootSource(head + junk, initrd, cmdline, modules, wanted))


@given(pages=st.integers(256, 1024))
@pytest.mark.parametrize("name", SEEDS)
def test_machines_that_are_too_small(name: str, pages: int) -> None:
    ram = GuestRam(pages * 4096)
    attempt(ram, BootSource(SEEDS[name], initrd=b"" if name == "sector" else b"x" * 9000))
    ram.close()
