"""A carrier over a connected stream socket: each frame behind its length.

A length is four bytes, most significant first. The socket is neither authenticated nor encrypted
here: it comes from who has seen to that, such as a socket pair or a wrapped connection.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
import time
from typing import TYPE_CHECKING, Final, Protocol

from rayvisor.migration.background import Workload, in_background
from rayvisor.migration.errors import TransportError
from rayvisor.migration.frames import MAX_FRAME_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence

_LENGTH: Final = struct.Struct(">I")
BUFFER_BYTES: Final = 4 << 20
"""What the kernel may hold: one large frame under way while the next is made."""

READ_BYTES: Final = 64 << 10
"""Received at once, unless a large frame is under way, which goes where it belongs."""


class _Reader:
    """Frames out of a socket, several at a time if they are small. Remembers a part of one."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)
        self._room = memoryview(bytearray(READ_BYTES))
        self._start = self._end = 0
        self._body: bytearray | None = None
        self._filled = 0
        self.taken = 0
        """How often something has come."""

    def frame(self, timeout_s: float | None) -> bytes | bytearray | None:
        """The next frame, or None if it has not come in time (None waits for ever).

        Raises:
            TransportError: the connection has ended, or a length is beyond all frames.
        """
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            frame = self._next_whole()
            if frame is not None:
                return frame
            left_s = None if deadline_s is None else max(0.0, deadline_s - time.monotonic())
            if not self._poll.poll(None if left_s is None else left_s * 1000):
                return None
            self._take()

    def _next_whole(self) -> bytearray | None:
        """The next frame, if all of it is here."""
        if self._body is None:
            if self._end - self._start < _LENGTH.size:
                return None
            (length,) = _LENGTH.unpack_from(self._room, self._start)
            if length > MAX_FRAME_BYTES:
                raise TransportError(f"a frame of {length} bytes: {MAX_FRAME_BYTES} at most")
            self._start += _LENGTH.size
            self._body, self._filled = bytearray(length), 0
        count = min(self._end - self._start, len(self._body) - self._filled)
        piece = self._room[self._start : self._start + count]
        self._body[self._filled : self._filled + count] = piece
        self._start += count
        self._filled += count
        if self._filled < len(self._body):
            return None
        frame, self._body = self._body, None
        return frame

    def _take(self) -> None:
        """Receive; all that came before has been taken out, but for a part of a length."""
        if self._body is not None and len(self._body) - self._filled >= READ_BYTES:
            count = self._connection.recv_into(memoryview(self._body)[self._filled :])
            self._filled += count
        else:
            left = self._end - self._start
            self._room[:left] = self._room[self._start : self._end]
            count = self._connection.recv_into(self._room[left:])
            self._start, self._end = 0, left + count
        if not count:
            raise TransportError("the other side has closed the connection")
        self.taken += 1


def _send(connection: socket.socket, frames: Sequence[bytes]) -> None:
    """Send frames, together: the other side wakes once."""
    parts = [part for frame in frames for part in (_LENGTH.pack(len(frame)), frame)]
    if not parts:
        return
    sent, total = connection.sendmsg(parts), sum(map(len, parts))
    if sent < total:
        connection.sendall(memoryview(b"".join(parts))[sent:])


def _tune(connection: socket.socket) -> None:
    connection.setblocking(True)
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        connection.setsockopt(socket.SOL_SOCKET, option, BUFFER_BYTES)
    if connection.family in {socket.AF_INET, socket.AF_INET6}:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class SocketTransport:
    """The source's end. See `rayvisor.migration.roles.Transport`. Owns the socket."""

    def __init__(self, connection: socket.socket) -> None:
        _tune(connection)
        self._connection = connection
        self._reader = _Reader(connection)
        self._closed = threading.Event()

    def send(self, *frames: bytes) -> None:
        """Send frames; waits while the connection is full."""
        try:
            _send(self._connection, frames)
        except OSError as error:
            raise TransportError(f"the connection is lost: {error}") from error

    def receive(self, timeout_s: float) -> bytes | None:
        """The next frame, or None if none comes in time."""
        try:
            frame = self._reader.frame(timeout_s)
        except (OSError, ValueError) as error:
            raise TransportError(f"the connection is lost: {error}") from error
        return None if frame is None else bytes(frame)

    def close(self) -> None:
        """End the connection; what has been sent still arrives."""
        if not self._closed.is_set():
            self._closed.set()
            with contextlib.suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)
            self._connection.close()


class Receiver(Protocol):
    """What a destination does with frames: an `Arrival`, or what stands before one."""

    @property
    def urgent(self) -> bool:
        """Whether the next frame is waited for; if not, other work goes first."""

    def feed(self, frame: bytes | bytearray) -> list[bytes]:
        """Take a frame; the replies."""

    def idle(self, *, heard: bool) -> list[bytes]:
        """No frame has come for a while, perhaps part of one (`heard`); what to send.

        Raises:
            TransportError: that is too long.
        """

    def disconnected(self) -> None:
        """The source is gone."""


def serve(connection: socket.socket, arrival: Receiver, look_every_s: float | None = None) -> None:
    """The destination's end: feed `arrival` until the source has gone. Owns the socket.

    With `look_every_s`, it is also told when no frame has come for so long. What need not be urgent
    gives way to others, unless this host is overloaded.
    """
    _tune(connection)
    reader = _Reader(connection)

    starved = False

    def feed_while(urgent: bool) -> None:
        nonlocal starved
        work = Workload()
        while (starved or arrival.urgent) is urgent:
            before = reader.taken
            frame = reader.frame(look_every_s)
            with work.counted():
                replies = (
                    arrival.idle(heard=reader.taken > before)
                    if frame is None
                    else arrival.feed(frame)
                )
            _send(connection, replies)
            starved = starved or (work.starved and not urgent)

    try:
        while True:
            # A guest that is started from here runs at this thread's priority.
            feed_while(True)
            in_background(lambda: feed_while(False), "migration-in")
    except (OSError, TransportError):
        pass
    finally:
        connection.close()
        arrival.disconnected()
