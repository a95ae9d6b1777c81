"""Statistics of VMs on one host: each VM's process tells, the host collects.

Every VM's process writes its own small file, every few seconds and at once when its guest ends.
The host reads the files of processes that are there. So collecting asks no VM anything: it costs
the same whether guests are busy or hang, and a VM that stopped telling shows by the age of what
it told last. A file is named by fencing token, so a VM that moved or came back has a new one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rayvisor.actors import capacity
from rayvisor.actors.placing import footprint_bytes
from rayvisor.actors.records import VmRequest
from rayvisor.vmm.errors import CorruptStateError, RayvisorError
from rayvisor.vmm.stats import HostStats, ProcessStats, VmStats, decode, encode

if TYPE_CHECKING:
    from collections.abc import Callable

_log = logging.getLogger(__name__)

TELL_EVERY_S: Final = 5.0
HURRIED_S: Final = 1.0
"""The same while something goes on that an operator watches: a migration."""

_PROC = Path("/proc")
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_MAX_BYTES: Final = 1 << 16
_SUFFIX: Final = ".json"
_START_TICKS: Final = 19  # fields of /proc/PID/stat after the command's name (proc(5))
_USER_TICKS, _SYSTEM_TICKS = 11, 12
_CPU_MODES: Final = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")


def folder(temp_dir: str, session: str, node_id: str) -> Path:
    """Where the VMs on a Ray node tell: in the session's folder, gone with it."""
    return Path(temp_dir) / session / "rayvisor-stats" / node_id


class Teller:
    """Tells a VM's statistics from a thread of its own until `stop`.

    Args:
        place: the host's folder; made if need be.
        measure: gives the statistics.
    """

    def __init__(self, place: Path, token: int, measure: Callable[[], VmStats]) -> None:
        self._path = place / f"{token}{_SUFFIX}"
        self._fresh = self._path.with_suffix(".new")
        self._measure = measure
        self._lock = threading.Lock()
        self._every_s = TELL_EVERY_S
        self._woken = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="stats", daemon=True)

    def start(self) -> None:
        """Begin to tell."""
        self._thread.start()

    def hurry(self, hurried: bool) -> None:
        """Tell more often, or as usual again."""
        self._every_s = HURRIED_S if hurried else TELL_EVERY_S
        self._woken.set()

    def tell(self) -> None:
        """Tell now. A folder that cannot be written is no reason for a VM to fail."""
        with self._lock:
            try:
                data = encode(self._measure())
                try:
                    _write(self._fresh, data)
                except FileNotFoundError:
                    self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                    _write(self._fresh, data)
                self._fresh.replace(self._path)
            except (OSError, RayvisorError) as error:
                _log.warning("statistics are not told: %s", error)

    def stop(self) -> None:
        """Tell no more, and take back what was told."""
        self._stopping = True
        self._woken.set()
        self._thread.join()
        self._path.unlink(missing_ok=True)

    def _run(self) -> None:
        while not self._stopping:
            self.tell()
            self._woken.wait(self._every_s)
            self._woken.clear()


class HostMeter:
    """Collects what the VMs on this host told, and looks at the machine itself. Thread-safe."""

    def __init__(self, host_id: str, place: Path, *, proc: Path = _PROC) -> None:
        self._host_id = host_id
        self._place = place
        self._proc = proc

    def measure(self, *, vms_started: int = 0, vm_failures: int = 0) -> HostStats:
        """The host as it is now. VMs whose processes are gone are left out, and forgotten."""
        vms, processes = [], {}
        for path in self._told():
            found = self._read(path)
            if found is not None:
                vm, process = found
                vms.append(vm)
                processes[vm.name] = process
        has = capacity.measure()
        total_bytes, available_bytes = capacity.memory_now()
        return HostStats(
            host_id=self._host_id,
            cores=has.cores,
            vcpus_limit=has.vcpus,
            vm_memory_limit_bytes=has.memory_bytes,
            vm_memory_promised_bytes=sum(_footprint_bytes(vm) for vm in vms),
            memory_bytes=total_bytes,
            memory_available_bytes=available_bytes,
            cpu_s=self._cpu_s(),
            vms=tuple(vms),
            processes=processes,
            vms_started=vms_started,
            vm_failures=vm_failures,
        )

    def _told(self) -> list[str]:
        try:
            with os.scandir(self._place) as entries:
                return sorted(e.path for e in entries if e.name.endswith(_SUFFIX))
        except FileNotFoundError:
            return []

    def _read(self, path: str) -> tuple[VmStats, ProcessStats] | None:
        try:
            vm = decode(_read(path))
        except (OSError, CorruptStateError):
            return None  # the VM was removed this moment
        process = self._process(vm.pid, vm.told_unix_s)
        if process is None:
            with contextlib.suppress(OSError):
                Path(path).unlink()
            return None
        # Guest code that runs directly does so in processes of its own, which come and go.
        return vm, replace(process, cpu_s=process.cpu_s + vm.native_s)

    def _process(self, pid: int, told_unix_s: float) -> ProcessStats | None:
        """The process that told at `told_unix_s`; None when it is gone."""
        try:
            stat = _read(f"{self._proc}/{pid}/stat")
            _, resident, shared, *_ = _read(f"{self._proc}/{pid}/statm").split()
        except OSError:
            return None
        fields = stat.rpartition(b")")[2].split()
        began_unix_s = _boot_unix_s() + int(fields[_START_TICKS]) / _TICKS_PER_S
        # A younger process has been given the number of one that is gone.
        if fields[0] in b"ZX" or began_unix_s > told_unix_s + 1:
            return None
        return ProcessStats(
            cpu_s=(int(fields[_USER_TICKS]) + int(fields[_SYSTEM_TICKS])) / _TICKS_PER_S,
            own_bytes=(int(resident) - int(shared)) * _PAGE_BYTES,
            shared_bytes=int(shared) * _PAGE_BYTES,
        )

    def _cpu_s(self) -> dict[str, float]:
        try:
            first, *_ = (self._proc / "stat").read_text(encoding="ascii").splitlines()
        except OSError:
            return {}
        ticks = [int(t) for t in first.split()[1:]]
        return {mode: t / _TICKS_PER_S for mode, t in zip(_CPU_MODES, ticks, strict=False)}


def _footprint_bytes(vm: VmStats) -> int:
    return footprint_bytes(VmRequest(vm.name, vm.memory_bytes, vm.cpus))


def _read(path: str) -> bytes:
    """All of a small file, with a third of the work that `open` makes of it."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, _MAX_BYTES)
    finally:
        os.close(fd)


def _write(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


def _boot_unix_s() -> float:
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
