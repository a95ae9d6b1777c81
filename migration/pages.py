"""Pages as arrays: dirty bitmaps, runs, and copying many of them in and out of RAM.

The one place that uses numpy. It is imported where a migration begins, so that a VM's process that
never migrates does not carry it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from rayvisor.migration.config import PAGE_BYTES
from rayvisor.migration.errors import StreamError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Indexes = NDArray[np.int64]
    Bitmap = NDArray[np.bool_]

_WORDS: Final = PAGE_BYTES // 8


def bitmap_of(bits: bytes, pages: int) -> Bitmap:
    """A flag a page from the dirty log's bits (low bit first)."""
    packed = np.frombuffer(bits, dtype=np.uint8)
    return np.unpackbits(packed, count=pages, bitorder="little").view(np.bool_)


def indexes_of(bitmap: Bitmap) -> Indexes:
    """The numbers of the pages that are flagged, in order."""
    return np.flatnonzero(bitmap)


def pack_runs(indexes: Indexes) -> bytes:
    """Ascending page numbers as runs, in the form of rayvisor.migration.frames."""
    if not len(indexes):
        return b""
    breaks = np.flatnonzero(np.diff(indexes) != 1) + 1
    firsts = indexes[np.concatenate(([0], breaks))]
    ends = indexes[np.concatenate((breaks - 1, [len(indexes) - 1]))]
    return np.column_stack((firsts, ends - firsts + 1)).astype("<u4").tobytes()


def read_runs(packed: bytes, pages: int) -> NDArray[np.int64]:
    """The (first, count) rows of packed runs, all inside a RAM of `pages`.

    Raises:
        StreamError: a run is empty, leaves RAM, or is out of order.
    """
    if len(packed) % 8:
        raise StreamError(f"runs: {len(packed)} bytes are not whole runs")
    runs = np.frombuffer(packed, dtype="<u4").astype(np.int64).reshape(-1, 2)
    firsts, ends = runs[:, 0], runs[:, 0] + runs[:, 1]
    if len(runs) and (
        (runs[:, 1] == 0).any() or int(ends.max()) > pages or (firsts[1:] < ends[:-1]).any()
    ):
        raise StreamError(f"runs: empty, out of order, or beyond the {pages} pages of RAM")
    return runs


def expand_runs(runs: NDArray[np.int64]) -> Indexes:
    """Every page of the runs. As many as their counts say: check that first."""
    counts = runs[:, 1]
    total = int(counts.sum())
    starts = np.repeat(runs[:, 0] - (np.cumsum(counts) - counts), counts)
    return np.asarray(starts + np.arange(total), dtype=np.int64)


def data_bitmap(fd: int, size_bytes: int) -> Bitmap:
    """Pages of a memory file that were ever written; the others are holes and read as zero.

    Asking the file costs nothing, while reading a hole through a mapping would fill it.
    """
    bitmap = np.zeros(size_bytes // PAGE_BYTES, dtype=np.bool_)
    offset = 0
    while offset < size_bytes:
        try:
            start = os.lseek(fd, offset, os.SEEK_DATA)
        except OSError:  # ENXIO: only a hole from here on
            break
        offset = os.lseek(fd, start, os.SEEK_HOLE)
        bitmap[start // PAGE_BYTES : -(-offset // PAGE_BYTES)] = True
    return bitmap


class RamView:
    """RAM as rows of pages. `close` it before the RAM: it holds on to the memory."""

    def __init__(self, ram: memoryview) -> None:
        self._rows: NDArray[np.uint8] = np.frombuffer(ram, dtype=np.uint8).reshape(-1, PAGE_BYTES)
        self.pages = len(self._rows)

    def close(self) -> None:
        """Let go of the memory. Harmless twice."""
        self._rows = np.zeros((0, PAGE_BYTES), dtype=np.uint8)

    def copy_out(self, indexes: Indexes, into: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Copies of pages, in the first rows of `into`. Each is torn if the guest writes it."""
        out = into[: len(indexes)]
        np.take(self._rows, indexes, axis=0, out=out, mode="clip")
        return out

    def copy_in(self, indexes: Indexes, raw: bytes) -> None:
        """Fill pages with `raw`, as many bytes as they have."""
        self._rows[indexes] = np.frombuffer(raw, dtype=np.uint8).reshape(-1, PAGE_BYTES)

    def xor_in(self, indexes: Indexes, raw: bytes) -> None:
        """Change pages by `raw`, the differences."""
        self._rows[indexes] ^= np.frombuffer(raw, dtype=np.uint8).reshape(-1, PAGE_BYTES)


def nonzero_rows(rows: NDArray[np.uint8]) -> Bitmap:
    """Which pages hold anything but zeros."""
    return np.asarray(np.bitwise_or.reduce(rows.view(np.uint64), axis=1) != 0)


def chunks(indexes: Indexes, pages: int) -> Iterator[Indexes]:
    """`indexes` in pieces of at most `pages`."""
    for start in range(0, len(indexes), pages):
        yield indexes[start : start + pages]


def buffer_of(pages: int) -> NDArray[np.uint8]:
    """Room for copies of pages."""
    return np.empty((pages, PAGE_BYTES), dtype=np.uint8)


class SentPages:
    """Copies of pages as they were sent last, for as many as there is room for.

    The newest are kept: a page that is sent again and again has its copy from the second time on.
    """

    def __init__(self, pages: int, room_bytes: int) -> None:
        self._slots = min(pages, room_bytes // PAGE_BYTES)
        self._rows = np.zeros((0, PAGE_BYTES), dtype=np.uint8)
        self._slot_of = np.full(pages, -1, dtype=np.int32)
        self._page_of = np.full(self._slots, -1, dtype=np.int64)
        self._next = 0

    def known(self, indexes: Indexes) -> Bitmap:
        """For each page, whether its last copy is here."""
        return np.asarray(self._slot_of[indexes] >= 0)

    def differences(
        self, indexes: Indexes, rows: NDArray[np.uint8], into: NDArray[np.uint8]
    ) -> NDArray[np.uint8]:
        """`rows` changed by the copies of these pages, all known, in the first rows of `into`."""
        out = into[: len(indexes)]
        np.take(self._rows, self._slot_of[indexes], axis=0, out=out, mode="clip")
        np.bitwise_xor(out, rows, out=out)
        return out

    def keep(self, indexes: Indexes, rows: NDArray[np.uint8]) -> None:
        """Remember that these pages are being sent as `rows`."""
        if not self._slots:
            return
        if not len(self._rows):
            self._rows = buffer_of(self._slots)
        slots = self._slot_of[indexes]
        new = np.flatnonzero(slots < 0)[: self._slots]
        if len(new):
            taken = (self._next + np.arange(len(new))) % self._slots
            self._next = int(taken[-1] + 1) % self._slots
            self._forget_slots(taken)
            self._slot_of[indexes[new]] = taken
            self._page_of[taken] = indexes[new]
            slots = self._slot_of[indexes]
        here = slots >= 0
        if here.all():
            self._rows[slots] = rows
        else:
            self._rows[slots[here]] = rows[here]

    def forget(self, indexes: Indexes) -> None:
        """These pages have been sent in another way: their copies are of no use."""
        slots = self._slot_of[indexes]
        slots = slots[slots >= 0]
        self._page_of[slots] = -1
        self._slot_of[indexes] = -1

    def _forget_slots(self, slots: Any) -> None:  # noqa: ANN401 - an array of indexes
        pages = self._page_of[slots]
        self._slot_of[pages[pages >= 0]] = -1
