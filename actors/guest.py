"""One VM as its own process sees it: a `Vm`, how long it has run, and how it ended.

Plain and tested without Ray; `rayvisor.actors.vm` is the shell around it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Final

from rayvisor.actors.errors import MovedError
from rayvisor.actors.records import ConsoleChunk, GuestStatus, LastWords, Report, VmState
from rayvisor.actors.shield import stats_of
from rayvisor.migration.ft_inputs import Inputs
from rayvisor.vmm.debug.census import census_as_dict
from rayvisor.vmm.debug.direct import direct_as_dict
from rayvisor.vmm.debug.disasm import Instruction, disassemble_at
from rayvisor.vmm.errors import MachineStateError
from rayvisor.vmm.machine import PowerState
from rayvisor.vmm.memory import PAGE_BYTES
from rayvisor.vmm.stats import FtStats, MoveStats, VmStats, measure

if TYPE_CHECKING:
    from collections.abc import Callable

    from rayvisor.actors.departure import Departure
    from rayvisor.actors.policy import HaPolicy
    from rayvisor.actors.shield import Shield
    from rayvisor.vmm.exits import ExitCensus
    from rayvisor.vmm.vm import Vm

_log = logging.getLogger(__name__)

FROZEN: Final = "it stands still: its host has lost the cluster"

_STATES: Final = {
    PowerState.OFF: VmState.STOPPED,
    PowerState.RUNNING: VmState.RUNNING,
    PowerState.PAUSED: VmState.PAUSED,
    PowerState.HALTED: VmState.HALTED,
    PowerState.EXITED: VmState.EXITED,
    PowerState.CRASHED: VmState.CRASHED,
}


class Guest:
    """A running `Vm` under a fencing token. Thread-safe, as the `Vm` is.

    Args:
        vm: not yet started.
        token: the fencing token it runs under.
        remember: called with the VM's last words when the guest ends, on a thread of its own.
        forget: called when it starts again.
    """

    def __init__(
        self,
        vm: Vm,
        token: int,
        *,
        remember: Callable[[LastWords], None],
        forget: Callable[[], None],
    ) -> None:
        self._vm = vm
        self.token = token
        """The fencing token it runs under; another one after a migration that failed late."""
        self._remember = remember
        self._forget = forget
        self.inputs = Inputs(vm.console.send)
        """All that is typed at the console goes through here."""
        self.shield: Shield | None = None
        """Its secondary, the last one if there have been several."""
        self.failovers: int | None = None
        """How often it has gone on from a secondary; None where it is not to be fault tolerant."""
        self.departure: Departure | None = None
        """The migration away from here that goes on, if one does."""
        self._lock = threading.Lock()
        self._stopped = self._left = False
        self._started_s = 0.0
        self._entered: Counter[str] = Counter()
        self._ended_s: float | None = None
        self._watch: threading.Thread | None = None

    @property
    def vm(self) -> Vm:
        """What runs."""
        return self._vm

    @property
    def started_unix_s(self) -> float:
        """When it was started, or reset."""
        return time.time() - (time.monotonic() - self._started_s)

    def start(self) -> None:
        """Power on."""
        with self._lock:
            self._start(self._vm.start)

    def take_over(self, started_unix_s: float) -> None:
        """It has come from elsewhere, where it was started then, and goes on here."""
        with self._lock:
            self._start(lambda: None)
            self._started_s = time.monotonic() - (time.time() - started_unix_s)

    def hold(self) -> None:
        """Let nobody start or stop the guest until `let_go`: it stands still to be moved."""
        self._lock.acquire()

    def let_go(self) -> None:
        """See `hold`."""
        self._lock.release()

    def leave(self) -> None:
        """It runs elsewhere from now on: whoever asks here is sent there (MovedError)."""
        self._left = True

    def stop(self) -> GuestStatus:
        """Power off, wherever the guest is. Harmless when it has ended.

        Raises:
            MovedError: it runs elsewhere.
            ClusterError: it is fault tolerant, and whether it runs elsewhere cannot be known now.
        """
        self.require_here()
        if self.shield is not None and self._state().is_live:
            self.shield.dissolve("stopped")
        with self._lock:
            self.require_here()
            watch = self._watch
            if self._state().is_live:
                self._stopped = True
                self._vm.stop()
        if watch is not None:
            watch.join()
        return self.status()

    def reset(self) -> GuestStatus:
        """Reboot: load the boot source again and start over, also after the guest has ended."""
        with self._lock:
            self.require_here()
            if self._state().is_live:
                self._vm.reset()
                self._started_s = time.monotonic()
                return self.status()
        return self.revive()

    def revive(self) -> GuestStatus:
        """Start over a guest that has ended; one that runs is left alone."""
        with self._lock:
            self.require_here()
            if not self._state().is_live:
                if self._watch is not None:
                    self._watch.join()
                self._forget()
                self._start(self._vm.start)
        return self.status()

    def status(self) -> GuestStatus:
        """Where it stands."""
        self.require_here()
        state = self._state()
        return GuestStatus(
            token=self.token,
            state=state,
            pid=os.getpid(),
            uptime_s=self._uptime_s(),
            reason=self._reason(state),
            exit_status=self._vm.machine.exit_status,
        )

    def watch_for_hangs(self, policy: HaPolicy) -> None:
        """From now on it hangs when this policy says so, and this is done about it."""
        machine = self._vm.machine

        def change() -> None:
            machine.hang_action = policy.on_hang
            machine.set_heartbeat(policy.heartbeat_s)

        self._vm.call(change)

    def read_console(self, offset: int, max_bytes: int, timeout_s: float) -> ConsoleChunk:
        """Console output from `offset` on, waiting up to `timeout_s` seconds for some.

        A negative offset is the start of what is kept.
        """
        console = self._vm.console
        # Asked before reading: what a guest says last is in the chunk that says it is over.
        live = self._left or self._state().is_live or console.held_bytes > 0
        wait_s = timeout_s if live and not self._left else 0.0
        first, data = console.read(max(offset, 0), max_bytes=max_bytes, timeout_s=wait_s)
        if not data:  # none is left out: the guest says more elsewhere
            self.require_here()
        return ConsoleChunk(first, data, live)

    def console_offsets(self) -> tuple[int, int]:
        """The console's output that is kept, as (first, end) byte offsets."""
        self.require_here()
        return self._vm.console.start_offset, self._vm.console.end_offset

    def send_console(self, data: bytes, typist: str = "", number: int = 0) -> None:
        """Type. With a typist and a number, once, however often it is asked for.

        When this returns the guest of a fault tolerant VM cannot lose it any more.

        Raises:
            MachineStateError: the guest has ended.
        """
        self.require_here()
        state = self._state()
        if not state.is_live:
            raise MachineStateError(f"nobody reads this console: the guest is {state.value}")
        try:
            mark = self.inputs.type(data, typist, number)
        except MachineStateError:
            self.require_here()
            raise
        if self.shield is not None:
            self.shield.commit(mark)

    def wait(self, timeout_s: float) -> GuestStatus | None:
        """Where it stands once the guest has ended, or None after `timeout_s` seconds."""
        power = self._vm.wait(timeout_s)
        self.require_here()
        watch = self._watch
        if power is None or watch is None:
            return None
        watch.join()
        return self.status()

    def stats(self, image: str = "") -> VmStats:
        """What is counted of it; never waits for the guest."""
        return measure(
            self._vm,
            state=self._state(),
            token=self.token,
            started_unix_s=self.started_unix_s,
            entered=self._entered,
            image=image,
            ft=None if self.failovers is None else self.ft_stats(),
            move=self._move_stats(),
        )

    def ft_stats(self) -> FtStats:
        """What is counted of its fault tolerance."""
        return stats_of(self.shield, self.failovers or 0)

    def _move_stats(self) -> MoveStats | None:
        departure = self.departure
        progress = departure.progress if departure is not None else None
        if progress is None:
            return None
        return MoveStats(
            phase=progress.phase,
            round=progress.round,
            remaining_bytes=progress.remaining_pages * PAGE_BYTES,
            sent_bytes=progress.bytes_sent,
            dirty_bytes_per_s=progress.dirty_pages_per_s * PAGE_BYTES,
            sent_bytes_per_s=progress.bytes_per_s,
            throttle_ratio=progress.throttle,
            elapsed_s=progress.elapsed_s,
        )

    def report(self) -> Report:
        """The VM's report."""
        self.require_here()
        return self._vm.report()

    def exits(self) -> ExitCensus:
        """The exit census."""
        self.require_here()
        return self._vm.exits()

    def exit_sites(self, limit: int) -> Report:
        """The exit census with the instructions it came from, in JSON's terms."""
        self.require_here()
        machine = self._vm.machine
        plain = self._vm.call(
            lambda: census_as_dict(
                machine.exits(), machine.cpu_state(), machine.ram.read, limit=limit
            )
        )
        return {**plain, "direct": direct_as_dict(machine)}

    def disassemble(self, address: int | None, count: int) -> list[Instruction]:
        """At most `count` instructions at a linear address (None: at RIP)."""
        self.require_here()
        machine = self._vm.machine
        return self._vm.call(
            lambda: disassemble_at(machine.cpu_state(), machine.ram.read, address, count)
        )

    def require_here(self) -> None:
        """Raise MovedError when it runs elsewhere."""
        if self._left:
            raise MovedError(f"VM {self._vm.machine.spec.name!r} is in another process now")

    def _start(self, start: Callable[[], None]) -> None:
        self._stopped = False
        self._ended_s = None
        self._started_s = time.monotonic()
        start()
        self._entered[VmState.RUNNING] += 1
        self._watch = threading.Thread(target=self._see_it_end, name="guest-watch", daemon=True)
        self._watch.start()

    def _see_it_end(self) -> None:
        self._vm.wait()
        if self.shield is not None:
            # Whether it has ended, or goes on at its secondary, is for the record to say.
            with contextlib.suppress(MovedError):
                self.shield.dissolve("the guest has ended", timeout_s=None)
        if self._left:
            return
        self._ended_s = time.monotonic()
        state = self._state()
        self._entered[state] += 1
        _log.info("guest is %s: %s", state, self._reason(state))
        self._remember(
            LastWords(
                state=state,
                reason=self._reason(state),
                ended_unix_s=time.time(),
                uptime_s=self._uptime_s(),
                exit_status=self._vm.machine.exit_status,
            )
        )

    def _uptime_s(self) -> float:
        end_s = self._ended_s
        return (time.monotonic() if end_s is None else end_s) - self._started_s

    def _state(self) -> VmState:
        state = _STATES[self._vm.power]
        return VmState.STOPPED if self._stopped and not state.is_live else state

    def _reason(self, state: VmState) -> str:
        machine = self._vm.machine
        if state is VmState.CRASHED:
            return machine.crash_reason or "the guest crashed"
        if state is VmState.EXITED:
            return f"debug exit with status {machine.exit_status}"
        return {
            VmState.PAUSED: FROZEN if self._vm.frozen else "",
            VmState.STOPPED: "powered off by `stop`",
            VmState.HALTED: "the guest powered off or halted",
        }.get(state, "")
