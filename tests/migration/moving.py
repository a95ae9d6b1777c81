"""Moving real VMs within this process, comparing all of RAM at the moment of the handover."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rayvisor.migration.arrival import Arrival
from rayvisor.migration.memory_transport import MemoryTransport
from rayvisor.migration.precopy import Migration
from rayvisor.migration.vm_destination import VmDestination
from rayvisor.migration.vm_source import VmSource
from rayvisor.vmm.machine import PowerState
from rayvisor.vmm.spec import BootSource, MachineSpec
from rayvisor.vmm.vm import Vm
from tests.migration.fakes import Record

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rayvisor.migration.config import MigrationConfig
    from rayvisor.migration.report import MigrationReport

MIB = 1 << 20
CHUNK = MIB


def differing_pages(one: memoryview, other: memoryview) -> list[int]:
    """Numbers of the pages in which two RAMs differ."""
    found: list[int] = []
    for start in range(0, len(one), CHUNK):
        a, b = (bytes(ram[start : start + CHUNK]) for ram in (one, other))
        if a != b:
            pages = range(0, len(a), 4096)
            found += [(start + i) // 4096 for i in pages if a[i : i + 4096] != b[i : i + 4096]]
    return found


class ComparingDestination(VmDestination):
    """Looks, when it has everything and the source stands still, whether it has the same RAM."""

    def __init__(self, vm: Vm, original: Vm) -> None:
        super().__init__(vm)
        self._original = original
        self.differing: list[int] | None = None

    def restore(self, state: dict[str, Any]) -> None:
        assert self._original.power is PowerState.PAUSED
        # Looking at a page that is still missing would wait for it, with the interpreter lock.
        if not self.missing_pages:
            self.differing = differing_pages(self.ram, self._original.machine.ram.buffer)
        super().restore(state)


@dataclass
class Journey:
    """A VM that is moved again and again, each time into a new machine."""

    vm: Vm
    token: int = 1
    offset: int = 0
    output: bytes = b""

    def move(
        self,
        config: MigrationConfig | None = None,
        *,
        whole: bool = True,
        source: VmSource | None = None,
    ) -> MigrationReport:
        """Move it, and compare if it is to arrive as a `whole`."""
        old, record = self.vm, Record()
        record.token = self.token
        new = Vm(old.machine.spec)
        destination = ComparingDestination(new, old)
        arrival = Arrival(destination, record)
        transport = MemoryTransport(arrival.feed, arrival.disconnected)
        source = source or VmSource(old)
        migration = Migration(source, transport, record, token=self.token, config=config)
        report = migration.run()
        self.vm, self.token = new, record.token
        assert destination.differing == ([] if whole else None)
        assert old.power is PowerState.OFF
        old.close()
        return report

    def read(self, timeout_s: float = 0) -> bytes:
        """All console output until now, as somebody who stays attached sees it."""
        while True:
            first, data = self.vm.console.read(self.offset, timeout_s=timeout_s)
            assert first == self.offset, "console output was lost"
            if not data:
                return self.output
            self.offset += len(data)
            self.output += data
            timeout_s = 0

    def read_until(self, text: bytes, timeout_s: float = 60.0) -> bytes:
        """Read on until `text` has come."""
        deadline = time.monotonic() + timeout_s
        while text not in self.read(0.2):
            assert time.monotonic() < deadline, self.output[-500:]
        return self.output


def flat_journey(image: bytes, memory_bytes: int = 16 * MIB) -> Iterator[Journey]:
    """A flat guest, switched on; whatever it has become is closed at the end."""
    vm = Vm(MachineSpec(memory_bytes, BootSource(image, format="flat"), name="flat"))
    vm.start()
    journey = Journey(vm)
    yield journey
    journey.vm.close()
