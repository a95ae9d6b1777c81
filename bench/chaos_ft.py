"""A fault tolerant guest whose hosts are killed and frozen, at random moments, for a long time.

    .venv/bin/python -m bench.chaos_ft --failures 200

The guest (bench/guests/voyager.c, in Debian) verifies checksums of its pages, that its clocks never
run backwards, and numbers its lines. One client reads its console all the time: a byte that is
lost, repeated or different from what the survivor knows ends the run with status 1. A process that
was frozen and wakes after it was replaced is asked, too: what it still shows must be what the
client was shown. Reported: from the failure to the guest's next instruction.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import ray

from bench.report import RESULTS, Report, finish, median, percentile, verdict
from bench.soak_migration import NAME, SoakError, Watcher, guest_spec
from rayvisor.actors.calls import find_actor
from rayvisor.actors.events import EventKind
from rayvisor.actors.ledger import read_placement
from rayvisor.actors.names import CLUSTER_ACTOR, NAMESPACE
from rayvisor.actors.store import RayStore
from rayvisor.runtime import cluster_file, local_hosts
from rayvisor.runtime.cluster import Cluster
from rayvisor.runtime.protecting import wait_until_protected
from rayvisor.vmm.errors import RayvisorError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rayvisor.actors.events import Event
    from rayvisor.actors.records import Placement, Spot
    from rayvisor.runtime.api import VmSpec

PATIENCE_S = 180.0
LINES_BETWEEN = 5
LIMIT_S = 0.7
SILENCE_S = 0.5
FROZEN_S = 2.0
HEAD = "host-1"
WEIGHTS = {
    "primary killed": 8,
    "secondary killed": 3,
    "primary frozen": 4,
    "secondary frozen": 2,
    "primary and cluster actor killed": 2,
    "host of the primary killed": 2,
    "host of the secondary killed": 1,
}
FAILOVERS = frozenset(
    {
        "primary killed",
        "primary frozen",
        "primary and cluster actor killed",
        "host of the primary killed",
        "primary cut off",
    }
)


class Witness(Watcher):
    """Keeps all that a client was shown, to compare others' words with."""

    def __init__(self, vm: Any) -> None:  # noqa: ANN401 - a VmHandle
        super().__init__(vm)
        self.base = 0
        self.shown = bytearray()
        self._taken = 0

    def start(self, offset: int) -> None:
        self.base = offset
        super().start(offset)

    def _take(self, text: bytes, lost_bytes: int) -> bytes:
        # `text` begins with what was left over of the piece before.
        fresh = self._taken
        rest = super()._take(text, lost_bytes)
        self.shown += text[fresh:]
        self._taken = len(rest)
        return rest

    def confirm(self, offset: int, data: bytes) -> None:
        """Somebody else shows this.

        Raises:
            SoakError: it is something else than what the client was shown.
        """
        deadline_s = time.monotonic() + PATIENCE_S
        while self.base + len(self.shown) < offset + len(data):
            if time.monotonic() > deadline_s:
                raise SoakError(f"{len(data)} bytes at {offset} were shown to nobody else")
            time.sleep(0.01)
        skip = max(0, self.base - offset)
        start = offset + skip - self.base
        if bytes(self.shown[start : start + len(data) - skip]) != data[skip:]:
            raise SoakError(f"two histories from byte {offset} on")


@dataclass
class Tally:
    """What was done: seconds from the failure to the guest's next instruction, by kind."""

    done: dict[str, int] = field(default_factory=dict)
    failovers_s: dict[str, list[float]] = field(default_factory=dict)
    protected_again_s: list[float] = field(default_factory=list)
    false_alarms: int = 0
    lines: int = 0
    longest_gap_s: float = 0.0
    seeds: list[int] = field(default_factory=list)


