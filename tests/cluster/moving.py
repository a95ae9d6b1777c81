"""What tests of moving VMs share."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

from rayvisor.runtime.api import VmSpec
from rayvisor.vmm.errors import MachineStateError, RayvisorError
from tests.support.travelling import Journal, traveller

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import TracebackType

    from rayvisor.migration.report import Progress
    from rayvisor.runtime.cluster import Cluster
    from rayvisor.runtime.vm_handle import VmHandle

PATIENCE_S = 120.0


def make_traveller(folder: Path) -> Path:
    """The counting guest as a file."""
    kernel = folder / "traveller.bin"
    kernel.write_bytes(traveller())
    return kernel


def spec_of(name: str, kernel: Path, *, host: str | None = None, memory: str = "16M") -> VmSpec:
    return VmSpec(name=name, kernel=kernel, format="flat", memory=memory, host=host)


def other_host(vm: VmHandle) -> str:
    """The one of two that the VM is not on."""
    return {"host-1": "host-2", "host-2": "host-1"}[vm.status().host]


class Reader:
    """Stays attached to a guest's console and checks what it says, on a thread of its own."""

    def __init__(self, vm: VmHandle, at: int | None = 0) -> None:
        self.journal = Journal()
        self._at = at
        self._link = vm.console_link()
        self._stop = threading.Event()
        self._may_end = False
        self._error: BaseException | None = None
        self._bytes = 0
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        if error is None:
            self.check()

    @property
    def steps(self) -> int:
        self.check()
        return self.journal.steps

    def ends(self) -> None:
        """The VM has failed: that its console is gone is as it should be."""
        self._may_end = True

    def check(self) -> None:
        if self._may_end and isinstance(self._error, MachineStateError):
            return
        if self._error is not None:
            raise AssertionError(f"the console broke: {self._error!r}") from self._error

    def wait_for(self, steps: int) -> None:
        """Wait until the guest has taken so many steps."""
        self.wait_until(lambda: self.journal.steps >= steps)

    def wait_for_output(self) -> None:
        self.wait_until(lambda: self._bytes > 0)

    def wait_until(self, true: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not true():
            self.check()
            assert time.monotonic() < deadline, f"stuck after step {self.journal.steps}"
            time.sleep(0.01)

    def _read(self) -> None:
        offset = self._at or 0
        try:
            while not self._stop.is_set():
                first, data = self._link.read(offset, 0.1)
                self._bytes += len(data)
                if data and self._at is not None:
                    self.journal.add(first, data)
                offset = first + len(data)
        except BaseException as error:  # noqa: BLE001 - raised by the test's thread
            self._error = error


@contextmanager
def slow_move(cluster: Cluster, vm: VmHandle) -> Iterator[list[RayvisorError]]:
    """Inside, the VM is being moved so slowly that it does not end; then how it failed."""
    sending = threading.Event()
    errors: list[RayvisorError] = []

    def note(progress: Progress) -> None:
        if progress.bytes_sent:
            sending.set()

    def move() -> None:
        try:
            vm_of_its_own.migrate(bandwidth="300K", on_progress=note)
        except RayvisorError as error:
            errors.append(error)

    vm_of_its_own = cluster.vm(vm.name)
    mover = threading.Thread(target=move)
    mover.start()
    assert sending.wait(PATIENCE_S)
    try:
        yield errors
    finally:
        cluster.cancel_migration(vm.name)
        mover.join()
