"""Fault tolerance as the cluster sees it, with hosts and VMs that do what the test wants."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import pytest

from rayvisor.actors import ft_record
from rayvisor.actors.directory import Directory, Gone, Node
from rayvisor.actors.errors import ActorGoneError
from rayvisor.actors.events import EventKind, EventLog
from rayvisor.actors.ft_keeper import FtKeeper
from rayvisor.actors.ft_record import StoreCell
from rayvisor.actors.hosting import Host
from rayvisor.actors.ledger import Ledger, StaleTokenError, read_placement
from rayvisor.actors.records import (
    Capacity,
    GuestStatus,
    Pair,
    Placement,
    Protection,
    Spot,
    VmRequest,
    VmState,
)
from rayvisor.migration.ft_config import FtConfig
from rayvisor.migration.ft_protocol import Verdict
from rayvisor.vmm.errors import ClusterError, ConfigError, MigrationError, PlacementError
from rayvisor.vmm.stats import FtStats

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.cluster.conftest import MemoryStore

GIB = 1 << 30
REQUEST = VmRequest("web", memory_bytes=64 << 20, host="alpha")
CONFIG = FtConfig()
HOSTS = (("aa", "alpha"), ("bb", "beta"), ("cc", "gamma"))


@dataclass
class World:
    """Three hosts, whose processes know the pairs that they were given."""

    gone: set[str] = field(default_factory=set)
    dead_hosts: set[str] = field(default_factory=set)
    killed: list[str] = field(default_factory=list)
    pairs: dict[str, str] = field(default_factory=dict)
    unprotected: list[tuple[str, str]] = field(default_factory=list)
    switched: list[str] = field(default_factory=list)
    epochs: int = 1
    made: int = 0
    refuse: Exception | None = None
    on_protect: Callable[[Placement], None] = lambda _placement: None

    def nodes(self) -> list[Node]:
        return [
            Node(i, n, "10.0.0.1", alive=n not in self.dead_hosts, capacity=Capacity(2, 16, GIB))
            for i, n in HOSTS
        ]

    def is_alive(self, host_id: str) -> bool:
        return dict(HOSTS)[host_id] not in self.dead_hosts

    def ask(self, spots: Sequence[Spot]) -> list[GuestStatus | Gone]:
        return [
            Gone() if s.actor in self.gone else GuestStatus(1, VmState.RUNNING, s.pid, 1.0)
            for s in spots
        ]

    def _process(self, spot: Spot) -> Spot:
        self.made += 1
        return Spot(spot.host_id, spot.host_name, f"{spot.host_name}-{self.made}", 100 + self.made)

    def prepare(self, placement: Placement) -> Spot:
        return self._process(placement.spot)

    def start(self, placement: Placement, boot: bytes) -> GuestStatus:
        return GuestStatus(placement.token, VmState.RUNNING, 100 + self.made, 0.0)

    def prepare_secondary(self, placement: Placement) -> Spot:
        assert placement.pair is not None
        return self._process(placement.pair.secondary)

    def protect(self, placement: Placement) -> None:
        if self.refuse is not None:
            raise self.refuse
        assert placement.pair is not None
        self.pairs[placement.actor] = placement.pair.id
        self.on_protect(placement)

    def unprotect(self, spot: Spot, why: str, *, for_good: bool) -> None:
        self.unprotected.append((spot.actor, why))
        self.pairs.pop(spot.actor, None)

    def switch_over(self, placement: Placement) -> None:
        self.switched.append(placement.actor)

    def ft_pair(self, spot: Spot) -> tuple[str, FtStats]:
        if spot.actor in self.gone:
            raise ActorGoneError(spot.actor)
        return self.pairs.get(spot.actor, ""), FtStats("protected", epochs=self.epochs)

    def has_ended(self, spot: Spot) -> bool:
        return spot.actor in self.gone

    def kill(self, spot: Spot) -> None:
        self.killed.append(spot.actor)
        self.gone.add(spot.actor)


class Cluster:
    """A directory and a keeper over one world; `web` runs on alpha."""

    def __init__(self, store: MemoryStore, world: World) -> None:
        self.store, self.world = store, world
        self.events = EventLog(store)
        self.directory: Directory[bytes] = Directory(store, world, pause_s=lambda _s: None)
        self.keeper = FtKeeper(self.directory, world, self.events, store, look_every_s=0.01)

    @property
    def placement(self) -> Placement:
        return self.directory.ledger.get("web")

    def wait_for(self, true: Callable[[], object]) -> None:
        deadline_s = time.monotonic() + 20
        while not true():
            assert time.monotonic() < deadline_s, self.placement
            time.sleep(0.005)

    def protected(self) -> Pair:
        """Protect it, and wait for that."""
        if self.placement.ft is None:
            self.keeper.enable("web", CONFIG, None)
        self.wait_for(lambda: self.placement.pair is not None and self.placement.pair.ready)
        assert self.placement.pair is not None
        return self.placement.pair

    def kinds(self) -> list[EventKind]:
        return [e.kind for e in self.events.read()]


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def cluster(store: MemoryStore, world: World) -> Iterator[Cluster]:
    made = Cluster(store, world)
    made.directory.create(REQUEST, b"")
    yield made
    made.keeper.stop()


def test_a_vm_gets_a_secondary_on_another_host(cluster: Cluster, world: World) -> None:
    pair = cluster.protected()
    placement = cluster.placement
    assert pair.secondary.host_name != "alpha"
    assert pair.token > placement.token
    assert world.pairs == {placement.actor: pair.id}
    hosts = {h.name: (h.vms, h.arriving) for h in cluster.directory.hosts()}
    assert hosts["alpha"] == (1, 0)
    assert hosts[pair.secondary.host_name] == (0, 1)
    status = cluster.keeper.status("web")
    assert (status.state, status.secondary) == ("protected", pair.secondary.host_name)
    assert cluster.keeper.statuses() == [status]
    assert EventKind.FT_ENABLED in cluster.kinds()


def test_it_is_protected_when_the_record_says_so_and_not_before(cluster: Cluster) -> None:
    """By the record hosts and clients go on: the primary knows it some milliseconds earlier."""
    pair = cluster.protected()
    cluster.keeper.stop()

    def unready(placement: Placement) -> Placement:
        assert placement.ft is not None
        return replace(placement, ft=replace(placement.ft, pair=replace(pair, ready=False)))

    cluster.directory.ledger.edit("web", unready)
    assert cluster.keeper.status("web").state == "seeding"
    cluster.keeper.changed("web", pair.id, "protected", "")
    assert cluster.keeper.status("web").state == "protected"


def test_the_cell_is_the_record_for_every_reader_at_once(cluster: Cluster) -> None:
    pair, before = cluster.protected(), cluster.placement
    assert StoreCell(cluster.store, pair.id).decide(Verdict.SECONDARY) is Verdict.SECONDARY
    found = read_placement(cluster.store, "web")
    assert found is not None
    assert (found.actor, found.token, found.pair) == (pair.secondary.actor, pair.token, None)
    assert found.ft is not None
    assert found.ft.failovers == 1
    assert cluster.placement.actor == pair.secondary.actor
    assert Ledger(cluster.store).get("web").token == pair.token
    assert found.token > before.token


def test_after_a_failover_the_old_primary_is_ended_and_another_secondary_made(
    cluster: Cluster, world: World
) -> None:
    pair, before = cluster.protected(), cluster.placement
    StoreCell(cluster.store, pair.id).decide(Verdict.SECONDARY)
    cluster.keeper.changed("web", pair.id, "taken over", "")
    again = cluster.protected()
    assert again.id != pair.id
    assert cluster.placement.actor == pair.secondary.actor
    assert again.secondary.host_name != cluster.placement.host_name
    cluster.wait_for(lambda: before.actor in world.killed)
    cluster.wait_for(lambda: StoreCell(cluster.store, pair.id).read() is None)
    assert cluster.keeper.status("web").failovers == 1


def test_the_cell_of_a_primary_that_may_live_is_kept(cluster: Cluster, world: World) -> None:
    pair, before = cluster.protected(), cluster.placement
    world.dead_hosts.add("alpha")
    world.gone.add(before.actor)
    StoreCell(cluster.store, pair.id).decide(Verdict.SECONDARY)
    cluster.wait_for(lambda: not cluster.placement.remains and cluster.placement.pair != pair)
    assert StoreCell(cluster.store, pair.id).read() is Verdict.SECONDARY


def test_a_secondary_that_dies_is_replaced(cluster: Cluster, world: World) -> None:
    pair, before = cluster.protected(), cluster.placement
    world.pairs.pop(before.actor)
    StoreCell(cluster.store, pair.id).decide(Verdict.PRIMARY)
    cluster.keeper.changed("web", pair.id, "unprotected", "the connection is lost")
    again = cluster.protected()
    assert again.id != pair.id
    assert (cluster.placement.actor, cluster.placement.token) == (before.actor, before.token)
    cluster.wait_for(lambda: pair.secondary.actor in world.killed)


def test_a_late_claim_of_a_secondary_that_was_replaced_fails(cluster: Cluster) -> None:
    pair = cluster.protected()
    cluster.keeper.changed("web", pair.id, "unprotected", "too slow")
    cluster.wait_for(lambda: cluster.placement.pair != pair)
    # Its process is known to have ended before the cell is forgotten; until then it is told no.
    verdict = StoreCell(cluster.store, pair.id).read()
    assert verdict in {Verdict.PRIMARY, None}
    if verdict is None:
        assert pair.secondary.actor in cluster.world.killed


def test_when_both_sides_are_lost_the_pair_ends_and_the_vm_has_failed(
    cluster: Cluster, world: World
) -> None:
    pair, before = cluster.protected(), cluster.placement
    world.gone |= {before.actor, pair.secondary.actor}
    cluster.wait_for(lambda: cluster.placement.pair is None)
    status = cluster.directory.status("web")
    assert status.state is VmState.FAILED
    assert cluster.keeper.status("web").reason == "both of its hosts were lost"


def test_while_the_secondary_takes_over_the_vm_has_not_failed(
    cluster: Cluster, world: World
) -> None:
    pair, before = cluster.protected(), cluster.placement
    world.gone.add(before.actor)
    status = cluster.directory.status("web")
    assert status.state is VmState.UNREACHABLE
    assert pair.secondary.host_name in status.reason


def test_a_new_keeper_goes_on_where_the_old_one_was_lost(
    cluster: Cluster, store: MemoryStore, world: World
) -> None:
    pair, before = cluster.protected(), cluster.placement
    cluster.keeper.stop()
    StoreCell(store, pair.id).decide(Verdict.SECONDARY)
    new = Cluster(store, world)
    try:
        again = new.protected()
        assert again.id != pair.id
        assert new.placement.token == pair.token
        new.wait_for(lambda: before.actor in world.killed)
    finally:
        new.keeper.stop()


def test_a_pair_that_was_never_begun_is_ended(
    cluster: Cluster, store: MemoryStore, world: World
) -> None:
    cluster.keeper.stop()
    ledger = cluster.directory.ledger
    ledger.edit("web", ft_record.wanted(Protection(0.025, 0.5)))
    pair = Pair("dead", ledger.next_token(), Spot("bb", "beta"))
    ledger.edit("web", ft_record.paired(pair))
    new = Cluster(store, world)
    try:
        assert new.protected().id != "dead"
    finally:
        new.keeper.stop()


def test_disabling_ends_the_pair(cluster: Cluster, world: World) -> None:
    pair, before = cluster.protected(), cluster.placement
    StoreCell(cluster.store, pair.id).decide(Verdict.PRIMARY)  # as the primary does
    status = cluster.keeper.disable("web")
    assert status.state == "off"
    assert world.unprotected == [(before.actor, "disabled")]
    assert cluster.placement.ft is None
    cluster.wait_for(lambda: pair.secondary.actor in world.killed)
    assert cluster.keeper.disable("web").state == "off"
    assert EventKind.FT_DISABLED in cluster.kinds()


def test_a_pair_that_is_disabled_before_it_begins_is_ended(cluster: Cluster, world: World) -> None:
    """It would stand in the way of the next one, for ever."""

    def begins_late(placement: Placement) -> None:
        world.on_protect = lambda _placement: None
        pair_id = world.pairs.pop(placement.actor)
        cluster.keeper.disable("web")
        world.pairs[placement.actor] = pair_id

    world.on_protect = begins_late
    cluster.keeper.enable("web", CONFIG, None)
    cluster.wait_for(lambda: len(world.unprotected) == 2)
    assert not world.pairs
    assert cluster.protected().id in world.pairs.values()


def test_removing_a_vm_ends_both_and_neither_may_run(cluster: Cluster, world: World) -> None:
    pair, before = cluster.protected(), cluster.placement
    cluster.directory.remove("web", force=True)
    assert StoreCell(cluster.store, pair.id).read() in {Verdict.REMOVED, None}
    assert {before.actor, pair.secondary.actor} <= set(world.killed)


def test_removing_a_vm_that_fails_over_this_moment_removes_the_survivor(
    cluster: Cluster, world: World
) -> None:
    pair = cluster.protected()
    StoreCell(cluster.store, pair.id).decide(Verdict.SECONDARY)
    cluster.directory.remove("web", force=True)
    assert pair.secondary.actor in world.killed
    assert read_placement(cluster.store, "web") is None


def test_one_host_protects_nobody(store: MemoryStore, world: World) -> None:
    world.dead_hosts = {"beta", "gamma"}
    lonely = Cluster(store, world)
    lonely.directory.create(REQUEST, b"")
    try:
        with pytest.raises(PlacementError, match="no other host"):
            lonely.keeper.enable("web", CONFIG, None)
        assert lonely.placement.ft is None
    finally:
        lonely.keeper.stop()


def test_why_a_vm_is_not_protected_is_said(cluster: Cluster, world: World) -> None:
    world.refuse = ClusterError("no processes left")
    cluster.keeper.enable("web", CONFIG, None)
    cluster.wait_for(lambda: cluster.keeper.status("web").reason)
    status = cluster.keeper.status("web")
    assert (status.state, status.reason) == ("unprotected", "no processes left")
    assert cluster.kinds().count(EventKind.FT_UNPROTECTED) == 1


def test_what_makes_no_sense_is_refused(cluster: Cluster) -> None:
    with pytest.raises(PlacementError, match="runs on alpha itself"):
        cluster.keeper.enable("web", CONFIG, "alpha")
    with pytest.raises(PlacementError, match="no host is called"):
        cluster.keeper.enable("web", CONFIG, "delta")
    with pytest.raises(MigrationError, match="no secondary that is ready"):
        cluster.keeper.failover("web")
    cluster.protected()
    with pytest.raises(ConfigError, match="protected already"):
        cluster.keeper.enable("web", CONFIG, None)
    with pytest.raises(MigrationError, match="is fault tolerant by now"):
        cluster.directory.ledger.begin_move("web", "m", "bb", "beta")
    cluster.keeper.failover("web")
    assert cluster.world.switched == [cluster.placement.actor]


def test_the_host_that_was_asked_for_is_taken(cluster: Cluster) -> None:
    cluster.keeper.enable("web", CONFIG, "gamma")
    assert cluster.protected().secondary.host_name == "gamma"


class Spawner:
    """Gives one process, and never starts a VM."""

    def prepare(self) -> Spot:
        return Spot("bb", "", "beta-9", 99)

    def boot(self, placement: Placement, boot: bytes) -> GuestStatus:
        raise AssertionError


class Watch:
    """Remembers whom it watches."""

    def __init__(self) -> None:
        self.pids: dict[int, Callable[[str], None]] = {}

    def add(self, pid: int, ended: Callable[[str], None]) -> None:
        self.pids[pid] = ended

    def finish(self, pid: int, patience_s: float) -> None:
        pass


def test_a_host_makes_secondaries_that_the_record_wants(
    cluster: Cluster, store: MemoryStore
) -> None:
    cluster.keeper.stop()
    ledger = cluster.directory.ledger
    ledger.edit("web", ft_record.wanted(Protection(0.025, 0.5)))
    pair = Pair("p", ledger.next_token(), Spot("bb", "beta"))
    wanted = ledger.edit("web", ft_record.paired(pair))
    watch = Watch()
    host: Host[bytes] = Host("bb", store, Spawner(), watch)
    assert host.prepare_secondary(wanted) == Spot("bb", "beta", "beta-9", 99)
    other: Host[bytes] = Host("cc", store, Spawner(), watch)
    with pytest.raises(StaleTokenError, match="not for this host"):
        other.prepare_secondary(wanted)
    ledger.edit("web", lambda p: ft_record.parted(p, "over"))
    with pytest.raises(StaleTokenError, match="another secondary"):
        host.prepare_secondary(wanted)


def test_a_host_does_not_call_a_vm_failed_that_goes_on_elsewhere(
    cluster: Cluster, store: MemoryStore
) -> None:
    pair, before = cluster.protected(), cluster.placement
    cluster.keeper.stop()
    watch = Watch()
    Host("aa", store, Spawner(), watch)
    watch.pids[before.pid]("killed")
    StoreCell(store, pair.id).decide(Verdict.SECONDARY)
    for thread in threading.enumerate():
        if "wait_and_tell" in thread.name:
            thread.join(10)
    assert EventKind.VM_FAILED not in cluster.kinds()
    assert store.get("end/web") is None


def test_a_cell_takes_one_verdict(store: MemoryStore) -> None:
    cell = StoreCell(store, "p")
    assert cell.read() is None
    assert cell.decide(Verdict.SECONDARY) is Verdict.SECONDARY
    assert cell.decide(Verdict.PRIMARY) is Verdict.SECONDARY
    cell.forget()
    store.put("ft/p", b"nonsense")
    assert cell.read() is None
    with pytest.raises(ClusterError, match="unreadable"):
        cell.decide(Verdict.PRIMARY)


def test_a_secondary_is_made_elsewhere(cluster: Cluster, world: World) -> None:
    pair = cluster.protected()
    (other,) = {"beta", "gamma"} - {pair.secondary.host_name}
    for wanted in (other, None):
        before = cluster.placement.pair
        assert before is not None
        cluster.keeper.reseat("web", wanted)
        after = cluster.protected()
        assert after.id != before.id
        assert after.secondary.host_name not in {"alpha", before.secondary.host_name}
        cluster.wait_for(partial(_was_killed, world, before.secondary))
        assert StoreCell(cluster.store, after.id).read() is None
    assert cluster.keeper.reseat("web", after.secondary.host_name).secondary
    assert cluster.placement.pair == after


def _was_killed(world: World, spot: Spot) -> bool:
    return spot.actor in world.killed


def test_a_secondary_without_room_elsewhere_stays(cluster: Cluster) -> None:
    pair = cluster.protected()
    (other,) = {"beta", "gamma"} - {pair.secondary.host_name}
    cluster.directory.set_maintenance(other, on=True)
    for wanted in (other, None):
        with pytest.raises(PlacementError, match=f"{other}: in maintenance"):
            cluster.keeper.reseat("web", wanted)
    assert cluster.placement.pair == pair
    cluster.keeper.disable("web")
    with pytest.raises(MigrationError, match="not fault tolerant"):
        cluster.keeper.reseat("web", None)
