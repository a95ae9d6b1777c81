"""The cluster actor: one for each Ray cluster, and the way to hosts and VMs over Ray."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, cast

import ray
from ray.exceptions import ActorUnavailableError, RayActorError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rayvisor.actors import services
from rayvisor.actors.calls import answer
from rayvisor.actors.directory import Answer, Directory, Gone, Node, Silent
from rayvisor.actors.host import HostActor
from rayvisor.actors.names import CLUSTER_ACTOR, NAMESPACE, host_actor_name, vm_actor_name
from rayvisor.actors.store import RayStore

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rayvisor.actors.records import (
        Capacity,
        GuestStatus,
        HostStatus,
        Placement,
        VmRequest,
        VmStatus,
    )
    from rayvisor.vmm.spec import BootSource

_log = logging.getLogger(__name__)

THREADS: Final = 32
HOST_START_S: Final = 30.0
VM_START_S: Final = 90.0
ANSWER_S: Final = 3.0

Boot = "Sequence[ray.ObjectRef[BootSource]]"


class RayCarrier:
    """Reaches hosts and VMs by their actors' names."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._vms: dict[str, Any] = {}

    def nodes(self) -> list[Node]:
        """Every Ray node; a live one without a host actor gets one."""
        raw = _ray_nodes()
        names = Counter(n["NodeManagerHostname"] for n in raw if n["Alive"])
        asked = {n["NodeID"]: host_actor(n["NodeID"]).capacity.remote() for n in raw if n["Alive"]}
        ray.wait(list(asked.values()), num_returns=len(asked), timeout=HOST_START_S)
        nodes = []
        for n in raw:
            host_id, host_name = n["NodeID"], n["NodeManagerHostname"]
            capacity: Capacity | None = None
            reason = ""
            if not n["Alive"]:
                reason = f"gone: {n['DeathReasonMessage'] or 'no longer part of the cluster'}"
            else:
                try:
                    capacity = ray.get(asked[host_id], timeout=0)
                except (RayError, TimeoutError) as error:
                    reason = f"its host actor does not answer ({type(error).__name__})"
                    _log.warning("host %s: %s", host_name, error)
            unique = names[host_name] < 2
            nodes.append(
                Node(
                    host_id=host_id,
                    name=host_name if unique else f"{host_name}-{host_id[:6]}",
                    address=n["NodeManagerAddress"],
                    alive=n["Alive"],
                    capacity=capacity,
                    reason=reason,
                )
            )
        return nodes

    def is_alive(self, host_id: str) -> bool:
        """Whether the Ray node is part of the cluster."""
        return any(n["NodeID"] == host_id and n["Alive"] for n in _ray_nodes())

    def ask(self, names: Sequence[str]) -> list[Answer]:
        """The status of each VM, all at once."""
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

    def kill(self, placement: Placement) -> None:
        """End the VM's process and return once it has ended."""
        with self._lock:
            self._vms.pop(placement.name, None)
        with contextlib.suppress(ValueError):
            ray.kill(ray.get_actor(vm_actor_name(placement.name), namespace=NAMESPACE))
        if not placement.pid:
            return
        if self.is_alive(placement.host_id):
            # Ray says that an actor is dead before its process is.
            with contextlib.suppress(RayError, TimeoutError):
                ray.get(host_actor(placement.host_id).finish_vm.remote(placement.pid), timeout=10)

    def _ask(self, name: str) -> Any:  # noqa: ANN401 - as above
        with self._lock:
            actor = self._vms.get(name)
        if actor is None:
            try:
                actor = ray.get_actor(vm_actor_name(name), namespace=NAMESPACE)
            except ValueError:
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


def _ray_nodes() -> list[dict[str, Any]]:
    return cast("Any", ray.nodes)()  # type: ignore[no-any-return]


def _carrier_reason(text: str) -> str:
    """What Ray says of an actor's death that is worth a line."""
    if "OUT_OF_MEMORY" in text or "memory monitor" in text:
        return "the VM's process was ended by Ray because its host ran out of memory"
    return ""


class ClusterActor:
    """Ray shell around `Directory`: marshals calls, adds no behaviour."""

    def __init__(self) -> None:
        self._directory: Directory[Sequence[ray.ObjectRef[BootSource]]] = Directory(
            RayStore(), RayCarrier()
        )
        services.start(services.CLUSTER, self, RayStore(), services.CLUSTER_ID)

    def hosts(self) -> list[HostStatus]:
        """See `Directory.hosts`."""
        return self._directory.hosts()

    def outcomes(self) -> dict[str, int]:
        """See `Directory.outcomes`."""
        return self._directory.outcomes()

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
            max_concurrency=THREADS,
            scheduling_strategy=NodeAffinitySchedulingStrategy(host_id, soft=False),
        )
        .remote()
    )


def start_hosts() -> None:
    """Begin to start the host actor of each node; does not wait for any."""
    for node in _ray_nodes():
        if node["Alive"]:
            host_actor(node["NodeID"])


def cluster_actor() -> Any:  # noqa: ANN401 - Ray's handles have no static type
    """The cluster actor of the Ray cluster this process is connected to, made if need be.

    A new one reads the placement record back, so losing it costs nothing but a moment.
    """
    return (
        cast("Any", ray.remote(ClusterActor))
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
    for key in store.keys(""):
        store.delete(key)
    return sum(name.startswith(vm_actor_name("")) for name in names)
