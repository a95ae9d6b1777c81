"""Frames on their way out: small ones together, all of them in order."""

from __future__ import annotations

import threading

from rayvisor.migration import frames
from rayvisor.migration.outbox import TOGETHER_BYTES, Outbox

PATIENCE_S = 20.0


class Gate:
    """A transport that takes nothing until it is opened, and keeps what it takes at a time."""

    def __init__(self) -> None:
        self.taken: list[list[int]] = []
        self.entered, self.open = threading.Event(), threading.Event()
        self._seq = 0

    def send(self, *encoded: bytes) -> None:
        self.entered.set()
        assert self.open.wait(PATIENCE_S)
        sizes = []
        for data in encoded:
            frame = frames.decode(data, self._seq)
            assert isinstance(frame, frames.Done)
            self._seq += 1
            sizes.append(len(frame.data))
        self.taken.append(sizes)

    def receive(self, timeout_s: float) -> bytes | None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


def blocked(room: int) -> tuple[Gate, Outbox]:
    """An outbox whose transport has been given one frame and takes no other yet."""
    gate = Gate()
    outbox = Outbox(gate, room, None)
    outbox.put(frames.Done(b""))
    assert gate.entered.wait(PATIENCE_S)
    return gate, outbox


def test_small_frames_that_wait_are_sent_together_and_large_ones_alone() -> None:
    gate, outbox = blocked(room=8)
    for size in (1, 2, TOGETHER_BYTES, 3, 4):
        outbox.put(frames.Done(bytes(size)))
    gate.open.set()
    outbox.flush(PATIENCE_S)
    outbox.close()
    assert gate.taken == [[0], [1, 2], [TOGETHER_BYTES], [3, 4]]


def test_a_frame_that_others_follow_is_sent_with_them_and_at_the_latest_when_there_is_no_room() -> (
    None
):
    gate, outbox = blocked(room=2)
    gate.open.set()
    for size in range(1, 8):
        outbox.put(frames.Done(bytes(size)), more=True)
    outbox.put(frames.Done(b""))
    outbox.flush(PATIENCE_S)
    outbox.close()
    assert [size for together in gate.taken for size in together] == [0, *range(1, 8), 0]
