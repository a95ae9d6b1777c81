"""Migrations as the cluster sees them, with hosts and VMs that do what the test wants."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from rayvisor.actors.directory import Directory, Node
from rayvisor.actors.errors import ActorAwayError, ActorGoneError
from rayvisor.actors.events import EventLog
from rayvisor.actors.ledger import read_placement
from rayvisor.actors.moves import Mover
from rayvisor.actors.records import Capacity, GuestStatus, Spot, VmRequest, VmState
from rayvisor.migration.config import MigrationConfig
from rayvisor.migration.errors import MigrationFailedError, OwnershipLostError
from rayvisor.migration.report import MigrationReport
from rayvisor.vmm.errors import ClusterError, MigrationError, PlacementError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rayvisor.actors.records import Placement
    from tests.cluster.conftest import MemoryStore

GIB = 1 << 30
REQUEST = VmRequest("web", memory_bytes=64 << 20)
CONFIG = MigrationConfig()


def moved(placement: Placement) -> MigrationReport:
    return MigrationReport(placement.name, "alpha", "beta", outcome="moved", downtime_s=0.01)


@dataclass
class World:
    """Two hosts. `act` is what the VM's process does when it is told to move."""

    act: Callable[[Placement], MigrationReport] = moved
    killed: list[str] = field(default_factory=list)
    ended: dict[str, bool | Exception] = field(default_factory=dict)
    cancelled: list[str] = field(default_factory=list)
    configs: list[MigrationConfig | None] = field(default_factory=list)
    prepared: int = 0

    def nodes(self) -> list[Node]:
        return [
            Node(i, n, "10.0.0.1", alive=True, capacity=Capacity(2, 16, GIB))
            for i, n in (("aa", "alpha"), ("bb", "beta"))
        ]

    def is_alive(self, host_id: str) -> bool:
        return True

    def ask(self, spots: Sequence[Spot]) -> list[GuestStatus]:
        return [GuestStatus(1, VmState.RUNNING, spot.pid, 1.0) for spot in spots]

    def prepare(self, placement: Placement) -> Spot:
        self.prepared += 1
        target = placement.spot if placement.move is None else placement.move.target
        name = f"{target.host_name}-{self.prepared}"
        return Spot(target.host_id, target.host_name, name, 100 + self.prepared)

    def start(self, placement: Placement, boot: bytes) -> GuestStatus:
        return GuestStatus(placement.token, VmState.RUNNING, 100 + self.prepared, 0.0)

    def migrate(self, placement: Placement, config: MigrationConfig | None) -> MigrationReport:
        self.configs.append(config)
        return self.act(placement)

    def cancel(self, placement: Placement) -> bool:
        self.cancelled.append(placement.moving.origin.actor)
        return True

    def has_ended(self, spot: Spot) -> bool:
        found = self.ended.get(spot.actor, False)
        if isinstance(found, Exception):
            raise found
        return found

    def kill(self, spot: Spot) -> None:
        self.killed.append(spot.actor)


class Cluster:
    """A directory and a mover over one world."""

    def __init__(self, store: MemoryStore, world: World) -> None:
        self.world = world
        self.events = EventLog(store)
        self.directory: Directory[bytes] = Directory(store, world, pause_s=lambda _s: None)
        self.mover = Mover(self.directory, world, self.events, pause_s=lambda _s: None)

    def move(self, host: str | None = None) -> tuple[MigrationReport, MigrationError | None]:
        begun = self.mover.start("web", host, CONFIG)
        end = self.mover.end(begun.moving.id, 10)
        assert end is not None
        return end.report, end.error

    def quiet(self) -> None:
        """Wait until no thread of a move is left."""
        for thread in threading.enumerate():
            if thread.name == "move":
                thread.join(10)


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def cluster(store: MemoryStore, world: World) -> Cluster:
    made = Cluster(store, world)
    made.directory.create(REQUEST, b"")
    return made


def commit(cluster: Cluster) -> Callable[[Placement], MigrationReport]:
    """What both sides do when all goes well."""

    def act(placement: Placement) -> MigrationReport:
        target = placement.moving.target.actor
        cluster.mover.commit("web", placement.token, target)
        return moved(placement)

    return act


