"""Where a stream arrives: a port of its own for one source, which has the one-time key."""

from __future__ import annotations

import logging
import socket
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from rayvisor.migration.errors import TransportError
from rayvisor.migration.sealed import SealedArrival, SealedTransport, new_key
from rayvisor.migration.socket_transport import SocketTransport, serve

if TYPE_CHECKING:
    from rayvisor.migration.socket_transport import Receiver

_log = logging.getLogger(__name__)

LISTEN_S: Final = 30.0
GREET_S: Final = 5.0
CONNECT_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Berth:
    """Where a source connects to, and the one-time key that lets it in."""

    address: str
    port: int
    key: bytes = field(repr=False)


def connect(berth: Berth) -> SealedTransport:
    """The source's end.

    Raises:
        TransportError: nobody answers there.
    """
    try:
        connection = socket.create_connection((berth.address, berth.port), timeout=CONNECT_S)
    except OSError as error:
        raise TransportError(f"the destination does not answer at {berth.address}") from error
    return SealedTransport(connection, berth.key, SocketTransport(connection))


class Quay:
    """The destination's end: feeds `receiver` with what its source sends."""

    def __init__(self, receiver: Receiver, look_every_s: float | None = None) -> None:
        """See `rayvisor.migration.socket_transport.serve`."""
        self._receiver = receiver
        self._look_every_s = look_every_s
        self._key = new_key()
        self._sealed = SealedArrival(receiver, self._key)

    def listen(self, address: str) -> Berth:
        """Wait for the source on a thread of its own."""
        listener = socket.create_server((address, 0), backlog=4)
        listener.settimeout(LISTEN_S)
        threading.Thread(target=self._take_in, args=(listener,), name="quay", daemon=True).start()
        return Berth(address, listener.getsockname()[1], self._key)

    def _take_in(self, listener: socket.socket) -> None:
        try:
            connection = self._wait(listener)
        except OSError as error:
            _log.warning("the source never came: %s", error)
            self._receiver.disconnected()
            return
        finally:
            listener.close()
        serve(connection, self._sealed, self._look_every_s)

    def _wait(self, listener: socket.socket) -> socket.socket:
        while True:
            connection, who = listener.accept()
            if self._sealed.greeted(connection, GREET_S):
                return connection
            _log.warning("%s has not the key of this stream and is turned away", who)
            connection.close()
