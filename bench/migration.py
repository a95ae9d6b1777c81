"""Live migration between two processes on this machine, over a loopback connection.

Two worker processes move one Debian guest to and fro; the destination is warm: its process runs
and has an empty machine of the right size. Downtime is the guest's own: from its last instruction
there to its first here, by the one clock that both share; QEMU's is its own word for it. "Kept" is
how much of its speed the guest had while pages were sent.

Guests: idle, at its shell; steady, rewriting 50 MB at 20 MB/s; rewriter, rewriting 50 MB as fast
as it can; busy, running pipelines in its shell. The two writers verify their memory.
"""

from __future__ import annotations

import argparse
import mmap
import multiprocessing
import socket
import statistics
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass, replace
from multiprocessing.managers import BaseManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import migration_qemu
from bench.contestants import boot_files
from bench.migration_qemu import work_in
from bench.report import Report, finish, take_precedence, verdict
from rayvisor.migration.arrival import Arrival
from rayvisor.migration.config import Codec, MigrationConfig
from rayvisor.migration.errors import MigrationFailedError, OwnershipLostError
from rayvisor.migration.precopy import Migration
from rayvisor.migration.socket_transport import SocketTransport, serve
from rayvisor.migration.vm_destination import VmDestination
from rayvisor.migration.vm_source import VmSource
from rayvisor.runtime.images import ImageStore
from rayvisor.vmm.spec import MachineSpec
from rayvisor.vmm.vm import Vm

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection

    from rayvisor.migration.report import Progress

MIB = 1 << 20
PROGRAM = "/usr/bin/rewriter"
GUESTS = {
    "idle": "",
    "steady": f"{PROGRAM} 50 20",
    "rewriter": f"{PROGRAM} 50 0",
    "busy": "while :; do seq 1 2000 | sha256sum > /dev/null; echo w; done",
}
DOWNTIME_MS = {"idle": 10.0, "steady": 30.0, "rewriter": 60.0, "busy": 30.0}
LIMITS_MS = {"idle": 15.0, "rewriter": 60.0}
KEPT = 0.85
SHORT_MS = 10.0
SHORT_TOTAL_S = 5.0
WARM_BYTES = 512 * MIB
MADV_POPULATE_WRITE = 23


class Record:
    """Who owns the VM."""

    def __init__(self) -> None:
        self.token = 1

    def current(self) -> int:
        return self.token

    def commit(self, vm: str, token: int) -> int:
        if token != self.token:
            raise OwnershipLostError(f"{vm}: {token} is not {self.token}")
        self.token += 1
        return self.token

    def take_back(self, vm: str, token: int, *, given_up: bool) -> int:
        return self.commit(vm, self.token if given_up else token)


class Records(BaseManager):
    """Serves the record to both workers."""


Records.register("Record", Record)


