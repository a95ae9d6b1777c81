"""What fault tolerance costs a Debian guest: speed, boot time, console latency, bandwidth.

Two processes on this machine, a loopback connection between them: one runs the guest, the other
stands by. Speed is lines a second of a program that computes (bench/guests/worker.c), with and
without dirtying 20 MB/s beside that; each measurement stands between two of the same guest
unprotected. "Naive" is the same machinery with whole pages, and a guest that stands still until
each epoch is acknowledged.
"""

from __future__ import annotations

import argparse
import multiprocessing
import socket
import subprocess
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.migration import ask
from bench.report import Report, finish, median, percentile, take_precedence, verdict
from rayvisor.migration.ft_config import FtConfig
from rayvisor.migration.ft_inputs import Inputs
from rayvisor.migration.ft_primary import Protector
from rayvisor.migration.ft_source import Checkpoint, VmCheckpoints
from rayvisor.migration.ft_standby import Standby
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

    from rayvisor.migration.ft_protocol import Verdict
    from rayvisor.vmm.stats import FtStats

MIB = 1 << 20
PROGRAM = "/usr/bin/worker"
PROMPT = b":~# "
GUESTS = {"computing": f"{PROGRAM} 0", "dirtying 20 MB/s": f"{PROGRAM} 20"}
LIMITS = {"computing": 0.05, "dirtying 20 MB/s": 0.15, "boot": 0.25}
SETTLE_S = 1.0


class FirstWins:
    """The cell of a pair that never breaks."""

    def decide(self, verdict: Verdict) -> Verdict:
        return verdict


class NaiveCheckpoints(VmCheckpoints):
    """Stops the guest at each checkpoint until it is acknowledged."""

    def _cut(self, **options: Any) -> Checkpoint:  # noqa: ANN401 - as the method
        checkpoint = super()._cut(**options)
        self.stall()
        return checkpoint


class Worker:
    """One host: runs the guest, or stands by for it."""

    def __init__(self, memory_bytes: int, program: Path) -> None:
        boot = ImageStore().get("debian").boot_source("", files={PROGRAM: program})
        self.spec = MachineSpec(memory_bytes, boot, name="guest")
        self.vm = Vm(self.spec)
        self.inputs = Inputs(self.vm.console.send)
        self.protector: Protector | None = None
        self._runner = threading.Thread()

    def start(self) -> float:
        """Boot to the shell; seconds."""
        began_s = time.perf_counter()
        self.vm.start()
        self.wait_for(PROMPT)
        return time.perf_counter() - began_s

    def boot_protected(self, port: int, naive: bool) -> float:
        """The same, protected from the first moment on."""
        began_s = time.perf_counter()
        self.vm.start()
        self.protect(port, naive)
        self.wait_for(PROMPT)
        return time.perf_counter() - began_s

    def run(self, command: str) -> None:
        end = self.vm.console.end_offset
        self.vm.console.send(command.encode() + b"\n")
        self.wait_for(b"\nw ", end)

    def end(self) -> None:
        end = self.vm.console.end_offset
        self.vm.console.send(b"\x03")
        self.wait_for(PROMPT, end)

    def wait_for(self, text: bytes, offset: int = 0) -> None:
        seen = b""
        while text not in seen:
            first, data = self.vm.console.read(offset, timeout_s=60)
            offset = first + len(data)
            seen += data
            assert b"BAD" not in seen, "the guest's memory is wrong"

    def speed(self, seconds: float) -> float:
        """Lines a second, between two lines."""
        console, count = self.vm.console, 0
        offset, data = console.read(console.end_offset, timeout_s=10)
        offset += len(data)
        began_s = last_s = time.perf_counter()
        while last_s - began_s < seconds:
            offset, data = console.read(offset, timeout_s=10)
            assert b"BAD" not in data, "the guest's memory is wrong"
            offset += len(data)
            count += data.count(b"\n")
            last_s = time.perf_counter()
        return count / (last_s - began_s)

    def echoes_ms(self, count: int) -> list[float]:
        """From a key to its echo on the console, at the shell's prompt."""
        console, delays = self.vm.console, []
        for _ in range(count):
            time.sleep(0.037)
            offset = console.end_offset
            began_s = time.perf_counter()
            console.send(b"k")
            while not console.read(offset, timeout_s=10)[1]:
                pass
            delays.append(1000 * (time.perf_counter() - began_s))
        self.end()
        return delays

    def protect(self, port: int, naive: bool) -> float:
        """Seed the other side and protect; seconds until the first epoch is there."""
        began_s = time.perf_counter()
        config = FtConfig(delta_cache_bytes=0) if naive else FtConfig()
        connection = socket.create_connection(("127.0.0.1", port))
        migration = Migration(
            VmSource(self.vm),
            SocketTransport(connection),
            None,  # type: ignore[arg-type]  # never asked: nothing is handed over
            token=1,
            config=config.seeding,
        )
        seeded = migration.seed()
        kind = NaiveCheckpoints if naive else VmCheckpoints
        source = kind(self.vm, self.inputs, config, seeded.pending)
        self.protector = Protector(source, seeded, FirstWins(), config)
        self._runner = threading.Thread(target=self.protector.run, daemon=True)
        self._runner.start()
        while self.protector.stats().state == "seeding":
            time.sleep(0.002)
        return time.perf_counter() - began_s

    def stats(self) -> FtStats:
        assert self.protector is not None
        return self.protector.stats()

    def unprotect(self) -> None:
        if self.protector is not None:
            self.protector.dissolve("measured")
            self._runner.join()
            self.protector = None

    def stand_by(self) -> int:
        """Make a new machine and listen; the port."""
        listener = socket.create_server(("127.0.0.1", 0))
        vm = Vm(self.spec)
        standby = Standby(VmDestination(vm), Inputs(vm.console.send), FirstWins(), FtConfig())

        def take_in() -> None:
            connection, _ = listener.accept()
            listener.close()
            serve(connection, Goodbye(standby, vm), FtConfig().look_s)

        threading.Thread(target=take_in, daemon=True).start()
        return int(listener.getsockname()[1])


