"""How the cluster actor reaches hosts and VMs: by their actors' names."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, cast

import ray
from ray.exceptions import ActorUnavailableError, RayActorError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rayvisor.actors.availability import NodeSeen
from rayvisor.actors.calls import answer, find_actor
from rayvisor.actors.directory import Answer, Gone, Node, Silent
from rayvisor.actors.errors import ActorGoneError
from rayvisor.actors.host import HostActor
from rayvisor.actors.names import NAMESPACE, host_actor_name
from rayvisor.vmm.errors import MigrationError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rayvisor.actors.records import Capacity, GuestStatus, Placement, Spot
    from rayvisor.migration.config import MigrationConfig
    from rayvisor.migration.report import MigrationReport
    from rayvisor.vmm.spec import BootSource
    from rayvisor.vmm.stats import FtStats

_log = logging.getLogger(__name__)

HOST_THREADS: Final = 32
HOST_START_S: Final = 30.0
VM_START_S: Final = 90.0
ANSWER_S: Final = 3.0
PREPARE_S: Final = 60.0
UNPROTECT_S: Final = 25.0
MIGRATION_S: Final = 30 * 24 * 3600.0
"""A migration has a timeout of its own; this only keeps a call from being for ever."""


class RayCarrier:
    """Reaches hosts and VMs by their actors' names."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._vms: dict[str, Any] = {}
        self.told: Callable[[str], Capacity | None] = lambda _host_id: None
        """What a host said of itself when it renewed its lease; it need not be asked then."""

    def seen(self) -> dict[str, NodeSeen]:
        """Every Ray node, by its id. Asks no host."""
        raw = ray_nodes()
        names = _names(raw)
        return {n["NodeID"]: NodeSeen(names[n["NodeID"]], n["Alive"]) for n in raw}

    def nodes(self) -> list[Node]:
        """Every Ray node; a live one without a host actor gets one."""
        raw = ray_nodes()
        names = _names(raw)
        told = {n["NodeID"]: self.told(n["NodeID"]) for n in raw if n["Alive"]}
        actors = {host_id: host_actor(host_id) for host_id in told}
        asked = {h: actors[h].capacity.remote() for h, capacity in told.items() if not capacity}
        if asked:
            ray.wait(list(asked.values()), num_returns=len(asked), timeout=HOST_START_S)
        nodes = []
        for n in raw:
            host_id = n["NodeID"]
            capacity = told.get(host_id)
            reason = ""
            if not n["Alive"]:
                reason = f"gone: {n['DeathReasonMessage'] or 'no longer part of the cluster'}"
            elif capacity is None:
                try:
                    capacity = ray.get(asked[host_id], timeout=0)
                except (RayError, TimeoutError) as error:
                    reason = f"its host actor does not answer ({type(error).__name__})"
                    _log.warning("host %s: %s", names[host_id], error)
            nodes.append(
                Node(
                    host_id=host_id,
                    name=names[host_id],
                    address=n["NodeManagerAddress"],
                    alive=n["Alive"],
                    capacity=capacity,
                    reason=reason,
                )
            )
        return nodes

    def is_alive(self, host_id: str) -> bool:
        """Whether the Ray node is part of the cluster."""
        return any(n["NodeID"] == host_id and n["Alive"] for n in ray_nodes())

    def ask(self, spots: Sequence[Spot]) -> list[Answer]:
        """The status of the VM in each process, all at once."""
        names = [spot.actor for spot in spots]
        asked = [self._ask(name) for name in names]
        refs = [a for a in asked if not isinstance(a, Gone)]
        if refs:
            ray.wait(refs, num_returns=len(refs), timeout=ANSWER_S)
        return [
            a if isinstance(a, Gone) else self._answer(name, a)
            for name, a in zip(names, asked, strict=True)
        ]

    def start(self, placement: Placement, boot: Sequence[ray.ObjectRef[BootSource]]) -> GuestStatus:
        """Start the VM on its host."""
        host = host_actor(placement.host_id)
        started = answer(host.start_vm.remote(placement, boot), VM_START_S)
        return cast("GuestStatus", started)

    def kill(self, spot: Spot) -> None:
        """End a VM's process and return once it has ended."""
        with self._lock:
            self._vms.pop(spot.actor, None)
        if not spot.actor:
            return
        with contextlib.suppress(ActorGoneError):
            ray.kill(find_actor(spot.actor))
        if self.is_alive(spot.host_id):
            # Ray says that an actor is dead before its process is.
            with contextlib.suppress(RayError, TimeoutError):
                ray.get(host_actor(spot.host_id).finish_vm.remote(spot.pid), timeout=10)

    def has_ended(self, spot: Spot) -> bool:
        """Whether a VM's process is known to have ended.

        Raises:
            ClusterError: that cannot be known now.
        """
        if not self.is_alive(spot.host_id):
            return True
        try:
            answer(find_actor(spot.actor).ping.remote(), ANSWER_S)
        except ActorGoneError:
            return True
        return False

    def boot_of(self, source: BootSource) -> list[ray.ObjectRef[BootSource]]:
        """A boot source as `start` wants it: it stays in the object store while that is held."""
        return [ray.put(source)]

    def revive(self, spot: Spot, token: int) -> None:
        """Start a guest again that has ended, in its own process."""
        answer(find_actor(spot.actor).revive.remote(token), VM_START_S)

    def prepare(self, placement: Placement) -> Spot:
        """An empty process on the host that the VM is to be made on, or moves to."""
        target = placement.spot if placement.move is None else placement.move.target
        call = host_actor(target.host_id).prepare_vm.remote(placement)
        return cast("Spot", answer(call, PREPARE_S))

    def prepare_secondary(self, placement: Placement) -> Spot:
        """An empty process on the host of the VM's secondary."""
        if placement.pair is None:
            raise MigrationError(f"VM {placement.name!r} has no secondary")
        call = host_actor(placement.pair.secondary.host_id).prepare_secondary.remote(placement)
        return cast("Spot", answer(call, PREPARE_S))

    def protect(self, placement: Placement) -> None:
        """Have the VM's process give it the secondary that the placement names."""
        answer(find_actor(placement.actor).protect.remote(placement), ANSWER_S)

    def unprotect(self, spot: Spot, why: str, *, for_good: bool) -> None:
        """Have the VM's process end its pair."""
        answer(find_actor(spot.actor).unprotect.remote(why, for_good), UNPROTECT_S)

    def switch_over(self, placement: Placement) -> None:
        """Have the VM's process hand over to its secondary."""
        pair_id = "" if placement.pair is None else placement.pair.id
        answer(find_actor(placement.actor).switch_over.remote(pair_id), ANSWER_S)

    def ft_pair(self, spot: Spot) -> tuple[str, FtStats]:
        """The pair that a VM's process has, or empty, and its stats."""
        call = find_actor(spot.actor).ft_pair.remote()
        return cast("tuple[str, FtStats]", answer(call, ANSWER_S))

    def migrate(self, placement: Placement, config: MigrationConfig | None) -> MigrationReport:
        """Have the VM's process move it; without `config`, wait for what it does already.

        Raises:
            ActorGoneError: the VM's process has ended meanwhile.
            RayvisorError: the VM has not moved.
        """
        call = find_actor(placement.moving.origin.actor).migrate.remote(placement, config)
        return cast("MigrationReport", answer(call, MIGRATION_S))

    def cancel(self, placement: Placement) -> bool:
        """Call the VM's migration off; whether it was under way."""
        source = find_actor(placement.moving.origin.actor)
        return bool(answer(source.cancel_migration.remote(placement.moving.id), ANSWER_S))

    def _ask(self, name: str) -> Any:  # noqa: ANN401 - as above
        with self._lock:
            actor = self._vms.get(name)
        if actor is None:
            try:
                actor = find_actor(name)
            except ActorGoneError:
                return Gone()
            with self._lock:
                self._vms[name] = actor
        return actor.status.remote()

    def _answer(self, name: str, ref: Any) -> Answer:  # noqa: ANN401 - as above
        try:
            return cast("GuestStatus", ray.get(ref, timeout=0))
        except RayActorError as error:
            if isinstance(error, ActorUnavailableError):
                return Silent()
            with self._lock:
                self._vms.pop(name, None)
            return Gone(_carrier_reason(str(error)))
        except (RayError, TimeoutError):
            return Silent()


