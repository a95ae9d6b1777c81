"""Live migration between two processes on this machine, over a loopback connection.

    .venv/bin/python bench/migration.py --memory 256 --guest rewriter --runs 10

Two worker processes move one Debian guest to and fro; the destination is warm: its process runs
and has an empty machine of the right size. Printed for each migration: total time, downtime (from
the guest's last instruction there to its first here, by the one clock both share), bytes sent,
rounds, throttle, and how much of its speed the guest kept while pages were sent.

Guests: `idle`, at its shell; `steady`, rewriting 50 MB at 20 MB/s; `rewriter`, rewriting 50 MB as
fast as it can; `busy`, running pipelines in its shell. The two writers verify their memory.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import socket
import statistics
import subprocess
import tempfile
import threading
import time
from multiprocessing.managers import BaseManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    from multiprocessing.connection import Connection

    from rayvisor.migration.report import Progress

MIB = 1 << 20
GUESTS = {
    "idle": "",
    "steady": "/usr/bin/rewriter 50 20",
    "rewriter": "/usr/bin/rewriter 50 0",
    "busy": "while :; do seq 1 2000 | sha256sum > /dev/null; echo w; done",
}


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
        return self.commit(vm, token) if not given_up else self.token


class Records(BaseManager):
    """Serves the record to both workers."""


Records.register("Record", Record)


class Worker:
    """One host: has the VM, or an empty machine that waits for it."""

    def __init__(self, memory_bytes: int, program: Path, record: Record) -> None:
        boot = ImageStore().get("debian").boot_source("", files={"/usr/bin/rewriter": program})
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
        """Lines that the guest's command has printed."""
        end = self.vm.console.end_offset
        while self.offset < end:
            first, data = self.vm.console.read(self.offset, max_bytes=1 << 20)
            self.offset = first + len(data)
            self.seen += data
        assert b"BAD" not in self.seen, "the guest's memory is wrong"
        return self.seen.count(b"\nw")

    def receive(self, port: int) -> None:
        arrival = Arrival(VmDestination(self.vm), self.record)
        with socket.create_connection(("127.0.0.1", port)) as connection:
            serve(connection.dup(), arrival)
        self.offset, self.seen = self.vm.console.start_offset, b""

    def send(self, listener: socket.socket, options: dict[str, Any]) -> dict[str, Any]:
        window_s = 1.0
        first = self.work_done()
        time.sleep(window_s)
        before = (self.work_done() - first) / window_s
        connection, _ = listener.accept()
        at_s, done = time.monotonic(), self.work_done()
        stopped: list[tuple[float, int]] = []

        def note(progress: Progress) -> None:
            if progress.phase == "stopped" and not stopped:
                stopped.append((time.monotonic(), self.work_done()))

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


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One report for each migration."""
    options: dict[str, Any] = {"downtime_s": arguments.downtime / 1000}
    for name in ("round_codec", "stop_codec"):
        if getattr(arguments, name):
            options[name] = Codec(getattr(arguments, name))
    if arguments.no_delta:
        options["delta_cache_bytes"] = 0
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder, Records(ctx=context) as manager:
        program = Path(folder) / "rewriter"
        source = Path(__file__).parent / "guests" / "rewriter.c"
        subprocess.run(["gcc", "-O2", "-static", "-o", str(program), str(source)], check=True)
        record = manager.Record()  # type: ignore[attr-defined]
        pipes, processes = [], []
        for _ in range(2):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=work, args=(theirs, arguments.memory * MIB, program, record), daemon=True
            )
            process.start()
            pipes.append(ours)
            processes.append(process)
        ask(pipes[0], "start", GUESTS[arguments.guest])
        reports = []
        for run in range(arguments.runs):
            here, there = pipes[run % 2], pipes[1 - run % 2]
            port = ask(here, "port")
            receiver = threading.Thread(target=ask, args=(there, "receive", port))
            receiver.start()
            reports.append(ask(here, "send", options))
            receiver.join()
            show(reports[-1], verbose=arguments.verbose)
            time.sleep(0.5)
        for pipe, process in zip(pipes, processes, strict=True):
            pipe.send(("stop",))
            process.join(10)
    return reports


def ask(pipe: Connection, *request: object) -> Any:  # noqa: ANN401 - whatever the worker gives
    """What a worker answers."""
    pipe.send(request)
    return pipe.recv()


def show(report: dict[str, Any], *, verbose: bool) -> None:
    """One line."""
    if verbose:
        print(report["phases"])
        for item in report["rounds"]:
            print("   ", item)
    kept = report.get("kept_ratio")
    print(
        f"{report['outcome']:8} total {report['total_s']:6.3f} s  "
        f"downtime {report['downtime_s'] * 1000:7.2f} ms  sent {report['bytes_sent'] / 1e6:7.1f} MB"
        f"  rounds {len(report['rounds']):3}  ratio {report['compression_ratio']:5.2f}  "
        f"throttle {max((r['throttle'] for r in report['rounds']), default=0):4.2f}  "
        f"kept {'-' if kept is None else f'{kept:.0%}'}",
        report.get("error", ""),
        flush=True,
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--memory", type=int, default=256, help="MiB")
    parser.add_argument("--guest", choices=GUESTS, default="idle")
    parser.add_argument("--runs", type=int, default=6)
    parser.add_argument("--downtime", type=float, default=30.0, help="target in ms")
    parser.add_argument("--round-codec", choices=[str(c) for c in Codec])
    parser.add_argument("--stop-codec", choices=[str(c) for c in Codec])
    parser.add_argument("--no-delta", action="store_true")
    parser.add_argument("--verbose", action="store_true", help="every round")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    reports = measure(arguments)
    if arguments.json:
        print(json.dumps(reports))
        return
    moved = [r for r in reports if r["outcome"] == "moved"]
    print(
        f"{arguments.guest} {arguments.memory} MiB: {len(moved)} of {len(reports)} moved; median "
        f"total {statistics.median(r['total_s'] for r in moved):.3f} s, "
        f"downtime {statistics.median(r['downtime_s'] for r in moved) * 1000:.2f} ms, "
        f"{statistics.median(r['bytes_sent'] for r in moved) / 1e6:.1f} MB"
    )


if __name__ == "__main__":
    main()
