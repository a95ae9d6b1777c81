"""Bitmaps, runs and copies of pages."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayvisor.migration import pages
from rayvisor.migration.errors import StreamError
from rayvisor.vmm.memory import GuestRam

PAGE = 4096
indexes = st.sets(st.integers(0, 300)).map(lambda s: np.array(sorted(s), dtype=np.int64))


@given(indexes)
def test_runs_come_back_as_the_pages_they_were(chosen: pages.Indexes) -> None:
    runs = pages.read_runs(pages.pack_runs(chosen), 301)
    assert pages.expand_runs(runs).tolist() == chosen.tolist()
    assert len(runs) == sum(i - 1 not in chosen for i in chosen)


@given(indexes)
def test_a_bitmap_is_the_dirty_logs_bits(chosen: pages.Indexes) -> None:
    bits = bytearray(38)
    for i in chosen.tolist():
        bits[i // 8] |= 1 << i % 8
    bitmap = pages.bitmap_of(bytes(bits), 301)
    assert len(bitmap) == 301
    assert pages.indexes_of(bitmap).tolist() == chosen.tolist()


@given(st.binary(max_size=64))
def test_hostile_runs_stay_inside_ram_or_are_refused(packed: bytes) -> None:
    try:
        runs = pages.read_runs(packed, 100)
    except StreamError:
        return
    covered = pages.expand_runs(runs)
    assert len(set(covered.tolist())) == len(covered)
    assert all(0 <= page < 100 for page in covered.tolist())


@pytest.mark.parametrize(
    "runs",
    [[(0, 0)], [(99, 2)], [(5, 2), (6, 1)], [(6, 1), (5, 1)], [(0xFFFFFFFF, 0xFFFFFFFF)]],
)
def test_runs_that_cannot_be_are_refused(runs: list[tuple[int, int]]) -> None:
    with pytest.raises(StreamError, match="runs"):
        pages.read_runs(np.array(runs, dtype="<u4").tobytes(), 100)


def test_holes_of_ram_are_found_and_stay_holes() -> None:
    ram = GuestRam(8 << 20)
    ram.write(5 * PAGE + 7, b"x")
    ram.write((4 << 20) - 1, b"yz")
    before = os.fstat(ram.fd).st_blocks
    written = pages.indexes_of(pages.data_bitmap(ram.fd, ram.size_bytes)).tolist()
    assert {5, 1023, 1024} <= set(written)
    assert len(written) < 2048
    assert os.fstat(ram.fd).st_blocks == before
    ram.close()


def test_a_closed_view_lets_ram_go() -> None:
    ram = GuestRam(1 << 20)
    view = pages.RamView(ram.buffer)
    view.copy_in(np.array([3, 9]), b"a" * PAGE + b"b" * PAGE)
    view.xor_in(np.array([9]), b"\x01" * PAGE)
    room = pages.buffer_of(4)
    rows = view.copy_out(np.array([9, 200, 3]), room)
    assert rows[:, 0].tolist() == [ord("c"), 0, ord("a")]
    assert pages.nonzero_rows(rows).tolist() == [True, False, True]
    view.close()
    ram.close()


@given(st.lists(indexes, max_size=8), st.integers(0, 40))
def test_differences_restore_what_was_sent(rounds: list[pages.Indexes], room: int) -> None:
    """Whatever is forgotten for lack of room, a page that is known is known as it was sent."""
    sent = pages.SentPages(301, room * PAGE)
    truth: dict[int, int] = {}
    for number, chosen in enumerate(rounds):
        rows = np.full((len(chosen), PAGE), number + 1, dtype=np.uint8)
        known = sent.known(chosen)
        again = chosen[known]
        changes = sent.differences(again, rows[known], pages.buffer_of(301))
        for page, change in zip(again.tolist(), changes[:, 0].tolist(), strict=True):
            assert truth[page] ^ change == number + 1
        sent.keep(chosen, rows)
        truth |= dict.fromkeys(chosen.tolist(), number + 1)
        assert int(sent.known(np.arange(301)).sum()) <= room
        gone = chosen[::3]
        sent.forget(gone)
        assert not sent.known(gone).any()
