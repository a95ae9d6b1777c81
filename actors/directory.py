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

from rayvisor.actors import admission
from rayvisor.actors.admission import ReserveError
from rayvisor.actors.availability import LOST, HostState
from rayvisor.actors.events import EventKind, EventLog
from rayvisor.actors.ft_record import StoreCell
from rayvisor.actors.ledger import Ledger, read_end, write_end
from rayvisor.actors.placing import candidates, footprint_bytes, lacking, named
from rayvisor.actors.policy import is_ours
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
from rayvisor.vmm.errors import ConfigError, MachineStateError, PlacementError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rayvisor.actors.policy import HaPolicy
    from rayvisor.actors.store import KeyValueStore

_log = logging.getLogger(__name__)

_MAINTENANCE: Final = "maintenance/"
_RESERVE: Final = "ha/reserve"
LAST_WORDS_WAIT_S: Final = 1.0
"""How long a host may take to say how a VM's process ended, once Ray says that it did."""

MAX_RESERVE: Final = 1000

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


class Outlook(Protocol):
    """What high availability knows; see `rayvisor.actors.guardian.Guardian`."""

    def host(self, host_id: str) -> tuple[HostState, float] | None:
        """How a host is, and for how long it has been silent; None if nothing is known."""

    def waiting(self) -> dict[str, str]:
        """Why each VM that is to be started again is down, by name."""


class NoOutlook:
    """Nothing is known."""

    def host(self, _host_id: str) -> tuple[HostState, float] | None:
        """Nothing."""
        return None

    def waiting(self) -> dict[str, str]:
        """None."""
        return {}


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
        self.outlook: Outlook = NoOutlook()
        """Set by who watches over the hosts."""
        self._outcomes: Counter[str] = Counter(placed=0, refused=0, failed=0)
        self._refusals: Counter[str] = Counter()
        for placement in self._ledger.placements():
            if placement.comeback is not None and not placement.pid:
                # It was being started again: whoever watches over the hosts begins anew.
                carrier.kill(placement.spot)
                self._ledger.shelve(placement.name, placement.token)
            elif not placement.pid:  # whoever was creating it died with the directory before
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
            health = self.outlook.host(node.host_id)
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
                    reason=_reason(node, health) or ("in maintenance" if maintained else ""),
                    maintenance=maintained,
                    arriving=len(arriving),
                    lease="" if health is None else health[0].value,
                    heard_s=None if health is None else health[1],
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
            host = self._place(request)
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

    def _place(self, request: VmRequest) -> HostStatus:
        """The host with the most room that leaves enough for the loss of others."""
        hosts = self.hosts()
        try:
            fits = candidates(request, hosts)
        except PlacementError as error:
            self._refused(request, lacking(request, hosts), error)
            raise
        refusals: list[ReserveError] = []
        for host in fits:
            try:
                admission.check(request, host, hosts, self._ledger.placements(), self.reserve())
            except ReserveError as error:
                refusals.append(error)
            else:
                return host
        self._refused(request, "reserve", refusals[0])
        raise refusals[0]

    def _refused(self, request: VmRequest, lack: str, error: PlacementError) -> None:
        self._outcomes["refused"] += 1
        self._refusals[lack] += 1
        self._events.write(
            EventKind.PLACEMENT_REFUSED, str(error), vm=request.name, data={"lack": lack}
        )

    def reserve(self) -> int:
        """The number of hosts for whose loss room is kept."""
        text = (self._store.get(_RESERVE) or b"0").decode()
        return int(text) if text.isdigit() else 0

    def set_reserve(self, hosts: int) -> None:
        """Keep room for the loss of so many hosts from now on; what is placed stays.

        Raises:
            ConfigError: that is no number of hosts.
        """
        if not 0 <= hosts <= MAX_RESERVE:
            raise ConfigError(f"--ha-reserve {hosts}: give a number of hosts, 0 to {MAX_RESERVE}")
        before = self.reserve()
        self._store.put(_RESERVE, str(hosts).encode())
        if hosts != before:
            text = f"room is kept for the loss of {hosts} host{'s' * (hosts != 1)}"
            self._events.write(EventKind.HA_CHANGED, text, data={"reserve": hosts})

    def set_policy(self, name: str, policy: HaPolicy) -> None:
        """From now on this is done about a VM when it ends.

        Raises:
            UnknownVmError: there is none of that name.
        """
        self._ledger.set_policy(name, policy)
        text = f"VM {name} is restarted {policy.restart.value}, with priority {policy.priority}"
        self._events.write(EventKind.HA_CHANGED, text, vm=name)

    def refusals(self) -> dict[str, int]:
        """Placements that were refused since this directory began, by what was lacking."""
        return dict(self._refusals)

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

    def remove(self, name: str, *, force: bool, why: str = "") -> VmStatus:
        """End the VM's process and forget it; gives how it was. `why` is told with it.

        Raises:
            UnknownVmError: there is none of that name.
            MachineStateError: it runs and `force` is not set.
        """
        placement = self._ledger.get(name)
        (status,) = self._statuses([placement])
        gone = status.state in {VmState.FAILED, VmState.RESTARTING, *_ENDED}
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
        text = f"VM {name} was removed" + (f": {why}" if why else "")
        self._events.write(EventKind.VM_REMOVED, text, vm=name, host=placement.host_name)
        return status

    def _statuses(self, placements: Sequence[Placement]) -> list[VmStatus]:
        waiting = self.outlook.waiting()
        placed = [p for p in placements if p.pid and p.name not in waiting]
        # A host that is not heard of is not asked: every answer would wait for it.
        heard = [p for p in placed if not self._is_lost(p.host_id)]
        answers: dict[str, Answer] = {p.name: Silent() for p in placed}
        asked = self._carrier.ask([p.spot for p in heard])
        answers |= {p.name: a for p, a in zip(heard, asked, strict=True)}
        for p in placed:
            if p not in heard and not self._carrier.is_alive(p.host_id):
                answers[p.name] = Gone()
        return [
            _describe(p, answer, self._last_words(p, answer), waiting.get(p.name))
            for p in placements
            for answer in [answers.get(p.name)]
        ]

    def _is_lost(self, host_id: str) -> bool:
        health = self.outlook.host(host_id)
        return health is not None and health[0] in LOST

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
        # Of a VM that would be started again at once only who saw its process end may say so: a
        # host that Ray has given up may live, and its VM with it, until its lease has ended.
        if not is_ours(placement):
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


def _reason(node: Node, health: tuple[HostState, float] | None) -> str:
    """Why a host takes no VM, apart from maintenance."""
    if node.reason or health is None or not node.alive:
        return node.reason
    state, silent_s = health
    if state is HostState.LATE:
        return f"slow or busy: not heard of for {silent_s:.1f} s"
    if state in LOST:
        return f"isolated: not heard of for {silent_s:.1f} s"
    return ""


def _describe(
    placement: Placement,
    answer: Answer | None,
    words: LastWords | None,
    waiting: str | None = None,
) -> VmStatus:
    request, move = placement.request, placement.move
    state, reason, uptime_s, exit_status = VmState.CREATING, "", 0.0, None
    if waiting is not None or (placement.comeback is not None and not placement.pid):
        state = VmState.RESTARTING
        reason = waiting or (placement.comeback.why if placement.comeback else "")
    elif words is not None:
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
        restart=request.ha.restart.value,
        priority=request.ha.priority,
        restarts=placement.restarts,
        owner=request.owner,
    )