class Goodbye:
    """A standby that never takes over: the other side ends it."""

    def __init__(self, standby: Standby, vm: Vm) -> None:
        self.feed, self.idle = standby.feed, standby.idle
        self.urgent = True
        self._vm = vm

    def disconnected(self) -> None:
        self._vm.close()


def work(pipe: Connection, memory_bytes: int, program: Path) -> None:
    """A worker process: does what comes through the pipe."""
    worker = Worker(memory_bytes, program)
    while True:
        verb, *arguments = pipe.recv()
        if verb == "close":
            worker.unprotect()
            worker.vm.close()
            break
        pipe.send(getattr(worker, verb)(*arguments))


@contextmanager
def two_workers(memory_mib: int, program: Path) -> Iterator[tuple[Connection, Connection]]:
    """Two processes: the guest's, and the one that stands by."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for _ in range(2):
        ours, theirs = context.Pipe()
        process = context.Process(
            target=work, args=(theirs, memory_mib * MIB, program), daemon=True
        )
        process.start()
        pipes.append(ours)
        processes.append(process)
    yield pipes[0], pipes[1]
    for pipe, process in zip(pipes, processes, strict=True):
        pipe.send(("close",))
        process.join(10)


Samples = dict[str, list[float]]


def speeds(guest: str, runs: int, seconds: float, memory_mib: int, program: Path) -> Samples:
    """What is kept of the guest's speed, each beside the same guest unprotected."""
    found: Samples = {}

    def note(what: str, value: float) -> None:
        found.setdefault(what, []).append(value)

    with two_workers(memory_mib, program) as (here, there):
        ask(here, "start")
        ask(here, "run", GUESTS[guest])
        time.sleep(SETTLE_S)
        before = ask(here, "speed", seconds)
        for _ in range(runs):
            for who, naive in (("ours", False), ("naive", True)):
                ask(here, "protect", ask(there, "stand_by"), naive)
                time.sleep(SETTLE_S)
                first, began_s = ask(here, "stats"), time.perf_counter()
                kept = ask(here, "speed", seconds)
                last, took_s = ask(here, "stats"), time.perf_counter() - began_s
                ask(here, "unprotect")
                time.sleep(SETTLE_S / 2)
                after = ask(here, "speed", seconds)
                epochs = max(1, last.epochs - first.epochs)
                dirty = last.dirty_bytes_total - first.dirty_bytes_total
                sent = last.sent_bytes_total - first.sent_bytes_total
                note(f"{who}: overhead", 1 - kept / ((before + after) / 2))
                note(f"{who}: epoch, ms", 1000 * took_s / epochs)
                note(f"{who}: pause, ms", 1000 * last.pause_s)
                note(f"{who}: dirty, KB", dirty / epochs / 1e3)
                note(f"{who}: sent, MB/s", sent / took_s / 1e6)
                before = after
                print(guest, who, {k: round(v[-1], 3) for k, v in found.items() if who in k})
    return found


