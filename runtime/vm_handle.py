"""One VM of a cluster, from Python."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

from rayvisor.runtime import migrating
from rayvisor.runtime.console_link import ConsoleLink
from rayvisor.runtime.expect import ExpectConsole
from rayvisor.vmm.errors import ClusterError, MachineStateError, UnknownVmError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rayvisor.actors.records import ConsoleChunk, GuestStatus, Report, VmStatus
    from rayvisor.migration.report import MigrationReport, Progress
    from rayvisor.vmm.debug.disasm import Instruction
    from rayvisor.vmm.exits import ExitCensus

CALL_S = 30.0


class Records(migrating.Moving, Protocol):
    """Where the VMs of a cluster are known: a `rayvisor.Cluster`."""

    def status(self, name: str) -> VmStatus:
        """How the VM is; UnknownVmError when there is none."""

    def remove(self, name: str, *, force: bool = False) -> VmStatus:
        """Forget the VM."""


@dataclass(slots=True)
class _Call:
    """A call to a VM, which may have to be made again where the VM is by then."""

    method: str
    args: tuple[object, ...]
    actor: Any
    reference: Any


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

    def console_link(self) -> ConsoleLink[Any]:
        """A reader of the console for one user, with a read always under way.

        It follows the VM: offsets are those of the guest's output, wherever it runs.
        """

        def collect(call: _Call, timeout_s: float) -> ConsoleChunk | None:
            from rayvisor.actors.calls import has_arrived

            if not has_arrived(call.reference, timeout_s):
                return None
            return cast("ConsoleChunk", self._answer(call))

        return ConsoleLink(
            lambda offset, size, wait_s: self._submit("read_console", offset, size, wait_s), collect
        )

    def _submit(self, method: str, *args: object) -> _Call:
        from rayvisor.actors.calls import find_vm
        from rayvisor.actors.errors import ActorGoneError

        if self._actor is None:
            try:
                self._actor = find_vm(self.name)
            except ActorGoneError:
                raise self._gone() from None
        return _Call(method, args, self._actor, getattr(self._actor, method).remote(*args))

    def _call(self, method: str, *args: object) -> Any:  # noqa: ANN401 - as the method
        return self._answer(self._submit(method, *args))

    def _answer(self, call: _Call) -> Any:  # noqa: ANN401 - as the method
        from rayvisor.actors.calls import answer
        from rayvisor.actors.errors import ActorGoneError, MovedError

        while True:
            try:
                return answer(call.reference, CALL_S)
            except (ActorGoneError, MovedError):
                self._follow(call)

    def _follow(self, call: _Call) -> None:
        """Make a call again where the VM is now, if that is not where it was.

        Raises:
            MachineStateError, UnknownVmError: it is nowhere else.
        """
        from rayvisor.actors.calls import find_vm
        from rayvisor.actors.errors import ActorGoneError

        self._actor = None
        try:
            actor = find_vm(self.name)
        except ActorGoneError:
            raise self._gone() from None
        if actor == call.actor:
            raise self._gone()
        self._actor = call.actor = actor
        call.reference = getattr(actor, call.method).remote(*call.args)

    def _gone(self) -> ClusterError | MachineStateError:
        """Why there is no process of this VM, as an error to raise."""
        try:
            status = self.status()
        except UnknownVmError as error:
            return error
        return MachineStateError(f"VM {self.name!r} is {status.state}: {status.reason}")
