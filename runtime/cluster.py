"""The Python API of a cluster: `Cluster` and `VmHandle`. The only room beside actors/ with Ray."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Any, Self, cast

from rayvisor.runtime import boot, cluster_file, local_ray
from rayvisor.runtime.console_link import ConsoleLink
from rayvisor.runtime.expect import ExpectConsole
from rayvisor.runtime.units import parse_bytes
from rayvisor.vmm.errors import ClusterError, ConfigError, MachineStateError, UnknownVmError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from rayvisor.actors.records import (
        ConsoleChunk,
        GuestStatus,
        HostStatus,
        Report,
        VmStatus,
    )
    from rayvisor.runtime.api import VmSpec
    from rayvisor.runtime.cluster_file import ClusterFile
    from rayvisor.vmm.debug.disasm import Instruction
    from rayvisor.vmm.exits import ExitCensus

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
        cpus: int | None = None,
        dashboard: bool = False,
        working_dir: str | None = None,
        progress: Callable[[str], None] = _say_nothing,
    ) -> Self:
        """Start Ray on this machine, or join one, and Rayvisor on it. Harmless when it is up.

        Args:
            address: Join the Ray at HOST:PORT, or "auto" for the one this machine is part of,
                instead of starting one.
            object_store: Shared memory for Ray's objects, of a Ray that is started.
            cpus: Cores that Ray hands out to tasks of others, of a Ray that is started.
            dashboard: Start Ray's dashboard on the loopback address.
            working_dir: A folder that holds `rayvisor`, to be sent to the hosts of a Ray that is
                joined and has it not installed.
            progress: Called with what is being done.

        Raises:
            ConfigError: the object store is none, or smaller than Ray needs.
            ClusterError: it cannot be started or joined; nothing is left half-made.
        """
        object_store_bytes = parse_bytes(object_store)
        if object_store_bytes < MIN_OBJECT_STORE_BYTES:
            raise ConfigError(f"object store of {object_store} is less than the 75M Ray needs")
        with cluster_file.locked(progress):
            found = cluster_file.load()
            if found is not None:
                if _is_up(found) and (address is None or address == found.address):
                    cluster = cls(found)
                    cluster._join(found, progress)
                    return cluster
                if _is_up(found):
                    raise ClusterError(
                        f"a cluster is up at {found.address}: run `rayvisor down` before joining"
                        f" {address}"
                    )
                progress("clearing away what is left of a cluster that is gone")
                local_ray.stop(found)
            if address is None:
                file = local_ray.start(
                    object_store_bytes=object_store_bytes,
                    cpus=cpus,
                    dashboard=dashboard,
                    progress=progress,
                    meanwhile=_import_ray,
                )
            else:
                if address != "auto" and not local_ray.answers(address):
                    raise ClusterError(f"no Ray answers at {address}: give the HOST:PORT of one")
                file = cluster_file.ClusterFile(
                    phase="starting", owned=False, address=address, working_dir=working_dir or ""
                )
            return cls._finish(file, progress)

    @classmethod
    def _finish(cls, file: ClusterFile, progress: Callable[[str], None]) -> Self:
        cluster = cls(file, started=True)
        try:
            cluster._join(file, progress)
            cluster._file = file.model_copy(update={"phase": "up"})
            cluster_file.save(cluster._file)
        except BaseException:
            _disconnect()
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
        if _is_connected():
            cluster = cls(file)
        elif file is not None:
            if file.phase != "up" or not _is_up(file):
                raise ClusterError(f"{NO_CLUSTER} (the last one is gone)")
            cluster = cls(file)
            _connect(file)
        elif os.environ.get("RAY_ADDRESS"):
            cluster = cls(None)
            _connect(
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
        import ray

        return cast("str", ray.get_runtime_context().gcs_address)

    @property
    def dashboard_url(self) -> str:
        """Ray's dashboard, or empty."""
        return self._file.dashboard_url if self._file is not None else ""

    def close(self) -> None:
        """Disconnect; the cluster and its VMs go on."""
        self._actor = None
        _disconnect()

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
        import ray

        from rayvisor.actors.records import VmRequest

        self._call("check_free", spec.name)
        source = boot.source_of(spec)
        request = VmRequest(
            name=spec.name,
            memory_bytes=spec.memory_bytes,
            cpus=spec.cpus,
            image="" if spec.kernel else spec.image,
            host=spec.host,
        )
        reference = ray.put(source)
        call = self._ensure_actor().create.remote(request, [reference])
        try:
            _own(call, CREATE_S)
        except KeyboardInterrupt:
            self._abandon(call, spec.name)
            raise
        return VmHandle(self, spec.name)

    def _abandon(self, call: Any, name: str) -> None:  # noqa: ANN401 - a Ray reference
        try:
            status = _own(call, CREATE_S)
        except ClusterError:
            return
        if status.name == name:
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

    def _join(self, file: ClusterFile, progress: Callable[[str], None]) -> None:
        """Connect to Ray and make sure that the cluster actor and every host actor answer."""
        progress("connecting")
        _connect(file)
        progress("starting the host")
        from rayvisor.actors.cluster import start_hosts

        start_hosts()
        broken = [h for h in self.hosts() if h.reason]
        if broken:
            raise ClusterError(f"host {broken[0].name}: {broken[0].reason}")

    def _ensure_actor(self) -> Any:  # noqa: ANN401 - Ray's handles have no static type
        if self._actor is None:
            from rayvisor.actors.cluster import cluster_actor

            self._actor = cluster_actor()
        return self._actor

    def _call(self, method: str, *args: object, timeout_s: float = CALL_S, **kw: object) -> Any:  # noqa: ANN401
        """Call the cluster actor; again while a new one takes the place of one that died."""
        import ray

        deadline_s = time.monotonic() + timeout_s
        while True:
            call = getattr(self._ensure_actor(), method).remote(*args, **kw)
            try:
                return _own(call, timeout_s, gone=time.monotonic() < deadline_s)
            except ray.exceptions.ActorUnavailableError:
                time.sleep(RETRY_PAUSE_S)
            except ray.exceptions.RayActorError:
                self._actor = None


