"""Protecting real VMs within this process, over a socket pair."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rayvisor.migration.ft_config import FtConfig
from rayvisor.migration.ft_inputs import Inputs
from rayvisor.migration.ft_primary import Protector
from rayvisor.migration.ft_source import VmCheckpoints
from rayvisor.migration.ft_standby import Standby
from rayvisor.migration.precopy import Migration
from rayvisor.migration.socket_transport import SocketTransport, serve
from rayvisor.migration.vm_destination import VmDestination
from rayvisor.migration.vm_source import VmSource
from rayvisor.vmm.spec import BootSource, MachineSpec
from rayvisor.vmm.vm import Vm
from tests.migration.fakes import Record
from tests.migration.moving import MIB, differing_pages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rayvisor.migration.ft_protocol import Verdict
    from rayvisor.migration.ft_source import Checkpoint

PATIENCE_S = 60.0


@dataclass
class MemoryCell:
    """The cell of a pair; `silent` while the record is away."""

    verdict: Verdict | None = None
    silent: bool = False
    asked: list[Verdict] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def decide(self, verdict: Verdict) -> Verdict:
        if self.silent:
            raise ConnectionError("the record is away")
        with self._lock:
            self.asked.append(verdict)
            self.verdict = self.verdict or verdict
            return self.verdict


class WatchedCheckpoints(VmCheckpoints):
    """Keeps a copy of all of RAM as it was at each cut, when asked to."""

    def __init__(self, vm: Vm, inputs: Inputs, config: FtConfig, pending: bytes) -> None:
        super().__init__(vm, inputs, config, pending)
        self.copies: dict[int, bytes] | None = None
        self.cuts = 0

    def _cut(self, **options: Any) -> Checkpoint:  # noqa: ANN401 - as the method
        checkpoint = super()._cut(**options)
        self.cuts += 1
        if self.copies is not None:
            self.copies[self.cuts] = bytes(self._vm.machine.ram.buffer)
        return checkpoint


class ComparingStandby(Standby):
    """Looks, at each epoch, whether it has the RAM that the primary had."""

    compared = 0
    differing: list[int]
    original: WatchedCheckpoints | None = None

    def _apply(self) -> None:
        super()._apply()
        copies = self.original.copies if self.original is not None else None
        copy = copies.pop(self.epoch, None) if copies is not None else None
        if copy is not None:  # the first one may have been cut before copies were asked for
            self.differing = differing_pages(self._destination.ram, memoryview(copy))
            assert not self.differing
            self.compared += 1


class Line:
    """A line between two ends, which can go silent without either end being told."""

    def __init__(self) -> None:
        self.silent = False
        self.ours, left = socket.socketpair()
        self.theirs, right = socket.socketpair()
        for one, other in ((left, right), (right, left)):
            # Descriptors of its own: either thread may be the last.
            ends = (one.dup(), other.dup())
            threading.Thread(target=self._carry, args=ends, daemon=True).start()
        left.close()
        right.close()

    def _carry(self, one: socket.socket, other: socket.socket) -> None:
        with one, other, contextlib.suppress(OSError):
            while data := one.recv(1 << 16):
                if not self.silent:
                    other.sendall(data)
            other.shutdown(socket.SHUT_RDWR)


class Protected:
    """One VM and its secondary."""

    def __init__(
        self, vm: Vm, config: FtConfig | None = None, inputs: Inputs | None = None
    ) -> None:
        self.config = config or FtConfig(epoch_s=0.01)
        self.cell = MemoryCell()
        self.vm, self.inputs = vm, inputs or Inputs(vm.console.send)
        self.other = Vm(vm.machine.spec)
        self.other_inputs = Inputs(self.other.console.send)
        self.standby = ComparingStandby(
            VmDestination(self.other), self.other_inputs, self.cell, self.config
        )
        self.line = Line()
        self.connection, theirs = self.line.ours, self.line.theirs
        self._server = threading.Thread(
            target=serve, args=(theirs, self.standby, self.config.look_s), daemon=True
        )
        self._server.start()
        self._theirs = theirs
        migration = Migration(
            VmSource(vm),
            SocketTransport(self.connection),
            Record(),
            token=1,
            config=self.config.seeding,
        )
        seeded = migration.seed()
        self.source = WatchedCheckpoints(vm, self.inputs, self.config, seeded.pending)
        self.standby.original = self.source
        self.states: list[str] = []
        self._also_told: Callable[[], object] = lambda: None
        self.protector = Protector(
            self.source,
            seeded,
            self.cell,
            self.config,
            on_change=self._told,
        )
        self.outcome: list[bool] = []
        self._runner = threading.Thread(
            target=lambda: self.outcome.append(self.protector.run()), daemon=True
        )

    def tell(self, on_change: Callable[[], object]) -> None:
        """Have this called at each change, too."""
        self._also_told = on_change

    def _told(self) -> None:
        self.states.append(self.protector.stats().state)
        self._also_told()

    def begin(self) -> None:
        """Protect it, and return once it is."""
        self._runner.start()
        self.wait_for(lambda: self.protector.stats().state == "protected")

    def cut_line(self) -> None:
        """The stream breaks, as when a process is killed."""
        with contextlib.suppress(OSError):  # it is broken already
            self.connection.shutdown(socket.SHUT_RDWR)

    def wait_for(self, true: Callable[[], object]) -> None:
        deadline_s = time.monotonic() + PATIENCE_S
        while not true():
            assert time.monotonic() < deadline_s, (self.protector.stats(), self.standby.phase)
            time.sleep(0.001)

    def epochs(self, count: int) -> None:
        """Wait for so many more."""
        goal = self.protector.stats().epochs + count
        self.wait_for(lambda: self.protector.stats().epochs >= goal)

    def ends(self) -> bool:
        """Whether the VM goes on at the primary, once both sides are through."""
        self._runner.join(PATIENCE_S)
        self._server.join(PATIENCE_S)
        return self.outcome[0]

    def close(self) -> None:
        self.cell.silent = False
        self.source.go_on()
        self.cut_line()
        if self._runner.ident is not None:
            self._runner.join(PATIENCE_S)
        self._server.join(PATIENCE_S)
        for vm in (self.vm, self.other):
            vm.close()


@contextmanager
def protected(
    image: bytes,
    config: FtConfig | None = None,
    memory_bytes: int = 32 * MIB,
    before: Callable[[Protected], None] = lambda _: None,
) -> Iterator[Protected]:
    """A flat guest, switched on and protected."""
    vm = Vm(MachineSpec(memory_bytes, BootSource(image, format="flat"), name="flat"))
    vm.start()
    pair = Protected(vm, config)
    before(pair)
    try:
        pair.begin()
        yield pair
    finally:
        pair.close()
