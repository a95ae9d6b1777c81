"""User programs: natively, under QEMU and under Rayvisor, one static binary in all of them.

Each program times itself by the clock of the system it runs on, and prints a checksum that must
be the same everywhere.
"""

from __future__ import annotations

import argparse
import subprocess
from typing import TYPE_CHECKING

from bench.contestants import OURS, QEMU_PVH, BootFiles, Guest, boot_files, contestants
from bench.report import Report, finish, median, take_precedence
from tests.support.programs import build_program

if TYPE_CHECKING:
    from pathlib import Path

IN_GUEST = "/usr/bin/workloads"
NATIVE = "native"


def _parse(line: str) -> tuple[float, str]:
    _, nanoseconds, checksum = line.split()
    return int(nanoseconds) / 1e9, checksum


def natively(program: Path, name: str, scale: int) -> tuple[float, str]:
    """Seconds and checksum on this host."""
    command = [str(program), name, str(scale)]
    return _parse(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def in_guest(
    who: str, files: BootFiles, names: list[str], scale: int
) -> dict[str, tuple[float, str]]:
    """Seconds and checksum of each workload in one guest."""
    with Guest(who, files, memory_mib=512) as guest:
        guest.shell()
        found = {}
        for name in names:
            found[name] = _parse(guest.run(f"{IN_GUEST} {name} {scale}", 900).strip())
            print(f"{who}: {name}: {found[name][0]:.2f} s", flush=True)
        return found


def main() -> None:
    take_precedence()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3, help="runs of each contestant")
    parser.add_argument("--scale", type=int, default=1, help="divide the work by this")
    parser.add_argument("names", nargs="*", help="workloads; default: all")
    arguments = parser.parse_args()
    program = build_program("workloads")
    listed = subprocess.run([str(program), "--list"], capture_output=True, text=True, check=True)
    names = arguments.names or listed.stdout.split()
    guests = [name for name in contestants() if name in {OURS, QEMU_PVH}]
    times: dict[str, dict[str, list[float]]] = {
        who: {name: [] for name in names} for who in (NATIVE, *guests)
    }
    sums: dict[str, set[str]] = {name: set() for name in names}
    with boot_files(files={IN_GUEST: program}) as files:
        for _ in range(arguments.runs):
            found = {name: natively(program, name, arguments.scale) for name in names}
            for who, results in (
                (NATIVE, found),
                *((guest, in_guest(guest, files, names, arguments.scale)) for guest in guests),
            ):
                for name, (seconds, checksum) in results.items():
                    times[who][name].append(seconds)
                    sums[name].add(checksum)
    wrong = [name for name, found_sums in sums.items() if len(found_sums) > 1]
    if wrong:
        raise SystemExit(f"checksums differ: {', '.join(wrong)}")
    rows = []
    for name in names:
        native = median(times[NATIVE][name])
        row: list[str | float | None] = [name, native]
        for who in guests:
            row += [median(times[who][name]), median(times[who][name]) / native]
        rows.append(tuple(row))
    finish(
        Report(
            name="workloads",
            title="User programs: seconds, and times native",
            columns=(
                "workload",
                "native, s",
                *(heading for who in guests for heading in (f"{who}, s", f"{who} / native")),
            ),
            rows=tuple(rows),
            notes=(
                f"medians of {arguments.runs} runs; one static binary of baseline x86-64",
                "checksums agreed in every run",
            ),
            samples={f"{w}, {n}, s": v for w, by in times.items() for n, v in by.items()},
        )
    )


if __name__ == "__main__":
    main()