class Chaos:
    """One guest, and everything that can happen to its hosts."""

    def __init__(
        self, cluster: Cluster, spec: VmSpec, tally: Tally, megabytes: int, seed: int
    ) -> None:
        self.tally = tally
        self._cluster = cluster
        self._random = random.Random(seed)  # noqa: S311 - to be repeated, not to be safe
        self._failovers = 0
        self._restarting: list[threading.Thread] = []
        self.vm = cluster.create(spec)
        self.vm.console.read_until("# ", PATIENCE_S)
        self.vm.console.send(f"voyager {megabytes}\n")
        self.vm.console.read_until("\n", PATIENCE_S)
        self.witness = Witness(self.vm)
        self.witness.start(self.vm.console.position)
        self.vm.protect(silence=SILENCE_S)

    def end(self) -> None:
        """Count what the guest said, and remove it."""
        self.witness.stopped.set()
        self.tally.lines += self.witness.lines
        gap_s = max(self.witness.gaps_us, default=0) / 1e6
        self.tally.longest_gap_s = max(self.tally.longest_gap_s, gap_s)
        for thread in self._restarting:
            thread.join()
        self._cluster.remove(NAME, force=True)

    def strike(self) -> str:
        """Wait until it is protected, let one thing happen, and see the guest go on.

        Raises:
            SoakError: the guest, or its client, noticed.
        """
        began_s = time.monotonic()
        status = wait_until_protected(self._cluster, NAME, PATIENCE_S)
        self.tally.protected_again_s.append(time.monotonic() - began_s)
        self.tally.false_alarms += max(0, status.failovers - self._failovers)
        self._failovers = status.failovers
        self.witness.wait_for(self.witness.lines + LINES_BETWEEN)
        time.sleep(self._random.uniform(0, 0.2))
        placement = self._placement()
        kind = self._choose(placement)
        struck_ns = time.monotonic_ns()
        self._do(kind, placement)
        self.witness.wait_for(self.witness.lines + LINES_BETWEEN)
        if kind in FAILOVERS:
            event = self._failover(placement)
            took_s = (event.data["resumed_monotonic_ns"] - struck_ns) / 1e9
            self.tally.failovers_s.setdefault(kind, []).append(took_s)
            self._failovers += 1
        self.tally.done[kind] = self.tally.done.get(kind, 0) + 1
        return kind

    def _placement(self) -> Placement:
        found = read_placement(RayStore(), NAME)
        if found is None or found.pair is None:
            raise SoakError("it is not protected after all")
        return found

    def _choose(self, placement: Placement) -> str:
        secondary = _secondary(placement)
        possible = {
            kind: weight
            for kind, weight in WEIGHTS.items()
            if not (kind == "host of the primary killed" and placement.host_name == HEAD)
            and not (kind == "host of the secondary killed" and secondary.host_name == HEAD)
        }
        return self._random.choices(list(possible), list(possible.values()))[0]

    def _do(self, kind: str, placement: Placement) -> None:
        secondary = _secondary(placement)
        match kind:
            case "primary killed":
                _signal(placement.pid, signal.SIGKILL)
            case "secondary killed":
                _signal(secondary.pid, signal.SIGKILL)
            case "primary frozen":
                self._freeze(placement.spot, ask=True)
            case "secondary frozen":
                self._freeze(secondary, ask=False)
            case "primary and cluster actor killed":
                cluster = cast("Any", ray.get_actor(CLUSTER_ACTOR, namespace=NAMESPACE))
                _signal(placement.pid, signal.SIGKILL)
                ray.kill(cluster, no_restart=False)
            case "host of the primary killed":
                self._kill_host(placement.host_name)
            case "host of the secondary killed":
                self._kill_host(secondary.host_name)

    def _freeze(self, spot: Spot, *, ask: bool) -> None:
        """Stop a process for longer than anybody waits, wake it, and hear what it has to say."""
        actor = find_actor(spot.actor)
        offset = self.witness.base + len(self.witness.shown)
        asked = [actor.read_console.remote(offset, 1 << 16, 5.0)] if ask else []
        _signal(spot.pid, signal.SIGSTOP)
        time.sleep(self._random.uniform(1.2 * SILENCE_S, FROZEN_S))
        _signal(spot.pid, signal.SIGCONT)
        if ask:
            asked.append(actor.read_console.remote(offset, 1 << 16, 0.5))
        for reference in asked:
            with contextlib.suppress(ray.exceptions.RayError, RayvisorError):
                chunk = ray.get(reference, timeout=10)
                self.witness.confirm(chunk.offset, chunk.data)

    def _kill_host(self, name: str) -> None:
        file = cluster_file.load()
        if file is None:
            raise SoakError("there is no cluster")
        for thread in self._restarting:
            thread.join()
        local_hosts.kill(file, name)
        number = int(name.removeprefix("host-"))
        back = threading.Thread(target=local_hosts.start, args=(file, number), daemon=True)
        back.start()
        self._restarting.append(back)

    def _failover(self, placement: Placement) -> Event:
        """What is told of the pair's failover."""
        pair_id = placement.pair.id if placement.pair is not None else ""
        deadline_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline_s:
            for event in self._cluster.events(limit=50):
                if event.kind is EventKind.FT_FAILOVER and event.data.get("pair") == pair_id:
                    return event
            time.sleep(0.05)
        raise SoakError("nobody tells of the failover")


