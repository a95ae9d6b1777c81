"""The cluster as a whole: which hosts there are, which VMs, and how each is.

Plain and tested without Ray; `rayvisor.actors.cluster` is the shell around it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeVar

from rayvisor.actors.events import EventKind, EventLog
from rayvisor.actors.ft_record import StoreCell
from rayvisor.actors.ledger import Ledger, read_end, write_end
from rayvisor.actors.placing import choose_host, footprint_bytes, named
from rayvisor.actors.records import (
    Capacity,
    GuestStatus,
    HostStatus,
    LastWords,
    Placement,
    Spot,
    VmRequest,
    VmState,
    VmStatus,
)
from rayvisor.migration.ft_protocol import Verdict
from rayvisor.vmm.errors import MachineStateError, PlacementError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rayvisor.actors.store import KeyValueStore

_log = logging.getLogger(__name__)

_MAINTENANCE: Final = "maintenance/"
LAST_WORDS_WAIT_S: Final = 1.0
"""How long a host may take to say how a VM's process ended, once Ray says that it did."""

BootT_contra = TypeVar("BootT_contra", contravariant=True)


@dataclass(frozen=True, slots=True)
class Node:
    """A machine of the cluster. `capacity` is None while its host actor does not answer."""

    host_id: str
    name: str
    address: str
    alive: bool
    capacity: Capacity | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Gone:
    """There is no process of that VM; `reason` is what the carrier knows of it, or empty."""

    reason: str = ""


@dataclass(frozen=True, slots=True)
class Silent:
    """The VM's process does not answer in time."""


Answer = GuestStatus | Gone | Silent


class Carrier(Protocol[BootT_contra]):
    """Reaches hosts and VMs; with Ray, `rayvisor.actors.cluster.RayCarrier`."""

    def nodes(self) -> Sequence[Node]:
        """Every machine of the cluster, also those that are gone."""

    def is_alive(self, host_id: str) -> bool:
        """Whether the machine is part of the cluster."""

    def ask(self, spots: Sequence[Spot]) -> Sequence[Answer]:
        """The status of the VM in each process, all at once."""

    def prepare(self, placement: Placement) -> Spot:
        """An empty process on the host that the VM is to be made on, or moves to."""

    def start(self, placement: Placement, boot: BootT_contra) -> GuestStatus:
        """Start the VM in the process that it was given."""

    def kill(self, spot: Spot) -> None:
        """End a VM's process and return once it has ended. Harmless when there is none."""


