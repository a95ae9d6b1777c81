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
from typing import TYPE_CHECKING, Any, Final

from rayvisor.migration import ft_inputs, pages
from rayvisor.vmm import snapshot
from rayvisor.vmm.errors import EngineError, MachineStateError
from rayvisor.vmm.machine import PowerState

if TYPE_CHECKING:
    from collections.abc import Callable

    from rayvisor.migration.ft_config import FtConfig
    from rayvisor.migration.ft_inputs import Inputs
    from rayvisor.migration.pages import Picked
    from rayvisor.vmm.snapshot import Capture
    from rayvisor.vmm.vm import Vm

DELTAS_AGAIN_S: Final = 30.0
"""Differences that did not pay are tried again after so long."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A guest at one instant.

    Attributes:
        picked: dirty pages, copied aside; valid until the next checkpoint.
        capture: the rest of the machine's state.
        console_end: output had been written up to there.
        inputs: what had been typed by whom.
        typed: how many pieces had been typed, by anybody.
        dirty_pages: pages written since the last checkpoint.
        pause_ns: how long the guest stood still.
    """

    picked: Picked
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
        self._picker = self._make_picker()
        self._forgot_s: float | None = None
        self._go_on = threading.Event()
        self._stalled = False

    @property
    def held_bytes(self) -> int:
        """Output that waits for its epoch."""
        return self._vm.console.held_bytes

    def cut(self, *, hold: bool, stay: bool, overflow: Callable[[Picked], None]) -> Checkpoint:
        """Take a checkpoint.

        Args:
            hold: hold output from now on.
            stay: leave the guest where it is, paused.
            overflow: takes copied pages while the guest stands still, when there are more than
                can be kept aside.

        Raises:
            MachineStateError: the guest has ended.
        """
        if self._forgot_s is not None and time.monotonic() - self._forgot_s > DELTAS_AGAIN_S:
            self._picker, self._forgot_s = self._make_picker(), None
        return self._vm.call(lambda: self._cut(hold=hold, stay=stay, overflow=overflow))

    def console_output(self, offset: int, end: int) -> bytes:
        """Output from `offset` to before `end`, held or not."""
        first, data = self._vm.console.written(offset, end - offset)
        if first != offset:
            raise MachineStateError(f"console: byte {offset} is not kept any more")
        return data

    def forget_copies(self) -> None:
        """Pages are not sent as differences for a while: it does not pay."""
        self._picker.forget()
        self._forgot_s = time.monotonic()

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
        self._picker.close()

    def _stand_still(self) -> None:
        self._go_on.wait()

    def _make_picker(self) -> pages.Picker:
        config = self._config
        return pages.Picker(
            self._vm.machine.ram.buffer, config.aside_bytes, config.delta_cache_bytes
        )

    def _cut(self, *, hold: bool, stay: bool, overflow: Callable[[Picked], None]) -> Checkpoint:
        began_ns = time.monotonic_ns()
        vm, config = self._vm, self._config
        machine = vm.machine
        if machine.power is not PowerState.RUNNING:
            raise MachineStateError(f"the guest has ended: it is {machine.power}")
        dirty = machine.vcpu.harvest_dirty()
        if self._pending:
            dirty, self._pending = pages.union(dirty, self._pending), b""
        with self._inputs.still() as (inputs, typed):
            capture = snapshot.capture(machine)
        if hold:
            vm.console.hold()
        picked = self._picker.pick(dirty, 0, config.aside_bytes, keep=True)
        while picked.next_page < self._picker.pages:
            overflow(picked)
            picked = self._picker.pick(dirty, picked.next_page, config.aside_bytes, keep=True)
        if stay:
            machine.pause()
        return Checkpoint(
            picked=picked,
            capture=capture,
            console_end=vm.console.written_offset,
            inputs=inputs,
            typed=typed,
            dirty_pages=pages.count(dirty),
            pause_ns=time.monotonic_ns() - began_ns,
        )


def plain_inputs(checkpoint: Checkpoint) -> bytes:
    """Who had typed what, as it travels."""
    return ft_inputs.pack(checkpoint.inputs)


def plain_state(checkpoint: Checkpoint) -> dict[str, Any]:
    """The machine's state, as it travels."""
    return checkpoint.capture.plain()


def _moved(data: bytes) -> None:
    raise MachineStateError(f"the VM goes on elsewhere: send these {len(data)} bytes there")
