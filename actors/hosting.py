"""One host: starts VMs that the ledger gives it, and sees their processes end.

Plain and tested without Ray; `rayvisor.actors.host` is the shell around it.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeVar

from rayvisor.actors import capacity
from rayvisor.actors.ledger import StaleTokenError, read_end, read_placement, write_end
from rayvisor.actors.records import Capacity, GuestStatus, LastWords, Placement, VmState

if TYPE_CHECKING:
    from collections.abc import Callable

    from rayvisor.actors.store import KeyValueStore

_log = logging.getLogger(__name__)

PATIENCE_S: Final = 2.0

BootT_contra = TypeVar("BootT_contra", contravariant=True)


class Spawner(Protocol[BootT_contra]):
    """Makes processes that hold one VM each."""

    def spawn(self, placement: Placement, boot: BootT_contra) -> GuestStatus:
        """Start a VM in a process of its own on this host; nothing is left when it raises."""


class Watch(Protocol):
    """Sees processes end; see `rayvisor.actors.watch.ProcessWatch`."""

    def add(self, pid: int, ended: Callable[[str], None]) -> None:
        """Call `ended` with the reason once process `pid` ends."""

    def finish(self, pid: int, patience_s: float) -> None:
        """Return once process `pid` has ended; it is killed after `patience_s` seconds."""


class Host(Generic[BootT_contra]):
    """The host `host_id`. A new one over the same store takes over the VMs of the old one."""

    def __init__(
        self,
        host_id: str,
        store: KeyValueStore,
        spawner: Spawner[BootT_contra],
        watch: Watch,
    ) -> None:
        self._host_id = host_id
        self._store = store
        self._spawner = spawner
        self._watch = watch
        self.vms_started = 0
        """VMs it has started."""
        self.vm_failures = 0
        """VMs whose process ended without being told to."""
        for key in store.keys("vm/"):
            placement = read_placement(store, key.removeprefix("vm/"))
            if placement is not None and placement.host_id == host_id and placement.pid:
                self._keep_an_eye_on(placement, placement.pid)

    def capacity(self) -> Capacity:
        """What this host has for VMs."""
        return capacity.measure()

    def start_vm(self, placement: Placement, boot: BootT_contra) -> GuestStatus:
        """Start the VM in a process of its own.

        Raises:
            StaleTokenError: the ledger holds another host or token for it, so that a request
                that was long under way never starts a second copy.
            RayvisorError: what the VM's process raised; nothing is left of it.
        """
        current = read_placement(self._store, placement.name)
        if current is None or (current.host_id, current.token) != (
            self._host_id,
            placement.token,
        ):
            raise StaleTokenError(
                f"VM {placement.name!r} is not placed on this host under token {placement.token}"
            )
        status = self._spawner.spawn(placement, boot)
        self.vms_started += 1
        _log.info("VM %s runs in process %d", placement.name, status.pid)
        self._keep_an_eye_on(placement, status.pid)
        return status

    def finish_vm(self, pid: int) -> None:
        """Return once a VM's process, which was told to end, has ended."""
        self._watch.finish(pid, PATIENCE_S)

    def _keep_an_eye_on(self, placement: Placement, pid: int) -> None:
        def ended(reason: str) -> None:
            name, token = placement.name, placement.token
            current = read_placement(self._store, name)
            if current is None or current.token != token:
                return  # removed: nobody asks how
            if read_end(self._store, name, token) is None:
                self.vm_failures += 1
                _log.warning("VM %s: %s", name, reason)
                now_s = time.time()
                words = LastWords(VmState.FAILED, reason, now_s, now_s - placement.created_unix_s)
                write_end(self._store, name, token, words)

        self._watch.add(pid, ended)
