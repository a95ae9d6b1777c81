"""A guest that watches itself is moved among hosts for a long time; some of them are killed.

    .venv/bin/python -m bench.soak_migration --moves 300 --kills 50 --hosts 3

The guest (bench/guests/voyager.c, in Debian) verifies checksums of its pages, that its clocks never
run backwards, and numbers its lines; here every byte of its console is read across all moves. In
some moves the process at the source or at the destination is killed, at a random moment: then one
copy of the VM runs, or, if the one that had it was killed, none. Ends with status 1 at the first
thing that is wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.report import Report, finish, percentile
from rayvisor.actors.ledger import read_placement
from rayvisor.actors.records import VmState
from rayvisor.actors.store import RayStore
from rayvisor.runtime.api import VmSpec
from rayvisor.runtime.cluster import Cluster
from rayvisor.runtime.images import ImageStore
from rayvisor.vmm.errors import MachineStateError, RayvisorError

if TYPE_CHECKING:
    from rayvisor.actors.records import Placement
    from rayvisor.migration.report import MigrationReport
    from rayvisor.runtime.vm_handle import VmHandle

NAME = "voyager"
PATIENCE_S = 180.0
LINES_BETWEEN = 3
LINE = re.compile(rb"v (\d+) (\d+)\r?\n")
SOURCE = Path(__file__).parent / "guests" / "voyager.c"


class SoakError(Exception):
    """Something is wrong."""


@dataclass
class Watcher:
    """Reads all that the guest says, and checks it."""

    vm: VmHandle
    lines: int = 0
    gaps_us: list[int] = field(default_factory=list)
    error: BaseException | None = None
    stopped: threading.Event = field(default_factory=threading.Event)

    def start(self, offset: int) -> None:
        """Begin at `offset`, on a thread of its own."""
        threading.Thread(target=self._run, args=(offset,), daemon=True).start()

    def wait_for(self, lines: int) -> None:
        """Wait until the guest has written so many lines.

        Raises:
            SoakError: what it wrote is wrong, or it does not go on.
        """
        deadline_s = time.monotonic() + PATIENCE_S
        while self.lines < lines:
            if self.error is not None:
                raise SoakError(f"after line {self.lines}: {self.error}") from self.error
            if time.monotonic() > deadline_s:
                raise SoakError(f"the guest does not go on after line {self.lines}")
            time.sleep(0.01)

    def _run(self, offset: int) -> None:
        link, rest = self.vm.console_link(), b""
        try:
            while not self.stopped.is_set():
                first, data = link.read(offset, 0.2)
                rest = self._take(rest + data, lost_bytes=first - offset)
                offset = first + len(data)
        except Exception as error:  # noqa: BLE001 - raised where it is waited for
            self.error = error

    def _take(self, text: bytes, lost_bytes: int) -> bytes:
        if lost_bytes:
            raise SoakError(f"{lost_bytes} bytes of the console are gone")
        if b"BAD" in text:
            raise SoakError(text[text.index(b"BAD") :][:60].decode())
        whole, _, rest = text.rpartition(b"\n")
        for number, gap_us in LINE.findall(whole + b"\n"):
            if int(number) != self.lines + 1:
                raise SoakError(f"line {self.lines + 1} wanted, {int(number)} came")
            self.lines += 1
            self.gaps_us.append(int(gap_us))
        return rest


@dataclass
class Tally:
    """What was done."""

    moved: int = 0
    failed: int = 0
    kills: int = 0
    lost_owner: int = 0
    lines: int = 0
    downtimes_s: list[float] = field(default_factory=list)
    totals_s: list[float] = field(default_factory=list)
    stopped_s: list[float] = field(default_factory=list)
    """Of the downtimes: the last pages and the state, until COMMIT."""
    handover_s: list[float] = field(default_factory=list)
    """Of the downtimes: from COMMIT until the source has heard that the guest runs."""
    longest_gap_s: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """For a report."""
        return {
            "moved": self.moved,
            "failed": self.failed,
            "kills": self.kills,
            "kills_of_the_owner": self.lost_owner,
            "lines": self.lines,
            "downtime_median_s": statistics.median(self.downtimes_s or [0.0]),
            "downtime_max_s": max(self.downtimes_s, default=0.0),
            "downtime_p95_s": percentile(self.downtimes_s or [0.0], 95),
            "stopped_median_s": statistics.median(self.stopped_s or [0.0]),
            "stopped_p95_s": percentile(self.stopped_s or [0.0], 95),
            "stopped_max_s": max(self.stopped_s, default=0.0),
            "handover_median_s": statistics.median(self.handover_s or [0.0]),
            "handover_p95_s": percentile(self.handover_s or [0.0], 95),
            "handover_max_s": max(self.handover_s, default=0.0),
            "total_median_s": statistics.median(self.totals_s or [0.0]),
            "longest_gap_s": self.longest_gap_s,
        }


class Soak:
    """One guest, moved on and on."""

    def __init__(self, cluster: Cluster, spec: VmSpec, megabytes: int, seed: int) -> None:
        self.tally = Tally()
        self._cluster = cluster
        self._spec = spec
        self._megabytes = megabytes
        self._random = random.Random(seed)  # noqa: S311 - to be repeated, not to be safe
        self.begin()

    def begin(self) -> None:
        """A new guest, at work."""
        with contextlib.suppress(RayvisorError):
            self._cluster.remove(NAME, force=True)
        self.vm = self._cluster.create(self._spec)
        self.vm.console.read_until("# ", PATIENCE_S)
        self.vm.console.send(f"voyager {self._megabytes}\n")
        self.vm.console.read_until("\n", PATIENCE_S)
        self.watcher = Watcher(self.vm)
        self.watcher.start(self.vm.console.position)
        self.watcher.wait_for(LINES_BETWEEN)

    def end(self) -> None:
        """Count what the guest said, and remove it."""
        self._count()
        self._cluster.remove(NAME, force=True)

    def _count(self) -> None:
        self.watcher.stopped.set()
        self.tally.lines += self.watcher.lines
        gap_s = max(self.watcher.gaps_us, default=0) / 1e6
        self.tally.longest_gap_s = max(self.tally.longest_gap_s, gap_s)

    def move(self, *, kill: bool) -> None:
        """Move it once.

        Raises:
            SoakError: the guest noticed, or the wrong copies run.
        """
        here = self.vm.status().host
        hosts = [h.name for h in self._cluster.hosts() if h.name != here and not h.reason]
        target = self._random.choice(hosts)
        if not kill:
            self._took(self.vm.migrate(target))
            self.watcher.wait_for(self.watcher.lines + LINES_BETWEEN)
            return
        self._move_and_kill(target)

    def _took(self, report: MigrationReport) -> None:
        self.tally.moved += 1
        self.tally.downtimes_s.append(report.downtime_s)
        self.tally.totals_s.append(report.total_s)
        self.tally.stopped_s.append(report.phases["stopped_s"])
        self.tally.handover_s.append(report.phases["handover_s"])

    def _move_and_kill(self, target: str) -> None:
        outcome: list[str] = []

        def move() -> None:
            try:
                outcome.append(self._cluster.vm(NAME).migrate(target).outcome)
            except RayvisorError as error:
                outcome.append(str(error))

        mover = threading.Thread(target=move)
        mover.start()
        moving = self._wait_for_move(mover)
        if moving is not None:
            typical_s = statistics.median(self.tally.totals_s or [1.0])
            time.sleep(self._random.uniform(0, 1.3 * typical_s))
            spot = self._random.choice([moving.moving.origin, moving.moving.target])
            with contextlib.suppress(ProcessLookupError):
                os.kill(spot.pid, signal.SIGKILL)
            self.tally.kills += 1
        mover.join()
        if moving is not None:
            self._check_copies(moving, spot.pid, outcome[0])
        else:  # it was over before it was seen
            self.tally.moved += outcome[0] == "moved"
            self.tally.failed += outcome[0] != "moved"

    def _wait_for_move(self, mover: threading.Thread) -> Placement | None:
        while mover.is_alive():
            placement = read_placement(RayStore(), NAME)
            if placement is not None and placement.move and placement.move.target.pid:
                return placement
            time.sleep(0.002)
        return None

    def _check_copies(self, before: Placement, killed: int, outcome: str) -> None:
        now = read_placement(RayStore(), NAME)
        if now is None:
            raise SoakError("the VM is not in the record any more")
        state = self.vm.status().state
        others = {before.moving.origin.pid, before.moving.target.pid} - {now.pid}
        deadline_s = time.monotonic() + PATIENCE_S
        while any(_lives(pid) for pid in others):
            if time.monotonic() > deadline_s:
                raise SoakError(f"two copies: {now.pid} has the VM, and {others} live; {outcome}")
            time.sleep(0.02)
        if now.pid == killed:
            self.tally.lost_owner += 1
            if state is not VmState.FAILED:
                raise SoakError(f"its process {killed} was killed, and it is {state}; {outcome}")
            self._lines_until_then()
            self.begin()
            return
        if state is not VmState.RUNNING:
            raise SoakError(f"{killed} was killed and {now.pid} has it, but it is {state}")
        self.tally.moved += outcome == "moved"
        self.tally.failed += outcome != "moved"
        self.watcher.wait_for(self.watcher.lines + LINES_BETWEEN)

    def _lines_until_then(self) -> None:
        self._count()
        error = self.watcher.error
        if error is not None and not isinstance(error, MachineStateError):
            raise SoakError(f"before it was killed: {error}") from error


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() != b""
    except (FileNotFoundError, ProcessLookupError):
        return False


def guest_spec(folder: Path, memory: str) -> VmSpec:
    """Debian with the program in it, as files."""
    program = folder / "voyager"
    subprocess.run(["gcc", "-O2", "-static", "-o", str(program), str(SOURCE)], check=True)
    boot = ImageStore().get("debian").boot_source("", files={"/usr/bin/voyager": program})
    (folder / "kernel").write_bytes(bytes(boot.kernel))
    (folder / "initrd").write_bytes(bytes(boot.initrd))
    return VmSpec(
        name=NAME,
        kernel=folder / "kernel",
        initrd=folder / "initrd",
        append=boot.cmdline,
        memory=memory,
    )


def soak(
    cluster: Cluster, spec: VmSpec, *, moves: int, kills: int, megabytes: int, seed: int
) -> Tally:
    """Move a guest `moves` times, with a kill in `kills` of them.

    Raises:
        SoakError: something is wrong; says after which move.
    """
    chosen = set(random.Random(seed).sample(range(moves), kills))  # noqa: S311 - as above
    run = Soak(cluster, spec, megabytes, seed)
    for number in range(moves):
        try:
            run.move(kill=number in chosen)
        except (SoakError, RayvisorError) as error:
            raise SoakError(f"move {number + 1} of {moves}, seed {seed}: {error}") from error
        if sys.stderr.isatty() or (number + 1) % 10 == 0:
            print(f"{number + 1} of {moves}: {run.tally.as_dict()}", file=sys.stderr, flush=True)
    run.end()
    return run.tally


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--moves", type=int, default=300)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--hosts", type=int, default=3)
    parser.add_argument("--memory", default="256M")
    parser.add_argument("--megabytes", type=int, default=32, help="that the guest keeps")
    parser.add_argument("--results", action="store_true", help="write bench/results/, too")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))  # noqa: S311
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_STATE_HOME"] = folder
        spec = guest_spec(Path(folder), arguments.memory)
        with Cluster.up(hosts=arguments.hosts) as cluster:
            try:
                tally = soak(
                    cluster,
                    spec,
                    moves=arguments.moves,
                    kills=arguments.kills,
                    megabytes=arguments.megabytes,
                    seed=arguments.seed,
                )
            except SoakError as error:
                print(f"soak: {error}", file=sys.stderr)
                return 1
    if arguments.results:
        write(tally, arguments.hosts)
    print(tally.as_dict())
    return 0


def write(tally: Tally, hosts: int) -> None:
    """The results as files."""
    found = tally.as_dict()
    finish(
        Report(
            name="soak_migration",
            title=f"A soak of migrations among {hosts} hosts, with kills",
            columns=("what", "found"),
            rows=tuple((what.replace("_", " "), value) for what, value in found.items()),
            notes=(
                "the guest verifies its pages, its clocks and its own line numbers: no error",
                "a kill of the process that owns the VM loses it, and no copy of it runs",
                "downtimes are those of moves without a kill: stopped until COMMIT, handover after",
            ),
        )
    )


if __name__ == "__main__":
    sys.exit(main())