class Worker:
    """One host: has the VM, or an empty machine that waits for it."""

    def __init__(self, memory_bytes: int, program: Path, record: Record) -> None:
        boot = ImageStore().get("debian").boot_source("", files={PROGRAM: program})
        self.spec = MachineSpec(memory_bytes, boot, name="guest")
        self.record = record
        self.vm = Vm(self.spec)
        self.offset = 0
        self.seen = b""

    def start(self, command: str) -> None:
        self.vm.start()
        self.wait_for(b":~# ")
        if command:
            self.vm.console.send(command.encode() + b"\n")
            self.wait_for(b"\nw")
        time.sleep(1)

    def wait_for(self, text: bytes) -> None:
        offset, seen = 0, b""
        while text not in seen:
            offset, data = self.vm.console.read(offset, timeout_s=60)
            offset += len(data)
            seen += data

    def work_done(self) -> int:
        """How much the guest's command has done, in units of its own."""
        end = self.vm.console.end_offset
        while self.offset < end:
            first, data = self.vm.console.read(self.offset, max_bytes=1 << 20)
            self.offset = first + len(data)
            self.seen += data
        assert b"BAD" not in self.seen, "the guest's memory is wrong"
        return work_in(self.seen)

    def receive(self, port: int) -> None:
        arrival = Arrival(VmDestination(self.vm), self.record)
        with socket.create_connection(("127.0.0.1", port)) as connection:
            serve(connection.dup(), arrival)
        self.offset, self.seen = self.vm.console.start_offset, b""

    def send(self, listener: socket.socket, options: dict[str, Any]) -> dict[str, Any]:
        first = self.work_done()
        time.sleep(1)
        before = self.work_done() - first
        connection, _ = listener.accept()
        at_s, done = time.monotonic(), self.work_done()
        stopped: list[tuple[float, int]] = []

        def note(progress: Progress) -> None:
            if progress.phase == "stopped" and not stopped:
                stopped.append((time.monotonic() - progress.still_s, self.work_done()))

        migration = Migration(
            VmSource(self.vm),
            SocketTransport(connection),
            self.record,
            token=self.record.current(),
            config=MigrationConfig(**options),
            on_progress=note,
        )
        try:
            report = migration.run()
        except MigrationFailedError as error:
            return {**error.report.as_dict(), "error": str(error)}
        plain = report.as_dict()
        end_s, end = stopped[0]
        plain["kept_ratio"] = (end - done) / (end_s - at_s) / before if before else None
        self.vm.close()
        self.vm = Vm(self.spec)
        return plain


def work(pipe: Connection, memory_bytes: int, program: Path, record: Record) -> None:
    """A worker process: does what comes through the pipe."""
    worker = Worker(memory_bytes, program, record)
    listener = socket.create_server(("127.0.0.1", 0))
    while True:
        verb, *arguments = pipe.recv()
        if verb == "stop":
            break
        if verb == "port":
            pipe.send(listener.getsockname()[1])
        elif verb == "send":
            pipe.send(worker.send(listener, *arguments))
        else:
            pipe.send(getattr(worker, verb)(*arguments))
    worker.vm.close()


def take_memory() -> None:
    """Have the machine find free memory: where it is virtual, each page's first use is slow."""
    with mmap.mmap(-1, WARM_BYTES) as memory:
        memory.madvise(MADV_POPULATE_WRITE)


def ask(pipe: Connection, *request: object) -> Any:  # noqa: ANN401 - whatever the worker gives
    """What a worker answers."""
    pipe.send(request)
    return pipe.recv()


@dataclass(frozen=True, slots=True)
class Case:
    """One guest on one contestant."""

    guest: str
    memory_mib: int
    runs: int
    program: Path
    options: dict[str, Any]

    def ours(self) -> Iterator[dict[str, Any]]:
        """A report for each migration."""
        context = multiprocessing.get_context("spawn")
        with Records(ctx=context) as manager:
            record = manager.Record()  # type: ignore[attr-defined]
            pipes, processes = [], []
            for _ in range(2):
                pipe, theirs = context.Pipe()
                arguments = (theirs, self.memory_mib * MIB, self.program, record)
                processes.append(context.Process(target=work, args=arguments, daemon=True))
                processes[-1].start()
                pipes.append(pipe)
            ask(pipes[0], "start", GUESTS[self.guest])
            for run in range(self.runs):
                here, there = pipes[run % 2], pipes[1 - run % 2]
                request = (there, "receive", ask(here, "port"))
                receiver = threading.Thread(target=ask, args=request)
                receiver.start()
                take_memory()
                yield ask(here, "send", self.options)
                receiver.join()
                time.sleep(0.3)
            for pipe, process in zip(pipes, processes, strict=True):
                pipe.send(("stop",))
                process.join(10)

    def qemu(self, qemu: migration_qemu.Qemu, *, zstd: bool) -> Iterator[dict[str, Any]]:
        """The same from QEMU."""
        with boot_files(files={PROGRAM: self.program}) as files:
            source = migration_qemu.Process(qemu, files, self.memory_mib)
            source.wait_for(b":~# ")
            if GUESTS[self.guest]:
                source.type(GUESTS[self.guest].encode() + b"\n")
                source.wait_for(b"\nw")
            time.sleep(1)
            for _ in range(self.runs):
                port = migration_qemu.free_port()
                target = migration_qemu.Process(qemu, files, self.memory_mib, port, deferred=zstd)
                limit_ms = self.options["downtime_s"] * 1000
                take_memory()
                report = migration_qemu.migrate(source, target, port, limit_ms, zstd=zstd)
                yield report
                if report["outcome"] == "moved":
                    source, target = target, source
                target.__exit__()
                time.sleep(0.3)
            assert b"BAD" not in source.read(0), "the guest's memory is wrong"
            source.__exit__()