def _secondary(placement: Placement) -> Spot:
    if placement.pair is None:
        raise SoakError("it is not protected after all")
    return placement.pair.secondary


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def chaos(
    cluster: Cluster, spec: VmSpec, tally: Tally, *, failures: int, megabytes: int, seed: int
) -> None:
    """Let `failures` things happen to a guest's hosts, or fewer: ctrl-C ends it.

    Raises:
        SoakError: something is wrong; says after which failure.
    """
    see_through(Chaos(cluster, spec, tally, megabytes, seed), failures, seed)


def see_through(run: Chaos, failures: int, seed: int) -> None:
    """Let `failures` things happen; see `chaos`."""
    for number in range(failures):
        try:
            kind = run.strike()
        except KeyboardInterrupt:
            break
        except (SoakError, RayvisorError) as error:
            raise SoakError(f"failure {number + 1} of {failures}, seed {seed}: {error}") from error
        if sys.stderr.isatty() or (number + 1) % 10 == 0:
            text = f"{number + 1} of {failures}: {kind}; line {run.witness.lines}"
            print(text, file=sys.stderr, flush=True)
    run.witness.wait_for(run.witness.lines + LINES_BETWEEN)
    run.end()
    run.tally.seeds.append(seed)


def report(
    tally: Tally, hosts: str, *, name: str, title: str, kinds: Iterable[str] = WEIGHTS
) -> Report:
    """The table."""
    rows: list[tuple[Any, ...]] = []
    for kind in kinds:
        took = tally.failovers_s.get(kind, [])
        found = (median(took), percentile(took, 95), max(took)) if took else (None,) * 3
        rows.append((kind, tally.done.get(kind, 0), *found))
    killed = [s for k, v in tally.failovers_s.items() if "killed" in k for s in v]
    every = [s for v in tally.failovers_s.values() for s in v]
    figures = (("failover after a kill", killed), ("failover, all kinds", every))
    return Report(
        name=name,
        title=title,
        columns=("failure", "times", "failover, s (median)", "95 %", "worst"),
        rows=tuple(rows),
        verdicts=(
            *(verdict(f"{what}, median", median(s), LIMIT_S, " s") for what, s in figures if s),
            f"{sum(tally.done.values())} failures, {tally.lines} lines of the guest",
            "no byte lost, repeated or disowned by a survivor, no page and no clock wrong",
        ),
        notes=(
            "failover: from the signal to the guest's first instruction on the other host",
            f"a silent host is taken for dead after {SILENCE_S:g} s; a frozen one is silent",
            f"protected again after {median(tally.protected_again_s):.2f} s (median)",
            f"{tally.false_alarms} failovers that nobody caused (a busy machine's silences)",
            f"longest gap that the guest saw: {tally.longest_gap_s:.2f} s",
            f"{hosts}; seeds {', '.join(map(str, tally.seeds))}",
        ),
        samples={"tally": [json.dumps(asdict(tally))]},  # type: ignore[list-item]
    )


def before() -> Tally:
    """What earlier runs have found."""
    path = RESULTS / "chaos_ft.json"
    if not path.exists():
        return Tally()
    return Tally(**json.loads(json.loads(path.read_text())["samples"]["tally"][0]))


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--failures", type=int, default=200)
    parser.add_argument("--hosts", type=int, default=3)
    parser.add_argument("--memory", default="256M")
    parser.add_argument("--megabytes", type=int, default=16, help="that the guest keeps")
    parser.add_argument("--json", action="store_true", help="print the tally, and keep nothing")
    parser.add_argument("--add", action="store_true", help="to what earlier runs have found")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))  # noqa: S311
    arguments = parser.parse_args()
    tally = before() if arguments.add else Tally()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_STATE_HOME"] = folder
        spec = guest_spec(Path(folder), arguments.memory)
        with Cluster.up(hosts=arguments.hosts) as cluster:
            try:
                chaos(
                    cluster,
                    spec,
                    tally,
                    failures=arguments.failures,
                    megabytes=arguments.megabytes,
                    seed=arguments.seed,
                )
            except SoakError as error:
                print(f"chaos: {error}", file=sys.stderr)
                return 1
    if arguments.json:
        print(json.dumps(asdict(tally)))
    else:
        title = "A fault tolerant guest whose hosts fail at random"
        hosts = f"{arguments.hosts} hosts on this machine"
        finish(report(tally, hosts, name="chaos_ft", title=title))
    return 0


if __name__ == "__main__":
    sys.exit(main())
