"""Watches over hosts and VMs, and starts again what is down: the hands of `availability`.

Plain and tested without Ray. One runs in the cluster actor; when that dies, its successor sees the
same world and goes on.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeVar

from rayvisor.actors import lease
from rayvisor.actors.availability import (
    Availability,
    Forget,
    HostState,
    NodeSeen,
    Outcome,
    Start,
    Tell,
    World,
)
from rayvisor.actors.bootstore import BootStore
from rayvisor.actors.ledger import StaleTokenError, read_end
from rayvisor.actors.looking import keep_looking
from rayvisor.actors.placing import choose_host, footprint_bytes
from rayvisor.actors.policy import is_ours
from rayvisor.actors.turns import Turns
from rayvisor.vmm.errors import PlacementError, UnknownVmError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from rayvisor.actors.availability import Instruction
    from rayvisor.actors.directory import Directory
    from rayvisor.actors.events import EventLog
    from rayvisor.actors.lease import Beat
    from rayvisor.actors.records import Capacity, GuestStatus, HostStatus, Placement, Spot
    from rayvisor.actors.store import KeyValueStore
    from rayvisor.vmm.spec import BootSource

_log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 0.2
NODES_EVERY_S: Final = 1.0
SWEEP_EVERY_S: Final = 60.0

BootT = TypeVar("BootT")


class Reviver(Protocol[BootT]):
    """Reaches hosts and VMs; with Ray, `rayvisor.actors.carrier.RayCarrier`."""

    def seen(self) -> Mapping[str, NodeSeen]:
        """Every machine that the cluster has or had, by its id. Asks no host."""

    def boot_of(self, source: BootSource) -> BootT:
        """A boot source as `start` wants it."""

    def prepare(self, placement: Placement) -> Spot:
        """An empty process on the host that the VM is to be made on."""

    def start(self, placement: Placement, boot: BootT) -> GuestStatus:
        """Start the VM in the process that it was given."""

    def revive(self, spot: Spot, token: int) -> None:
        """Start a guest again that has ended, in its own process."""

    def kill(self, spot: Spot) -> None:
        """End a VM's process and return once it has ended. Harmless when there is none."""


@dataclass(frozen=True, slots=True)
class HaStats:
    """What is counted, since this guardian began.

    Attributes:
        restarts: by outcome; see `Outcome`.
        causes: VMs that were started again, by cause: "host-dead", "host-isolated", "process",
            "guest".
        refusals: placements that were refused, by what was lacking.
        waiting: VMs that are down and are to be started again.
        reserve_hosts: for whose loss room is kept.
        leases: how each host is, by name.
        lease_age_s: how long ago each host was heard of, by name.
    """

    restarts: dict[str, int] = field(default_factory=dict)
    causes: dict[str, int] = field(default_factory=dict)
    refusals: dict[str, int] = field(default_factory=dict)
    waiting: int = 0
    reserve_hosts: int = 0
    leases: dict[str, str] = field(default_factory=dict)
    lease_age_s: dict[str, float] = field(default_factory=dict)