def ray_nodes() -> list[dict[str, Any]]:
    """What Ray knows of its nodes."""
    return cast("Any", ray.nodes)()  # type: ignore[no-any-return]


def _names(nodes: Sequence[dict[str, Any]]) -> dict[str, str]:
    """What each node is called, by its id: one that is not alone with its name has more of it."""
    often = Counter(_node_name(n) for n in nodes if n["Alive"])
    return {
        n["NodeID"]: name if often[name] < 2 else f"{name}-{n['NodeID'][:6]}"
        for n in nodes
        for name in [_node_name(n)]
    }


def _node_name(node: dict[str, Any]) -> str:
    """The name it was given by `ray start --node-name`, or its machine's."""
    given = str(node.get("NodeName") or "")
    machine = str(node["NodeManagerHostname"])
    return machine if given in {"", node["NodeManagerAddress"]} else given


def _carrier_reason(text: str) -> str:
    """What Ray says of an actor's death that is worth a line."""
    if "OUT_OF_MEMORY" in text or "memory monitor" in text:
        return "the VM's process was ended by Ray because its host ran out of memory"
    return ""


def host_actor(host_id: str) -> Any:  # noqa: ANN401 - Ray's handles have no static type
    """The host actor of a Ray node, made if need be."""
    return (
        cast("Any", ray.remote(HostActor))
        .options(
            name=host_actor_name(host_id),
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            num_cpus=0,
            max_restarts=-1,
            max_task_retries=-1,
            max_concurrency=HOST_THREADS,
            scheduling_strategy=NodeAffinitySchedulingStrategy(host_id, soft=False),
        )
        .remote()
    )