def show(who: str, report: dict[str, Any], *, verbose: bool) -> None:
    """One line."""
    if verbose:
        for item in (report.get("phases"), *report.get("rounds", ())):
            print("   ", item)
    kept = report.get("kept_ratio")
    if "total_s" not in report:
        print(who, report["outcome"], flush=True)
        return
    rounds = report.get("rounds", ())
    print(
        f"{who:12} {report['outcome']:8} total {report['total_s']:6.3f} s  "
        f"downtime {report['downtime_s'] * 1000:7.2f} ms  sent {report['bytes_sent'] / 1e6:7.1f} MB"
        f"  rounds {len(rounds):3}  "
        f"throttle {max((r['throttle'] for r in rounds), default=0):4.2f}  "
        f"kept {'-' if kept is None else f'{kept:.0%}'}",
        report.get("error", ""),
        flush=True,
    )


def summary(reports: list[dict[str, Any]]) -> tuple[Any, ...]:
    """Medians: total s, downtime ms, its worst, MB sent, kept; how many moved."""
    moved = [r for r in reports if r["outcome"] == "moved"]
    if not moved:
        return (None, None, None, None, None, f"0/{len(reports)}")
    kept = [r["kept_ratio"] for r in moved if r["kept_ratio"] is not None]
    return (
        statistics.median(r["total_s"] for r in moved),
        1000 * statistics.median(r["downtime_s"] for r in moved),
        1000 * max(r["downtime_s"] for r in moved),
        statistics.median(r["bytes_sent"] for r in moved) / 1e6,
        statistics.median(kept) if kept else None,
        f"{len(moved)}/{len(reports)}",
    )