class VmHandle:
    """One VM of a cluster.

    Example:
        >>> vm = cluster.vm("web")                  # doctest: +SKIP
        >>> vm.status().state                       # doctest: +SKIP
        <VmState.RUNNING: 'running'>
        >>> vm.stop()                               # doctest: +SKIP
    """

    def __init__(self, cluster: Cluster, name: str) -> None:
        self._cluster = cluster
        self.name = name
        self._actor: Any = None
        self._console: ExpectConsole | None = None

    def __repr__(self) -> str:
        """As Python would write it."""
        return f"VmHandle({self.name!r})"

    @property
    def console(self) -> ExpectConsole:
        """The console for programs, from the first byte that is kept."""
        if self._console is None:
            link = self.console_link()
            first, _ = self.console_offsets()
            self._console = ExpectConsole(link.read, self.send, link.alive, first)
        return self._console

    def status(self) -> VmStatus:
        """How it is, also after its process has died."""
        return self._cluster.status(self.name)

    def stop(self) -> GuestStatus:
        """Power off at once. Its record stays, so that `status` tells how it ended."""
        return cast("GuestStatus", self._call("stop"))

    def reset(self) -> GuestStatus:
        """Reboot; also starts a VM again that has ended."""
        return cast("GuestStatus", self._call("reset"))

    def remove(self, *, force: bool = False) -> VmStatus:
        """See `Cluster.remove`."""
        return self._cluster.remove(self.name, force=force)

    def wait(self, timeout_s: float | None = None) -> VmStatus | None:
        """How it is once the guest has ended, or None after `timeout_s` seconds."""
        slice_s, waited_s = 5.0, 0.0
        while timeout_s is None or waited_s < timeout_s:
            step_s = slice_s if timeout_s is None else min(slice_s, timeout_s - waited_s)
            try:
                if self._call("wait", step_s) is not None:
                    return self.status()
            except MachineStateError:
                return self.status()
            waited_s += step_s
        return None

    def report(self) -> Report:
        """Wall and CPU seconds, exits by kind, and the crash report of a guest that crashed."""
        return cast("Report", self._call("report"))

    def exits(self) -> ExitCensus:
        """Which instructions left the translator, how often, from where."""
        return cast("ExitCensus", self._call("exits"))

    def exit_sites(self, limit: int = 20) -> Report:
        """The exit census with the `limit` busiest instructions, in JSON's terms."""
        return cast("Report", self._call("exit_sites", limit))

    def disasm(self, address: int | None = None, count: int = 16) -> list[Instruction]:
        """At most `count` instructions at a linear address, in the mode the guest is in.

        Args:
            address: where to begin; at the instruction pointer by default.
            count: how many; fewer come where mapped memory ends.

        Raises:
            MachineStateError: there is no process of this VM.
        """
        return cast("list[Instruction]", self._call("disassemble", address, count))

    def send(self, data: bytes) -> None:
        """Type bytes on the console."""
        self._call("send_console", data)

    def console_offsets(self) -> tuple[int, int]:
        """The console output that is kept, as (first, end) byte offsets since power-on."""
        return cast("tuple[int, int]", self._call("console_offsets"))

    def console_output(self) -> tuple[int, bytes]:
        """All console output that is kept, as (offset of the first byte, bytes)."""
        first, end = self.console_offsets()
        offset, data = first, b""
        while offset + len(data) < end:
            chunk = self._call("read_console", offset + len(data), end - first, 0.0)
            if not data:
                offset = chunk.offset
            data += chunk.data
        return offset, data

    def has_process(self) -> bool:
        """Whether the VM's process is there, be its guest alive or not."""
        try:
            self.console_offsets()
        except (MachineStateError, UnknownVmError):
            return False
        return True

    def console_link(self) -> ConsoleLink[Any]:
        """A reader of the console for one user, with a read always under way."""

        def collect(reference: Any, timeout_s: float) -> ConsoleChunk | None:  # noqa: ANN401
            import ray

            ready, _ = ray.wait([reference], timeout=timeout_s)
            return cast("ConsoleChunk", self._result(reference)) if ready else None

        return ConsoleLink(
            lambda offset, size, wait_s: self._submit("read_console", offset, size, wait_s), collect
        )

    def _submit(self, method: str, *args: object) -> Any:  # noqa: ANN401 - a Ray reference
        if self._actor is None:
            import ray

            from rayvisor.actors.names import NAMESPACE, vm_actor_name

            try:
                self._actor = ray.get_actor(vm_actor_name(self.name), namespace=NAMESPACE)
            except ValueError:
                raise self._gone() from None
        return getattr(self._actor, method).remote(*args)

    def _call(self, method: str, *args: object) -> Any:  # noqa: ANN401
        return self._result(self._submit(method, *args))

    def _result(self, reference: Any) -> Any:  # noqa: ANN401
        import ray

        try:
            return _own(reference, CALL_S, gone=True)
        except ray.exceptions.RayActorError:
            self._actor = None
            raise self._gone() from None

    def _gone(self) -> ClusterError | MachineStateError:
        """Why there is no process of this VM, as an error to raise."""
        try:
            status = self.status()
        except UnknownVmError as error:
            return error
        return MachineStateError(f"VM {self.name!r} is {status.state}: {status.reason}")


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
            _disconnect()
            progress("ending its processes")
            return local_ray.stop(file)
        ended = 0
        if _is_up(file):
            from rayvisor.actors.cluster import destroy

            _connect(file)
            progress("ending its VMs")
            ended = destroy()
            _disconnect()
        cluster_file.forget(file)
        return ended