def test_a_move_that_goes_well(cluster: Cluster, world: World, store: MemoryStore) -> None:
    world.act = commit(cluster)
    report, error = cluster.move()
    cluster.quiet()
    assert (report.outcome, error, world.configs) == ("moved", None, [CONFIG])
    placement = read_placement(store, "web")
    assert placement is not None
    assert (placement.host_name, placement.actor, placement.token) == ("beta", "beta-2", 2)
    assert placement.move is None
    assert world.killed == ["alpha-1"], "the source's process is ended, and no other"
    kinds = [event.kind.value for event in cluster.events.read()]
    assert kinds == ["vm_created", "migration_started", "migration_moved"]


def test_a_move_that_fails_stays(cluster: Cluster, world: World) -> None:
    def act(_placement: Placement) -> MigrationReport:
        raise MigrationFailedError("not moved", MigrationReport("web", "alpha", "beta"))

    world.act = act
    _, error = cluster.move()
    cluster.quiet()
    assert str(error) == "not moved"
    assert cluster.directory.placement("web").actor == "alpha-1"
    assert world.killed == ["beta-2"], "the process that waited there is ended"
    with pytest.raises(OwnershipLostError):
        cluster.mover.commit("web", 1, "beta-2")


def test_the_source_dies_after_the_commit(cluster: Cluster, world: World) -> None:
    def act(placement: Placement) -> MigrationReport:
        commit(cluster)(placement)
        raise ActorGoneError("the source is dead")

    world.act = act
    report, error = cluster.move()
    assert (report.outcome, report.token, error) == ("moved", 2, None)
    assert cluster.directory.placement("web").host_name == "beta"


def test_the_source_dies_before_the_commit(cluster: Cluster, world: World) -> None:
    def act(_placement: Placement) -> MigrationReport:
        raise ActorGoneError("the source is dead")

    world.act = act
    _, error = cluster.move()
    assert "the VM's process on alpha has ended, and the VM with it" in str(error)
    assert cluster.directory.placement("web").actor == "alpha-1"
    with pytest.raises(OwnershipLostError):
        cluster.mover.commit("web", 1, "beta-2")


def test_a_source_that_is_away_is_asked_again(cluster: Cluster, world: World) -> None:
    answers = [ActorAwayError("away"), ActorAwayError("away")]

    def act(placement: Placement) -> MigrationReport:
        if answers:
            raise answers.pop()
        return commit(cluster)(placement)

    world.act = act
    assert cluster.move()[0].outcome == "moved"
    assert len(world.configs) == 3


@pytest.mark.parametrize("given_up", [False, True])
def test_what_the_destination_took_comes_back_only_when_it_cannot_run(
    cluster: Cluster, world: World, given_up: bool
) -> None:
    def act(placement: Placement) -> MigrationReport:
        cluster.mover.commit("web", placement.token, "beta-2")
        if not given_up:
            with pytest.raises(OwnershipLostError):
                cluster.mover.take_back("web", placement.token, "alpha-1", given_up=False)
            world.ended["beta-2"] = ClusterError("nobody knows")
            with pytest.raises(ClusterError, match="nobody knows"):
                cluster.mover.take_back("web", placement.token, "alpha-1", given_up=False)
            world.ended["beta-2"] = True
        token = cluster.mover.take_back("web", placement.token, "alpha-1", given_up=given_up)
        assert token == 3
        assert cluster.mover.take_back("web", 1, "alpha-1", given_up=given_up) == token
        assert world.killed == ["beta-2"]
        raise MigrationFailedError("back", MigrationReport("web", "alpha", "beta", token=token))

    world.act = act
    _, error = cluster.move()
    assert str(error) == "back"
    placement = cluster.directory.placement("web")
    assert (placement.actor, placement.host_name, placement.token) == ("alpha-1", "alpha", 3)
    with pytest.raises(OwnershipLostError):
        cluster.mover.commit("web", 1, "beta-2")


