"""A VM: a machine with a thread to run on and a console to talk to."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayvisor.vmm import board
from rayvisor.vmm.console import Console
from rayvisor.vmm.debug.direct import direct_as_dict
from rayvisor.vmm.errors import MachineStateError
from rayvisor.vmm.machine import STOPPED_STATES, Machine, PowerState

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from rayvisor.vmm.exits import ExitCensus
    from rayvisor.vmm.spec import MachineSpec

    T = TypeVar("T")

_log = logging.getLogger(__name__)


class Vm:
    """One VM. Every method may be called from any thread.

    Attributes:
        machine: what runs.
        console: its serial console.
    """

    def __init__(self, spec: MachineSpec) -> None:
        """Build the machine; it is off.

        Raises:
            ConfigError: the memory or the number of CPUs cannot be had.
            EngineError: Unicorn is missing or is another build.
        """
        self.console = Console(self._type)
        self.machine: Machine = board.build(spec, self.console.write)
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None
        self._frozen = self._goes_on = False
        self._stopped = threading.Condition()
        self._started_s: float | None = None
        self._wall_s = 0.0
        self._cpu_s = 0.0
        self._stolen_s = 0.0

    @property
    def power(self) -> PowerState:
        """Where the machine stands."""
        if self._thread is not None and self.machine.power in STOPPED_STATES:
            return PowerState.RUNNING
        return self.machine.power

    @property
    def cpu_s(self) -> float:
        """CPU seconds of the thread that executes the guest, since power-on. Never waits."""
        try:
            return self._cpu_now_s()
        except OSError:  # the thread has ended since it was looked at
            return self._cpu_s

    @property
    def wall_s(self) -> float:
        """How long it has been on and not paused, since power-on. Never waits."""
        return self._wall_now_s()

    @property
    def stolen_s(self) -> float:
        """How long the guest's thread could have run but had no CPU, since power-on. Never waits.

        0 where the kernel keeps no schedstat.
        """
        thread = self._thread
        if thread is None or thread.native_id is None:
            return self._stolen_s
        return self._stolen_s + _waited_s(thread.native_id)

    def start(self) -> None:
        """Power on, or start over after it has ended.

        Raises:
            LoaderError: the boot source does not fit this machine.
            MachineStateError: it is on.
        """
        with self._lock:
            if self._thread is not None or self.machine.power is PowerState.PAUSED:
                raise MachineStateError(f"{self.machine.spec.name} is on already")
            self._wall_s = self._cpu_s = self._stolen_s = 0.0
            self._go()

    def pause(self) -> None:
        """Stop the guest where it is; its time stands still. Harmless when paused.

        Raises:
            MachineStateError: it is off.
        """
        with self._lock:
            self._goes_on = False
            if self._thread is None:
                if self.machine.power is not PowerState.PAUSED:
                    raise MachineStateError(f"{self.machine.spec.name} is not running")
                return
            self.machine.pause()
            self._thread_ends()

    def resume(self) -> None:
        """Go on after `pause`. Harmless when running.

        Raises:
            MachineStateError: it is off.
        """
        with self._lock:
            if self._thread is not None:
                return
            if self.machine.power is not PowerState.PAUSED:
                raise MachineStateError(f"{self.machine.spec.name} is not paused")
            self._go()

    def freeze(self) -> None:
        """Let no instruction run until `thaw`, whatever else is asked for meanwhile.

        What is paused stays so; what runs, or is resumed meanwhile, goes on when it thaws.
        Starting and resetting raise MachineStateError meanwhile. Harmless when frozen.
        """
        with self._lock:
            if self._frozen:
                return
            self._frozen = True
            self._goes_on = self._thread is not None
            if self._thread is not None:
                self.machine.pause()
                self._thread_ends()

    def thaw(self) -> None:
        """End `freeze`. Harmless when it is not frozen."""
        with self._lock:
            if not self._frozen:
                return
            self._frozen = False
            if self._goes_on and self.machine.power is PowerState.PAUSED:
                self._go()
            self._goes_on = False

    @property
    def frozen(self) -> bool:
        """Whether `freeze` holds it."""
        return self._frozen

    def stop(self) -> None:
        """Power off, whatever the guest does. Harmless when it has ended."""
        with self._lock:
            self._goes_on = False
            if self._thread is not None:
                self.machine.power_off()
                self._thread_ends()
            if self.machine.power is PowerState.PAUSED:
                with self._stopped:
                    self.machine.power = PowerState.OFF
                    self._stopped.notify_all()
            self.console.close()

    def reset(self) -> None:
        """The reset button: start over from the boot source, at once if it runs."""
        with self._lock:
            if self._thread is not None:
                self.machine.reset()
            elif self.machine.power is PowerState.PAUSED:
                if self._frozen:
                    raise MachineStateError(_frozen(self.machine.spec.name))
                self.machine.power = PowerState.OFF
                self._go()

    def wait(self, timeout_s: float | None = None) -> PowerState | None:
        """How it ended, once it is neither running nor paused; None at the timeout."""
        with self._stopped:
            ended = self._stopped.wait_for(
                lambda: self._thread is None and self.machine.power in STOPPED_STATES, timeout_s
            )
        return self.machine.power if ended else None

    def call(self, work: Callable[[], T]) -> T:
        """The result of `work`, done on the machine's thread between two instructions."""
        with self._lock:
            if self._thread is None:
                return work()
            return self._call_there(work)

    def exits(self) -> ExitCensus:
        """The exit census since power-on."""
        return self.call(self.machine.exits)

    def report(self) -> dict[str, Any]:
        """What happened, in JSON's terms.

        Keys: `name`, `power`, `exit_status`, `memory_bytes`, `wall_s`, `cpu_s` (of the vCPU's
        thread), `exits` by kind, `direct` (see `direct_as_dict`), `registers` when it does not
        run, and `crash`, the whole crash report of a guest that has ended by itself, or None.
        """
        # Here, and not at start-up: the disassembler is larger than all the rest.
        from rayvisor.vmm.debug.crash import CrashReport
        from rayvisor.vmm.debug.registers import registers_as_dict

        with self._lock:
            machine = self.machine
            at_rest = self._thread is None
            census = self.exits()
            crash = None
            if at_rest and machine.power in STOPPED_STATES and self._wall_s:
                crash = CrashReport.build(
                    machine.cpu_state(), machine.ram.read, census, self._ending()
                ).as_dict()
            return {
                "name": machine.spec.name,
                "power": str(self.power),
                "exit_status": machine.exit_status,
                "memory_bytes": machine.ram.size_bytes,
                "wall_s": self._wall_now_s(),
                "cpu_s": self._cpu_now_s(),
                "exits": census.counts,
                "direct": direct_as_dict(machine),
                "registers": registers_as_dict(machine.cpu_state()) if at_rest else None,
                "crash": crash,
            }

    def close(self) -> None:
        """Stop, and give everything back."""
        self.stop()
        with self._lock:
            self.machine.close()

    def _type(self, data: bytes) -> None:
        self.machine.console_input(data)

    def _ending(self) -> str:
        machine = self.machine
        match machine.power:
            case PowerState.CRASHED:
                return machine.crash_reason or "crashed"
            case PowerState.HALTED:
                return "halted with interrupts off"
            case PowerState.EXITED:
                return f"debug exit with status {machine.exit_status}"
            case _:
                return "powered off from outside"

    def _wall_now_s(self) -> float:
        started_s = self._started_s
        running_s = time.monotonic() - started_s if started_s is not None else 0.0
        return self._wall_s + running_s

    def _cpu_now_s(self) -> float:
        thread = self._thread
        if thread is None or thread.ident is None or not thread.is_alive():
            return self._cpu_s
        clock = time.pthread_getcpuclockid(thread.ident)
        return self._cpu_s + time.clock_gettime(clock)

    def _go(self) -> None:
        if self._frozen:
            if self.machine.power is not PowerState.PAUSED:
                raise MachineStateError(_frozen(self.machine.spec.name))
            self._goes_on = True
            return
        self.console.reopen()
        started = threading.Event()
        failures: list[Exception] = []
        self._started_s = time.monotonic()
        self._thread = threading.Thread(
            target=self._run, args=(started, failures), name=self.machine.spec.name, daemon=True
        )
        self._thread.start()
        started.wait()
        if failures:
            self._thread_ends()
            raise failures[0]

    def _run(self, started: threading.Event, failures: list[Exception]) -> None:
        self.machine.post(started.set)
        try:
            self.machine.run()
        except Exception as error:  # noqa: BLE001 - whatever a chip raised is shown by report()
            failures.append(error)
            if started.is_set():  # otherwise `start` raises it
                _log.warning("%s: %s", self.machine.spec.name, error)
        finally:
            if self.machine.power is not PowerState.PAUSED:
                self.console.close()
            with self._stopped:
                self._cpu_s += time.thread_time()
                self._stolen_s += _waited_s(threading.get_native_id())
                self._wall_s = self._wall_now_s()
                self._started_s = None
                self._thread = None
                self._stopped.notify_all()
            started.set()

    def _thread_ends(self) -> None:
        with self._stopped:
            self._stopped.wait_for(lambda: self._thread is None)

    def _call_there(self, work: Callable[[], T]) -> T:
        results: list[T] = []
        errors: list[BaseException] = []
        done = threading.Event()

        def there() -> None:
            try:
                results.append(work())
            except BaseException as error:  # noqa: BLE001 - raised again where it was asked for
                errors.append(error)
            finally:
                done.set()

        self.machine.post(there)
        while not done.wait(0.01):
            if self._thread is None:
                return work()
        if errors:
            raise errors[0]
        return results[0]


def _frozen(name: str) -> str:
    return f"{name} stands still until its host is part of the cluster again: try again then"


def _waited_s(thread_id: int) -> float:
    """How long a thread of this process was ready to run and did not (proc(5): schedstat)."""
    try:
        line = Path(f"/proc/self/task/{thread_id}/schedstat").read_text(encoding="ascii")
        return int(line.split()[1]) / 1_000_000_000
    except (OSError, ValueError, IndexError):
        return 0.0
