"""Which pages, and in which form they travel: bitmaps and runs.

A page's number is its offset in the RAM file divided by 4096. A bitmap has a bit a page, low bit
first, as the dirty log gives it; runs are pairs of little-endian 32-bit numbers (first, count), in
order. The pages themselves are copied by the native core.
"""

from __future__ import annotations

import bisect
import contextlib
import mmap
import os
import re
import struct
from typing import TYPE_CHECKING, Final

from rayvisor.migration.config import PAGE_BYTES
from rayvisor.migration.errors import StreamError
from rayvisor.vmm.core import _native

if TYPE_CHECKING:
    from collections.abc import Iterator

_RUN: Final = struct.Struct("<II")
RUN_BYTES: Final = _RUN.size


def bitmap_bytes(pages: int) -> int:
    """Length of a bitmap of so many pages."""
    return -(-pages // 8)


def union(one: bytes, other: bytes) -> bytes:
    """Pages that are in either bitmap."""
    both = int.from_bytes(one, "little") | int.from_bytes(other, "little")
    return both.to_bytes(len(one), "little")


def without(one: bytes, other: bytes) -> bytes:
    """Pages of `one` that are not in `other`."""
    left = int.from_bytes(one, "little") & ~int.from_bytes(other, "little")
    return left.to_bytes(len(one), "little")


def count(bitmap: bytes) -> int:
    """How many pages are in it."""
    return int.from_bytes(bitmap, "little").bit_count()


def sample_of(bitmap: bytes, pages: int) -> bytes:
    """About `pages` of its pages, from all over it; all, if they are fewer."""
    step = max(1, count(bitmap) // pages)
    chosen = bytearray(len(bitmap))
    chosen[::step] = bitmap[::step]
    return bytes(chosen)


def first_of(bitmap: bytes, pages: int) -> bytes:
    """Its first `pages` pages and a few more, or all if they are fewer."""
    end = bisect.bisect_left(range(len(bitmap)), pages, key=lambda n: count(bitmap[:n]))
    return bitmap[:end] + bytes(len(bitmap) - end)


def contains(bitmap: bytes, page: int) -> bool:
    """Whether a page is in it; one that RAM does not have is not."""
    return page < 8 * len(bitmap) and bool(bitmap[page >> 3] >> (page & 7) & 1)


def span(first: int, end: int, pages: int) -> bytes:
    """The pages from `first` to before `end`."""
    return bitmap_of(iter(((first, end - first),)), pages)


def runs_of(bitmap: bytes) -> list[tuple[int, int]]:
    """The runs of its pages."""
    flags = f"{int.from_bytes(bitmap, 'little'):b}"[::-1]
    return [(found.start(), found.end() - found.start()) for found in re.finditer("1+", flags)]


def bitmap_of(runs: Iterator[tuple[int, int]], pages: int) -> bytes:
    """The pages of some (first, count), all below `pages`."""
    flags = bytearray(bitmap_bytes(pages))
    for first, length in runs:
        end = first + length
        # Whole bytes at once, and the pages before and behind them.
        inner, outer = -(-first // 8), end // 8
        if inner < outer:
            flags[inner:outer] = b"\xff" * (outer - inner)
        for page in (*range(first, min(end, 8 * inner)), *range(8 * max(inner, outer), end)):
            flags[page >> 3] |= 1 << (page & 7)
    return bytes(flags)


def pack_runs(runs: Iterator[tuple[int, int]]) -> bytes:
    """Runs as they travel."""
    return b"".join(_RUN.pack(first, length) for first, length in runs)


def read_runs(packed: bytes, pages: int) -> list[tuple[int, int]]:
    """The (first, count) of packed runs, all inside a RAM of `pages`.

    Raises:
        StreamError: a run is empty, leaves RAM, or is out of order.
    """
    if len(packed) % RUN_BYTES:
        raise StreamError(f"runs: {len(packed)} bytes are not whole runs")
    found, end = list(_RUN.iter_unpack(packed)), 0
    for first, length in found:
        if not length or first < end or first + length > pages:
            raise StreamError(f"runs: empty, out of order, or beyond the {pages} pages of RAM")
        end = first + length
    return found


def pages_in(packed: bytes) -> int:
    """How many pages packed runs have."""
    return sum(length for _, length in _RUN.iter_unpack(packed))


def data_runs(fd: int, size_bytes: int) -> list[tuple[int, int]]:
    """Pages of a memory file that were ever written; the others are holes and read as zero.

    Asking the file costs nothing, while reading a hole through a mapping would fill it.
    """
    found: list[tuple[int, int]] = []
    offset = 0
    while offset < size_bytes:
        try:
            start = os.lseek(fd, offset, os.SEEK_DATA)
        except OSError:  # ENXIO: only a hole from here on
            break
        offset = os.lseek(fd, start, os.SEEK_HOLE)
        first = start // PAGE_BYTES
        found.append((first, -(-offset // PAGE_BYTES) - first))
    return found


def gaps(runs: list[tuple[int, int]], pages: int) -> list[tuple[int, int]]:
    """The runs of all other pages."""
    found, end = [], 0
    for first, length in (*runs, (pages, 0)):
        if first > end:
            found.append((end, first - end))
        end = first + length
    return found


class Picked:
    """Pages that have been copied out of RAM: whole ones, differences, and zeros.

    Attributes:
        next_page: Where to go on.
        runs, whole: Pages, and their content.
        change_runs, changes: Pages whose difference to what was sent last is there instead.
        zeros: Runs of pages that read as zero.
    """

    __slots__ = ("change_runs", "changes", "next_page", "runs", "whole", "zeros")

    def __init__(
        self,
        next_page: int,
        runs: bytes,
        whole: memoryview,
        change_runs: bytes,
        changes: memoryview,
        zeros: bytes,
    ) -> None:
        self.next_page = next_page
        self.runs = runs
        self.whole = whole[: pages_in(runs) * PAGE_BYTES]
        self.change_runs = change_runs
        self.changes = changes[: pages_in(change_runs) * PAGE_BYTES]
        self.zeros = zeros


def between(bitmap: bytes, first: int, end: int) -> bytes:
    """Its pages from `first` to before `end`."""
    kept = int.from_bytes(bitmap, "little") & ((1 << end) - (1 << first))
    return kept.to_bytes(len(bitmap), "little")


class Picker:
    """Copies pages out of RAM, and remembers what it copied, as far as there is room.

    What it remembers lies in slots of a shadow, which costs memory only as far as it is used: from
    its beginning on, so that large pages of the host's do.
    """

    def __init__(self, pages: int, chunk_bytes: int, remember_bytes: int) -> None:
        """For a RAM of `pages`."""
        self.pages: Final = pages
        self._whole = memoryview(bytearray(chunk_bytes))
        self._keep = remember_bytes // PAGE_BYTES
        deltas = self._keep > 0
        self._changes = memoryview(bytearray(chunk_bytes if deltas else 0))
        self._slots = bytearray(4 * self.pages if deltas else 0)
        self._shadow = memoryview(_room(self._keep * PAGE_BYTES) if deltas else bytearray())

    def pick(
        self, source: memoryview, pending: bytes, first: int, chunk_bytes: int, *, keep: bool
    ) -> Picked:
        """Copies of pages that are `pending`, from page `first` on, up to `chunk_bytes`.

        `source` is all of RAM, or the pages that are pending, one after the other. With `keep`,
        they are remembered: `whole` pages for as long as there is room, others in any case. What
        is returned is valid until the next call.
        """
        deltas = bool(self._slots)
        whole = self._whole[:chunk_bytes]
        changes = self._changes[: chunk_bytes if deltas else 0]
        next_page, runs, change_runs, zeros, left = _native.pick_pages(
            source,
            self.pages,
            pending,
            first,
            whole,
            changes,
            self._shadow,
            self._slots,
            self._keep if keep else -1,
        )
        if keep:
            self._keep = left
        return Picked(next_page, runs, whole, change_runs, changes, zeros)

    def forget(self) -> None:
        """Remember nothing any more, for good, and give the memory back."""
        self._slots = bytearray()
        self._changes = memoryview(bytearray())
        self._shadow = memoryview(bytearray())
        self._keep = 0


def _room(size_bytes: int) -> mmap.mmap:
    room = mmap.mmap(-1, size_bytes)
    with contextlib.suppress(OSError):  # a kernel without them
        room.madvise(mmap.MADV_HUGEPAGE)
    return room


def make_room(ram: memoryview, runs: bytes) -> None:
    """Have memory at hand for the pages of `runs`, whose content does not change.

    Raises:
        StreamError: the runs cannot be.
    """
    read_runs(runs, len(ram) // PAGE_BYTES)
    _native.populate_pages(ram, runs)


def put(ram: memoryview, runs: bytes, raw: bytes, *, change: bool) -> None:
    """Fill the pages of `runs` with `raw`, or change them by it.

    Raises:
        StreamError: the runs cannot be, or are not of so many bytes.
    """
    try:
        _native.put_pages(ram, runs, raw, change)
    except ValueError as error:
        raise StreamError(f"pages: {error}") from error
