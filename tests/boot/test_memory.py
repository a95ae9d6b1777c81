"""Guest RAM: where it is, what it refuses, what it costs."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayvisor.vmm.errors import ConfigError
from rayvisor.vmm.memory import GuestRam, backed_ranges, file_offset

MIB, GIB = 1 << 20, 1 << 30


def open_files() -> set[Path]:
    return set(Path("/proc/self/fd").iterdir())


def allocated_pages(ram: GuestRam) -> int:
    return os.fstat(ram.fd).st_blocks * 512 // 4096


def test_layout_of_a_machine_larger_than_the_hole() -> None:
    ram = GuestRam(5 * GIB)
    assert ram.ranges() == (
        (0, 640 << 10),
        (768 << 10, 3 * GIB - (768 << 10)),
        (4 * GIB, 2 * GIB),
    )
    assert ram.usable() == ((0, 640 << 10), (MIB, 3 * GIB - MIB), (4 * GIB, 2 * GIB))
    assert ram.size_bytes == os.fstat(ram.fd).st_size == 5 * GIB
    assert allocated_pages(ram) == 0
    ram.close()


def test_the_smallest_machine_has_conventional_memory_alone() -> None:
    ram = GuestRam(MIB)
    assert ram.usable() == ((0, 640 << 10),)
    assert ram.ranges() == ((0, 640 << 10), (768 << 10, 256 << 10))
    ram.close()


def test_file_offsets_follow_the_addresses() -> None:
    ram = GuestRam(4 * GIB)
    for gpa, offset in ((0x7C00, 0x7C00), (3 * GIB - 4, 3 * GIB - 4), (4 * GIB + 8, 3 * GIB + 8)):
        ram.write(gpa, b"here")
        assert os.pread(ram.fd, 4, offset) == b"here"
        assert file_offset(gpa) == offset
        os.pwrite(ram.fd, b"back", offset)
        assert ram.read(gpa, 4) == b"back"
    ram.close()


@pytest.mark.parametrize(
    ("gpa", "count"),
    [
        (-1, 1),
        (640 << 10, 1),
        ((640 << 10) - 1, 2),
        ((768 << 10) - 1, 1),
        (2 * MIB - 1, 2),
        (2 * MIB, 1),
        (3 * GIB, 1),
        (4 * GIB, 1),
        (1 << 70, 1),
        (0, -1),
    ],
)
def test_what_is_not_ram_is_refused_whole(gpa: int, count: int) -> None:
    ram = GuestRam(2 * MIB)
    for access in (ram.view, ram.read, ram.zero):
        with pytest.raises(ValueError, match="not in RAM"):
            access(gpa, count)
    if count > 0:
        with pytest.raises(ValueError, match="not in RAM"):
            ram.write(gpa, b"x" * count)
    assert allocated_pages(ram) == 0
    ram.close()


@pytest.mark.parametrize("size", [0, -1, -4096, 4096, MIB - 4096, MIB + 1, 1 << 64, 1 << 90])
def test_impossible_sizes_are_refused_in_one_line(size: int) -> None:
    before = open_files()
    with pytest.raises(ConfigError) as caught:
        GuestRam(size)
    assert str(size) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert open_files() == before


def test_the_files_size_is_sealed() -> None:
    ram = GuestRam(MIB)
    for size in (0, 2 * MIB):
        with pytest.raises(PermissionError):
            os.ftruncate(ram.fd, size)
    ram.close()


def test_views_are_windows_and_outlive_close() -> None:
    ram = GuestRam(MIB)
    view = ram.view(0x1000, 4)
    view[:] = b"abcd"
    assert ram.read(0x1000, 4) == b"abcd"
    ram.close()
    ram.close()
    assert bytes(view) == b"abcd"
    with pytest.raises(ValueError, match="released"):
        ram.read(0x1000, 4)


def test_zeroing_gives_whole_pages_back() -> None:
    ram = GuestRam(2 * MIB)
    ram.write(MIB, b"\xff" * MIB)
    assert allocated_pages(ram) == 256
    ram.zero(MIB + 100, 10 * 4096)
    assert allocated_pages(ram) == 256 - 9
    assert ram.read(MIB, MIB) == b"\xff" * 100 + bytes(10 * 4096) + b"\xff" * (MIB - 100 - 40960)
    ram.close()


@given(first=st.integers(0, 4 * 4096), count=st.integers(0, 4 * 4096))
def test_zeroing_touches_nothing_else(first: int, count: int) -> None:
    ram = GuestRam(2 * MIB)
    ram.write(MIB, b"\xff" * (8 * 4096))
    ram.zero(MIB + first, count)
    rest = 8 * 4096 - first - count
    assert ram.read(MIB, 8 * 4096) == b"\xff" * first + bytes(count) + b"\xff" * rest
    ram.close()


@given(st.integers(256, 1 << 22).map(lambda pages: pages * mmap.PAGESIZE))
def test_ranges_cover_the_memory_without_overlap(memory_bytes: int) -> None:
    ranges = backed_ranges(memory_bytes)
    assert sum(count for _, count in ranges) == memory_bytes - (128 << 10)  # less the VGA window
    ends = [0]
    for start, count in ranges:
        assert start >= ends[-1]
        assert count > 0
        ends.append(start + count)
