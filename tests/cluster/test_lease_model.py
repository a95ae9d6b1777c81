"""Leases, guards, the watcher and the record together, over fake time: never two copies run.

The parts are the product's own; only the clock, the network and the processes' sleep are made up.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from rayvisor.actors import lease
from rayvisor.actors.availability import Availability, NodeSeen, Outcome, Start, World
from rayvisor.actors.lease import LEASE_S, Held, LeaseFile, Renewal
from rayvisor.actors.leaseguard import LeaseGuard
from rayvisor.actors.ledger import Ledger, StaleTokenError
from rayvisor.actors.policy import HaPolicy, Restart
from rayvisor.actors.records import VmRequest
from tests.cluster.conftest import MemoryStore

STEP_S = 0.1
HOSTS = ("a", "b", "c")
REQUEST = VmRequest("web", 64 << 20, ha=HaPolicy(restart=Restart.ON_FAILURE))


class AwayError(Exception):
    """The store, or the record, cannot be reached."""


@dataclass
class MemoryFile(LeaseFile):
    """A host's lease without a file: the model looks at it a million times."""

    held: Held = field(default_factory=lambda: Held(0, 0))

    def read(self) -> Held:
        return self.held

    def write(self, held: Held) -> None:
        self.held = held


@dataclass
class Copy:
    """A process that has, or had, the VM."""

    host: Host
    token: int
    guard: LeaseGuard = field(init=False)
    frozen: bool = False
    ended: bool = False

    def freeze(self) -> None:
        self.frozen = True

    def thaw(self) -> None:
        self.frozen = False

    def retake(self) -> None:
        self.host.require_contact()
        world = self.host.world
        self.token = world.ledger.take_back("web", self.token, self.actor, revert=False)

    def end(self) -> None:
        self.ended = True

    @property
    def actor(self) -> str:
        return f"on-{self.host.name}-{id(self)}"

    @property
    def runs(self) -> bool:
        return not (self.frozen or self.ended or self.host.asleep or self.host.dead)


@dataclass
class Host:
    """A machine with a host actor and perhaps a copy of the VM."""

    name: str
    world: LeaseModel
    file: MemoryFile
    asleep: bool = False
    dead: bool = False
    cut_off: bool = False
    actor_dead: bool = False
    slow_s: float = 0.0
    copies: list[Copy] = field(default_factory=list)
    renewing: bool = False
    renewal: Renewal = field(init=False)

    def __post_init__(self) -> None:
        self.renewal = Renewal(
            self.name, self, self.file, lease_s=LEASE_S, clock_ns=self.world.clock_ns
        )

    # --- the store as this host reaches it
    def get(self, key: str) -> bytes | None:
        self.require_contact()
        return self.world.store.get(key)

    def put(self, key: str, value: bytes) -> None:
        self.require_contact()
        if self.slow_s:
            self.world.pass_time(self.slow_s)
            self.require_contact()
        self.world.store.put(key, value)

    def put_new(self, key: str, value: bytes) -> bytes:
        raise NotImplementedError

    def delete(self, key: str) -> None:
        raise NotImplementedError

    def keys(self, prefix: str) -> list[str]:
        raise NotImplementedError

    def items(self, prefix: str) -> dict[str, bytes]:
        raise NotImplementedError

    def require_contact(self) -> None:
        if self.cut_off or self.asleep or self.dead:
            raise AwayError

    def renew(self) -> None:
        if self.renewing:
            return
        self.renewing = True
        try:
            self.renewal.renew()
        except AwayError:
            pass
        finally:
            self.renewing = False

    def look(self) -> None:
        if self.asleep or self.dead:
            return
        for copy in self.copies:
            if not copy.ended:
                copy.guard.look()
        if not self.actor_dead:
            self.renew()