def _own(reference: Any, timeout_s: float, *, gone: bool = False) -> Any:  # noqa: ANN401
    """The answer; with `gone`, the death of the actor comes out as Ray's own error."""
    import ray

    from rayvisor.actors.unwrap import own_errors

    died: ray.exceptions.RayActorError | None = None
    with own_errors():
        try:
            return ray.get(reference, timeout=timeout_s)
        except ray.exceptions.RayActorError as error:
            if not gone:
                raise
            died = error
    raise died


def _is_connected() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def _is_up(file: ClusterFile) -> bool:
    """Whether the cluster of this file answers, by a look at its processes or its port."""
    if file.owned and not local_ray.processes(file):
        return False
    return file.address in {"", "auto"} or local_ray.answers(file.address)


def _connect(file: ClusterFile) -> None:
    """Connect this process to Ray. Harmless when it is connected."""
    if _is_connected():
        return
    _import_ray(file)
    from rayvisor.actors.link import connect

    connect(
        file.address,
        loopback=file.owned,
        working_dir=file.working_dir,
    )


def _import_ray(file: ClusterFile) -> None:
    """Import what talks to Ray, under the environment that says how to."""
    if file.owned:
        os.environ.update(local_ray.client_environment(file))
        os.environ.pop("RAY_AUTH_TOKEN", None)
    import rayvisor.actors.cluster  # noqa: F401 - takes half a second, which `up` has to wait


def _disconnect() -> None:
    if _is_connected():
        import ray

        ray.shutdown()
