"""Direct execution: user programs natively, and in guests with it, without it, and under QEMU.

One static binary (and Debian's own busybox and tcc) runs everywhere. Each workload times itself
by the clock of the system it runs on and prints a checksum that must be the same everywhere. In
each round all guests are up and the contestants take turns at each workload, so that what happens
to the machine meanwhile happens to all of them. Each round boots them anew: one boot of the same
guest is some percent faster or slower than another, for as long as it is up.

Work of the processor alone comes in two lengths. The long one, of a second or so, is for what
direct execution promises of the speed of native. An eighth of it shows what a program loses until
it runs natively; the translators, many times slower, run that one alone, and less often.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bench import tools
from bench.contestants import (
    OURS,
    OURS_TRANSLATED,
    QEMU_PVH,
    Guest,
    GuestError,
    boot_files,
    contestants,
    has_direct,
)
from bench.report import Cell, Report, finish, median, take_precedence, verdict
from tests.support.programs import build_program

IN_GUEST: Final = "/usr/bin/workloads"
NATIVE: Final = "native"
# Below 512 MiB Linux gives programs no large pages of its own accord.
MEMORY_MIB: Final = 1024
LARGE_PAGES: Final = Path("/sys/kernel/mm/transparent_hugepage/enabled")
SHORT: Final = 8
SLOWEST_S: Final = 600.0

NATIVE_LIMIT: Final = 1.10
NATIVE_MEAN_LIMIT: Final = 1.05
QEMU_LIMIT: Final = 1.0
TRANSLATED_LIMIT: Final = 1.05


@dataclass(frozen=True, slots=True)
class Workload:
    """A workload of the program; `kind` is "cpu" or "kernel"; its work is divided by `divisor`."""

    kind: str
    name: str
    divisor: int = 1

    @property
    def label(self) -> str:
        """How it is called in the tables."""
        return self.name if self.divisor == 1 else f"{self.name}, 1/{self.divisor}"

    @property
    def long(self) -> bool:
        """Whether it takes the translators too long."""
        return self.kind == "cpu" and self.divisor == 1


@dataclass(slots=True)
class Timings:
    """Seconds of every run of one workload, by contestant, and the checksums that were seen."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    checksums: set[str] = field(default_factory=set)

    def add(self, who: str, line: str) -> float:
        """Take what the program printed; the seconds in it.

        Raises:
            GuestError: it is something else.
        """
        words = line.split()
        if len(words) != 3 or not words[1].isdigit():
            raise GuestError(f"{who}: the workload printed {line!r}")
        _, nanoseconds, checksum = words
        self.seconds.setdefault(who, []).append(int(nanoseconds) / 1e9)
        self.checksums.add(checksum)
        return self.seconds[who][-1]

    def median_s(self, who: str) -> float | None:
        """The contestant's median; None if it did not run."""
        return median(self.seconds[who]) if who in self.seconds else None

    def ratio(self, who: str, other: str) -> float | None:
        """The median over the rounds in which both ran of one's time over the other's."""
        if who not in self.seconds or other not in self.seconds:
            return None
        both = zip(self.seconds[who], self.seconds[other], strict=False)
        return median([mine / theirs for mine, theirs in both])


def workloads(program: Path, names: list[str]) -> list[Workload]:
    """Those asked for, or all; the processor's own in both lengths.

    Raises:
        SystemExit: there is none of that name.
    """
    command = [str(program), "--list"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = [Workload(kind, name) for kind, name in map(str.split, listed.splitlines())]
    known = [one.name for one in found]
    for name in names:
        if name not in known:
            raise SystemExit(f"no workload {name}: there are {', '.join(known)}")
    asked = [one for one in found if not names or one.name in names]
    short = [Workload(one.kind, one.name, SHORT) for one in asked if one.kind == "cpu"]
    return sorted(short + asked, key=lambda one: known.index(one.name))


def natively(program: Path, name: str, scale: int, home: Path) -> str:
    """What the program prints on this host, on one CPU, as a guest has one."""
    command = [str(program), name, str(scale), str(home), str(home)]
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cpus)})
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    finally:
        os.sched_setaffinity(0, cpus)


def host_large_pages() -> str:
    """When Linux gives programs large pages here."""
    try:
        words = LARGE_PAGES.read_text()
    except OSError:
        return "none"
    return words.partition("[")[2].partition("]")[0]


def turned(order: list[str], number: int) -> list[str]:
    """The list from another one on in each round: who runs first finds another's caches."""
    start = number % len(order)
    return order[start:] + order[:start]


