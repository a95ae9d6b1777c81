"""The VM actor: one process, one VM."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rayvisor.actors import stats
from rayvisor.actors.calls import answer
from rayvisor.actors.ledger import forget_end, write_end
from rayvisor.actors.names import CONSOLE_GROUP, INPUT_GROUP, NAMESPACE, vm_actor_name
from rayvisor.actors.store import RayStore
from rayvisor.vmm.errors import MachineStateError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rayvisor.actors.guest import Guest
    from rayvisor.actors.records import ConsoleChunk, GuestStatus, LastWords, Placement, Report
    from rayvisor.vmm.debug.disasm import Instruction
    from rayvisor.vmm.exits import ExitCensus
    from rayvisor.vmm.spec import BootSource

CONTROL_THREADS = 8
CONSOLE_THREADS = 32
"""Long polls of consoles, each of which holds a thread while it waits."""


class VmActor:
    """Ray shell around `Guest`: marshals calls, adds no behaviour."""

    def __init__(self, placement: Placement) -> None:
        self._placement = placement
        self._started: Guest | None = None
        self._teller: stats.Teller | None = None

    def boot(self, boot: Sequence[ray.ObjectRef[BootSource]]) -> GuestStatus:
        """Make the machine and start it.

        The boot source comes as a reference inside a list, which Ray passes on as it is: the
        bytes go from the object store to this process alone.
        """
        # Imported in the VM's process alone: hosts need neither the engine nor the chips.
        from rayvisor.actors.guest import Guest
        from rayvisor.vmm.spec import MachineSpec
        from rayvisor.vmm.vm import Vm

        placement, request, store = self._placement, self._placement.request, RayStore()

        def remember(words: LastWords) -> None:
            write_end(store, placement.name, placement.token, words)
            if self._teller is not None:
                self._teller.tell()

        spec = MachineSpec(
            memory_bytes=request.memory_bytes,
            boot=ray.get(boot[0]),
            cpus=request.cpus,
            name=request.name,
        )
        self._started = Guest(
            Vm(spec),
            placement.token,
            remember=remember,
            forget=lambda: forget_end(store, placement.name),
        )
        self._started.start()
        self._tell_stats(self._started)
        return self._started.status()

    def _tell_stats(self, guest: Guest) -> None:
        """Have the host see what this VM counts."""
        here = ray.get_runtime_context()
        place = stats.folder(here.get_temp_dir(), here.get_session_name(), here.get_node_id())
        image = self._placement.request.image
        self._teller = stats.Teller(place, self._placement.token, lambda: guest.stats(image))
        self._teller.start()

    @property
    def _guest(self) -> Guest:
        if self._started is None:
            raise MachineStateError(f"VM {self._placement.name!r} is still being built")
        return self._started

    def status(self) -> GuestStatus:
        """See `Guest.status`."""
        return self._guest.status()

    def stop(self) -> GuestStatus:
        """See `Guest.stop`."""
        return self._guest.stop()

    def reset(self) -> GuestStatus:
        """See `Guest.reset`."""
        return self._guest.reset()

    def report(self) -> Report:
        """See `Guest.report`."""
        return self._guest.report()

    def exits(self) -> ExitCensus:
        """See `Guest.exits`."""
        return self._guest.exits()

    def exit_sites(self, limit: int) -> Report:
        """See `Guest.exit_sites`."""
        return self._guest.exit_sites(limit)

    def disassemble(self, address: int | None, count: int) -> list[Instruction]:
        """See `Guest.disassemble`."""
        return self._guest.disassemble(address, count)

    def console_offsets(self) -> tuple[int, int]:
        """See `Guest.console_offsets`."""
        return self._guest.console_offsets()

    @ray.method(concurrency_group=CONSOLE_GROUP)
    def read_console(self, offset: int, max_bytes: int, timeout_s: float) -> ConsoleChunk:
        """See `Guest.read_console`."""
        return self._guest.read_console(offset, max_bytes, timeout_s)

    @ray.method(concurrency_group=CONSOLE_GROUP)
    def wait(self, timeout_s: float) -> GuestStatus | None:
        """See `Guest.wait`."""
        return self._guest.wait(timeout_s)

    @ray.method(concurrency_group=INPUT_GROUP)
    def send_console(self, data: bytes) -> None:
        """See `Guest.send_console`. One thread, so that keys arrive in their order."""
        self._guest.send_console(data)


_REMOTE = cast("Any", ray.remote)(
    concurrency_groups={CONSOLE_GROUP: CONSOLE_THREADS, INPUT_GROUP: 1}
)(VmActor)


class VmSpawner:
    """Makes VM actors on one Ray node."""

    def __init__(self, node_id: str, timeout_s: float = 60.0) -> None:
        self._strategy = NodeAffinitySchedulingStrategy(node_id, soft=False)
        self._timeout_s = timeout_s

    def spawn(self, placement: Placement, boot: Sequence[ray.ObjectRef[BootSource]]) -> GuestStatus:
        """Start a VM in a process of its own; nothing is left when it raises."""
        actor = _REMOTE.options(
            name=vm_actor_name(placement.name),
            namespace=NAMESPACE,
            lifetime="detached",
            num_cpus=0,
            max_restarts=0,
            max_concurrency=CONTROL_THREADS,
            scheduling_strategy=self._strategy,
        ).remote(placement)
        try:
            started = answer(actor.boot.remote(list(boot)), self._timeout_s)
        except BaseException:
            ray.kill(actor)
            raise
        return cast("GuestStatus", started)
