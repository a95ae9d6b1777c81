"""Sending pages: out of RAM, zeros apart, as differences where that pays, packed, in frames."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

from rayvisor.migration import pages
from rayvisor.migration.codec import Packer
from rayvisor.migration.config import PAGE_BYTES, Codec
from rayvisor.migration.frames import Pages

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from rayvisor.migration.outbox import Outbox
    from rayvisor.migration.pages import Bitmap, Indexes

TRIAL_PAGES: Final = 512
"""So many pages are sent as differences before it is asked whether that pays."""
WORTHWHILE: Final = 1.3
"""How much better than whole pages differences must pack to be worth their copies."""
ZERO_RUNS_A_FRAME: Final = 1024


class Turn(Enum):
    """Which round pages are sent in: copies are kept of those that may be sent again."""

    FIRST = "first"
    """Most of its pages are never sent again."""
    LATER = "later"
    LAST = "last"


@dataclass(slots=True)
class Tally:
    """What has been sent."""

    pages: int = 0
    zero_pages: int = 0
    delta_pages: int = 0
    raw_bytes: int = 0
    packed_bytes: int = 0

    @property
    def ratio(self) -> float:
        """Bytes before packing over bytes after."""
        return self.raw_bytes / self.packed_bytes if self.packed_bytes else 1.0


class PageSender:
    """Sends pages of one RAM through one outbox. `close` it before the RAM."""

    def __init__(
        self,
        ram: memoryview,
        outbox: Outbox,
        total: Tally,
        *,
        largest_chunk_bytes: int,
        delta_cache_bytes: int,
    ) -> None:
        """What is sent is counted in `total`."""
        self._view = pages.RamView(ram)
        self._outbox = outbox
        self._packer = Packer()
        self._buffer = pages.buffer_of(largest_chunk_bytes // PAGE_BYTES)
        self._changes = pages.buffer_of(largest_chunk_bytes // PAGE_BYTES)
        self._sent = pages.SentPages(self._view.pages, delta_cache_bytes)
        self._whole, self._deltas = Tally(), Tally()
        self._deltas_pay = delta_cache_bytes > 0
        self.total = total

    @property
    def pages(self) -> int:
        """The number of pages that RAM has."""
        return self._view.pages

    def close(self) -> None:
        """Let go of RAM."""
        self._view.close()

    def send_holes(self, holes: Bitmap) -> None:
        """Say that the flagged pages, which are known to be zero, are."""
        indexes = pages.indexes_of(holes)
        packed = pages.pack_runs(indexes)
        for start in range(0, len(packed), 8 * ZERO_RUNS_A_FRAME):
            runs = packed[start : start + 8 * ZERO_RUNS_A_FRAME]
            self._outbox.put(Pages(b"", runs, Codec.RAW, delta=False, raw_bytes=0, data=b""))
        self.total.zero_pages += len(indexes)

    def send(
        self,
        indexes: Indexes,
        codec: Codec,
        chunk_bytes: int,
        *,
        turn: Turn,
        check: Callable[[], None],
        skip: Callable[[], Bitmap | None] = lambda: None,
    ) -> None:
        """Send pages as they are now.

        Args:
            indexes: The pages, in order.
            codec: How to pack them.
            chunk_bytes: Pages of a frame.
            turn: Which round this is.
            check: Called before each frame and while waiting; it may raise.
            skip: Asked before each frame for pages that need not be sent any more.
        """
        for part in pages.chunks(indexes, chunk_bytes // PAGE_BYTES):
            check()
            needless = skip()
            chunk = part if needless is None else part[~needless[part]]
            rows = self._view.copy_out(chunk, self._buffer)
            filled = pages.nonzero_rows(rows)
            zeros = chunk[~filled]
            if len(zeros):
                chunk, rows = chunk[filled], rows[filled]
                self._sent.forget(zeros)
                self.total.zero_pages += len(zeros)
            if turn is Turn.FIRST or not self._deltas_pay:
                self._put(chunk, zeros, rows, codec, self._whole, check)
            else:
                self._send_again(chunk, zeros, rows, codec, turn, check)

    def _send_again(
        self,
        chunk: Indexes,
        zeros: Indexes,
        rows: NDArray[np.uint8],
        codec: Codec,
        turn: Turn,
        check: Callable[[], None],
    ) -> None:
        known = self._sent.known(chunk)
        if not known.all() or len(zeros):
            fresh = ~known
            self._put(chunk[fresh], zeros, rows[fresh], codec, self._whole, check)
        again, now = (chunk, rows) if known.all() else (chunk[known], rows[known])
        if len(again):
            changes = self._sent.differences(again, now, self._changes)
            self._put(again, again[:0], changes, codec, self._deltas, check)
        if turn is not Turn.LAST:
            self._sent.keep(chunk, rows)
        if self._deltas.pages >= TRIAL_PAGES:
            self._deltas_pay = self._deltas.ratio >= WORTHWHILE * self._whole.ratio

    def _put(
        self,
        chunk: Indexes,
        zeros: Indexes,
        rows: NDArray[np.uint8],
        codec: Codec,
        tally: Tally,
        check: Callable[[], None],
    ) -> None:
        delta = tally is self._deltas
        if not len(chunk) and not len(zeros):
            return
        block = self._packer.pack(codec, rows.data.cast("B")) if len(chunk) else b""
        raw_bytes = len(chunk) * PAGE_BYTES
        self._outbox.put(
            Pages(pages.pack_runs(chunk), pages.pack_runs(zeros), codec, delta, raw_bytes, block),
            check,
        )
        for t in (tally, self.total):
            t.pages += len(chunk)
            t.raw_bytes += raw_bytes
            t.packed_bytes += len(block)
        if delta:
            self.total.delta_pages += len(chunk)
