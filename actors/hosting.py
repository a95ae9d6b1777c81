"""One host: starts VMs that the ledger gives it, and sees their processes end.

Plain and tested without Ray; `rayvisor.actors.host` is the shell around it.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeVar

from rayvisor.actors import capacity
from rayvisor.actors.events import EventKind, EventLog
from rayvisor.actors.ledger import StaleTokenError, read_end, read_placement, write_end
from rayvisor.actors.records import Capacity, GuestStatus, LastWords, Placement, Spot, VmState

if TYPE_CHECKING:
    from collections.abc import Callable

    from rayvisor.actors.store import KeyValueStore

_log = logging.getLogger(__name__)

PATIENCE_S: Final = 2.0
TAKEOVER_S, TAKEOVER_LOOK_S = 10.0, 0.1
"""How long the secondary of a VM may take to go on before it is said that the VM has died."""

BootT_contra = TypeVar("BootT_contra", contravariant=True)


class Spawner(Protocol[BootT_contra]):
    """Makes processes that hold one VM each."""

    def prepare(self) -> Spot:
        """An empty process on this host."""

    def boot(self, placement: Placement, boot: BootT_contra) -> GuestStatus:
        """Start a VM in the process that it was given."""


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
        limits: Callable[[Capacity], Capacity] = lambda measured: measured,
        is_dying: Callable[[], bool] = lambda: False,
    ) -> None:
        self._host_id = host_id
        self._store = store
        self._spawner = spawner
        self._watch = watch
        self._limits = limits
        self._is_dying = is_dying
        self.vms_started = 0
        """VMs it has started."""
        self.vm_failures = 0
        """VMs whose process ended without being told to."""
        self._events = EventLog(store)
        for key in store.keys("vm/"):
            placement = read_placement(store, key.removeprefix("vm/"))
            if placement is None:
                continue
            for spot in placement.spots:
                if spot.host_id == host_id and spot.pid:
                    self._keep_an_eye_on(placement, spot.pid)

    def capacity(self) -> Capacity:
        """What this host has for VMs."""
        return self._limits(capacity.measure())

    def start_vm(self, placement: Placement, boot: BootT_contra) -> GuestStatus:
        """Start the VM in the process that it was given.

        Raises:
            StaleTokenError: the ledger holds another host or token for it, so that a request
                that was long under way never starts a second copy.
            RayvisorError: what the VM's process raised.
        """
        current = read_placement(self._store, placement.name)
        if current is None or (current.host_id, current.token) != (
            self._host_id,
            placement.token,
        ):
            raise StaleTokenError(
                f"VM {placement.name!r} is not placed on this host under token {placement.token}"
            )
        status = self._spawner.boot(placement, boot)
        self.vms_started += 1
        _log.info("VM %s runs in process %d", placement.name, status.pid)
        return status

    def prepare_vm(self, placement: Placement) -> Spot:
        """A process on this host for a VM that is to be made, or moves here.

        Raises:
            StaleTokenError: the ledger does not send it here, or not any more.
        """
        current = read_placement(self._store, placement.name)
        if current is None or (current.token, current.move) != (placement.token, placement.move):
            raise StaleTokenError(f"VM {placement.name!r} is elsewhere by now")
        target = current.spot if current.move is None else current.move.target
        if target.host_id != self._host_id:
            raise StaleTokenError(f"VM {placement.name!r} is not for this host")
        spot = replace(self._spawner.prepare(), host_name=target.host_name)
        self._keep_an_eye_on(placement, spot.pid)
        return spot

    def prepare_secondary(self, placement: Placement) -> Spot:
        """A process on this host for the secondary of a fault tolerant VM.

        Raises:
            StaleTokenError: the ledger does not want one here, or not any more.
        """
        current, pair = read_placement(self._store, placement.name), placement.pair
        if current is None or pair is None or current.pair != pair:
            raise StaleTokenError(f"VM {placement.name!r} has another secondary by now")
        if pair.secondary.host_id != self._host_id:
            raise StaleTokenError(f"the secondary of VM {placement.name!r} is not for this host")
        spot = replace(self._spawner.prepare(), host_name=pair.secondary.host_name)
        self._keep_an_eye_on(placement, spot.pid)
        return spot

    def finish_vm(self, pid: int) -> None:
        """Return once a VM's process, which was told to end, has ended."""
        self._watch.finish(pid, PATIENCE_S)

    def _keep_an_eye_on(self, placement: Placement, pid: int) -> None:
        def ended(reason: str) -> None:
            current = read_placement(self._store, placement.name)
            if current is not None and current.pid == pid and current.pair is not None:
                # Its secondary takes over or gives up this moment; others' ends must not wait.
                threading.Thread(
                    target=wait_and_tell, args=(reason,), name="wait_and_tell", daemon=True
                ).start()
            else:
                tell(reason)

        def wait_and_tell(reason: str) -> None:
            deadline_s = time.monotonic() + TAKEOVER_S
            while time.monotonic() < deadline_s:
                current = read_placement(self._store, placement.name)
                if current is None or current.pair is None:
                    break
                time.sleep(TAKEOVER_LOOK_S)
            tell(reason)

        def tell(reason: str) -> None:
            name, token = placement.name, placement.token
            current = read_placement(self._store, name)
            if current is None:
                return  # removed: nobody asks how
            # While it is being made its pid is not known yet; after a migration that came back
            # its token is another.
            if (current.host_id, current.pid) != (self._host_id, pid) and not (
                current.token == token and not current.pid
            ):
                return  # it is elsewhere
            token = current.token
            if self._is_dying():  # and takes its processes with it
                reason = f"its host {current.host_name} is gone"
            if read_end(self._store, name, token) is None:
                self.vm_failures += 1
                self._events.write(
                    EventKind.VM_FAILED, f"VM {name}: {reason}", vm=name, host=current.host_name
                )
                _log.warning("VM %s: %s", name, reason)
                now_s = time.time()
                words = LastWords(VmState.FAILED, reason, now_s, now_s - placement.created_unix_s)
                write_end(self._store, name, token, words)

        self._watch.add(pid, ended)
