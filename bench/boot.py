"""Time from starting the process to the first line of the guest's init.

Debian's cloud kernel and one initrd, booted directly; the contestants take turns, so that what
else happens on the machine meets all of them. The process's own start counts.
"""

from __future__ import annotations

import argparse

from bench.contestants import OURS, READY, Guest, boot_files, contestants
from bench.report import Report, finish, median, take_precedence, verdict


def main() -> None:
    take_precedence()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7, help="runs of each contestant")
    runs = parser.parse_args().runs
    names = contestants()
    wall: dict[str, list[float]] = {name: [] for name in names}
    cpu: dict[str, list[float]] = {name: [] for name in names}
    with boot_files() as files:
        for run in range(runs):
            for name in names:
                with Guest(name, files) as guest:
                    guest.until(READY)
                    wall[name].append(guest.elapsed_s())
                    cpu[name].append(guest.cpu_s())
                print(f"run {run + 1} of {runs}: {name}: {wall[name][-1]:.2f} s", flush=True)
    ours = median(wall[OURS])
    ours_cpu = median(cpu[OURS])
    rows = tuple(
        (
            name,
            median(wall[name]),
            min(wall[name]),
            median(cpu[name]),
            ours / median(wall[name]),
            ours_cpu / median(cpu[name]),
        )
        for name in names
    )
    finish(
        Report(
            name="boot",
            title="Boot of Debian's cloud kernel to the first line of init",
            columns=(
                "contestant",
                "wall, median s",
                "wall, best s",
                "CPU, median s",
                "Rayvisor / it, wall",
                "Rayvisor / it, CPU",
            ),
            rows=rows,
            verdicts=tuple(
                verdict(f"Rayvisor / {name}, wall", ours / median(wall[name]), 1.2, "")
                for name in names
                if name != OURS
            ),
            notes=(
                f"{runs} runs each, in turns; 256 MiB of memory",
                "noapic is left out for QEMU: its microvm hangs with it",
            ),
            samples={
                **{f"{n}, wall s": v for n, v in wall.items()},
                **{f"{n}, CPU s": v for n, v in cpu.items()},
            },
        )
    )


if __name__ == "__main__":
    main()
