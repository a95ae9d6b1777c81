"""A console over a wire: one read is always under way, and every byte comes once."""

from __future__ import annotations

from rayvisor.actors.records import ConsoleChunk
from rayvisor.runtime.console_link import CHUNK_BYTES, LONG_POLL_S, ConsoleLink


class Wire:
    """Answers from `output` when it is asked for an answer, and remembers what it was asked."""

    def __init__(self, output: bytes, start: int = 0) -> None:
        self.output = output
        self.start = start
        self.live = True
        self.asked: list[int] = []

    def submit(self, offset: int, max_bytes: int, timeout_s: float) -> int:
        assert (max_bytes, timeout_s) == (CHUNK_BYTES, LONG_POLL_S)
        self.asked.append(offset)
        return offset

    def collect(self, reference: int, _timeout_s: float) -> ConsoleChunk | None:
        first = max(reference, self.start)
        data = self.output[first : first + 3]
        return ConsoleChunk(first, data, self.live) if data or not self.live else None


def test_the_next_read_is_under_way_before_it_is_wanted() -> None:
    wire = Wire(b"abcdef")
    link = ConsoleLink(wire.submit, wire.collect)
    assert link.read(0, 1.0) == (0, b"abc")
    assert wire.asked == [0, 3]
    assert link.read(3, 1.0) == (3, b"def")
    assert wire.asked == [0, 3, 6]


def test_waiting_asks_once() -> None:
    wire = Wire(b"")
    link = ConsoleLink(wire.submit, wire.collect)
    assert [link.read(0, 0.0) for _ in range(3)] == [(0, b"")] * 3
    assert wire.asked == [0]
    wire.output = b"x"
    assert link.read(0, 0.0) == (0, b"x")


def test_a_gap_is_shown_by_the_offset() -> None:
    wire = Wire(b"0123456789", start=5)
    link = ConsoleLink(wire.submit, wire.collect)
    assert link.read(0, 1.0) == (5, b"567")
    assert link.read(8, 1.0) == (8, b"89")


def test_reading_elsewhere_starts_anew() -> None:
    wire = Wire(b"abcdef")
    link = ConsoleLink(wire.submit, wire.collect)
    assert link.read(0, 1.0) == (0, b"abc")
    assert link.read(1, 1.0) == (1, b"bcd")


def test_the_last_output_comes_before_the_end() -> None:
    wire = Wire(b"abc")
    wire.live = False
    link = ConsoleLink(wire.submit, wire.collect)
    assert link.alive()
    assert link.read(0, 1.0) == (0, b"abc")
    assert link.read(3, 1.0) == (3, b"")
    assert not link.alive()
    assert wire.asked == [0, 3]
