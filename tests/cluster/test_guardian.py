"""The hands of high availability: what they do to the record, to hosts and to the log."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from rayvisor.actors.availability import NodeSeen
from rayvisor.actors.bootstore import BootStore
from rayvisor.actors.directory import Answer, Directory, Node
from rayvisor.actors.events import EventLog
from rayvisor.actors.guardian import Guardian
from rayvisor.actors.lease import GRACE_S, LEASE_S
from rayvisor.actors.ledger import read_placement, write_end
from rayvisor.actors.placing import footprint_bytes
from rayvisor.actors.policy import HaPolicy, Restart
from rayvisor.actors.records import (
    Capacity,
    GuestStatus,
    LastWords,
    Placement,
    Spot,
    VmRequest,
    VmState,
)
from rayvisor.vmm.errors import ClusterError, ConfigError
from rayvisor.vmm.spec import BootSource

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.cluster.conftest import MemoryStore

SOURCE = BootSource(b"kernel")


@dataclass
class Hands:
    """Hosts and VMs that do what they are told, and fail when they are told."""

    store: MemoryStore
    room_bytes: int = 1 << 30
    answers: dict[str, Answer] = field(default_factory=dict)
    killed: list[str] = field(default_factory=list)
    started: list[tuple[str, str]] = field(default_factory=list)
    revived: list[str] = field(default_factory=list)
    fails: Exception | None = None
    slow: dict[str, float] = field(default_factory=dict)
    """How long each VM's process takes to start, s."""

    def seen(self) -> dict[str, NodeSeen]:
        return {n.host_id: NodeSeen(n.name, n.alive) for n in self.nodes()}

    def nodes(self) -> list[Node]:
        has = Capacity(2, 16, self.room_bytes)
        return [Node(n, n, "", alive=True, capacity=has) for n in ("alpha", "beta")]

    def is_alive(self, _host_id: str) -> bool:
        return True

    def ask(self, spots: Sequence[Spot]) -> list[Answer]:
        return [self.answers[s.actor] for s in spots]

    def boot_of(self, source: BootSource) -> BootSource:
        return source

    def prepare(self, placement: Placement) -> Spot:
        time.sleep(self.slow.get(placement.name, 0.0))
        return Spot(
            placement.host_id, placement.host_name, f"{placement.name}-{placement.token}", 9
        )

    def start(self, placement: Placement, boot: BootSource) -> GuestStatus:
        if self.fails is not None:
            raise self.fails
        assert boot == SOURCE
        self.started.append((placement.name, placement.host_id))
        status = GuestStatus(placement.token, VmState.RUNNING, 9, 0.0)
        self.answers[placement.actor] = status
        return status

    def revive(self, spot: Spot, _token: int) -> None:
        self.revived.append(spot.actor)
        self.store.delete("end/web")

    def kill(self, spot: Spot) -> None:
        self.killed.append(spot.actor)


@dataclass
class Bench:
    store: MemoryStore
    hands: Hands
    directory: Directory[BootSource]
    guardian: Guardian[BootSource]
    now_s: float = 100.0
    beating: set[str] = field(default_factory=lambda: {"alpha", "beta"})
    beats: int = 0

    def look(self, seconds: float = 0.4) -> None:
        """Time passes; hosts renew their leases; the guardian looks."""
        end_s = self.now_s + seconds
        while self.now_s < end_s:
            self.now_s += 0.2
            self.beats += 1
            for host in self.beating:
                self.store.put(
                    f"lease/{host}", b'{"mark": "%d", "lease_s": %g}' % (self.beats, LEASE_S)
                )
            self.guardian.look()

    def create(
        self, name: str = "web", host: str = "alpha", mib: int = 64, priority: int = 50
    ) -> Placement:
        boot = BootStore(self.store).keep(SOURCE)
        policy = HaPolicy(restart=Restart.ON_FAILURE, priority=priority, boot=boot)
        self.directory.create(VmRequest(name, mib << 20, host=host, ha=policy), SOURCE)
        return self.placement(name)

    def placement(self, name: str = "web") -> Placement:
        found = read_placement(self.store, name)
        assert found is not None
        return found

    def fail(self, name: str = "web") -> None:
        token = self.placement(name).token
        write_end(self.store, name, token, LastWords(VmState.FAILED, "killed", 1.0))

    def kinds(self) -> list[str]:
        return [e.kind.value for e in EventLog(self.store).read()]


@pytest.fixture
def bench(store: MemoryStore) -> Bench:
    return bench_of(store, lambda work: work())


def bench_of(store: MemoryStore, submit: Callable[[Callable[[], None]], object]) -> Bench:
    hands = Hands(store)
    directory: Directory[BootSource] = Directory(store, hands)
    made: list[Bench] = []
    guardian: Guardian[BootSource] = Guardian(
        directory,
        hands,
        store,
        EventLog(store),
        clock_s=lambda: made[0].now_s,
        submit=submit,
    )
    made.append(Bench(store, hands, directory, guardian))
    made[0].look()
    return made[0]


