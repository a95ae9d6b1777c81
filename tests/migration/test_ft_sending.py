"""Pages of checkpoints: as differences while that pays."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from rayvisor.migration import frames, ft_sending, pages
from rayvisor.migration.codec import Unpacker
from rayvisor.migration.config import PAGE_BYTES, Codec
from rayvisor.migration.ft_config import FtConfig
from rayvisor.migration.ft_sending import Aside, EpochSender
from rayvisor.migration.sending import TRIAL_PAGES

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

PAGES = 1024


class Kept:
    """An outbox that keeps frames."""

    def __init__(self) -> None:
        self.frames: list[frames.Pages] = []

    def put(self, frame: frames.Pages, check: Callable[[], None], *, more: bool) -> None:
        check()
        assert more
        self.frames.append(frame)


def send(sender: EpochSender, outbox: Kept, first: int, content: bytes) -> list[frames.Pages]:
    """Send an epoch whose pages from `first` on have been written; its frames."""
    outbox.frames.clear()
    count = len(content) // PAGE_BYTES
    pending = pages.span(first, first + count, PAGES)
    sender.send(Aside(pending, memoryview(content)), lambda: None)
    sender.judge()
    return list(outbox.frames)


def test_an_epoch_goes_in_chunks_and_comes_back_as_it_was() -> None:
    outbox = Kept()
    sender = EpochSender(PAGES, outbox, FtConfig(chunk_bytes=16 * PAGE_BYTES))  # type: ignore[arg-type]
    there = bytearray(PAGES * PAGE_BYTES)
    for number in range(3):
        content = b"".join(
            bytes([number + 1, page % 251] * (PAGE_BYTES // 2)) for page in range(50)
        )
        for frame in send(sender, outbox, 7, content):
            assert frame.delta == (number > 0)
            assert frame.raw_bytes <= 16 * PAGE_BYTES
            raw = Unpacker().unpack(Codec(frame.codec), frame.data, frame.raw_bytes)
            pages.put(memoryview(there), frame.runs, raw, change=frame.delta)
        assert there[7 * PAGE_BYTES : 57 * PAGE_BYTES] == content


def test_differences_that_do_not_pay_are_left_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    outbox = Kept()
    sender = EpochSender(PAGES, outbox, FtConfig())  # type: ignore[arg-type]
    deltas = []
    for number in range(2 + TRIAL_PAGES // 256):
        sent = send(sender, outbox, 0, os.urandom(256 * PAGE_BYTES))
        deltas.append(any(frame.delta for frame in sent))
        assert sum(frame.raw_bytes for frame in sent) == 256 * PAGE_BYTES, number
    assert deltas == [False, True, True, False]
    later_s = time.monotonic() + ft_sending.DELTAS_AGAIN_S + 1
    monkeypatch.setattr(time, "monotonic", lambda: later_s)
    send(sender, outbox, 0, os.urandom(256 * PAGE_BYTES))
    send(sender, outbox, 0, os.urandom(256 * PAGE_BYTES))
    assert any(frame.delta for frame in send(sender, outbox, 0, os.urandom(256 * PAGE_BYTES)))