def measure(
    todo: list[Workload], rounds: int, translated_rounds: int, scale: int
) -> dict[str, Timings]:
    """Each workload's timings, by its name."""
    program = build_program("workloads")
    home, _ = tools.tools()
    direct = has_direct()
    names = [who for who in contestants() if who in {OURS, QEMU_PVH}]
    names += [OURS_TRANSLATED] if direct else []
    found: dict[str, Timings] = {one.label: Timings() for one in todo}
    files = {IN_GUEST: program, **tools.files(home)}
    with boot_files(files=files) as boot:
        for number in range(rounds):
            with contextlib.ExitStack() as stack:
                guests = {
                    who: stack.enter_context(Guest(who, boot, memory_mib=MEMORY_MIB))
                    for who in turned(names, number)
                }
                for guest in guests.values():
                    guest.shell()
                for one in todo:
                    divisor = one.divisor * scale
                    found[one.label].add(NATIVE, natively(program, one.name, divisor, home))
                    rare = one.kind == "cpu" and number >= translated_rounds
                    for who, guest in guests.items():
                        translated = who != OURS or not direct
                        if not translated or not (one.long or rare):
                            line = guest.run(f"{IN_GUEST} {one.name} {divisor}", SLOWEST_S)
                            took_s = found[one.label].add(who, line)
                            print(f"{number + 1}: {who}: {one.label}: {took_s:.3f} s", flush=True)
    return found


def promises(todo: list[Workload], found: dict[str, Timings]) -> list[str]:
    """The verdicts; only of what was measured."""
    lines = []
    cpu = [one.name for one in todo if one.long]
    ratios = [ratio for name in cpu if (ratio := found[name].ratio(OURS, NATIVE)) is not None]
    lines += [
        verdict(f"{name}: ours / native", ratio, NATIVE_LIMIT, "")
        for name, ratio in zip(cpu, ratios, strict=True)
    ]
    if ratios:
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        lines.append(verdict("geometric mean of these", mean, NATIVE_MEAN_LIMIT, ""))
    for one in todo:
        limits = {OURS_TRANSLATED: TRANSLATED_LIMIT}
        if one.kind == "kernel":
            limits = {QEMU_PVH: QEMU_LIMIT} | limits
        for who, limit in limits.items():
            if (ratio := found[one.label].ratio(OURS, who)) is not None:
                lines.append(verdict(f"{one.label}: ours / {who}", ratio, limit, ""))
    return lines


def lost(todo: list[Workload], found: dict[str, Timings]) -> str:
    """What each short program took longer than natively."""
    parts = []
    for one in todo:
        timings = found[one.label].seconds
        if one.divisor != 1 and OURS in timings:
            pairs = zip(timings[OURS], timings[NATIVE], strict=True)
            more_s = median([ours - native for ours, native in pairs])
            parts.append(f"{one.name} {1e3 * more_s:.0f}")
    return f"ms that ours took longer than native, of 1/{SHORT}: {', '.join(parts)}"


def report(todo: list[Workload], found: dict[str, Timings], notes: list[str]) -> Report:
    """The table, and every sample."""
    columns = {NATIVE: NATIVE, OURS: "ours", OURS_TRANSLATED: "--no-direct", QEMU_PVH: "QEMU TCG"}
    rows: list[tuple[Cell, ...]] = []
    for one in todo:
        timings = found[one.label]
        times = [timings.median_s(who) for who in columns]
        ratios = [timings.ratio(OURS, who) for who in columns if who != OURS]
        rows.append((one.label, *times, *ratios))
    return Report(
        name="direct",
        title="User programs: seconds, and ours over the others'",
        columns=(
            "workload",
            *(f"{short}, s" for short in columns.values()),
            *(f"ours / {short}" for who, short in columns.items() if who != OURS),
        ),
        rows=tuple(rows),
        verdicts=tuple(promises(todo, found)),
        notes=tuple(notes),
        samples={
            f"{who}, {name}, s": values
            for name, timings in found.items()
            for who, values in timings.seconds.items()
        },
    )


def main() -> None:
    take_precedence()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="runs of each contestant")
    parser.add_argument(
        "--translated-rounds",
        type=int,
        default=1,
        help="runs of the translators on the processor's own work",
    )
    parser.add_argument("--scale", type=int, default=1, help="divide the work by this")
    parser.add_argument("names", nargs="*", help="workloads; default: all")
    arguments = parser.parse_args()
    todo = workloads(build_program("workloads"), arguments.names)
    found = measure(todo, arguments.rounds, arguments.translated_rounds, arguments.scale)
    wrong = [name for name, timings in found.items() if len(timings.checksums) != 1]
    if wrong:
        raise SystemExit(f"checksums differ: {', '.join(wrong)}")
    _, versions = tools.tools()
    notes = [
        f"medians of {arguments.rounds} rounds, and of the rounds' own ratios",
        f"translators ran sha256 to copy at 1/{SHORT} alone, {arguments.translated_rounds} times",
        f"guests have {MEMORY_MIB} MiB; with less than 512, Linux gives programs 4 KiB pages alone",
        "one static binary of baseline x86-64; checksums agreed in every run",
        f"find, shell and compile run {versions}",
        "native: one CPU, as a guest has one; QEMU: machine type microvm, PVH",
        f"large pages of the host, for native programs: {host_large_pages()}",
    ]
    if any(one.kind == "cpu" for one in todo):
        notes.append(lost(todo, found))
    if not has_direct():
        notes.append("this Rayvisor has no direct execution: all its code is translated")
    finish(report(todo, found, notes))


if __name__ == "__main__":
    main()