def test_a_new_mover_waits_for_what_the_old_one_began(
    cluster: Cluster, world: World, store: MemoryStore
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def act(placement: Placement) -> MigrationReport:
        begun.set()
        go_on.wait(10)
        return commit(cluster)(placement)

    world.act = act
    move_id = cluster.mover.start("web", None, CONFIG).moving.id
    assert begun.wait(10)
    successor = Cluster(store, world)
    assert successor.mover.end(move_id, 0) is None
    cluster.mover = successor.mover  # the record is served by the new one alone
    go_on.set()
    end = successor.mover.end(move_id, 10)
    assert end is not None
    assert end.report.outcome == "moved"
    assert None in world.configs, "it joins: what was asked for is known to the source"


def test_a_move_that_was_not_begun_ends_with_its_mover(
    cluster: Cluster, world: World, store: MemoryStore
) -> None:
    cluster.directory.ledger.begin_move("web", "m1", "bb", "beta")

    def act(_placement: Placement) -> MigrationReport:
        raise MigrationError("this migration was never begun")

    world.act = act
    end = Cluster(store, world).mover.end("m1", 10)
    assert end is not None
    assert "never begun" in str(end.error)
    stored = read_placement(store, "web")
    assert stored is not None
    assert (stored.move, stored.actor) == (None, "alpha-1")


def test_room_is_set_aside_until_it_is_over(cluster: Cluster, world: World) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def act(placement: Placement) -> MigrationReport:
        begun.set()
        go_on.wait(10)
        return commit(cluster)(placement)

    world.act = act
    move_id = cluster.mover.start("web", None, CONFIG).moving.id
    assert begun.wait(10)
    alpha, beta = cluster.directory.hosts()
    assert (alpha.vms, alpha.arriving, beta.vms, beta.arriving) == (1, 0, 0, 1)
    assert alpha.memory_used_bytes == beta.memory_used_bytes > 0
    assert cluster.directory.status("web").moving_to == "beta"
    with pytest.raises(MigrationError, match="on its way to host beta already"):
        cluster.mover.start("web", None, CONFIG)
    assert cluster.mover.cancel("web")
    assert world.cancelled == ["alpha-1"]
    go_on.set()
    assert cluster.mover.end(move_id, 10) is not None
    alpha, beta = cluster.directory.hosts()
    assert (alpha.memory_used_bytes, beta.vms, beta.arriving) == (0, 1, 0)
    assert not cluster.mover.cancel("web")


def test_what_cannot_be_begun(cluster: Cluster, world: World) -> None:
    with pytest.raises(MigrationError, match="on host alpha already"):
        cluster.mover.start("web", "alpha", CONFIG)
    with pytest.raises(PlacementError, match="no host is called 'mars'"):
        cluster.mover.start("web", "mars", CONFIG)
    cluster.directory.set_maintenance("beta", on=True)
    with pytest.raises(PlacementError, match="beta: in maintenance"):
        cluster.mover.start("web", None, CONFIG)
    with pytest.raises(MigrationError, match="nothing is known of this migration"):
        cluster.mover.end("m1", 0)
    assert world.configs == []
    assert cluster.directory.placement("web").move is None


def test_maintenance_outlives_the_directory(cluster: Cluster, store: MemoryStore) -> None:
    assert cluster.directory.set_maintenance("alpha", on=True).maintenance
    alpha, beta = Cluster(store, cluster.world).directory.hosts()
    assert (alpha.maintenance, alpha.reason) == (True, "in maintenance")
    assert (beta.maintenance, beta.reason) == (False, "")
    assert not cluster.directory.set_maintenance("aa", on=False).maintenance


def test_a_vm_that_is_removed_on_its_way_is_nowhere(cluster: Cluster, world: World) -> None:
    def act(_placement: Placement) -> MigrationReport:
        cluster.directory.remove("web", force=True)
        with pytest.raises(OwnershipLostError):
            cluster.mover.commit("web", 1, "beta-2")
        with pytest.raises(OwnershipLostError):
            cluster.mover.take_back("web", 1, "alpha-1", given_up=False)
        raise ActorGoneError("killed")

    world.act = act
    _, error = cluster.move()
    assert error is not None
    assert {"alpha-1", "beta-2"} <= set(world.killed)
    assert cluster.directory.statuses() == []
