"""Frames under a one-time key: nobody else can read, change, replay or send one.

Both ends have been given the same 32 random bytes, by a way that is safe already. Each direction
has a key of its own, made from those bytes, and AES-128-GCM (NIST SP 800-38D) with a counter as
the nonce: a key is used for one connection alone, so no nonce comes twice. A frame that was
changed, left out, repeated or reordered does not open.

The source goes first, with a greeting of 16 bytes that only the key can make. So a listener knows
whom it talks to before it reads a length or gives anything away.
"""

from __future__ import annotations

import hmac
import secrets
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from rayvisor.migration.errors import TransportError

if TYPE_CHECKING:
    import socket

    from rayvisor.migration.roles import Transport
    from rayvisor.migration.socket_transport import Receiver

KEY_BYTES: Final = 32
TAG_BYTES: Final = 16
_PURPOSE: Final = b"rayvisor migration 1"


def new_key() -> bytes:
    """A key for one connection."""
    return secrets.token_bytes(KEY_BYTES)


class _Seal:
    """One direction of one connection: frames are sealed, or opened, in order."""

    def __init__(self, key: bytes, direction: bytes) -> None:
        made = hmac.digest(key, _PURPOSE + b" " + direction, "sha256")
        self._cipher = AESGCM(made[:16])
        self._count = 0

    def _nonce(self) -> bytes:
        self._count += 1
        return self._count.to_bytes(12, "big")

    def close(self, frame: bytes) -> bytes:
        return self._cipher.encrypt(self._nonce(), frame, None)

    def open(self, sealed: bytes | bytearray) -> bytes:
        try:
            return self._cipher.decrypt(self._nonce(), sealed, None)
        except InvalidTag:
            raise TransportError("a frame is damaged, or was made without the key") from None


class SealedTransport:
    """The source's end: a transport whose frames are sealed. Greets at once.

    Raises:
        TransportError: the other side is gone.
    """

    def __init__(self, connection: socket.socket, key: bytes, inner: Transport) -> None:
        self._out, self._in = _Seal(key, b"source"), _Seal(key, b"destination")
        self._inner = inner
        try:
            connection.sendall(self._out.close(b""))
        except OSError as error:
            raise TransportError(f"the connection is lost: {error}") from error

    def send(self, *frames: bytes) -> None:
        """See `rayvisor.migration.roles.Transport`."""
        self._inner.send(*[self._out.close(frame) for frame in frames])

    def receive(self, timeout_s: float) -> bytes | None:
        """See `rayvisor.migration.roles.Transport`."""
        sealed = self._inner.receive(timeout_s)
        return None if sealed is None else self._in.open(sealed)

    def close(self) -> None:
        """See `rayvisor.migration.roles.Transport`."""
        self._inner.close()


class SealedArrival:
    """The destination's end: opens what the source sealed, and seals the replies."""

    def __init__(self, arrival: Receiver, key: bytes) -> None:
        self._arrival = arrival
        self._key = key
        self._in, self._out = _Seal(key, b"source"), _Seal(key, b"destination")

    def greeted(self, connection: socket.socket, timeout_s: float) -> bool:
        """Whether the other side of a new connection has the key; each must greet first."""
        self._in = _Seal(self._key, b"source")
        connection.settimeout(timeout_s)
        greeting = bytearray()
        try:
            while len(greeting) < TAG_BYTES:
                part = connection.recv(TAG_BYTES - len(greeting))
                if not part:
                    return False
                greeting += part
        except OSError:
            return False
        try:
            return self._in.open(greeting) == b""
        except TransportError:
            return False

    @property
    def urgent(self) -> bool:
        """See `Arrival.urgent`."""
        return self._arrival.urgent

    def feed(self, frame: bytes | bytearray) -> list[bytes]:
        """See `Arrival.feed`.

        Raises:
            TransportError: the frame does not open.
        """
        return [self._out.close(reply) for reply in self._arrival.feed(self._in.open(frame))]

    def idle(self, *, heard: bool) -> list[bytes]:
        """See `rayvisor.migration.socket_transport.Receiver`."""
        return [self._out.close(reply) for reply in self._arrival.idle(heard=heard)]

    def disconnected(self) -> None:
        """See `Arrival.disconnected`."""
        self._arrival.disconnected()
