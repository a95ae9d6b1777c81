"""A `Vm` that has not run yet as the destination of a migration."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rayvisor.migration import demand
from rayvisor.migration.config import PAGE_BYTES
from rayvisor.migration.errors import StreamError
from rayvisor.migration.host import tsc_hz
from rayvisor.migration.vm_source import machine_schema
from rayvisor.vmm import snapshot
from rayvisor.vmm.errors import MachineStateError
from rayvisor.vmm.machine import MAX_WAITING_INPUT_BYTES, PowerState
from rayvisor.vmm.memory import file_offset

if TYPE_CHECKING:
    from rayvisor.vmm.vm import Vm

_log = logging.getLogger(__name__)

_TSC_MASK = (1 << 64) - 1


class VmDestination:
    """See `rayvisor.migration.roles.Destination`. Owns the VM until it has been adopted.

    What is typed at its console waits until `console_input` has brought what was typed before.
    """

    def __init__(self, vm: Vm) -> None:
        """`vm` has the size of the one that moves, and its boot source, and is off.

        Raises:
            MachineStateError: it is on.
        """
        if vm.power is not PowerState.OFF:
            raise MachineStateError(f"{vm.machine.spec.name} is {vm.power}: a new VM is wanted")
        self._vm = vm
        self._console_end: int | None = None
        self._held = bytearray()
        self._open = False
        self._demand: demand.Demand | None = None
        self._holding = threading.Lock()
        vm.console.redirect(self._take_input)

    @property
    def memory_bytes(self) -> int:
        """The size of RAM."""
        return self._vm.machine.ram.size_bytes

    @property
    def ram(self) -> memoryview:
        """All of RAM."""
        return self._vm.machine.ram.buffer

    @property
    def machine_schema(self) -> str:
        """Name and version of the machine state that it takes."""
        return machine_schema()

    def zero(self, first_page: int, count: int) -> None:
        """Make pages read as zero; those of no RAM (the VGA window) do anyway."""
        ram = self._vm.machine.ram
        start, end = first_page * PAGE_BYTES, (first_page + count) * PAGE_BYTES
        for gpa, length in ram.ranges():
            offset = file_offset(gpa)
            low, high = max(start, offset), min(end, offset + length)
            if low < high:
                ram.zero(gpa + low - offset, high - low)

    @property
    def can_run_incomplete(self) -> bool:
        """Whether userfaultfd works here."""
        return demand.available()

    def expect(self, missing: list[tuple[int, int]]) -> None:
        """These runs of pages come after the guest runs.

        Raises:
            MigrationError: they have been named before, or this host does not allow it.
        """
        if self._demand is not None:
            raise StreamError("missing: named twice")
        for first, count in missing:
            self.zero(first, count)
        self._demand = demand.Demand(self.ram, missing)
        self._vm.machine.ram.before_use = self._demand.wait_for

    def fill(self, first_page: int, content: memoryview) -> None:
        """Pages that were expected have come."""
        if self._demand is not None:
            self._demand.fill(first_page, content)

    def fill_zero(self, first_page: int, count: int) -> None:
        """As `fill`, with pages of zeros."""
        if self._demand is not None:
            self._demand.fill_zero(first_page, count)

    def wanted(self) -> list[int]:
        """Expected pages that somebody waits for; each is named once."""
        return [] if self._demand is None else self._demand.wanted()

    @property
    def missing_pages(self) -> int:
        """How many expected pages have not come."""
        return 0 if self._demand is None else self._demand.missing_pages

    def complete(self) -> None:
        """Every expected page is here."""
        if self._demand is not None:
            self._vm.machine.ram.before_use = None
            self._demand.close()
            self._demand = None

    def lose(self) -> None:
        """Expected pages will never come: end the guest."""
        machine = self._vm.machine
        machine.fail("its source was lost before the last pages came (post-copy)")
        # What waits for a page now reads zeros, and sees at its next exit that it is over.
        self.complete()

    def console_output(self, offset: int, data: bytes) -> None:
        """What the guest has written to its console so far, piece by piece.

        Raises:
            StreamError: the piece does not follow the one before.
        """
        console = self._vm.console
        if self._console_end is None:
            console.continue_at(offset)
        elif offset < self._console_end:
            raise StreamError(f"console: byte {self._console_end} wanted, found {offset}")
        elif offset > self._console_end:
            # The guest wrote more than the source keeps: those bytes are gone there, too.
            console.continue_at(offset)
        console.write(data)
        self._console_end = offset + len(data)

    def restore(self, state: dict[str, Any]) -> None:
        """Take over the machine's state.

        Raises:
            SnapshotError: it is malformed or of another machine.
        """
        snapshot.restore(self._vm.machine, state)

    def adopt(self, gained_ns: int, *, running: bool) -> int:
        """Move the clock on and let the guest run; when its first instruction did."""
        machine = self._vm.machine
        if gained_ns:
            cpu = machine.cpu_state()
            ticks = gained_ns * tsc_hz() // 1_000_000_000
            machine.vcpu.load(replace(cpu, tsc=(cpu.tsc + ticks) & _TSC_MASK))
            machine.clock.rebase(machine.clock.now_ns() + gained_ns)
        if running:
            self._vm.resume()
        return time.monotonic_ns()

    def console_input(self, data: bytes) -> None:
        """What was typed while the VM moved, then what was typed here since."""
        with self._holding:
            self._open = True
            for piece in (data, bytes(self._held)):
                if piece:
                    self._type(piece)
            self._held.clear()

    def discard(self) -> None:
        """Give everything back."""
        self.complete()
        self._vm.close()

    def _take_input(self, data: bytes) -> None:
        with self._holding:
            if self._open:
                self._vm.machine.console_input(data)
                return
            if len(self._held) + len(data) > MAX_WAITING_INPUT_BYTES:
                raise MachineStateError(
                    f"{self._vm.machine.spec.name} is on its way here: "
                    f"{len(self._held)} bytes are waiting"
                )
            self._held += data

    def _type(self, data: bytes) -> None:
        try:
            self._vm.machine.console_input(data)
        except MachineStateError as error:
            _log.warning("console input is lost: %s", error)