def main() -> None:
    """Command line."""
    take_precedence()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--memory", type=int, nargs="*", default=[256, 1024], help="MiB")
    parser.add_argument("--guest", choices=GUESTS, nargs="*", default=list(GUESTS))
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--downtime", type=float, help="target in ms, instead of each guest's own")
    parser.add_argument("--round-codec", choices=[str(c) for c in Codec])
    parser.add_argument("--stop-codec", choices=[str(c) for c in Codec])
    parser.add_argument("--no-delta", action="store_true")
    parser.add_argument("--verbose", action="store_true", help="every round")
    parser.add_argument("--qemu-root", type=Path, help="folder with QEMU 10 or later")
    parser.add_argument("--no-qemu", action="store_true")
    arguments = parser.parse_args()
    options: dict[str, Any] = {}
    for name in ("round_codec", "stop_codec"):
        if getattr(arguments, name):
            options[name] = Codec(getattr(arguments, name))
    if arguments.no_delta:
        options["delta_cache_bytes"] = 0
    qemu, why_not = None, "left out"
    if not arguments.no_qemu:
        qemu, why_not = migration_qemu.find(arguments.qemu_root)
    ImageStore().build("debian")
    rows: list[tuple[Any, ...]] = []
    verdicts: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "rewriter"
        source = Path(__file__).parent / "guests" / "rewriter.c"
        subprocess.run(["gcc", "-O2", "-static", "-o", str(program), str(source)], check=True)
        for memory_mib in arguments.memory:
            for guest in arguments.guest:
                limit_ms = arguments.downtime or DOWNTIME_MS[guest]
                case_options = {**options, "downtime_s": limit_ms / 1000}
                case = Case(guest, memory_mib, arguments.runs, program, case_options)
                runs = {"Rayvisor": case.ours()}
                if qemu is not None:
                    runs["QEMU"] = case.qemu(qemu, zstd=False)
                    runs["QEMU, zstd"] = case.qemu(qemu, zstd=True)
                found = {}
                for who, reports in runs.items():
                    done = []
                    for report in reports:
                        show(who, report, verbose=arguments.verbose)
                        done.append(report)
                    found[who] = summary(done)
                    rows.append((f"{guest}, {memory_mib} MiB", limit_ms, who, *found[who]))
                verdicts += judge(f"{guest}, {memory_mib} MiB", guest, found)
                if guest == "rewriter" and not arguments.downtime:
                    verdicts += hurried(case, qemu, rows, verbose=arguments.verbose)
    notes = [f"{arguments.runs} migrations a row, to and fro; medians"]
    notes.append(f"QEMU: {qemu.title if qemu is not None else why_not}")
    finish(
        Report(
            name="migration",
            title="Live migration between two processes",
            columns=(
                *("guest", "limit, ms", "who", "total, s", "downtime, ms", "worst, ms"),
                *("sent, MB", "kept", "moved"),
            ),
            rows=tuple(rows),
            verdicts=tuple(verdicts),
            notes=tuple(notes),
        )
    )


def hurried(
    case: Case,
    qemu: migration_qemu.Qemu | None,
    rows: list[tuple[Any, ...]],
    *,
    verbose: bool,
) -> list[str]:
    """The same guest at a limit that it can be moved within only by slowing it down."""
    short = replace(case, options={**case.options, "downtime_s": SHORT_MS / 1000})
    runs = {"Rayvisor": short.ours()}
    if qemu is not None:
        runs["QEMU"] = replace(short, runs=1).qemu(qemu, zstd=False)
    what = f"{case.guest}, {case.memory_mib} MiB"
    ours: list[dict[str, Any]] = []
    for who, reports in runs.items():
        done = list(reports)
        for report in done:
            show(who, report, verbose=verbose)
        rows.append((what, SHORT_MS, who, *summary(done)))
        ours = ours or done
    if any(r["outcome"] != "moved" for r in ours):
        return [f"{what}, {SHORT_MS:g} ms: MISSED, not every one moved"]
    slowest_s = max(r["total_s"] for r in ours)
    return [verdict(f"{what}, {SHORT_MS:g} ms: total, worst", slowest_s, SHORT_TOTAL_S, " s")]


def judge(what: str, guest: str, found: dict[str, tuple[Any, ...]]) -> list[str]:
    """The promises that this case bears on."""
    ours, lines = found["Rayvisor"], []
    if ours[0] is None:
        return [f"{what}: MISSED, nothing moved"]
    if guest in LIMITS_MS:
        lines.append(verdict(f"{what}: downtime", ours[1], LIMITS_MS[guest], " ms"))
    if ours[4] is not None:
        lines.append(verdict(f"{what}: kept", ours[4], KEPT, "", at_most=False))
    plain, packed = found.get("QEMU", (None,)), found.get("QEMU, zstd", (None,))
    if plain[0] is not None:
        lines.append(verdict(f"{what}: total / QEMU's", ours[0] / plain[0], 1.0, ""))
        lines.append(verdict(f"{what}: sent / QEMU's", ours[3] / plain[3], 0.5, ""))
    if packed[0] is not None:
        lines.append(verdict(f"{what}: sent / QEMU's with zstd", ours[3] / packed[3], 1.0, ""))
    return lines


if __name__ == "__main__":
    main()
