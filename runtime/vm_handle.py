"""One VM of a cluster, from Python."""

from __future__ import annotations

import secrets
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, cast

from rayvisor.runtime import ha, migrating
from rayvisor.runtime.console_link import ConsoleLink
from rayvisor.runtime.expect import ExpectConsole
from rayvisor.vmm.errors import ClusterError, MachineStateError, UnknownVmError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rayvisor.actors.policy import HaPolicy
    from rayvisor.actors.records import ConsoleChunk, FtStatus, GuestStatus, Report, VmStatus
    from rayvisor.migration.report import MigrationReport, Progress
    from rayvisor.vmm.debug.disasm import Instruction
    from rayvisor.vmm.exits import ExitCensus

CALL_S = 30.0
LOOK_EVERY_S = 0.5
"""How long a call is waited for before it is asked whether the VM is elsewhere."""

FAILOVER_S = 20.0
FAILOVER_LOOK_S = 0.01


class Records(migrating.Moving, Protocol):
    """Where the VMs of a cluster are known: a `rayvisor.Cluster`."""

    def status(self, name: str) -> VmStatus:
        """How the VM is; UnknownVmError when there is none."""

    def remove(self, name: str, *, force: bool = False) -> VmStatus:
        """Forget the VM."""

    def ft_enable(
        self,
        name: str,
        *,
        epoch: float | str | None = None,
        silence: float | str | None = None,
        host: str | None = None,
    ) -> FtStatus:
        """Make a VM fault tolerant."""

    def ft_disable(self, name: str) -> FtStatus:
        """Make it an ordinary one."""

    def ft_status(self, name: str) -> FtStatus:
        """How protected it is."""

    def ft_failover(self, name: str, timeout_s: float) -> FtStatus:
        """Have it go on at its secondary."""

    def policy(self, name: str) -> HaPolicy:
        """What is done about it when it ends."""

    def set_policy(self, name: str, policy: HaPolicy) -> None:
        """Change that."""


@dataclass(slots=True)
class _Call:
    """A call to a VM, which may have to be made again where the VM is by then."""

    method: str
    args: tuple[object, ...]
    actor: Any
    reference: Any
    looked_s: float = field(default_factory=time.monotonic)


