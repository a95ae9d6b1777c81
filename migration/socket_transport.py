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
from typing import Final, Protocol

from rayvisor.migration.background import in_background
from rayvisor.migration.errors import TransportError
from rayvisor.migration.frames import MAX_FRAME_BYTES

_LENGTH: Final = struct.Struct(">I")
BUFFER_BYTES: Final = 4 << 20
"""What the kernel may hold: one large frame under way while the next is made."""


class _Reader:
    """Frames out of a socket. Remembers the part of a frame that has come so far."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)
        self._head = bytearray()
        self._body = bytearray()
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
            if len(self._head) == _LENGTH.size and self._filled == len(self._body):
                frame, self._body, self._filled = self._body, bytearray(), 0
                self._head.clear()
                return frame
            left_s = None if deadline_s is None else max(0.0, deadline_s - time.monotonic())
            if not self._poll.poll(None if left_s is None else left_s * 1000):
                return None
            self._take()

    def _take(self) -> None:
        self.taken += 1
        if len(self._head) < _LENGTH.size:
            part = self._connection.recv(_LENGTH.size - len(self._head))
            if not part:
                raise TransportError("the other side has closed the connection")
            self._head += part
            if len(self._head) == _LENGTH.size:
                (length,) = _LENGTH.unpack(self._head)
                if length > MAX_FRAME_BYTES:
                    raise TransportError(f"a frame of {length} bytes: {MAX_FRAME_BYTES} at most")
                self._body = bytearray(length)
            return
        count = self._connection.recv_into(memoryview(self._body)[self._filled :])
        if not count:
            raise TransportError("the other side has closed the connection")
        self._filled += count


def _send(connection: socket.socket, frame: bytes) -> None:
    connection.sendall(_LENGTH.pack(len(frame)))
    connection.sendall(frame)


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

    def send(self, frame: bytes) -> None:
        """Send a frame; waits while the connection is full."""
        try:
            _send(self._connection, frame)
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

    With `look_every_s`, it is also told when no frame has come for so long.
    """
    _tune(connection)
    reader = _Reader(connection)

    def feed_while(urgent: bool) -> None:
        while arrival.urgent is urgent:
            before = reader.taken
            frame = reader.frame(look_every_s)
            replies = (
                arrival.idle(heard=reader.taken > before) if frame is None else arrival.feed(frame)
            )
            for reply in replies:
                _send(connection, reply)

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
