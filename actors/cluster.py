"""The cluster actor: one for each Ray cluster, and the way to hosts and VMs over Ray."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final, cast

import ray

from rayvisor.actors import services
from rayvisor.actors.carrier import RayCarrier, host_actor, ray_nodes
from rayvisor.actors.directory import Directory
from rayvisor.actors.events import EventLog
from rayvisor.actors.ft_keeper import FtKeeper
from rayvisor.actors.guardian import Guardian
from rayvisor.actors.jobs import JobWatch, ended_jobs
from rayvisor.actors.moves import Mover
from rayvisor.actors.names import CLUSTER_ACTOR, MOVE_GROUP, NAMESPACE
from rayvisor.actors.store import RayStore
from rayvisor.actors.succession import ReignStore, accede

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rayvisor.actors.events import Event
    from rayvisor.actors.guardian import HaStats
    from rayvisor.actors.moves import MoveEnd
    from rayvisor.actors.policy import HaPolicy
    from rayvisor.actors.records import FtStatus, HostStatus, Placement, VmRequest, VmStatus
    from rayvisor.migration.config import MigrationConfig
    from rayvisor.migration.ft_config import FtConfig
    from rayvisor.vmm.spec import BootSource

THREADS: Final = 32
MOVE_THREADS: Final = 8


class ClusterActor:
    """Ray shell around `Directory`: marshals calls, adds no behaviour."""

    def __init__(self) -> None:
        carrier = RayCarrier()
        self._events = EventLog(RayStore())
        # Before anything of the record is read.
        generation = accede(RayStore(), self._events)
        store = ReignStore(RayStore(), generation, abdicate=lambda: os._exit(1))
        self._directory: Directory[Sequence[ray.ObjectRef[BootSource]]] = Directory(store, carrier)
        self._mover = Mover(self._directory, carrier, self._events)
        self._keeper = FtKeeper(self._directory, carrier, self._events, store)
        self._guardian = Guardian(self._directory, carrier, store, self._events)
        carrier.told = self._guardian.capacity
        self._guardian.start()
        JobWatch(self._directory, ended_jobs).start()
        services.start(services.CLUSTER, self, RayStore(), services.CLUSTER_ID)

    def hosts(self) -> list[HostStatus]:
        """See `Directory.hosts`."""
        return self._directory.hosts()

    def outcomes(self) -> dict[str, int]:
        """See `Directory.outcomes`."""
        return self._directory.outcomes()

    def ha_stats(self) -> HaStats:
        """See `Guardian.stats`."""
        return self._guardian.stats()

    def set_reserve(self, hosts: int) -> None:
        """See `Directory.set_reserve`."""
        self._directory.set_reserve(hosts)

    def set_policy(self, name: str, policy: HaPolicy) -> None:
        """See `Directory.set_policy`."""
        self._directory.set_policy(name, policy)

    def service_addresses(self) -> dict[str, str]:
        """See `services.addresses`."""
        return services.addresses(RayStore())

    def check_free(self, name: str) -> None:
        """See `Directory.check_free`."""
        self._directory.check_free(name)

    def create(self, request: VmRequest, boot: Sequence[ray.ObjectRef[BootSource]]) -> VmStatus:
        """See `Directory.create`. `boot` is one reference in a list, passed on unread."""
        return self._directory.create(request, boot)

    def placement(self, name: str) -> Placement:
        """See `Directory.placement`."""
        return self._directory.placement(name)

    def status(self, name: str) -> VmStatus:
        """See `Directory.status`."""
        return self._directory.status(name)

    def statuses(self) -> list[VmStatus]:
        """See `Directory.statuses`."""
        return self._directory.statuses()

    def remove(self, name: str, *, force: bool) -> VmStatus:
        """See `Directory.remove`."""
        return self._directory.remove(name, force=force)

    def set_maintenance(self, host: str, *, on: bool) -> HostStatus:
        """See `Directory.set_maintenance`."""
        return self._directory.set_maintenance(host, on=on)

    def events(self, after: str, limit: int) -> list[Event]:
        """See `EventLog.read`."""
        return self._events.read(after, limit)

    def start_move(self, name: str, host: str | None, config: MigrationConfig) -> Placement:
        """See `Mover.start`."""
        return self._mover.start(name, host, config)

    def cancel_move(self, name: str) -> bool:
        """See `Mover.cancel`."""
        return self._mover.cancel(name)

    def move_end(self, move_id: str, timeout_s: float) -> MoveEnd | None:
        """See `Mover.end`."""
        return self._mover.end(move_id, timeout_s)

    def ft_enable(self, name: str, config: FtConfig, host: str | None) -> FtStatus:
        """See `FtKeeper.enable`."""
        return self._keeper.enable(name, config, host)

    def ft_disable(self, name: str) -> FtStatus:
        """See `FtKeeper.disable`."""
        return self._keeper.disable(name)

    def ft_failover(self, name: str) -> None:
        """See `FtKeeper.failover`."""
        self._keeper.failover(name)

    def ft_reseat(self, name: str, host: str | None) -> FtStatus:
        """See `FtKeeper.reseat`."""
        return self._keeper.reseat(name, host)

    def ft_status(self, name: str) -> FtStatus:
        """See `FtKeeper.status`."""
        return self._keeper.status(name)

    def ft_statuses(self) -> list[FtStatus]:
        """See `FtKeeper.statuses`."""
        return self._keeper.statuses()

    @ray.method(concurrency_group=MOVE_GROUP)
    def ft_changed(self, name: str, pair_id: str, state: str, reason: str) -> None:
        """See `FtKeeper.changed`."""
        self._keeper.changed(name, pair_id, state, reason)

    @ray.method(concurrency_group=MOVE_GROUP)
    def record_ready(self) -> None:
        """Answers once the placement record can."""

    @ray.method(concurrency_group=MOVE_GROUP)
    def commit_move(self, vm: str, token: int, actor: str) -> int:
        """See `Mover.commit`. On threads of its own: a guest stands still meanwhile."""
        return self._mover.commit(vm, token, actor)

    @ray.method(concurrency_group=MOVE_GROUP)
    def take_back(self, vm: str, token: int, actor: str, given_up: bool) -> int:
        """See `Mover.take_back`."""
        return self._mover.take_back(vm, token, actor, given_up=given_up)


def start_hosts() -> None:
    """Begin to start the host actor of each node; does not wait for any."""
    for node in ray_nodes():
        if node["Alive"]:
            host_actor(node["NodeID"])


def cluster_actor() -> Any:  # noqa: ANN401 - Ray's handles have no static type
    """The cluster actor of the Ray cluster this process is connected to, made if need be.

    A new one reads the placement record back, so losing it costs nothing but a moment.
    """
    return (
        cast("Any", ray.remote)(concurrency_groups={MOVE_GROUP: MOVE_THREADS})(ClusterActor)
        .options(
            name=CLUSTER_ACTOR,
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            num_cpus=0,
            max_restarts=-1,
            max_concurrency=THREADS,
        )
        .remote()
    )


def destroy() -> int:
    """End every actor of Rayvisor in this Ray cluster and forget the placement record.

    Returns:
        The number of VMs that were ended.
    """
    names = [
        actor["name"]
        for actor in cast("Any", ray.util.list_named_actors(all_namespaces=True))
        if actor["namespace"] == NAMESPACE and actor["name"].startswith("rayvisor-")
    ]
    # The cluster actor first: it would start hosts again.
    for name in sorted(names, key=lambda n: n != CLUSTER_ACTOR):
        try:
            ray.kill(ray.get_actor(name, namespace=NAMESPACE))
        except ValueError:
            continue
    store = RayStore()
    ended = len(store.keys("vm/"))
    for key in store.keys(""):
        store.delete(key)
    return ended