class Guardian(Generic[BootT]):
    """See the module. Thread-safe.

    Args:
        directory: the cluster; it is told how hosts and VMs look from here.
        reviver: reaches them.
        store: the cluster's.
        events: where everything is told.
        clock_s: never runs backwards.
        submit: runs a restart on a thread of its own.
    """

    def __init__(
        self,
        directory: Directory[BootT],
        reviver: Reviver[BootT],
        store: KeyValueStore,
        events: EventLog,
        *,
        clock_s: Callable[[], float] = time.monotonic,
        submit: Callable[[Callable[[], None]], object] | None = None,
    ) -> None:
        self._directory = directory
        self._ledger = directory.ledger
        self._reviver = reviver
        self._store = store
        self._boots = BootStore(store)
        self._events = events
        self._clock_s = clock_s
        self._submit = submit or _on_a_thread
        self._turns = Turns()
        self._machine = Availability()
        self._lock = threading.Lock()
        self._reports: queue.SimpleQueue[tuple[Start, Outcome, str]] = queue.SimpleQueue()
        self._beats: dict[str, Beat] = {}
        self._nodes: Mapping[str, NodeSeen] = {}
        self._nodes_at_s = self._swept_at_s = -1e9
        self._restarts: Counter[str] = Counter({str(outcome): 0 for outcome in Outcome})
        self._causes: Counter[str] = Counter()
        self._loaded: dict[str, BootT] = {}
        directory.outlook = self

    def start(self) -> None:
        """Watch, on a thread of its own."""
        keep_looking("guardian", self.look, LOOK_EVERY_S)

    def look(self) -> None:
        """Look once, and do what follows."""
        now_s = self._clock_s()
        with self._lock:
            told: list[Instruction] = []
            # Before the look: what was done is in what is seen.
            while not self._reports.empty():
                start, outcome, said = self._reports.get()
                self._restarts[str(outcome)] += 1
                self._causes[start.cause] += outcome is Outcome.RESTARTED
                told += self._machine.done(now_s, start, outcome, said)
        world = self._see(now_s)
        with self._lock:
            told += self._machine.look(now_s, world)
            self._turns.expect(self._machine.foremost())
        for instruction in told:
            self._perform(instruction)
        if now_s - self._swept_at_s > SWEEP_EVERY_S:
            self._swept_at_s = now_s
            self._loaded.clear()
            self._boots.sweep(p.request.ha.boot for p in world.placements)

    def host(self, host_id: str) -> tuple[HostState, float] | None:
        """How a host is, and for how long it has been silent; None if it never had a lease."""
        with self._lock:
            return self._machine.host(host_id)

    def waiting(self) -> dict[str, str]:
        """Why each VM that is to be started again is down, by name."""
        with self._lock:
            return self._machine.waiting()

    def capacity(self, host_id: str) -> Capacity | None:
        """What a host told of itself when it was heard of last; None when it never was."""
        with self._lock:
            if self._machine.host(host_id) is None:
                return None
            beat = self._beats.get(host_id)
        return None if beat is None else beat.capacity

    def stats(self) -> HaStats:
        """What is counted."""
        with self._lock:
            hosts = self._machine.hosts()
            return HaStats(
                restarts=dict(self._restarts),
                causes=dict(self._causes),
                refusals=self._directory.refusals(),
                waiting=len(self._machine.waiting()),
                reserve_hosts=self._directory.reserve(),
                leases={name: state.value for name, (state, _) in hosts.items()},
                lease_age_s={name: silent_s for name, (_, silent_s) in hosts.items()},
            )

    def _see(self, now_s: float) -> World:
        placements = self._ledger.placements()
        found = self._store.items(lease.PREFIX)
        beats = {
            key.removeprefix(lease.PREFIX): beat
            for key, raw in found.items()
            if (beat := lease.read_beat(raw)) is not None
        }
        ended = {key.removeprefix("end/") for key in self._store.keys("end/")}
        ends = {
            p.name: words
            for p in placements
            if p.name in ended and is_ours(p)
            if (words := read_end(self._store, p.name, p.token)) is not None
        }
        if now_s - self._nodes_at_s >= NODES_EVERY_S:
            self._nodes, self._nodes_at_s = self._reviver.seen(), now_s
        self._beats = beats
        return World(beats, self._nodes, placements, ends)

    def _perform(self, instruction: Instruction) -> None:
        match instruction:
            case Tell(kind, text, vm, host, data):
                _log.info("%s", text)
                self._events.write(kind, text, vm=vm, host=host, data=data)
            case Forget(host_id):
                self._store.delete(lease.PREFIX + host_id)
            case Start(name, priority=priority):
                # Before its thread: whoever is less urgent and comes after finds it here.
                self._turns.join(name, priority)
                self._submit(lambda: self._reports.put((instruction, *self._restart(instruction))))

    def _restart(self, start: Start) -> tuple[Outcome, str]:
        """Start a VM again; what came of it, and the host or the reason."""
        try:
            placement = self._ledger.get(start.name)
            if placement.token != start.token:
                return Outcome.OVERTAKEN, "its placement has changed"
            if start.in_place:
                self._await_turn(start)
                self._reviver.revive(placement.spot, start.token)
                self._ledger.count_restart(start.name, start.token)
                return Outcome.RESTARTED, placement.host_name
            return Outcome.RESTARTED, self._place_again(start, placement)
        except (StaleTokenError, UnknownVmError) as error:
            return Outcome.OVERTAKEN, str(error)
        except PlacementError as error:
            return Outcome.REFUSED, str(error)
        except Exception as error:  # noqa: BLE001 - told, and tried again
            _log.warning("VM %s is not started again: %s", start.name, error)
            return Outcome.FAILED, str(error) or type(error).__name__
        finally:
            self._turns.leave(start.name)

    def _await_turn(self, start: Start) -> None:
        if not self._turns.wait(start.name):
            _log.warning("VM %s waited long enough for more urgent ones", start.name)

    def _place_again(self, start: Start, before: Placement) -> str:
        boot = self._boot(before.request.ha.boot)
        with self._directory.placing:
            host = _choose(before, self._directory.hosts())
            placement = self._ledger.begin_comeback(
                start.name, start.token, host.host_id, host.name, start.why
            )
        threading.Thread(target=self._reviver.kill, args=(before.spot,), daemon=True).start()
        try:
            spot = self._reviver.prepare(placement)
            placement = self._ledger.assign(start.name, placement.token, spot.actor)
            self._await_turn(start)
            guest = self._reviver.start(placement, boot)
            self._turns.leave(start.name)
            self._ledger.come_back(start.name, placement.token, guest.pid)
        except BaseException:
            self._turns.leave(start.name)  # the others need not wait for what follows
            self._reviver.kill(placement.spot)
            self._ledger.shelve(start.name, placement.token)
            raise
        return host.name

    def _boot(self, digest: str) -> BootT:
        found = self._loaded.get(digest)
        if found is None:
            found = self._reviver.boot_of(self._boots.load(digest))
            self._loaded[digest] = found
        return found


def _on_a_thread(work: Callable[[], None]) -> None:
    threading.Thread(target=work, name="restart", daemon=True).start()


def _choose(placement: Placement, hosts: Sequence[HostStatus]) -> HostStatus:
    """Where a VM is started again: where it was asked to be, if it can be, or elsewhere.

    Raises:
        PlacementError: no host has room.
    """
    request = placement.request
    # What it took where it was is free again for itself.
    hosts = [
        replace(
            h,
            vcpus_used=h.vcpus_used - request.cpus,
            memory_used_bytes=h.memory_used_bytes - footprint_bytes(request),
        )
        if h.host_id == placement.host_id
        else h
        for h in hosts
    ]
    if request.host is not None:
        try:
            return choose_host(request, hosts)
        except PlacementError:
            pass
    return choose_host(replace(request, host=None), hosts)
