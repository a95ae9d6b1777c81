"""The Python API of a cluster."""

from __future__ import annotations

import dataclasses
import os
import time
from typing import TYPE_CHECKING, Any, Self, cast

from rayvisor.runtime import (
    boot,
    cluster_file,
    local_hosts,
    local_ray,
    migrating,
    protecting,
    ray_session,
)
from rayvisor.runtime.units import parse_bytes
from rayvisor.runtime.vm_handle import VmHandle
from rayvisor.vmm.errors import ClusterError, ConfigError, RayvisorError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from rayvisor.actors.events import Event
    from rayvisor.actors.guardian import HaStats
    from rayvisor.actors.moves import MoveEnd
    from rayvisor.actors.policy import HaPolicy
    from rayvisor.actors.records import FtStatus, HostStatus, Placement, VmStatus
    from rayvisor.migration.config import MigrationConfig
    from rayvisor.migration.report import Progress
    from rayvisor.runtime.api import VmSpec
    from rayvisor.runtime.cluster_file import ClusterFile
    from rayvisor.runtime.migrating import Evacuation
    from rayvisor.vmm.spec import BootSource

NO_CLUSTER = "no cluster: run `rayvisor up`"
CALL_S = 30.0
CREATE_S = 120.0
RETRY_PAUSE_S = 0.2
MIN_OBJECT_STORE_BYTES = 75 << 20


def _say_nothing(_text: str) -> None:
    """Progress for nobody."""


