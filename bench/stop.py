"""How long a guest that computes (`yes > /dev/null`) takes to stop when it is told to.

Ours: from the call of `Vm.pause()` until the vCPU's thread has left the guest with all state at
rest; and `Vm.stop()`. QEMU's: from the QMP command `stop` to its answer.
"""

from __future__ import annotations

import argparse
import json
import random
import socket
import tempfile
import time
from pathlib import Path

from bench.contestants import QEMU_PVH, BootFiles, Guest, boot_files, command, contestants
from bench.report import Report, finish, median, percentile, take_precedence, verdict
from rayvisor.vmm.spec import BootSource, MachineSpec
from rayvisor.vmm.vm import Vm

LIMIT_MS = 5.0
BUSY = "yes > /dev/null"


def _pause_between() -> random.Random:
    return random.Random(2)  # noqa: S311 - any spacing will do, the same each time


def _busy_vm(files: BootFiles) -> Vm:
    boot = BootSource(files.kernel.read_bytes(), files.initrd.read_bytes(), files.cmdline)
    vm = Vm(MachineSpec(256 << 20, boot))
    vm.start()
    offset, seen = 0, b""
    while b":~# " not in seen:
        first, data = vm.console.read(offset, timeout_s=60)
        offset, seen = first + len(data), seen + data
    vm.console.send(f"{BUSY}\n".encode())
    time.sleep(1)
    return vm


def ours_ms(files: BootFiles, count: int) -> tuple[list[float], list[float]]:
    """Latencies of pause, and of stop (one a VM)."""
    vm = _busy_vm(files)
    spacing, pauses = _pause_between(), []
    for _ in range(count):
        time.sleep(spacing.uniform(0.005, 0.03))
        start_s = time.perf_counter()
        vm.pause()
        pauses.append(1000 * (time.perf_counter() - start_s))
        vm.resume()
    time.sleep(0.1)
    start_s = time.perf_counter()
    vm.stop()
    stop_ms = 1000 * (time.perf_counter() - start_s)
    vm.close()
    return pauses, [stop_ms]


class _Qmp:
    """QEMU's machine protocol: one command, one answer; events are skipped."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        for _ in range(200):
            try:
                self._socket.connect(str(path))
                break
            except OSError:
                time.sleep(0.05)
        self._lines = self._socket.makefile()
        self._lines.readline()
        self.run("qmp_capabilities")

    def run(self, name: str) -> None:
        self._socket.sendall(json.dumps({"execute": name}).encode() + b"\n")
        while "return" not in json.loads(self._lines.readline()):
            pass


class _QemuWithQmp(Guest):
    def __init__(self, files: BootFiles, path: Path) -> None:
        self.who = QEMU_PVH
        self._start([*command(QEMU_PVH, files), "-qmp", f"unix:{path},server=on,wait=off"])


def qemu_ms(files: BootFiles, count: int) -> list[float]:
    """Latencies of `stop`."""
    with tempfile.TemporaryDirectory() as folder, _QemuWithQmp(files, Path(folder) / "q") as guest:
        qmp = _Qmp(Path(folder) / "q")
        guest.shell()
        guest.send(f"{BUSY}\n".encode())
        time.sleep(1)
        spacing, stops = _pause_between(), []
        for _ in range(count):
            time.sleep(spacing.uniform(0.005, 0.03))
            start_s = time.perf_counter()
            qmp.run("stop")
            stops.append(1000 * (time.perf_counter() - start_s))
            qmp.run("cont")
        return stops


def main() -> None:
    take_precedence()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=300, help="how often to stop")
    parser.add_argument("--vms", type=int, default=3, help="how many VMs to stop for good")
    arguments = parser.parse_args()
    pauses: list[float] = []
    ends: list[float] = []
    rows: list[tuple[str, float, float, float]] = []
    qemu: list[float] = []
    with boot_files() as files:
        for _ in range(arguments.vms):
            some, end = ours_ms(files, arguments.count // arguments.vms)
            pauses, ends = pauses + some, ends + end
        if QEMU_PVH in contestants():
            qemu = qemu_ms(files, arguments.count)
    for what, values in (("Vm.pause()", pauses), ("Vm.stop()", ends), (f"{QEMU_PVH}: stop", qemu)):
        if values:
            rows.append((what, median(values), percentile(values, 99), max(values)))
    finish(
        Report(
            name="stop",
            title="Stopping a guest that runs `yes > /dev/null`",
            columns=("what", "median, ms", "p99, ms", "worst, ms"),
            rows=tuple(rows),
            verdicts=(
                verdict("stop, worst", max(ends), LIMIT_MS, " ms"),
                verdict("pause, p99", percentile(pauses, 99), LIMIT_MS, " ms"),
            ),
            notes=(f"{len(pauses)} pauses and {len(ends)} stops, at uneven intervals",),
            samples={"pause, ms": pauses, "stop, ms": ends, "QEMU stop, ms": qemu},
        )
    )


if __name__ == "__main__":
    main()