def test_a_vm_that_failed_has_a_new_process_and_token(bench: Bench) -> None:
    before = bench.create()
    bench.fail()
    bench.look()
    after = bench.placement()
    assert after.token > before.token
    assert (after.restarts, after.comeback, after.actor) == (1, None, f"web-{after.token}")
    assert bench.kinds() == ["vm_created", "vm_restarted"]
    stats = bench.guardian.stats()
    assert (stats.restarts["restarted"], stats.causes["process"], stats.waiting) == (1, 1, 0)
    assert stats.leases == {"alpha": "held", "beta": "held"}


def test_a_lost_hosts_vm_goes_elsewhere(bench: Bench) -> None:
    bench.create()
    bench.beating.discard("alpha")
    bench.look(LEASE_S + GRACE_S + 0.6)
    assert bench.placement().host_id == "beta"
    assert "host_isolated" in bench.kinds()
    (alpha, _) = bench.directory.hosts()
    assert (alpha.lease, alpha.reason[:8]) == ("isolated", "isolated")
    assert bench.directory.status("web").state is VmState.RUNNING


def test_a_guest_that_ended_keeps_its_process(bench: Bench) -> None:
    before = bench.create()
    token = before.token
    write_end(bench.store, "web", token, LastWords(VmState.CRASHED, "triple fault", 1.0))
    bench.look()
    assert bench.hands.revived == [before.actor]
    assert (bench.placement().token, bench.placement().restarts) == (token, 1)


def test_its_own_room_is_free_for_it(bench: Bench) -> None:
    """Both hosts are full; what it leaves behind is what it needs."""
    bench.hands.room_bytes = footprint_bytes(VmRequest("", 64 << 20))
    bench.create()
    bench.create("other", "beta")
    bench.fail()
    bench.look()
    assert bench.hands.started[-1] == ("web", "alpha")


def test_no_room_is_said_and_ends_when_there_is_some(bench: Bench) -> None:
    bench.hands.room_bytes = footprint_bytes(VmRequest("", 64 << 20))
    bench.create()
    bench.create("other", "beta")
    bench.beating.discard("alpha")
    bench.look(LEASE_S + GRACE_S + 0.6)
    bench.look(3)
    status = bench.directory.status("web")
    assert status.state is VmState.RESTARTING
    assert "its host alpha is isolated; no room for VM 'web'" in status.reason
    assert bench.kinds().count("vm_restart_failed") == 1
    bench.directory.remove("other", force=True)
    bench.look(3)
    assert bench.directory.status("web").state is VmState.RUNNING


def test_what_does_not_start_is_tried_again_later(bench: Bench) -> None:
    bench.create()
    bench.hands.fails = ClusterError("no process starts")
    bench.fail()
    bench.look()
    waiting = bench.placement()
    assert (waiting.pid, waiting.actor) == (0, "")
    assert waiting.comeback is not None
    assert bench.directory.status("web").state is VmState.RESTARTING
    bench.hands.fails = None
    bench.look(4)
    assert bench.placement().restarts == 1


def test_a_successor_goes_on_with_it(bench: Bench) -> None:
    bench.create()
    bench.hands.fails = ClusterError("no process starts")
    bench.fail()
    bench.look()
    bench.hands.fails = None
    directory: Directory[BootSource] = Directory(bench.store, bench.hands)
    assert [p.name for p in directory.ledger.placements()] == ["web"]
    bench.guardian = Guardian(
        directory,
        bench.hands,
        bench.store,
        EventLog(bench.store),
        clock_s=lambda: bench.now_s,
        submit=lambda work: work(),
    )
    bench.look()
    assert bench.placement().restarts == 1


def test_what_it_boots_may_be_lost(bench: Bench) -> None:
    placement = bench.create()
    bench.store.delete(f"boot/{placement.request.ha.boot}")
    bench.fail()
    bench.look()
    assert "what it boots is not in the cluster's store" in bench.directory.status("web").reason


def test_what_waits_can_be_removed(bench: Bench) -> None:
    bench.create()
    bench.hands.fails = ClusterError("no process starts")
    bench.fail()
    bench.look()
    assert bench.directory.remove("web", force=False).state is VmState.RESTARTING
    bench.look(5)
    assert bench.directory.statuses() == []
    assert bench.guardian.stats().waiting == 0


def test_the_reserve_is_kept_and_checked(bench: Bench) -> None:
    bench.directory.set_reserve(1)
    assert Directory(bench.store, bench.hands).reserve() == 1
    with pytest.raises(ConfigError, match="give a number of hosts"):
        bench.directory.set_reserve(-1)
    assert bench.kinds() == ["ha_changed"]


def test_the_urgent_run_first_however_slow_their_processes_are(store: MemoryStore) -> None:
    threads: list[threading.Thread] = []

    def submit(work: Callable[[], None]) -> None:
        threads.append(threading.Thread(target=work))
        threads[-1].start()

    bench = bench_of(store, submit)
    names = ["first", "second", "third"]
    for n, name in enumerate(names):
        bench.create(name, mib=1, priority=90 - 10 * n)
    bench.hands.started.clear()
    bench.hands.slow = {"first": 0.3, "second": 0.1}
    for name in reversed(names):
        bench.fail(name)
    bench.look()
    for thread in threads:
        thread.join()
    assert [name for name, _ in bench.hands.started] == names
