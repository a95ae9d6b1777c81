"""Sending pages: out of RAM, zeros apart, as differences where that pays, packed, in frames."""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

from rayvisor.migration import pages
from rayvisor.migration.codec import Packer
from rayvisor.migration.config import PAGE_BYTES, Codec
from rayvisor.migration.frames import Pages

if TYPE_CHECKING:
    from collections.abc import Callable

    from rayvisor.migration.outbox import Outbox

TRIAL_PAGES: Final = 512
"""So many pages are sent as differences before it is asked whether that pays."""
WORTHWHILE: Final = 1.3
"""How much better than whole pages differences must pack to be worth their copies."""
ZERO_RUNS_A_FRAME: Final = 1024
WAITING_RATIO: Final = 0.3
"""Who waits for the line for more of the time than this has time to pack better."""
SMOOTHING: Final = 0.2


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


class _Choice:
    """Which codec, by what holds frames up: packing them, or the line."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._waiting = 0.0
        self._at_s, self._full_s = time.monotonic(), outbox.full_s

    def codec(self) -> Codec:
        """The codec of the next frame."""
        now_s, full_s = time.monotonic(), self._outbox.full_s
        if now_s > self._at_s:
            waiting = (full_s - self._full_s) / (now_s - self._at_s)
            self._waiting += SMOOTHING * (waiting - self._waiting)
        self._at_s, self._full_s = now_s, full_s
        return Codec.ZSTD if self._waiting > WAITING_RATIO else Codec.LZ4


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
        self._ram = ram
        self._picker = pages.Picker(len(ram) // PAGE_BYTES, largest_chunk_bytes, delta_cache_bytes)
        self._outbox = outbox
        self._packer = Packer()
        self._choice = _Choice(outbox)
        self._whole, self._deltas = Tally(), Tally()
        self.total = total

    @property
    def pages(self) -> int:
        """The number of pages that RAM has."""
        return self._picker.pages

    def close(self) -> None:
        """Let go of RAM."""
        self._ram = memoryview(b"")
        self._picker.forget()

    def send_holes(self, holes: list[tuple[int, int]]) -> None:
        """Say that these runs of pages, which are known to be zero, are."""
        for start in range(0, len(holes), ZERO_RUNS_A_FRAME):
            runs = holes[start : start + ZERO_RUNS_A_FRAME]
            zeros = pages.pack_runs(iter(runs))
            self._outbox.put(Pages(b"", zeros, Codec.RAW, delta=False, raw_bytes=0, data=b""))
            self.total.zero_pages += sum(length for _, length in runs)

    def send(
        self,
        pending: bytes,
        codec: Codec | None,
        chunk_bytes: int,
        *,
        turn: Turn,
        check: Callable[[], None],
        skip: Callable[[], bytes | None] = lambda: None,
        first: int = 0,
        leave: Callable[[], bool] = lambda: False,
    ) -> int:
        """Send pages as they are now, from page `first` on; where to go on.

        Args:
            pending: Which, as a bitmap.
            codec: How to pack them; None for what suits the line.
            chunk_bytes: Pages of a frame.
            turn: Which round this is.
            check: Called before each frame and while waiting; it may raise.
            skip: Asked before each frame for pages that need not be sent any more.
            first: The first page.
            leave: Asked before each frame whether to stop there.
        """
        page = first
        while page < self.pages and not leave():
            check()
            needless = skip()
            if needless is not None:
                pending = pages.without(pending, needless)
            picked = self._picker.pick(
                self._ram, pending, page, chunk_bytes, keep=turn is Turn.LATER
            )
            page = picked.next_page
            if picked.runs or picked.zeros:
                self._put(picked.runs, picked.whole, picked.zeros, codec, self._whole, check)
            if picked.change_runs:
                self._put(picked.change_runs, picked.changes, b"", codec, self._deltas, check)
                if self._deltas.pages >= TRIAL_PAGES and not self._deltas_pay:
                    self._picker.forget()
        return page

    def send_piece(self, pending: bytes, first: int, codec: Codec | None, chunk_bytes: int) -> int:
        """Send one frame of whole pages, from page `first` on; where to go on."""
        self._picker.forget()
        picked = self._picker.pick(self._ram, pending, first, chunk_bytes, keep=False)
        self._put(picked.runs, picked.whole, picked.zeros, codec, self._whole, lambda: None)
        return picked.next_page

    @property
    def _deltas_pay(self) -> bool:
        return self._deltas.ratio >= WORTHWHILE * self._whole.ratio

    def _put(
        self,
        runs: bytes,
        content: memoryview,
        zeros: bytes,
        codec: Codec | None,
        tally: Tally,
        check: Callable[[], None],
    ) -> None:
        delta = tally is self._deltas
        if codec is None:
            codec = self._choice.codec() if self._packer.pays(content) else Codec.RAW
        block = self._packer.pack(codec, content) if runs else b""
        raw_bytes = len(content)
        self._outbox.put(Pages(runs, zeros, codec, delta, raw_bytes, block), check)
        count = pages.pages_in(runs)
        for t in (tally, self.total):
            t.pages += count
            t.raw_bytes += raw_bytes
            t.packed_bytes += len(block)
        self.total.zero_pages += pages.pages_in(zeros)
        if delta:
            self.total.delta_pages += count
