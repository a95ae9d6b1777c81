"""Bitmaps, runs and copies of pages."""

from __future__ import annotations

import os
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayvisor.migration import pages
from rayvisor.migration.codec import Packer
from rayvisor.migration.config import Codec
from rayvisor.migration.errors import StreamError
from rayvisor.vmm.core import _native
from rayvisor.vmm.memory import GuestRam

PAGE = 4096
TOTAL = 301
chosen_pages = st.sets(st.integers(0, TOTAL - 1))


def runs_of(chosen: set[int]) -> list[tuple[int, int]]:
    firsts = sorted(p for p in chosen if p - 1 not in chosen)
    ends = sorted(p + 1 for p in chosen if p + 1 not in chosen)
    return [(first, end - first) for first, end in zip(firsts, ends, strict=True)]


def members(bitmap: bytes) -> set[int]:
    return {8 * i + k for i, byte in enumerate(bitmap) for k in range(8) if byte >> k & 1}


def covered(runs: list[tuple[int, int]]) -> set[int]:
    return {page for first, count in runs for page in range(first, first + count)}


@given(chosen_pages, chosen_pages)
def test_bitmaps_are_sets(one: set[int], other: set[int]) -> None:
    a, b = (pages.bitmap_of(iter(runs_of(s)), TOTAL) for s in (one, other))
    assert members(a) == one
    assert members(pages.union(a, b)) == one | other
    assert members(pages.without(a, b)) == one - other
    assert pages.count(a) == len(one)
    assert len(a) == len(pages.union(a, b)) == pages.bitmap_bytes(TOTAL)


@given(chosen_pages)
def test_runs_come_back_as_the_pages_they_were(chosen: set[int]) -> None:
    packed = pages.pack_runs(iter(runs_of(chosen)))
    assert pages.read_runs(packed, TOTAL) == runs_of(chosen)
    assert pages.pages_in(packed) == len(chosen)
    rest = pages.gaps(runs_of(chosen), TOTAL)
    assert covered(rest) == set(range(TOTAL)) - chosen


@given(st.binary(max_size=64))
def test_hostile_runs_stay_inside_ram_or_are_refused(packed: bytes) -> None:
    try:
        runs = pages.read_runs(packed, 100)
    except StreamError:
        return
    assert covered(runs) <= set(range(100))
    assert len(covered(runs)) == sum(count for _, count in runs)


@given(st.binary(min_size=1, max_size=40), st.integers(1, 400))
def test_samples_are_of_what_is_there(bitmap: bytes, wanted: int) -> None:
    there = covered(pages.runs_of(bitmap))
    first = covered(pages.runs_of(pages.first_of(bitmap, wanted)))
    assert first == {page for page in there if page <= max(first, default=0)}
    assert min(wanted, len(there)) <= len(first) <= wanted + 7
    spread = covered(pages.runs_of(pages.sample_of(bitmap, wanted)))
    assert spread <= there
    if len(there) < 2 * wanted:
        assert spread == there


def test_a_sample_of_many_pages_is_from_all_over() -> None:
    spread = covered(pages.runs_of(pages.sample_of(b"\xff" * 1000, 500)))
    assert 500 <= len(spread) <= 520
    assert max(spread) > 7800


def test_room_is_made_and_nothing_changes() -> None:
    ram = GuestRam(8 << 20)
    ram.write(5 * PAGE, b"x")
    before = os.fstat(ram.fd).st_blocks
    runs = pages.pack_runs(iter([(4, 10), (100, 1)]))
    pages.make_room(ram.buffer, runs)
    assert os.fstat(ram.fd).st_blocks > before
    assert ram.read(5 * PAGE, 1) == b"x"
    assert not any(ram.read(6 * PAGE, 8 * PAGE))
    for bad in BAD_RUNS:
        with pytest.raises(StreamError, match="runs"):
            pages.make_room(memoryview(bytearray(100 * PAGE)), pages.pack_runs(iter(bad)))
    ram.close()


BAD_RUNS = [[(0, 0)], [(99, 2)], [(5, 2), (6, 1)], [(6, 1), (5, 1)], [(0xFFFFFFFF, 0xFFFFFFFF)]]


@pytest.mark.parametrize("runs", BAD_RUNS)
def test_runs_that_cannot_be_are_refused(runs: list[tuple[int, int]]) -> None:
    packed = pages.pack_runs(iter(runs))
    with pytest.raises(StreamError, match="runs"):
        pages.read_runs(packed, 100)
    ram = bytearray(100 * PAGE)
    with pytest.raises(StreamError, match="runs"):
        pages.put(memoryview(ram), packed, bytes(PAGE), change=False)
    assert ram == bytes(100 * PAGE)


@given(st.binary(max_size=40), st.integers(0, 3))
def test_hostile_runs_write_nothing_but_what_they_say(packed: bytes, count: int) -> None:
    ram = bytearray(20 * PAGE)
    raw = b"\xaa" * (count * PAGE)
    try:
        pages.put(memoryview(ram), packed, raw, change=False)
    except StreamError:
        assert not any(ram)
    else:
        assert ram.count(0xAA) == len(raw) == pages.pages_in(packed) * PAGE


