"""Frames under a one-time key: carried as they are, and refused when anything is wrong."""

from __future__ import annotations

import socket
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from rayvisor.migration.errors import TransportError
from rayvisor.migration.sealed import KEY_BYTES, SealedArrival, SealedTransport, new_key
from rayvisor.migration.socket_transport import SocketTransport, serve

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rayvisor.migration.roles import Transport

KEY = bytes(range(KEY_BYTES))


@dataclass
class Arrival:
    """Answers each frame with the frame turned round."""

    fed: list[bytes] = field(default_factory=list)
    gone: threading.Event = field(default_factory=threading.Event)
    urgent: bool = False

    def idle(self, *, heard: bool) -> list[bytes]:
        return [b"still here"] if heard else []

    def feed(self, frame: bytes | bytearray) -> list[bytes]:
        self.fed.append(bytes(frame))
        return [bytes(frame)[::-1]]

    def disconnected(self) -> None:
        self.gone.set()


class Recorder:
    """A transport that keeps what it is given."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def send(self, *frames: bytes) -> None:
        self.sent += frames

    def receive(self, timeout_s: float) -> bytes | None:
        return None

    def close(self) -> None:
        pass


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    yield ours, theirs
    ours.close()
    theirs.close()


def sealed_frames(
    pair: tuple[socket.socket, socket.socket], *frames: bytes, key: bytes = KEY
) -> tuple[list[bytes], SealedArrival, Arrival]:
    """What goes over the wire for `frames`, and a destination that has been greeted."""
    recorder: Transport = (recorded := Recorder())
    source = SealedTransport(pair[0], key, recorder)
    arrival = Arrival()
    sealed = SealedArrival(arrival, KEY)
    assert sealed.greeted(pair[1], 1.0) == (key == KEY)
    for frame in frames:
        source.send(frame)
    return recorded.sent, sealed, arrival


def test_frames_travel_both_ways(pair: tuple[socket.socket, socket.socket]) -> None:
    key = new_key()
    assert len(key) == KEY_BYTES
    assert key != new_key()
    arrival = Arrival()
    sealed = SealedArrival(arrival, key)

    def work() -> None:
        assert sealed.greeted(pair[1], 5.0)
        serve(pair[1], sealed)

    there = threading.Thread(target=work)
    there.start()
    transport = SealedTransport(pair[0], key, SocketTransport(pair[0]))
    frames = [b"", b"x", b"abc" * 1000, bytes(5 << 20)]
    for frame in frames:
        transport.send(frame)
        assert transport.receive(10) == frame[::-1]
    assert transport.receive(0) is None
    transport.close()
    there.join()
    assert arrival.fed == frames
    assert arrival.gone.is_set()


def test_nothing_of_a_frame_shows(pair: tuple[socket.socket, socket.socket]) -> None:
    text = b"the guest's memory " * 10
    first, second = sealed_frames(pair, text, text)[0]
    assert text[:16] not in first
    assert first != second, "the same frame twice looks different"
    assert len(first) == len(text) + 16


@pytest.mark.parametrize("at", [0, 7, -1])
def test_a_changed_frame_is_refused(pair: tuple[socket.socket, socket.socket], at: int) -> None:
    (frame,), sealed, arrival = sealed_frames(pair, b"some pages")
    damaged = bytearray(frame)
    damaged[at] ^= 1
    with pytest.raises(TransportError, match="damaged, or was made without the key"):
        sealed.feed(damaged)
    assert arrival.fed == []


@pytest.mark.parametrize("order", [[1], [0, 0], [0, 2], [2]])
def test_frames_out_of_order_are_refused(
    pair: tuple[socket.socket, socket.socket], order: list[int]
) -> None:
    frames, sealed, arrival = sealed_frames(pair, b"one", b"two", b"three")
    *good, bad = order
    for number in good:
        sealed.feed(frames[number])
    with pytest.raises(TransportError):
        sealed.feed(frames[bad])
    assert arrival.fed == [b"one"] * len(good)


def test_a_short_frame_is_refused(pair: tuple[socket.socket, socket.socket]) -> None:
    _, sealed, _ = sealed_frames(pair)
    for frame in (b"", b"x", bytes(15)):
        with pytest.raises(TransportError):
            sealed.feed(frame)


def test_a_reply_is_no_frame(pair: tuple[socket.socket, socket.socket]) -> None:
    """What one side sent does not open when it is sent back to it."""
    (frame,), sealed, _ = sealed_frames(pair, b"x")
    (reply,) = sealed.feed(frame)
    with pytest.raises(TransportError):
        sealed.feed(reply)


@pytest.mark.parametrize("greeting", [b"", b"short", bytes(16), b"GET / HTTP/1.1\r\n"])
def test_who_has_no_key_is_not_let_in(
    pair: tuple[socket.socket, socket.socket], greeting: bytes
) -> None:
    sealed = SealedArrival(Arrival(), KEY)
    pair[0].sendall(greeting)
    pair[0].shutdown(socket.SHUT_WR)
    assert not sealed.greeted(pair[1], 1.0)
    # The one who has it still is.
    ours, theirs = socket.socketpair()
    with ours, theirs:
        SealedTransport(ours, KEY, Recorder())
        assert sealed.greeted(theirs, 1.0)


def test_who_has_another_key_is_not_let_in(pair: tuple[socket.socket, socket.socket]) -> None:
    sealed_frames(pair, key=bytes(KEY_BYTES))


def test_who_says_nothing_is_not_waited_for(pair: tuple[socket.socket, socket.socket]) -> None:
    assert not SealedArrival(Arrival(), KEY).greeted(pair[1], 0.05)
