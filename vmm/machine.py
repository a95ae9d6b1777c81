"""A machine: guest RAM, one vCPU, a clock and chips, and the loop that runs them.

The loop is: run the vCPU until an exit, do what the exit asks for, run again. Exceptions, system
calls and interrupt delivery never leave the native core, and chips are called by it directly;
what comes back here is an alarm that is due, work posted by another thread, or the end.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from rayvisor.vmm.boot import load
from rayvisor.vmm.core.vcpu import VcpuExit
from rayvisor.vmm.errors import EngineError, MachineStateError
from rayvisor.vmm.spec import HangAction

if TYPE_CHECKING:
    from collections.abc import Callable

    from rayvisor.vmm.clock import MachineClock
    from rayvisor.vmm.core.vcpu import Vcpu
    from rayvisor.vmm.cpu_state import CpuState
    from rayvisor.vmm.devices.base import Device
    from rayvisor.vmm.exits import ExitCensus
    from rayvisor.vmm.memory import GuestRam
    from rayvisor.vmm.spec import MachineSpec

_log = logging.getLogger(__name__)

MAX_WAITING_INPUT_BYTES: Final = 1 << 20
WARM_BOOT_FLAG_GPA: Final = 0x472
WARM_BOOT: Final = b"\x34\x12"
PANIC_WARM: Final = "panic_warm"
INPUT_RETRY_NS: Final = 2_000_000


class PowerState(StrEnum):
    """Where a machine stands."""

    OFF = "off"
    RUNNING = "running"
    PAUSED = "paused"
    HALTED = "halted"
    """Halted with interrupts off: what powering off comes to without ACPI."""
    EXITED = "exited"
    """Ended by the debug exit; `Machine.exit_status` has the byte."""
    CRASHED = "crashed"


STOPPED_STATES: Final = frozenset(
    {PowerState.OFF, PowerState.HALTED, PowerState.EXITED, PowerState.CRASHED}
)


class Machine:
    """One machine. Knows no thread but the one that calls `run`.

    Made by `rayvisor.vmm.board.build`. `devices` has the chips by the name of their section in
    a snapshot. The methods that other threads may call say so.
    """

    def __init__(self, spec: MachineSpec, ram: GuestRam, vcpu: Vcpu, clock: MachineClock) -> None:
        """Put a machine together; the board adds the chips. It is off."""
        self.spec = spec
        self.ram = ram
        self.vcpu = vcpu
        self.clock = clock
        self.devices: dict[str, Device] = {}
        self.power = PowerState.OFF
        self.exit_status: int | None = None
        self.crash_reason: str | None = None
        self.direct_refused: str | None = None
        """Why user code is translated although it should run directly."""
        self.resets = 0
        """How often it has started over while it ran, by its own or from outside."""
        self.hangs = 0
        """How often its watchdog expired or its heartbeat stopped."""
        self.hang_action = spec.on_hang
        """What is done then."""
        self.set_heartbeat: Callable[[float], None] = lambda _period_s: None
        """Has its console be silent for so long from now on, 0 for ever. The machine's thread."""
        self.on_hang: Callable[[str], None] = lambda _reason: None
        """Told of each hang, on the machine's thread, before anything is done about it."""
        self.feed_console: Callable[[bytes], int] = len
        """Offers console input to a chip, which says how many bytes it took."""
        self.on_restore: Callable[[], None] = lambda: None
        """Called when chips have been reset or restored, for wiring that depends on them."""
        self.on_start: Callable[[], None] = lambda: None
        """Called on the machine's thread each time `run` begins."""
        self._runner = threading.Lock()
        self._posted: deque[Callable[[], None]] = deque()
        self._asked: PowerState | None = None
        self._reset_asked = False
        self._input = bytearray()
        self._input_lock = threading.Lock()
        self._input_alarm = clock.alarm(self._feed)
        clock.on_change = self._set_deadline

    def run(self) -> PowerState:
        """Run on the calling thread until paused or ended, and say which.

        A machine that is off, or has ended, starts over from its boot source.

        Raises:
            LoaderError: the boot source does not fit this machine; it stays as it was.
            MachineStateError: another thread runs it.
        """
        if not self._runner.acquire(blocking=False):
            raise MachineStateError(f"{self.spec.name} is running already")
        try:
            if self.power is not PowerState.PAUSED:
                self._start_over()
            try:
                return self._run_on()
            except Exception as error:
                self._crash(f"internal error: {error}")
                raise
            finally:
                self._freeze()
        finally:
            self._runner.release()

    def post(self, work: Callable[[], None]) -> None:
        """Have `work` done on the machine's thread, soon if it runs. Any thread."""
        self._posted.append(work)
        self.vcpu.kick()

    def pause(self) -> None:
        """Make `run` return PAUSED between two instructions. Any thread."""
        self._ask(PowerState.PAUSED)

    def power_off(self) -> None:
        """Make `run` return OFF, whatever the guest does. Any thread."""
        self._ask(PowerState.OFF)

    def fail(self, reason: str) -> None:
        """Make `run` return CRASHED, for a reason that lies outside the guest. Any thread."""
        self.crash_reason = reason
        self._ask(PowerState.CRASHED)

    def reset(self) -> None:
        """Press the reset button: load the boot source again and start over. Any thread."""
        self._reset_asked = True
        self.vcpu.kick()

    def guest_reset(self) -> None:
        """The guest pulls its own reset line. The machine's thread.

        A kernel booted with ``reboot=panic_warm`` leaves the warm-boot flag (BIOS data area,
        0040:0072) when it resets after a panic: that is an end, not a reboot.
        """
        panic_marked = PANIC_WARM in self.spec.boot.cmdline
        if panic_marked and self.ram.read(WARM_BOOT_FLAG_GPA, 2) == WARM_BOOT:
            self.crash_reason = "the guest's kernel panicked"
            self._ask(PowerState.CRASHED)
        else:
            self.reset()

    def guest_hangs(self, reason: str) -> None:
        """The guest lives no more, as far as its watchdog can tell. The machine's thread."""
        self.hangs += 1
        _log.warning("%s hangs: %s", self.spec.name, reason)
        self.on_hang(reason)
        match self.hang_action:
            case HangAction.RESET:
                self.reset()
            case HangAction.STOP:
                self.crash_reason = f"the guest hung: {reason}"
                self._ask(PowerState.CRASHED)
            case HangAction.IGNORE:
                pass

    def debug_exit(self, status: int) -> None:
        """End the machine with an exit status; the first one counts. The machine's thread."""
        if self.exit_status is None:
            self.exit_status = status
            self._ask(PowerState.EXITED)

    def console_input(self, data: bytes) -> None:
        """Type at the console. Any thread.

        Raises:
            MachineStateError: the guest does not read, and too much is waiting already.
        """
        with self._input_lock:
            if len(self._input) + len(data) > MAX_WAITING_INPUT_BYTES:
                raise MachineStateError(
                    f"{self.spec.name} does not read its console: "
                    f"{len(self._input)} bytes are waiting"
                )
            self._input += data
        self.post(self._feed)

    def waiting_input(self) -> bytes:
        """Console input that no chip has taken yet."""
        with self._input_lock:
            return bytes(self._input)

    def restored(self, waiting_input: bytes) -> None:
        """State has been put in from outside: the machine is paused there."""
        self.exit_status = None
        self.crash_reason = None
        with self._input_lock:
            self._input[:] = waiting_input
        self._input_alarm.arm(self.clock.now_ns())
        self.on_restore()
        self.power = PowerState.PAUSED

    def start_direct(self, tsc_hz: int) -> None:
        """Execute user code on the processor itself from now on. Not while running.

        Args:
            tsc_hz: ticks a second of the host's TSC.
        """
        self.direct_refused = self.vcpu.start_direct(self.ram.fd, tsc_hz)
        if self.direct_refused:
            _log.warning("%s: user code is translated: %s", self.spec.name, self.direct_refused)

    def cpu_state(self) -> CpuState:
        """The vCPU's state.

        Raises:
            EngineError: the machine is running.
        """
        return self.vcpu.save()

    def exits(self) -> ExitCensus:
        """The exit census since power-on. The machine's thread, or while it does not run."""
        return self.vcpu.census()

    def close(self) -> None:
        """Give RAM and engine back. Not while running."""
        self.vcpu.close()
        self.ram.close()

    def _ask(self, power: PowerState) -> None:
        self._asked = power
        self.vcpu.kick()

    def _set_deadline(self) -> None:
        self.vcpu.set_deadline(self.clock.host_deadline_ns())

    def _freeze(self) -> None:
        self.vcpu.run_tsc(False)
        self.clock.stop()

    def _crash(self, reason: str) -> PowerState:
        self.crash_reason = reason
        self.power = PowerState.CRASHED
        return self.power

    def _start_over(self) -> None:
        for device in self.devices.values():
            device.reset()
        self.vcpu.reset()
        state = load(self.ram, self.spec.boot)
        self.vcpu.host_wrote(0, self.ram.size_bytes)
        self.spec.boot.release()
        self.vcpu.load(state)
        self.on_restore()
        if self.power in STOPPED_STATES:
            self.vcpu.clear_census()
        self.exit_status = None
        self.crash_reason = None
        with self._input_lock:
            self._input.clear()

    def _run_on(self) -> PowerState:
        self.power = PowerState.RUNNING
        self.clock.start()
        self.vcpu.run_tsc(True)
        self.on_start()
        self._set_deadline()
        self.power = self._loop()
        return self.power

    def _loop(self) -> PowerState:
        while True:
            try:
                exit_reason = self.vcpu.run()
            except EngineError as error:
                return self._crash(str(error))
            match exit_reason:
                case VcpuExit.DEADLINE:
                    self.clock.fire_due()
                case VcpuExit.KICK:
                    power = self._on_kick()
                    if power is not None:
                        return power
                case VcpuExit.HALTED:
                    return self._taken() or PowerState.HALTED
                case VcpuExit.TRIPLE_FAULT:
                    return self._taken() or self._crash("triple fault")

    def _on_kick(self) -> PowerState | None:
        while self._posted:
            self._posted.popleft()()
        if self._reset_asked:
            self._reset_asked = False
            self.resets += 1
            _log.info("%s: reset", self.spec.name)
            self._freeze()
            self._start_over()
            self.clock.start()
            self.vcpu.run_tsc(True)
            self._set_deadline()
        return self._taken()

    def _taken(self) -> PowerState | None:
        """What was asked for, if anything, which is answered by that."""
        asked, self._asked = self._asked, None
        return asked

    def _feed(self) -> None:
        with self._input_lock:
            if not self._input:
                return
            taken = self.feed_console(bytes(self._input))
            del self._input[:taken]
            if self._input:
                self._input_alarm.arm(self.clock.now_ns() + INPUT_RETRY_NS)