class Cluster:
    """A Rayvisor cluster: hosts and the VMs on them.

    Example:
        >>> from rayvisor import Cluster, VmSpec            # doctest: +SKIP
        >>> with Cluster.up() as cluster:                   # doctest: +SKIP
        ...     vm = cluster.create(VmSpec(name="web"))
        ...     vm.console.read_until("# ")
        ...     print(vm.console.run("uname -a").output)
    """

    def __init__(self, file: ClusterFile | None, *, started: bool = False) -> None:
        self._file = file
        self.started = started
        """Whether this object's `up` made the cluster, rather than found it."""
        self._actor: Any = None

    @classmethod
    def up(
        cls,
        address: str | None = None,
        *,
        object_store: str = "256M",
        hosts: int | None = None,
        cpus: int | None = None,
        dashboard: bool = False,
        working_dir: str | None = None,
        ha_reserve: int | None = None,
        progress: Callable[[str], None] = _say_nothing,
    ) -> Self:
        """Start Ray on this machine, or join one, and Rayvisor on it. Harmless when it is up.

        Args:
            address: Join the Ray at HOST:PORT, or "auto" for the one this machine is part of,
                instead of starting one.
            object_store: Shared memory for Ray's objects, of a Ray that is started.
            hosts: How many hosts this machine is split into, each with its share of cores and
                memory and a Ray node of its own; 1 if left out.
            cpus: Cores that Ray hands out to tasks of others, of a Ray that is started.
            dashboard: Start Ray's dashboard on the loopback address.
            working_dir: A folder that holds `rayvisor`, to be sent to the hosts of a Ray that is
                joined and has it not installed.
            ha_reserve: Room is kept for the loss of so many hosts; as it was, at first 0, if it is
                left out.
            progress: Called with what is being done.

        Raises:
            ConfigError: the object store is none, or smaller than Ray needs.
            ClusterError: it cannot be started or joined; nothing is left half-made.
        """
        if hosts is not None and (address is not None or not 1 <= hosts <= local_hosts.MAX_HOSTS):
            raise ConfigError(
                f"hosts {hosts}: a Ray that is joined has its own"
                if address is not None
                else f"hosts {hosts}: this machine can be 1 to {local_hosts.MAX_HOSTS} hosts"
            )
        object_store_bytes = parse_bytes(object_store)
        if object_store_bytes < MIN_OBJECT_STORE_BYTES:
            raise ConfigError(f"object store of {object_store} is less than the 75M Ray needs")
        with cluster_file.locked(progress):
            found = cluster_file.load()
            if found is not None:
                if ray_session.is_up(found) and (address is None or address == found.address):
                    if hosts not in {None, found.hosts}:
                        raise ConfigError(
                            f"a cluster of {found.hosts} on this machine is up: run"
                            f" `rayvisor down` before one of {hosts}"
                        )
                    cluster = cls(found)
                    cluster._join(found, progress, ha_reserve)
                    return cluster
                if ray_session.is_up(found):
                    raise ClusterError(
                        f"a cluster is up at {found.address}: run `rayvisor down` before joining"
                        f" {address}"
                    )
                progress("clearing away what is left of a cluster that is gone")
                local_ray.stop(found)
            if address is None:
                ray_session.refuse_another("")
                file = local_ray.start(
                    object_store_bytes=object_store_bytes,
                    hosts=hosts or 1,
                    cpus=cpus,
                    dashboard=dashboard,
                    progress=progress,
                    meanwhile=ray_session.import_ray,
                )
            else:
                if address != "auto" and not local_ray.answers(address):
                    raise ClusterError(f"no Ray answers at {address}: give the HOST:PORT of one")
                file = cluster_file.ClusterFile(
                    phase="starting", owned=False, address=address, working_dir=working_dir or ""
                )
            return cls._finish(file, progress, ha_reserve)

    @classmethod
    def _finish(
        cls, file: ClusterFile, progress: Callable[[str], None], ha_reserve: int | None
    ) -> Self:
        cluster = cls(file, started=True)
        try:
            cluster._join(file, progress, ha_reserve)
            cluster._file = file.model_copy(update={"phase": "up"})
            cluster_file.save(cluster._file)
        except BaseException:
            try:
                ray_session.disconnect()
            finally:
                local_ray.stop(file)
            raise
        return cluster

    @classmethod
    def connect(cls) -> Self:
        """The cluster that `up` made, or the Ray this program is connected to or told of.

        In this order: the Ray that this program has initialised; the one of `rayvisor up`; the
        one that RAY_ADDRESS names.

        Raises:
            ClusterError: there is none.
        """
        file = cluster_file.load()
        if ray_session.is_connected():
            cluster = cls(file)
        elif file is not None:
            if file.phase != "up" or not ray_session.is_up(file):
                raise ClusterError(f"{NO_CLUSTER} (the last one is gone)")
            cluster = cls(file)
            ray_session.connect(file)
        elif os.environ.get("RAY_ADDRESS"):
            cluster = cls(None)
            ray_session.connect(
                cluster_file.ClusterFile(phase="up", owned=False, address=os.environ["RAY_ADDRESS"])
            )
        else:
            raise ClusterError(NO_CLUSTER)
        cluster._ensure_actor()
        return cluster

    def __enter__(self) -> Self:
        """The cluster itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End it if its `up` made it; disconnect otherwise."""
        if self.started:
            self.down()
        else:
            self.close()

    @property
    def address(self) -> str:
        """Where Ray's control service listens."""
        return ray_session.address_of()

    @property
    def dashboard_url(self) -> str:
        """Ray's dashboard, or empty."""
        return self._file.dashboard_url if self._file is not None else ""

    def close(self) -> None:
        """Disconnect; the cluster and its VMs go on."""
        self._actor = None
        ray_session.disconnect()

    def down(self, progress: Callable[[str], None] = _say_nothing) -> int | None:
        """See `down`, the function."""
        self._actor = None
        return down(progress)

    def hosts(self) -> list[HostStatus]:
        """Every host, by name, with what it has and what is promised to VMs."""
        return cast("list[HostStatus]", self._call("hosts", timeout_s=CREATE_S))

    def create(self, spec: VmSpec) -> VmHandle:
        """Create a VM on a host with room for it, and start it.

        The image or kernel is read here, where the request is made, and goes to the VM's process
        through Ray's object store; no copy stays there.

        Raises:
            ImageError, LoaderError: what it boots cannot be used; nothing was created.
            PlacementError: no host has room; with the numbers.
            ClusterError: the name is taken, or the cluster cannot be reached.
        """
        from rayvisor.actors.calls import answer, put
        from rayvisor.actors.jobs import owning_job
        from rayvisor.actors.records import VmRequest

        self._call("check_free", spec.name)
        source = boot.source_of(spec)
        request = VmRequest(
            name=spec.name,
            memory_bytes=spec.memory_bytes,
            cpus=spec.cpus,
            image="" if spec.kernel else spec.image,
            host=spec.host,
            direct=spec.direct,
            ha=self._with_boot(spec.ha, source),
            owner="" if spec.detached else owning_job(),
        )
        call = self._ensure_actor().create.remote(request, [put(source)])
        try:
            answer(call, CREATE_S)
        except KeyboardInterrupt:
            self._abandon(call, spec.name)
            raise
        return VmHandle(self, spec.name)

    def _with_boot(self, policy: HaPolicy, source: BootSource) -> HaPolicy:
        """The policy with what the VM boots, kept where a restart finds it."""
        from rayvisor.actors.bootstore import BootStore
        from rayvisor.actors.policy import Restart
        from rayvisor.actors.store import RayStore

        if policy.restart is Restart.NEVER:
            return policy
        return dataclasses.replace(policy, boot=BootStore(RayStore()).keep(source))

    def _abandon(self, call: Any, name: str) -> None:  # noqa: ANN401 - a Ray reference
        from rayvisor.actors.calls import answer

        try:
            answer(call, CREATE_S)
        except RayvisorError:
            return
        self.remove(name, force=True)

    def vm(self, name: str) -> VmHandle:
        """The VM called `name`.

        Raises:
            UnknownVmError: there is none.
        """
        self._call("placement", name)
        return VmHandle(self, name)

    def vms(self) -> list[VmStatus]:
        """How every VM is, by name."""
        return cast("list[VmStatus]", self._call("statuses"))

    def status(self, name: str) -> VmStatus:
        """How one VM is.

        Raises:
            UnknownVmError: there is none of that name.
        """
        return cast("VmStatus", self._call("status", name))

    def remove(self, name: str, *, force: bool = False) -> VmStatus:
        """Forget a VM that has ended, or with `force` any; gives how it was.

        Raises:
            UnknownVmError: there is none of that name.
            MachineStateError: it runs and `force` is not set.
        """
        return cast("VmStatus", self._call("remove", name, force=force))

    def set_policy(self, name: str, policy: HaPolicy) -> None:
        """Put down what is done about a VM when it ends; `VmHandle.set_ha` also sees to the rest.

        Raises:
            UnknownVmError: there is none of that name.
        """
        self._call("set_policy", name, policy)

    def policy(self, name: str) -> HaPolicy:
        """What is done about a VM when it ends.

        Raises:
            UnknownVmError: there is none of that name.
        """
        placement: Placement = self._call("placement", name)
        return placement.request.ha

    def set_reserve(self, hosts: int) -> None:
        """Keep room for the loss of so many hosts from now on; what is placed stays.

        Raises:
            ConfigError: that is no number of hosts.
        """
        self._call("set_reserve", hosts)

    def ha_stats(self) -> HaStats:
        """What high availability counts, since the cluster actor began."""
        return cast("HaStats", self._call("ha_stats"))

    def evacuate(
        self,
        host: str,
        *,
        timeout: float | str | None = None,
        on_event: Callable[[str], None] = _say_nothing,
    ) -> Evacuation:
        """Put a host in maintenance and move everything off it; see `migrating.evacuate`."""
        return migrating.evacuate(self, host, timeout=timeout, on_event=on_event)

    def resume_host(self, host: str) -> HostStatus:
        """End a host's maintenance: it takes VMs again.

        Raises:
            PlacementError: there is no such host.
        """
        return self.set_maintenance(host, on=False)

    def set_maintenance(self, host: str, *, on: bool) -> HostStatus:
        """Have a host take no more VMs, or take them again."""
        return cast("HostStatus", self._call("set_maintenance", host, on=on))

    def events(self, after: str = "", limit: int = 1000) -> list[Event]:
        """What happened, oldest first: the last `limit` events after the one with id `after`."""
        return cast("list[Event]", self._call("events", after, limit))

    def start_move(self, name: str, host: str | None, config: MigrationConfig) -> Placement:
        """Begin to move a VM; `VmHandle.migrate` also waits for it."""
        return cast("Placement", self._call("start_move", name, host, config, timeout_s=CREATE_S))

    def move_end(self, move_id: str, timeout_s: float) -> MoveEnd | None:
        """How a migration ended, or None after `timeout_s` seconds."""
        return cast("MoveEnd | None", self._call("move_end", move_id, timeout_s))

    def move_progress(self, placement: Placement) -> Progress | None:
        """Where a migration stands; None when that is not known."""
        from rayvisor.actors.calls import migration_progress

        return migration_progress(placement)

    def cancel_migration(self, name: str) -> bool:
        """Call a VM's migration off; whether one was under way.

        Raises:
            UnknownVmError: there is none of that name.
        """
        return bool(self._call("cancel_move", name))

    def ft_enable(
        self,
        name: str,
        *,
        epoch: float | str | None = None,
        silence: float | str | None = None,
        host: str | None = None,
    ) -> FtStatus:
        """Make a VM fault tolerant; see `VmHandle.protect`."""
        config = protecting.config_of(epoch=epoch, silence=silence)
        return cast("FtStatus", self._call("ft_enable", name, config, host))

    def ft_disable(self, name: str) -> FtStatus:
        """Make a VM an ordinary one again; see `VmHandle.unprotect`."""
        return cast("FtStatus", self._call("ft_disable", name))

    def ft_status(self, name: str) -> FtStatus:
        """How protected a VM is; UnknownVmError when there is none of that name."""
        return cast("FtStatus", self._call("ft_status", name))

    def ft_statuses(self) -> list[FtStatus]:
        """How protected each fault tolerant VM is, by name."""
        return cast("list[FtStatus]", self._call("ft_statuses"))

    def ft_failover(self, name: str, timeout_s: float = protecting.FAILOVER_S) -> FtStatus:
        """Have a VM go on at its secondary; see `VmHandle.failover`."""
        before = self.ft_status(name)
        self._call("ft_failover", name)
        return protecting.wait_for_failover(self, before, timeout_s)

    def ft_reseat(self, name: str, host: str | None) -> FtStatus:
        """Have a VM's secondary made anew on `host`, or on any other one than now.

        Raises:
            MigrationError: it is not fault tolerant.
            PlacementError: no such host, or no room; its secondary stays.
        """
        return cast("FtStatus", self._call("ft_reseat", name, host))

    def _join(
        self, file: ClusterFile, progress: Callable[[str], None], ha_reserve: int | None
    ) -> None:
        """Connect to Ray and make sure that the cluster actor and every host actor answer."""
        progress("connecting")
        ray_session.connect(file)
        progress("starting the host")
        from rayvisor.actors.cluster import start_hosts

        start_hosts()
        broken = [h for h in self.hosts() if h.reason and h.alive and not h.cores]
        if broken:
            raise ClusterError(f"host {broken[0].name}: {broken[0].reason}")
        if ha_reserve is not None:
            self.set_reserve(ha_reserve)

    def _ensure_actor(self) -> Any:  # noqa: ANN401 - Ray's handles have no static type
        if self._actor is None:
            from rayvisor.actors.cluster import cluster_actor

            self._actor = cluster_actor()
        return self._actor

    def _call(self, method: str, *args: object, timeout_s: float = CALL_S, **kw: object) -> Any:  # noqa: ANN401
        """Call the cluster actor; again while a new one takes the place of one that died."""
        from rayvisor.actors.calls import answer
        from rayvisor.actors.errors import ActorAwayError, ActorGoneError

        deadline_s = time.monotonic() + timeout_s
        while True:
            call = getattr(self._ensure_actor(), method).remote(*args, **kw)
            try:
                return answer(call, timeout_s)
            except (ActorAwayError, ActorGoneError) as error:
                if time.monotonic() > deadline_s:
                    raise
                if isinstance(error, ActorGoneError):
                    self._actor = None
                time.sleep(RETRY_PAUSE_S)


def down(progress: Callable[[str], None] = _say_nothing) -> int | None:
    """End the cluster: its VMs, and the Ray that `up` started; nothing else. Idempotent.

    Returns:
        The number of processes that were ended, or of VMs in a Ray that was joined; None when
        there was no cluster.
    """
    with cluster_file.locked(progress):
        file = cluster_file.load()
        if file is None:
            return None
        if file.owned:
            ray_session.disconnect()
            progress("ending its processes")
            return local_ray.stop(file)
        ended = 0
        if ray_session.is_up(file):
            from rayvisor.actors.cluster import destroy

            ray_session.connect(file)
            progress("ending its VMs")
            ended = destroy()
            ray_session.disconnect()
        cluster_file.forget(file)
        return ended
