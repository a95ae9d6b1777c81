"""The destination of a migration, in the process that gets the VM.

Listens for the source on a port of its own, takes the VM in, and holds it under the token that
the placement record gives. Plain: the record is reached through `Ownership`.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from rayvisor.actors.quay import Quay
from rayvisor.migration.arrival import Arrival
from rayvisor.migration.vm_destination import VmDestination

if TYPE_CHECKING:
    from collections.abc import Callable

    from rayvisor.actors.guest import Guest
    from rayvisor.actors.quay import Berth
    from rayvisor.migration.roles import Ownership
    from rayvisor.vmm.vm import Vm

_log = logging.getLogger(__name__)


class GuestDestination(VmDestination):
    """Begins to watch the guest when it runs here."""

    def __init__(self, vm: Vm, guest: Guest, started_unix_s: float) -> None:
        super().__init__(vm)
        self._guest = guest
        self._started_unix_s = started_unix_s

    def adopt(self, gained_ns: int, *, running: bool) -> int:
        """See `VmDestination.adopt`."""
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
        self._arrival = Arrival(GuestDestination(vm, guest, started_unix_s), ownership)

    def listen(self, address: str) -> Berth:
        """Wait for the source on a thread of its own."""
        return Quay(self).listen(address)

    @property
    def urgent(self) -> bool:
        """See `Arrival.urgent`."""
        return self._arrival.urgent

    def feed(self, frame: bytes | bytearray) -> list[bytes]:
        """See `Arrival.feed`."""
        before = self._arrival.token
        replies = self._arrival.feed(frame)
        if before is None and self._arrival.token is not None:
            self._on_running()
        self._end_if_told()
        return replies

    def idle(self, *, heard: bool) -> list[bytes]:
        """See `rayvisor.migration.socket_transport.Receiver`."""
        return self._arrival.idle(heard=heard)

    def disconnected(self) -> None:
        """See `Arrival.disconnected`."""
        self._arrival.disconnected()
        self._end_if_told()

    def _end_if_told(self) -> None:
        if self._arrival.must_end:
            # Whether the VM is ours is not known, and no other thread of ours may run it.
            _log.critical("the VM may have been given to this process, which cannot run it")
            os._exit(1)