class VmHandle:
    """One VM of a cluster, wherever it is.

    Example:
        >>> vm = cluster.vm("web")                  # doctest: +SKIP
        >>> vm.status().state                       # doctest: +SKIP
        <VmState.RUNNING: 'running'>
        >>> vm.stop()                               # doctest: +SKIP
    """

    def __init__(self, cluster: Records, name: str) -> None:
        self._cluster = cluster
        self.name = name
        self._actor: Any = None
        self._console: ExpectConsole | None = None
        self._typing = threading.Lock()
        self._typist = secrets.token_hex(8)
        self._typed = 0

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
        """Type bytes on the console.

        Of a fault tolerant VM: when this returns they cannot be lost any more.
        """
        # One piece at a time: one that has to be sent again must not come after the next.
        with self._typing:
            self._typed += 1
            self._call("send_console", data, self._typist, self._typed)

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

    def migrate(
        self,
        host: str | None = None,
        *,
        downtime: float | str | None = None,
        bandwidth: float | str | None = None,
        timeout: float | str | None = None,
        post_copy: bool = False,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> MigrationReport:
        """Move it to another host while it runs.

        Args:
            host: a host's name, or an unambiguous start of its id; the one with most room if
                it is left out.
            downtime: how long the guest may stand still: seconds, or "30ms".
            bandwidth: at most so much is sent while the guest runs: bytes a second, or "500M".
            timeout: when to give up: seconds, or "2min".
            post_copy: run there at once when nothing else helps.
            on_progress: called ten times a second.

        Raises:
            MigrationFailedError: it has not moved, and runs on where it was; has the report.
            MigrationError: it moves already, is on that host already, or does not run.
            PlacementError: no such host, or no room.
            ConfigError: a limit is malformed.
        """
        config = migrating.config_of(
            downtime=downtime, bandwidth=bandwidth, timeout=timeout, post_copy=post_copy
        )
        return migrating.migrate(self._cluster, self.name, host, config, on_progress)

    def cancel_migration(self) -> bool:
        """Call its migration off, if one is under way; whether one was."""
        return self._cluster.cancel_migration(self.name)

    def protect(
        self,
        *,
        epoch: float | str | None = None,
        silence: float | str | None = None,
        host: str | None = None,
    ) -> FtStatus:
        """Make it fault tolerant: a secondary on another host takes over when it is lost.

        Returns at once; `ft_status` tells when it is protected.

        Args:
            epoch: how long it runs between two checkpoints: seconds, or "25ms".
            silence: after how long a host that is not heard is taken for dead.
            host: where its secondary is to be; another host is taken when that has no room.

        Raises:
            ConfigError: a time makes no sense, or it is protected already.
            MigrationError: it does not run, or is being moved.
            PlacementError: no other host has room.
        """
        return self._cluster.ft_enable(self.name, epoch=epoch, silence=silence, host=host)

    def unprotect(self) -> FtStatus:
        """Make it an ordinary VM again. Harmless when it is one."""
        return self._cluster.ft_disable(self.name)

    def ft_status(self) -> FtStatus:
        """How protected it is."""
        return self._cluster.ft_status(self.name)

    def failover(self, timeout_s: float = FAILOVER_S) -> FtStatus:
        """Have it go on at its secondary; nothing is lost. Returns when it does.

        Raises:
            MigrationError: it has no secondary that is ready, or stays where it is.
        """
        return self._cluster.ft_failover(self.name, timeout_s)

    def set_ha(
        self,
        *,
        restart: str | None = None,
        priority: int | None = None,
        delay: float | str | None = None,
        on_hang: str | None = None,
        heartbeat: float | str | None = None,
    ) -> None:
        """Change when it is started again, and when it hangs; what is left out stays.

        Raises:
            ConfigError: a value that cannot be used.
            MachineStateError: it has no process that could say what it boots.
        """
        policy = ha.changed(
            self._cluster.policy(self.name),
            restart=restart,
            priority=priority,
            delay=delay,
            on_hang=on_hang,
            heartbeat=heartbeat,
        )
        if ha.needs_boot(policy):
            # The VM's process knows, and from now on heeds its host's lease.
            policy = cast("HaPolicy", self._call("keep_boot", policy))
        self._cluster.set_policy(self.name, policy)
        if (on_hang, heartbeat) != (None, None) and self.has_process():
            self._call("watch_for_hangs", policy)

    def console_link(self) -> ConsoleLink[Any]:
        """A reader of the console for one user, with a read always under way.

        It follows the VM: offsets are those of the guest's output, wherever it runs.
        """

        def collect(call: _Call, timeout_s: float) -> ConsoleChunk | None:
            from rayvisor.actors.calls import has_arrived

            if not has_arrived(call.reference, timeout_s):
                now_s = time.monotonic()
                if now_s - call.looked_s > LOOK_EVERY_S:
                    call.looked_s = now_s
                    self._look_whether_moved(call)
                return None
            return cast("ConsoleChunk", self._answer(call))

        return ConsoleLink(
            lambda offset, size, wait_s: self._submit("read_console", offset, size, wait_s), collect
        )

    def _submit(self, method: str, *args: object) -> _Call:
        if self._actor is None:
            self._actor = self._find(None)
        return _Call(method, args, self._actor, getattr(self._actor, method).remote(*args))

    def _call(self, method: str, *args: object) -> Any:  # noqa: ANN401 - as the method
        return self._answer(self._submit(method, *args))

    def _answer(self, call: _Call) -> Any:  # noqa: ANN401 - as the method
        from rayvisor.actors.calls import answer, fails_over, has_arrived
        from rayvisor.actors.errors import ActorAwayError, ActorGoneError, MovedError

        deadline_s = time.monotonic() + CALL_S
        while True:
            if not has_arrived(call.reference, LOOK_EVERY_S):
                if time.monotonic() > deadline_s:
                    raise ClusterError(f"no answer within {CALL_S:g} s: try again")
                self._look_whether_moved(call)
                continue
            try:
                return answer(call.reference, CALL_S)
            except (ActorGoneError, MovedError):
                self._call_there(call, self._find(call.actor))
            except ActorAwayError:
                if fails_over(self.name):
                    self._call_there(call, self._find(call.actor))
                elif not self._look_whether_moved(call):
                    raise

    def _look_whether_moved(self, call: _Call) -> bool:
        """Make a call again where the VM is, if it is elsewhere by now; whether it is.

        A process that is frozen or cut off does not answer, and does not say that it will not.
        """
        from rayvisor.actors.calls import find_vm
        from rayvisor.actors.errors import ActorGoneError

        try:
            actor = find_vm(self.name)
        except ActorGoneError:
            return False
        if actor == call.actor:
            return False
        self._call_there(call, actor)
        return True

    def _find(self, lost: Any) -> Any:  # noqa: ANN401 - Ray's handles have no static type
        """The actor that has the VM, which is not `lost`; a secondary is waited for.

        Raises:
            MachineStateError, UnknownVmError: it is nowhere.
        """
        from rayvisor.actors.calls import fails_over, find_vm
        from rayvisor.actors.errors import ActorGoneError

        self._actor = None
        deadline_s = time.monotonic() + FAILOVER_S
        while True:
            # Asked before looking: who takes over in between is found.
            waits = fails_over(self.name) and time.monotonic() < deadline_s
            try:
                actor = find_vm(self.name)
            except ActorGoneError:
                actor = None
            if actor is not None and actor != lost:
                return actor
            if not waits:
                raise self._gone() from None
            time.sleep(FAILOVER_LOOK_S)

    def _call_there(self, call: _Call, actor: Any) -> None:  # noqa: ANN401 - as above
        self._actor = call.actor = actor
        call.reference = getattr(actor, call.method).remote(*call.args)

    def _gone(self) -> ClusterError | MachineStateError:
        """Why there is no process of this VM, as an error to raise."""
        try:
            status = self.status()
        except UnknownVmError as error:
            return error
        return MachineStateError(f"VM {self.name!r} is {status.state}: {status.reason}")
