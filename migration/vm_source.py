"""A `Vm` as the source of a migration."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from rayvisor.migration.pages import data_runs
from rayvisor.migration.throttle import Throttle
from rayvisor.vmm import snapshot
from rayvisor.vmm.errors import MachineStateError
from rayvisor.vmm.machine import PowerState

if TYPE_CHECKING:
    from rayvisor.vmm.vm import Vm

CONSOLE_PIECE_BYTES: Final = 1 << 20


def machine_schema() -> str:
    """Name and version of the machine's state, as frames carry it."""
    return "/".join(map(str, snapshot.SCHEMA))


class VmSource:
    """See `rayvisor.migration.roles.Source`. For one migration.

    While it lasts the VM is not to be started, stopped, reset or resumed by anybody else once it
    has been paused here: whoever hands the VM out sees to that.
    """

    def __init__(self, vm: Vm) -> None:
        """`vm` runs, or is paused.

        Raises:
            MachineStateError: it is off, has ended, or has not arrived with all its pages.
        """
        self._vm = vm
        self._runs = vm.power is PowerState.RUNNING
        self._require_life()
        if vm.machine.ram.before_use is not None:
            raise MachineStateError("some pages of this VM are still on their way here: wait")
        self._paused = False
        self._throttle: Throttle | None = None
        self._saved_input_bytes = 0

    @property
    def name(self) -> str:
        """The VM's name."""
        return self._vm.machine.spec.name

    @property
    def ram(self) -> memoryview:
        """All of RAM."""
        return self._vm.machine.ram.buffer

    @property
    def machine_schema(self) -> str:
        """Name and version of the machine's state."""
        return machine_schema()

    @property
    def runs(self) -> bool:
        """Whether the guest ran when the migration began."""
        return self._runs

    def written_pages(self) -> list[tuple[int, int]]:
        """Runs of pages that the memory file has; the others are holes."""
        ram = self._vm.machine.ram
        return data_runs(ram.fd, ram.size_bytes)

    def start_log(self) -> None:
        """Log every page that is written from now on."""
        self._vm.call(self._vm.machine.vcpu.start_dirty_log)

    def harvest(self) -> bytes:
        """Pages written since the last harvest.

        Raises:
            MachineStateError: the guest has ended.
        """
        bits = self._vm.call(self._vm.machine.vcpu.harvest_dirty)
        self._require_life()
        return bits

    def stop_log(self) -> None:
        """Log no more."""
        self._vm.call(self._vm.machine.vcpu.stop_dirty_log)

    def throttle(self, share: float) -> None:
        """Keep the vCPU from running for `share` of its time."""
        if share == 0:
            self._end_throttle()
            return
        if self._throttle is None:
            self._throttle = Throttle(self._vm)
        self._throttle.set(share)

    def pause(self) -> int:
        """Stop the guest; when its last instruction ran.

        Raises:
            MachineStateError: the guest has ended.
        """
        asleep_since_ns = self._throttle.end() if self._throttle is not None else None
        self._vm.pause()
        stopped_ns = time.monotonic_ns()
        self._require_life()
        self._paused = True
        return stopped_ns if asleep_since_ns is None else asleep_since_ns

    def resume(self) -> None:
        """Let the guest go on here, if it ran before `pause`."""
        if self._paused and self._runs:
            self._vm.resume()
        self._paused = False

    def save(self) -> dict[str, Any]:
        """The state of the paused machine."""
        state = snapshot.save(self._vm.machine)
        self._saved_input_bytes = len(state["console_input"])
        return state

    def console_output(self, offset: int) -> tuple[int, bytes]:
        """Console output from `offset` on."""
        return self._vm.console.read(offset, max_bytes=CONSOLE_PIECE_BYTES)

    def release(self) -> bytes:
        """End the VM here; console input that came after `save`."""
        self._vm.console.redirect(_moved)
        # The machine stands still, so what was saved is still the beginning of what waits.
        late_input = self._vm.machine.waiting_input()[self._saved_input_bytes :]
        self._end_throttle()
        self._vm.stop()
        self._vm.machine.vcpu.stop_dirty_log()
        return late_input

    def _end_throttle(self) -> None:
        if self._throttle is not None:
            self._throttle.close()
            self._throttle = None

    def _require_life(self) -> None:
        power = self._vm.power
        if power not in {PowerState.RUNNING, PowerState.PAUSED}:
            raise MachineStateError(f"the guest has ended: it is {power}")


def _moved(data: bytes) -> None:
    raise MachineStateError(f"the VM has moved: send these {len(data)} bytes to where it is now")
