"""VM actors that wait on a host, empty: no VM has to wait for a process to start."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from typing import TYPE_CHECKING, Any, Final, cast

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rayvisor.actors.calls import answer, find_actor
from rayvisor.actors.ledger import read_placement
from rayvisor.actors.names import NAMESPACE, new_vm_actor_name, vm_actor_prefix
from rayvisor.actors.records import GuestStatus, Spot
from rayvisor.actors.vm import CONTROL_THREADS, REMOTE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rayvisor.actors.records import Placement
    from rayvisor.actors.store import KeyValueStore
    from rayvisor.vmm.spec import BootSource

_log = logging.getLogger(__name__)

WARM: Final = 1
"""Actors that wait. Each holds what an empty VM's process does, so more are not kept for all."""

START_S: Final = 60.0
REFILL_AFTER_S: Final = 0.5
"""A process that starts takes a core for a second: not while a VM starts or arrives."""
WARM_VARIABLE: Final = "RAYVISOR_WARM_VMS"


def wanted() -> int:
    """How many to keep: `WARM`, or what the environment says."""
    text = os.environ.get(WARM_VARIABLE, "")
    return int(text) if text.isdigit() else WARM


class Pool:
    """The VM actors of one Ray node. Thread-safe."""

    def __init__(
        self,
        node_id: str,
        store: KeyValueStore,
        warm: int | None = None,
        timeout_s: float = START_S,
    ) -> None:
        self._node_id = node_id
        self._strategy = NodeAffinitySchedulingStrategy(node_id, soft=False)
        self._warm = wanted() if warm is None else warm
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._waiting: list[tuple[str, Any]] = []
        self._end_strays(store)

    def fill(self) -> None:
        """Begin to start what is missing; waits for none."""
        with self._lock:
            while len(self._waiting) < self._warm:
                name = new_vm_actor_name(self._node_id)
                self._waiting.append((name, self._start(name)))

    def prepare(self) -> Spot:
        """An empty VM actor, which is the caller's to use or to end; another takes its place.

        Raises:
            ClusterError: none starts.
        """
        while True:
            with self._lock:
                waited = self._waiting.pop(0) if self._waiting else None
            if waited is None:
                fresh = new_vm_actor_name(self._node_id)
                name, actor = fresh, self._start(fresh)
            else:
                name, actor = waited
            try:
                pid = cast("int", answer(actor.ping.remote(), self._timeout_s))
            except Exception as error:
                with contextlib.suppress(RayError):
                    ray.kill(actor)
                if waited is None:
                    raise
                _log.warning("a waiting process is gone, another is taken: %s", error)
                continue
            threading.Timer(REFILL_AFTER_S, self.fill).start()
            return Spot(self._node_id, "", name, pid)

    def boot(self, placement: Placement, boot: Sequence[ray.ObjectRef[BootSource]]) -> GuestStatus:
        """Start a VM in the process that it was given."""
        call = find_actor(placement.actor).boot.remote(placement, list(boot))
        return cast("GuestStatus", answer(call, self._timeout_s))

    def _start(self, name: str) -> Any:  # noqa: ANN401 - Ray's handles have no static type
        return REMOTE.options(
            name=name,
            namespace=NAMESPACE,
            lifetime="detached",
            num_cpus=0,
            max_restarts=0,
            max_concurrency=CONTROL_THREADS,
            scheduling_strategy=self._strategy,
        ).remote()

    def _end_strays(self, store: KeyValueStore) -> None:
        """End the actors that waited for a host actor that has died."""
        known = set()
        for key in store.keys("vm/"):
            placement = read_placement(store, key.removeprefix("vm/"))
            if placement is not None:
                known |= {spot.actor for spot in placement.spots}
        prefix = vm_actor_prefix(self._node_id)
        for listed in cast("Any", ray.util.list_named_actors(all_namespaces=True)):
            name = listed["name"]
            if listed["namespace"] == NAMESPACE and name.startswith(prefix) and name not in known:
                with contextlib.suppress(ValueError):
                    ray.kill(ray.get_actor(name, namespace=NAMESPACE))