def boots(runs: int, memory_mib: int, program: Path) -> Samples:
    """Seconds to the shell."""
    found: Samples = {"off": [], "ours": [], "naive": []}
    for _ in range(runs):
        for who in found:
            with two_workers(memory_mib, program) as (here, there):
                if who == "off":
                    took_s = ask(here, "start")
                else:
                    port = ask(there, "stand_by")
                    took_s = ask(here, "boot_protected", port, who == "naive")
                found[who].append(took_s)
                print("boot", who, f"{took_s:.2f} s", flush=True)
    return found


def latencies(keys: int, memory_mib: int, program: Path) -> Samples:
    """Milliseconds from a key to its echo."""
    found: Samples = {}
    with two_workers(memory_mib, program) as (here, there):
        ask(here, "start")
        found["off"] = ask(here, "echoes_ms", keys)
        for who, naive in (("ours", False), ("naive", True)):
            ask(here, "protect", ask(there, "stand_by"), naive)
            found[who] = ask(here, "echoes_ms", keys)
            ask(here, "unprotect")
    return found


def main() -> None:
    """Command line."""
    take_precedence()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--memory", type=int, default=256, help="MiB")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--boots", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--keys", type=int, default=100)
    arguments = parser.parse_args()
    rows: list[tuple[Any, ...]] = []
    verdicts: list[str] = []
    samples: Samples = {}
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "worker"
        source = Path(__file__).parent / "guests" / "worker.c"
        subprocess.run(["gcc", "-O2", "-static", "-o", str(program), str(source)], check=True)
        for guest in GUESTS:
            found = speeds(guest, arguments.runs, arguments.seconds, arguments.memory, program)
            samples |= {f"{guest}, {k}": v for k, v in found.items()}
            for who in ("ours", "naive"):
                figures = [
                    median(found[f"{who}: {what}"])
                    for what in ("overhead", "epoch, ms", "pause, ms", "dirty, KB", "sent, MB/s")
                ]
                rows.append((guest, who, *figures, None))
            overhead = median(found["ours: overhead"])
            verdicts.append(verdict(f"{guest}: overhead", overhead, LIMITS[guest], ""))
        booted = boots(arguments.boots, arguments.memory, program)
        samples |= {f"boot, {k}, s": v for k, v in booted.items()}
        plain_s = median(booted["off"])
        for who in ("ours", "naive"):
            more = median(booted[who]) / plain_s - 1
            rows.append((f"boot ({plain_s:.2f} s)", who, more, *[None] * 5))
        verdicts.append(
            verdict("boot: overhead", median(booted["ours"]) / plain_s - 1, LIMITS["boot"], "")
        )
        echoed = latencies(arguments.keys, arguments.memory, program)
        samples |= {f"echo, {k}, ms": v for k, v in echoed.items()}
        plain_ms = median(echoed["off"])
        for who in ("ours", "naive"):
            added = (median(echoed[who]) - plain_ms, percentile(echoed[who], 99) - plain_ms)
            shown = f"{added[0]:.1f} / {added[1]:.1f}"
            rows.append((f"echo ({plain_ms:.1f} ms)", who, *[None] * 5, shown))
        verdicts.append(
            verdict(
                "console latency added, median",
                median(echoed["ours"]) - plain_ms,
                2000 * FtConfig().epoch_s,
                " ms",
            )
        )
    finish(
        Report(
            name="ft",
            title="Fault tolerance: what it costs",
            columns=(
                *("guest", "who", "overhead", "epoch, ms", "pause, ms"),
                *("dirty an epoch, KB", "sent, MB/s", "latency added, ms (p50 / p99)"),
            ),
            rows=tuple(rows),
            verdicts=tuple(verdicts),
            notes=(
                f"{arguments.runs} measurements of {arguments.seconds:g} s each; medians",
                f"{arguments.boots} boots, {arguments.keys} keys; {arguments.memory} MiB",
                "both hosts are this machine: the secondary's work counts against the guest's",
            ),
            samples=samples,
        )
    )


if __name__ == "__main__":
    main()
