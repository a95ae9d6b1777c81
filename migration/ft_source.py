"""Checkpoints of a running `Vm`, taken on its own thread between two instructions.

While the guest stands still only what cannot be done later is done: the dirty log is harvested, the
dirty pages and the machine's state are copied aside. Encoding, packing and sending come when it
runs again.
"""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rayvisor.migration import frames, ft_inputs, pages
from rayvisor.migration.config import PAGE_BYTES
from rayvisor.migration.ft_sending import Aside
from rayvisor.vmm import snapshot
from rayvisor.vmm.core import _native
from rayvisor.vmm.errors import EngineError, MachineStateError
from rayvisor.vmm.machine import PowerState

if TYPE_CHECKING:
    from collections.abc import Callable

    from rayvisor.migration.ft_config import FtConfig
    from rayvisor.migration.ft_inputs import Inputs
    from rayvisor.vmm.snapshot import Capture
    from rayvisor.vmm.vm import Vm

LEFT_OPEN: Final = 64
"""So many pages that native code writes may stay writable from one checkpoint to the next. They are
copied each time, written or not, which takes less time than to protect each and to let it trap."""
CLOSED_EVERY: Final = 16
"""Checkpoints after which all are closed, to learn which are still written."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A guest at one instant.

    Attributes:
        aside: copies of dirty pages; valid until the next checkpoint.
        capture: the rest of the machine's state.
        console_end: output had been written up to there.
        inputs: what had been typed by whom.
        typed: how many pieces had been typed, by anybody.
        dirty_pages: pages written since the last checkpoint.
        pause_ns: how long the guest stood still.
    """

    aside: Aside
    capture: Capture
    console_end: int
    inputs: dict[str, int]
    typed: int
    dirty_pages: int
    pause_ns: int


class VmCheckpoints:
    """The guest's side of fault tolerance. See `rayvisor.migration.ft_primary`."""

    def __init__(self, vm: Vm, inputs: Inputs, config: FtConfig, pending: bytes) -> None:
        """`pending` pages count as dirty, too; the dirty log is on."""
        self._vm = vm
        self._inputs = inputs
        self._config = config
        self._pending = pending
        self._room = memoryview(bytearray(config.aside_bytes))
        self._cuts = 0
        self._go_on = threading.Event()
        self._stalled = False

    @property
    def held_bytes(self) -> int:
        """Output that waits for its epoch."""
        return self._vm.console.held_bytes

    @property
    def page_count(self) -> int:
        """Pages of RAM."""
        return self._vm.machine.ram.size_bytes // PAGE_BYTES

    def cut(self, *, hold: bool, stay: bool, overflow: Callable[[Aside], None]) -> Checkpoint:
        """Take a checkpoint.

        Args:
            hold: hold output from now on.
            stay: leave the guest where it is, paused.
            overflow: takes copied pages while the guest stands still, when there are more than
                can be kept aside.

        Raises:
            MachineStateError: the guest has ended.
        """
        return self._vm.call(lambda: self._cut(hold=hold, stay=stay, overflow=overflow))

    def console_output(self, offset: int, end: int) -> bytes:
        """Output from `offset` to before `end`, held or not."""
        first, data = self._vm.console.written(offset, end - offset)
        if first != offset:
            raise MachineStateError(f"console: byte {offset} is not kept any more")
        return data

    def release(self, offset: int) -> None:
        """Show output up to `offset`."""
        self._vm.console.release(offset)
        self.go_on()

    def stall(self) -> None:
        """Let the guest stand still until `go_on`: it has written more than may wait."""
        if not self._stalled:
            self._stalled = True
            self._go_on.clear()
            self._vm.machine.post(self._stand_still)

    def go_on(self) -> None:
        """See `stall`. Harmless when it runs."""
        self._stalled = False
        self._go_on.set()

    def go_alone(self) -> None:
        """Show everything; the guest runs, if it has not ended."""
        self._vm.console.release()
        self.go_on()
        self.close()
        if self._vm.power is PowerState.PAUSED:
            self._vm.resume()

    def fence(self) -> None:
        """Stop the guest for good. What is held is shown to nobody."""
        self.go_on()
        self._vm.console.redirect(_moved)
        self._vm.stop()
        self.close()

    def close(self) -> None:
        """Take no more checkpoints."""
        with contextlib.suppress(EngineError):  # the machine is closed already
            self._vm.call(self._vm.machine.vcpu.stop_dirty_log)

    def _stand_still(self) -> None:
        self._go_on.wait()

    def _cut(self, *, hold: bool, stay: bool, overflow: Callable[[Aside], None]) -> Checkpoint:
        began_ns = time.monotonic_ns()
        vm = self._vm
        machine = vm.machine
        if machine.power is not PowerState.RUNNING:
            raise MachineStateError(f"the guest has ended: it is {machine.power}")
        self._cuts += 1
        dirty = machine.vcpu.harvest_dirty(LEFT_OPEN if self._cuts % CLOSED_EVERY else 0)
        if self._pending:
            dirty, self._pending = pages.union(dirty, self._pending), b""
        with self._inputs.still() as (inputs, typed):
            capture = snapshot.capture(machine)
        if hold:
            vm.console.hold()
        aside, page, dirty_pages = self._copy(dirty, 0)
        while page < self.page_count:
            overflow(aside)
            aside, page, more = self._copy(dirty, page)
            dirty_pages += more
        if stay:
            machine.pause()
        return Checkpoint(
            aside=aside,
            capture=capture,
            console_end=vm.console.written_offset,
            inputs=inputs,
            typed=typed,
            dirty_pages=dirty_pages,
            pause_ns=time.monotonic_ns() - began_ns,
        )

    def _copy(self, dirty: bytes, first: int) -> tuple[Aside, int, int]:
        """Copies of dirty pages from `first` on; where to go on, and how many they are."""
        ram = self._vm.machine.ram.buffer
        end, count = _native.copy_pages(ram, dirty, first, self._room)
        if first or end < self.page_count:
            dirty = pages.between(dirty, first, end)
        return Aside(dirty, self._room[: count * PAGE_BYTES]), end, count


def packed_inputs(checkpoint: Checkpoint) -> bytes:
    """Who had typed what, as it travels."""
    return ft_inputs.pack(checkpoint.inputs)


def packed_state(checkpoint: Checkpoint) -> bytes:
    """The machine's state, as it travels."""
    return frames.pack_state(checkpoint.capture.plain())


def _moved(data: bytes) -> None:
    raise MachineStateError(f"the VM goes on elsewhere: send these {len(data)} bytes there")
