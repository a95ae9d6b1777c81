"""Sending the pages of checkpoints: what was copied aside, as differences while that pays."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rayvisor.migration import frames, pages
from rayvisor.migration.codec import Packer
from rayvisor.migration.config import PAGE_BYTES, Codec
from rayvisor.migration.sending import TRIAL_PAGES, Tally

if TYPE_CHECKING:
    from collections.abc import Callable

    from rayvisor.migration.ft_config import FtConfig
    from rayvisor.migration.outbox import Outbox

DELTAS_PAY: Final = 2.0
"""How much better than not at all differences must pack to be worth their copies."""
DELTAS_AGAIN_S: Final = 30.0
"""Differences that did not pay are tried again after so long."""


@dataclass(frozen=True, slots=True)
class Aside:
    """Pages of one instant.

    Attributes:
        pending: which, as a bitmap.
        content: one after the other.
    """

    pending: bytes
    content: memoryview


class EpochSender:
    """Sends them through one outbox, for a RAM of `page_count` pages. One thread at a time."""

    def __init__(self, page_count: int, outbox: Outbox, config: FtConfig) -> None:
        self._page_count = page_count
        self._outbox = outbox
        self._config = config
        self._packer = Packer()
        self._picker = self._make_picker()
        self._whole, self._deltas = Tally(), Tally()
        self._forgot_s: float | None = None

    def send(self, aside: Aside, check: Callable[[], None]) -> None:
        """Send them all; more follows at once. `check` is called while there is no room."""
        page = 0
        while page < self._page_count:
            picked = self._picker.pick(
                aside.content, aside.pending, page, self._config.chunk_bytes, keep=True
            )
            page = picked.next_page
            if picked.runs or picked.zeros:
                self._put(picked.runs, picked.whole, picked.zeros, self._whole, check)
            if picked.change_runs:
                self._put(picked.change_runs, picked.changes, b"", self._deltas, check)

    def judge(self) -> None:
        """An epoch is sent: see whether the next one's pages are to be sent as differences."""
        if self._forgot_s is not None:
            if time.monotonic() - self._forgot_s > DELTAS_AGAIN_S:
                self._picker, self._forgot_s = self._make_picker(), None
        elif self._deltas.pages >= TRIAL_PAGES:
            if self._deltas.ratio < DELTAS_PAY:
                self._picker.forget()
                self._forgot_s = time.monotonic()
            self._whole, self._deltas = Tally(), Tally()

    def _make_picker(self) -> pages.Picker:
        config = self._config
        return pages.Picker(self._page_count, config.chunk_bytes, config.delta_cache_bytes)

    def _put(
        self,
        runs: bytes,
        content: memoryview,
        zeros: bytes,
        tally: Tally,
        check: Callable[[], None],
    ) -> None:
        block = self._packer.pack(Codec.LZ4, content) if runs else b""
        delta = tally is self._deltas
        frame = frames.Pages(runs, zeros, Codec.LZ4, delta, len(content), block)
        self._outbox.put(frame, check, more=True)
        tally.pages += len(content) // PAGE_BYTES
        tally.raw_bytes += len(content)
        tally.packed_bytes += len(block)
