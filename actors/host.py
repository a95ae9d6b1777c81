"""The host actor: one for each Ray node."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, cast

import ray

from rayvisor.actors import lease, services, stats
from rayvisor.actors.capacity import limited
from rayvisor.actors.hosting import Host
from rayvisor.actors.pool import Pool
from rayvisor.actors.store import RayStore
from rayvisor.actors.watch import ProcessWatch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rayvisor.actors.records import Capacity, GuestStatus, Placement, Spot
    from rayvisor.vmm.spec import BootSource
    from rayvisor.vmm.stats import HostStats


class HostActor:
    """Ray shell around `Host`: marshals calls, adds no behaviour."""

    def __init__(self) -> None:
        here = ray.get_runtime_context()
        node_id = here.get_node_id()
        resources = next(n["Resources"] for n in _nodes() if n["NodeID"] == node_id)
        pool = Pool(node_id, RayStore())
        raylet = os.getppid()  # the parent of every process of this host; they end with it
        self._host: Host[Sequence[ray.ObjectRef[BootSource]]] = Host(
            node_id,
            RayStore(),
            pool,
            ProcessWatch(),
            limits=lambda measured: limited(measured, resources),
            is_dying=lambda: os.getppid() != raylet,
        )
        file = lease.lease_file(here.get_temp_dir(), here.get_session_name(), node_id)
        renewal = lease.Renewal(
            node_id, RayStore(), file, lease_s=lease.lease_s(), capacity=self._host.capacity
        )
        self._renewer = lease.Renewer(renewal)
        self._renewer.start()
        pool.fill()
        place = stats.folder(here.get_temp_dir(), here.get_session_name(), node_id)
        self._meter = stats.HostMeter(node_id, place)
        services.start(services.HOST, self, RayStore(), node_id)

    def stats(self) -> HostStats:
        """See `HostMeter.measure`."""
        host = self._host
        return self._meter.measure(vms_started=host.vms_started, vm_failures=host.vm_failures)

    def capacity(self) -> Capacity:
        """See `Host.capacity`."""
        return self._host.capacity()

    def start_vm(
        self, placement: Placement, boot: Sequence[ray.ObjectRef[BootSource]]
    ) -> GuestStatus:
        """See `Host.start_vm`."""
        return self._host.start_vm(placement, boot)

    def prepare_vm(self, placement: Placement) -> Spot:
        """See `Host.prepare_vm`."""
        return self._host.prepare_vm(placement)

    def prepare_secondary(self, placement: Placement) -> Spot:
        """See `Host.prepare_secondary`."""
        return self._host.prepare_secondary(placement)

    def finish_vm(self, pid: int) -> None:
        """See `Host.finish_vm`."""
        self._host.finish_vm(pid)


def _nodes() -> list[dict[str, Any]]:
    return cast("Any", ray.nodes)()  # type: ignore[no-any-return]