def test_holes_of_ram_are_found_and_stay_holes() -> None:
    ram = GuestRam(8 << 20)
    ram.write(5 * PAGE + 7, b"x")
    ram.write((4 << 20) - 1, b"yz")
    before = os.fstat(ram.fd).st_blocks
    written = covered(pages.data_runs(ram.fd, ram.size_bytes))
    assert {5, 1023, 1024} <= written
    assert len(written) < 2048
    assert os.fstat(ram.fd).st_blocks == before
    ram.close()


def content(value: int) -> bytes:
    """A page; zeros for 0, and then only its last byte is not."""
    return bytes(PAGE - 1) + bytes([value])


@given(
    st.lists(st.dictionaries(st.integers(0, TOTAL - 1), st.integers(0, 3)), max_size=6),
    st.integers(0, 40),
    st.integers(1, 50),
)
def test_what_is_picked_and_put_is_the_same_ram(
    rounds: list[dict[int, int]], remember: int, chunk: int
) -> None:
    """Whatever is remembered or forgotten: the other side, given each piece, follows."""
    here, there = bytearray(TOTAL * PAGE), bytearray(TOTAL * PAGE)
    picker = pages.Picker(TOTAL, 50 * PAGE, remember * PAGE)
    known: set[int] = set()
    for number, written in enumerate(rounds):
        for page, value in written.items():
            here[page * PAGE : (page + 1) * PAGE] = content(value)
        pending = pages.bitmap_of(iter(runs_of(set(written))), TOTAL)
        page, sent = 0, set()
        while page < TOTAL:
            picked = picker.pick(memoryview(here), pending, page, chunk * PAGE, keep=number % 3 > 0)
            page = picked.next_page
            for runs, raw, change in (
                (picked.runs, picked.whole, False),
                (picked.change_runs, picked.changes, True),
            ):
                pages.put(memoryview(there), runs, bytes(raw), change=change)
                assert len(raw) <= chunk * PAGE
                sent |= covered(pages.read_runs(runs, TOTAL))
            known |= covered(pages.read_runs(picked.change_runs, TOTAL))
            for first, count in pages.read_runs(picked.zeros, TOTAL):
                assert not any(here[first * PAGE : (first + count) * PAGE])
                there[first * PAGE : (first + count) * PAGE] = bytes(count * PAGE)
        assert here == there
        assert sent == {p for p, value in written.items() if value}
    assert len(known) <= remember


@given(st.sets(st.integers(0, TOTAL - 1)), st.integers(1, 20), st.integers(1, 20))
def test_pages_that_were_copied_aside_are_picked_as_those_in_ram(
    written: set[int], room: int, chunk: int
) -> None:
    ram = bytearray(b"".join(content(page % 3) for page in range(TOTAL)))
    pending = pages.bitmap_of(iter(runs_of(written)), TOTAL)
    aside = memoryview(bytearray(room * PAGE))
    picker = pages.Picker(TOTAL, chunk * PAGE, 0)
    start, found = 0, dict.fromkeys(written, b"")
    while start < TOTAL:
        end, count = _native.copy_pages(memoryview(ram), pending, start, aside)
        here = pages.between(pending, start, end)
        assert pages.count(here) == count <= room
        page = start
        while page < TOTAL:
            copied = aside[: count * PAGE]
            picked = picker.pick(copied, here, page, chunk * PAGE, keep=False)
            whole = bytes(picked.whole)
            for n, number in enumerate(sorted(covered(pages.read_runs(picked.runs, TOTAL)))):
                found[number] = whole[n * PAGE : (n + 1) * PAGE]
            for number in covered(pages.read_runs(picked.zeros, TOTAL)):
                found[number] = bytes(PAGE)
            page = picked.next_page
        start = end
    assert found == {page: content(page % 3) for page in written}


def test_counters_that_have_moved_on_together_pack_to_nothing() -> None:
    """Differences are sums, not exclusive ors: these would have another pattern in each word."""
    words = PAGE // 8
    here, there = bytearray(PAGE), bytearray(PAGE)
    picker = pages.Picker(1, PAGE, PAGE)
    packed = b""
    for step in range(2):
        here[:] = struct.pack(
            f"<{words}Q", *((i * 0x9E3779B97F4A7C15 + step) % 2**64 for i in range(words))
        )
        picked = picker.pick(memoryview(here), b"\1", 0, PAGE, keep=True)
        pages.put(memoryview(there), picked.runs, bytes(picked.whole), change=False)
        pages.put(memoryview(there), picked.change_runs, bytes(picked.changes), change=True)
        packed = Packer().pack(Codec.LZ4, picked.changes)
        assert here == there
    assert pages.pages_in(picked.change_runs) == 1
    assert len(packed) < 64


@pytest.mark.parametrize(
    "change",
    [
        {0: bytearray(PAGE)},
        {1: -256},
        {2: b"short"},
        {3: -1},
        {3: 257},
        {4: bytearray()},
        {7: bytearray(3)},
        {8: 257},
    ],
    ids=lambda change: str(next(iter(change))),
)
def test_buffers_that_do_not_fit_are_refused(change: dict[int, object]) -> None:
    ram = bytearray(256 * PAGE)
    slots = bytearray(4 * 256)
    good = [ram, 256, bytes(32), 0, bytearray(PAGE), bytearray(PAGE), bytearray(ram), slots, 0]
    _native.pick_pages(*good)  # type: ignore[arg-type]
    bad = [change.get(i, value) for i, value in enumerate(good)]
    with pytest.raises(ValueError, match="do not fit"):
        _native.pick_pages(*bad)  # type: ignore[arg-type]