class LeaseModel(RuleBasedStateMachine):
    """Three hosts, one VM, one watcher that may forget everything."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 100.0
        self.store = MemoryStore()
        self.ledger = Ledger(self.store, lambda: self.now_s)
        self.machine = Availability()
        self.hosts = {n: Host(n, self, MemoryFile()) for n in HOSTS}
        self.restarts = 0
        self.depth = 0

    def clock_ns(self) -> int:
        return int(self.now_s * 1e9)

    @initialize()
    def create(self) -> None:
        for host in self.hosts.values():
            host.look()
        placement = self.ledger.reserve(REQUEST, "a", "a")
        self.begin(self.hosts["a"], placement.token)

    def begin(self, host: Host, token: int) -> None:
        copy = Copy(host, token)
        copy.guard = LeaseGuard(
            host.file, copy, host.renew, clock_ns=self.clock_ns, lease_s=LEASE_S
        )
        self.ledger.assign("web", token, copy.actor)
        self.ledger.confirm("web", token, 1)
        host.copies.append(copy)

    # --- time
    def pass_time(self, seconds: float) -> None:
        """Everybody who is awake looks, the watcher too, every tenth of a second."""
        self.depth += 1
        for _ in range(round(seconds / STEP_S)):
            self.now_s += STEP_S
            for host in self.hosts.values():
                host.look()
            if self.depth == 1:
                self.watch()
            self.at_most_one_runs()
        self.depth -= 1

    @rule(seconds=st.sampled_from([0.1, 0.5, 1.0, 2.0, LEASE_S, LEASE_S + 1.2, 9.0]))
    def wait(self, seconds: float) -> None:
        self.pass_time(seconds)

    def watch(self) -> None:
        found = self.store.items(lease.PREFIX)
        beats: dict[str, Any] = {
            key.removeprefix(lease.PREFIX): lease.read_beat(raw) for key, raw in found.items()
        }
        nodes = {n: NodeSeen(n, not h.dead) for n, h in self.hosts.items()}
        world = World(beats, nodes, self.ledger.placements(), {})
        for instruction in self.machine.look(self.now_s, world):
            if isinstance(instruction, Start):
                self.restart(instruction)

    def restart(self, start: Start) -> None:
        ready = [
            h
            for n, h in self.hosts.items()
            if (found := self.machine.host(n)) is not None and found[0] == "held" and not h.dead
            if not (h.asleep or h.cut_off) and h.file.read().deadline_ns > self.clock_ns()
        ]
        if not ready:
            self.machine.done(self.now_s, start, Outcome.REFUSED, "no host")
            return
        host = ready[0]
        try:
            placement = self.ledger.begin_comeback("web", start.token, host.name, host.name, "")
        except StaleTokenError:
            self.machine.done(self.now_s, start, Outcome.OVERTAKEN, "")
            return
        copy = Copy(host, placement.token)
        copy.guard = LeaseGuard(
            host.file, copy, host.renew, clock_ns=self.clock_ns, lease_s=LEASE_S
        )
        self.ledger.assign("web", placement.token, copy.actor)
        host.copies.append(copy)
        self.ledger.come_back("web", placement.token, 1)
        self.restarts += 1
        self.machine.done(self.now_s, start, Outcome.RESTARTED, host.name)

    # --- what may happen
    @rule(name=st.sampled_from(HOSTS))
    def sleep(self, name: str) -> None:
        self.hosts[name].asleep = True

    @rule(name=st.sampled_from(HOSTS))
    def wake(self, name: str) -> None:
        host = self.hosts[name]
        if host.asleep:
            host.asleep = False
            host.look()

    @rule(name=st.sampled_from(HOSTS))
    def cut(self, name: str) -> None:
        self.hosts[name].cut_off = True

    @rule(name=st.sampled_from(HOSTS))
    def heal(self, name: str) -> None:
        self.hosts[name].cut_off = False

    @rule(name=st.sampled_from(HOSTS))
    def die(self, name: str) -> None:
        if sum(not h.dead for h in self.hosts.values()) > 1:
            self.hosts[name].dead = True

    @rule(name=st.sampled_from(HOSTS), dead=st.booleans())
    def host_actor(self, name: str, *, dead: bool) -> None:
        self.hosts[name].actor_dead = dead

    @rule(name=st.sampled_from(HOSTS), seconds=st.sampled_from([0.0, 0.4, 2.0, 4.5, 6.0]))
    def slow_store(self, name: str, seconds: float) -> None:
        self.hosts[name].slow_s = seconds

    @rule()
    def forget(self) -> None:
        """The cluster actor dies, and another one takes its place."""
        self.machine = Availability()
        self.ledger = Ledger(self.store, lambda: self.now_s)

    @rule()
    def calm(self) -> None:
        """Nothing more happens: then one copy runs, where the record says."""
        for host in self.hosts.values():
            host.asleep = host.cut_off = host.actor_dead = False
            host.slow_s = 0.0
        self.pass_time(3 * LEASE_S)
        (copy,) = [c for h in self.hosts.values() for c in h.copies if c.runs]
        placement = self.ledger.get("web")
        assert (placement.host_id, placement.token) == (copy.host.name, copy.token)

    @invariant()
    def at_most_one_runs(self) -> None:
        running = [c for h in self.hosts.values() for c in h.copies if c.runs]
        assert len(running) <= 1, [(c.host.name, c.token) for c in running]


TestLeases = LeaseModel.TestCase
TestLeases.settings = settings(max_examples=40, stateful_step_count=16, deadline=None)


def test_a_busy_host_keeps_its_vm() -> None:
    model = LeaseModel()
    model.create()
    host = model.hosts["a"]
    host.actor_dead = True  # its VM's process stands in
    model.pass_time(30)
    host.slow_s = 1.5
    host.actor_dead = False
    model.pass_time(30)
    assert model.restarts == 0
    assert host.copies[0].runs


def test_a_dead_hosts_vm_comes_back_once() -> None:
    model = LeaseModel()
    model.create()
    model.pass_time(1)
    model.hosts["a"].dead = True
    model.pass_time(LEASE_S + 0.8)
    assert model.restarts == 0
    model.pass_time(0.6)
    assert model.restarts == 1
    model.pass_time(20)
    assert model.restarts == 1


def test_an_isolated_host_stops_its_vm_before_anybody_starts_it() -> None:
    model = LeaseModel()
    model.create()
    model.pass_time(1)
    host = model.hosts["a"]
    host.cut_off = True
    model.pass_time(LEASE_S + 0.1)
    assert not host.copies[0].runs
    assert model.restarts == 0
    host.cut_off = False  # in time: nobody has taken it
    model.pass_time(1)
    assert host.copies[0].runs
    assert host.copies[0].token == model.ledger.get("web").token
    host.cut_off = True
    model.pass_time(LEASE_S + 1.5)
    assert model.restarts == 1
    host.cut_off = False
    model.pass_time(1)
    assert host.copies[0].ended


def test_who_slept_through_it_all_notices_when_it_wakes() -> None:
    model = LeaseModel()
    model.create()
    model.pass_time(1)
    host = model.hosts["a"]
    host.asleep = True
    model.pass_time(LEASE_S + 2)
    assert model.restarts == 1
    host.asleep = False
    host.renew()  # the host actor was quicker than the VM's guard
    host.look()
    assert not host.copies[0].runs
