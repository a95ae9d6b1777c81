"""The destination of a migration, in the process that gets the VM.

Listens for the source on a port of its own, takes the VM in, and holds it under the token that
the placement record gives. Plain: the record is reached through `Ownership`.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from rayvisor.migration.arrival import Arrival
from rayvisor.migration.sealed import SealedArrival, new_key
from rayvisor.migration.socket_transport import serve
from rayvisor.migration.vm_destination import VmDestination

if TYPE_CHECKING:
    from collections.abc import Callable

    from rayvisor.actors.guest import Guest
    from rayvisor.migration.roles import Ownership
    from rayvisor.vmm.vm import Vm

_log = logging.getLogger(__name__)

CONNECT_S: Final = 30.0
GREET_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Berth:
    """Where a source connects to, and the one-time key that lets it in."""

    address: str
    port: int
    key: bytes = field(repr=False)


class _GuestDestination(VmDestination):
    """Begins to watch the guest when it runs here."""

    def __init__(self, vm: Vm, guest: Guest, started_unix_s: float) -> None:
        super().__init__(vm)
        self._guest = guest
        self._started_unix_s = started_unix_s

    def adopt(self, gained_ns: int, *, running: bool) -> int:
        resumed_ns = super().adopt(gained_ns, running=running)
        self._guest.take_over(self._started_unix_s)
        return resumed_ns


class Landing:
    """One attempt to take a VM in.

    Args:
        vm: off; as large as the one that comes.
        guest: holds `vm`.
        ownership: the placement record.
        started_unix_s: when the VM was started.
        on_running: called once it runs here.
    """

    def __init__(
        self,
        vm: Vm,
        guest: Guest,
        ownership: Ownership,
        *,
        started_unix_s: float,
        on_running: Callable[[], None],
    ) -> None:
        self._on_running = on_running
        self._arrival = Arrival(_GuestDestination(vm, guest, started_unix_s), ownership)
        self._key = new_key()
        self._sealed = SealedArrival(self._arrival, self._key)

    def listen(self, address: str) -> Berth:
        """Wait for the source on a thread of its own."""
        listener = socket.create_server((address, 0), backlog=4)
        listener.settimeout(CONNECT_S)
        threading.Thread(
            target=self._take_in, args=(listener,), name="landing", daemon=True
        ).start()
        return Berth(address, listener.getsockname()[1], self._key)

    def _take_in(self, listener: socket.socket) -> None:
        try:
            connection = self._wait(listener)
        except OSError as error:
            _log.warning("the source never came: %s", error)
            self._arrival.disconnected()
            return
        finally:
            listener.close()
        serve(connection, self)

    def _wait(self, listener: socket.socket) -> socket.socket:
        while True:
            connection, who = listener.accept()
            if self._sealed.greeted(connection, GREET_S):
                return connection
            _log.warning("%s has not the key of this migration and is turned away", who)
            connection.close()

    def feed(self, frame: bytes | bytearray) -> list[bytes]:
        """See `Arrival.feed`."""
        before = self._arrival.token
        replies = self._sealed.feed(frame)
        if before is None and self._arrival.token is not None:
            self._on_running()
        self._end_if_told()
        return replies

    def idle(self, *, heard: bool) -> list[bytes]:
        """See `rayvisor.migration.socket_transport.Receiver`."""
        return self._sealed.idle(heard=heard)

    def disconnected(self) -> None:
        """See `Arrival.disconnected`."""
        self._arrival.disconnected()
        self._end_if_told()

    def _end_if_told(self) -> None:
        if self._arrival.must_end:
            # Whether the VM is ours is not known, and no other thread of ours may run it.
            _log.critical("the VM may have been given to this process, which cannot run it")
            os._exit(1)