class Directory(Generic[BootT_contra]):
    """What the cluster actor does. A new one over the same store is the old one. Thread-safe."""

    def __init__(
        self,
        store: KeyValueStore,
        carrier: Carrier[BootT_contra],
        pause_s: Callable[[float], None] = time.sleep,
    ) -> None:
        self._store = store
        self._carrier = carrier
        self.ledger = self._ledger = Ledger(store)
        """The placement record."""
        self.placing = threading.Lock()
        """Held while a host is chosen and room on it set aside."""
        self._events = EventLog(store)
        self._pause_s = pause_s
        self._outcomes: Counter[str] = Counter(placed=0, refused=0, failed=0)
        for placement in self._ledger.placements():
            if not placement.pid:  # whoever was creating it died with the directory before
                carrier.kill(placement.spot)
                self._ledger.release(placement.name, placement.token)

    def hosts(self) -> list[HostStatus]:
        """Every host, by name, with what is promised to VMs."""
        placements = self._ledger.placements()
        maintained_ids = {k.removeprefix(_MAINTENANCE) for k in self._store.keys(_MAINTENANCE)}
        found = []
        for node in self._carrier.nodes():
            here = [p.request for p in placements if p.host_id == node.host_id]
            if not node.alive and not here:
                continue
            arriving = [p.request for p in placements if node.host_id in _room_elsewhere(p)]
            promised = here + arriving
            maintained = node.host_id in maintained_ids
            has = node.capacity or Capacity(0, 0, 0)
            found.append(
                HostStatus(
                    host_id=node.host_id,
                    name=node.name,
                    address=node.address,
                    alive=node.alive,
                    cores=has.cores,
                    vcpus=has.vcpus,
                    vcpus_used=sum(r.cpus for r in promised),
                    memory_bytes=has.memory_bytes,
                    memory_used_bytes=sum(footprint_bytes(r) for r in promised),
                    vms=len(here),
                    reason=node.reason or ("in maintenance" if maintained else ""),
                    maintenance=maintained,
                    arriving=len(arriving),
                )
            )
        return sorted(found, key=lambda h: (h.name, h.host_id))

    def set_maintenance(self, host: str, *, on: bool) -> HostStatus:
        """Have a host take no more VMs, or take them again; gives the host.

        Raises:
            PlacementError: there is no such host.
        """
        with self.placing:
            found = named(host, self.hosts())
            key = _MAINTENANCE + found.host_id
            if on:
                self._store.put(key, b"1")
            else:
                self._store.delete(key)
        if on != found.maintenance:
            kind = EventKind.MAINTENANCE_BEGUN if on else EventKind.MAINTENANCE_ENDED
            text = f"host {found.name} {'is in maintenance' if on else 'takes VMs again'}"
            self._events.write(kind, text, host=found.name)
        return next(h for h in self.hosts() if h.host_id == found.host_id)

    def check_free(self, name: str) -> None:
        """Raise NameTakenError when there is a VM of that name."""
        self._ledger.check_free(name)

    def create(self, request: VmRequest, boot: BootT_contra) -> VmStatus:
        """Place a VM and start it.

        Raises:
            NameTakenError: the name is in use.
            PlacementError: no host has room.
            RayvisorError: the VM could not be started; nothing is left of it.
        """
        with self.placing:
            self._ledger.check_free(request.name)
            try:
                host = choose_host(request, self.hosts())
            except PlacementError:
                self._outcomes["refused"] += 1
                raise
            placement = self._ledger.reserve(request, host.host_id, host.name)
        try:
            spot = self._carrier.prepare(placement)
            placement = self._ledger.assign(request.name, placement.token, spot.actor)
            guest = self._carrier.start(placement, boot)
            placement = self._ledger.confirm(request.name, placement.token, guest.pid)
        except BaseException:
            self._carrier.kill(placement.spot)
            self._ledger.release(request.name, placement.token)
            self._outcomes["failed"] += 1
            raise
        self._outcomes["placed"] += 1
        self._events.write(
            EventKind.VM_CREATED,
            f"VM {request.name} was created on {host.name}",
            vm=request.name,
            host=host.name,
        )
        _log.info("VM %s is on host %s", request.name, host.name)
        return _describe(placement, guest, None)

    def outcomes(self) -> dict[str, int]:
        """How requests to create a VM went since this directory began, by outcome."""
        return dict(self._outcomes)

    def placement(self, name: str) -> Placement:
        """The VM's placement, or UnknownVmError."""
        return self._ledger.get(name)

    def status(self, name: str) -> VmStatus:
        """How the VM is, or UnknownVmError."""
        return self._statuses([self._ledger.get(name)])[0]

    def statuses(self) -> list[VmStatus]:
        """How every VM is, by name."""
        return self._statuses(self._ledger.placements())

    def remove(self, name: str, *, force: bool) -> VmStatus:
        """End the VM's process and forget it; gives how it was.

        Raises:
            UnknownVmError: there is none of that name.
            MachineStateError: it runs and `force` is not set.
        """
        placement = self._ledger.get(name)
        (status,) = self._statuses([placement])
        gone = status.state in {VmState.FAILED, *_ENDED}
        if not force and not gone:
            raise MachineStateError(
                f"VM {name!r} is {status.state}: `rayvisor stop {name}` first, or use --force"
            )
        if placement.pair is not None:
            verdict = StoreCell(self._store, placement.pair.id).decide(Verdict.REMOVED)
            if verdict is not Verdict.REMOVED:  # its secondary has taken over this moment
                placement = self._ledger.get(name)
        # Forgotten first, so that its host does not write down how a removed VM ended.
        self._ledger.release(name, placement.token)
        for spot in placement.spots:
            self._carrier.kill(spot)
        self._events.write(
            EventKind.VM_REMOVED, f"VM {name} was removed", vm=name, host=placement.host_name
        )
        return status

    def _statuses(self, placements: Sequence[Placement]) -> list[VmStatus]:
        placed = [p for p in placements if p.pid]
        answers = dict(zip(placed, self._carrier.ask([p.spot for p in placed]), strict=True))
        return [
            _describe(p, answer, self._last_words(p, answer))
            for p in placements
            for answer in [answers.get(p)]
        ]

    def _last_words(self, placement: Placement, answer: Answer | None) -> LastWords | None:
        if not isinstance(answer, Gone) or placement.pair is not None:
            return None
        words = read_end(self._store, placement.name, placement.token)
        if words is None and not self._carrier.is_alive(placement.host_id):
            words = self._failed(placement, f"its host {placement.host_name} is gone")
        waited_s, step_s = 0.0, 0.02
        while words is None and waited_s < LAST_WORDS_WAIT_S:
            self._pause_s(step_s)
            waited_s += step_s
            words = read_end(self._store, placement.name, placement.token)
        if words is None:
            reason = answer.reason or f"the VM's process {placement.pid} is gone"
            words = self._failed(placement, reason)
        return words

    def _failed(self, placement: Placement, reason: str) -> LastWords:
        now_s = time.time()
        words = LastWords(VmState.FAILED, reason, now_s, now_s - placement.created_unix_s)
        write_end(self._store, placement.name, placement.token, words)
        return words


def _room_elsewhere(placement: Placement) -> list[str]:
    """The hosts, beside the one it is on, that have room set aside for it."""
    move, pair = placement.move, placement.pair
    found = [] if pair is None else [pair.secondary.host_id]
    if move is not None:
        found.append(move.origin.host_id if move.committed else move.target.host_id)
    return found


_ENDED = {VmState.STOPPED, VmState.HALTED, VmState.EXITED, VmState.CRASHED}


def _describe(placement: Placement, answer: Answer | None, words: LastWords | None) -> VmStatus:
    request, move = placement.request, placement.move
    state, reason, uptime_s, exit_status = VmState.CREATING, "", 0.0, None
    if words is not None:
        state, reason = words.state, words.reason
        uptime_s, exit_status = words.uptime_s, words.exit_status
    elif isinstance(answer, GuestStatus):
        state, reason = answer.state, answer.reason
        uptime_s, exit_status = answer.uptime_s, answer.exit_status
    elif answer is not None:
        state, reason = VmState.UNREACHABLE, "its process does not answer"
        if isinstance(answer, Gone) and placement.pair is not None:
            reason = f"its secondary on {placement.pair.secondary.host_name} takes over"
    return VmStatus(
        name=request.name,
        state=state,
        host=placement.host_name,
        pid=placement.pid,
        memory_bytes=request.memory_bytes,
        cpus=request.cpus,
        image=request.image,
        token=placement.token,
        created_unix_s=placement.created_unix_s,
        uptime_s=uptime_s,
        reason=reason,
        exit_status=exit_status,
        moving_to=move.target.host_name if move is not None and not move.committed else "",
    )
