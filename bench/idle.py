"""CPU time of a guest that waits at its shell's prompt, as a share of one core."""

from __future__ import annotations

import argparse
import time

from bench.contestants import OURS, QEMU_PVH, Guest, boot_files, contestants
from bench.report import Report, finish, median, take_precedence, verdict

SETTLE_S = 5.0
LIMIT_PERCENT = 2.0


def main() -> None:
    take_precedence()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20, help="length of each measurement")
    parser.add_argument("--runs", type=int, default=3, help="measurements of each contestant")
    arguments = parser.parse_args()
    names = [name for name in contestants() if name in {OURS, QEMU_PVH}]
    found: dict[str, list[float]] = {name: [] for name in names}
    with boot_files() as files:
        for name in names * arguments.runs:
            with Guest(name, files) as guest:
                guest.shell()
                time.sleep(SETTLE_S)
                before_s, start_s = guest.cpu_s(), time.perf_counter()
                time.sleep(arguments.seconds)
                used_s = guest.cpu_s() - before_s
                found[name].append(100 * used_s / (time.perf_counter() - start_s))
            print(f"{name}: {found[name][-1]:.2f} % of a core", flush=True)
    finish(
        Report(
            name="idle",
            title="An idle Debian guest",
            columns=("contestant", "median, % of a core", "worst, % of a core"),
            rows=tuple((name, median(v), max(v)) for name, v in found.items()),
            verdicts=(verdict("idle guest", median(found[OURS]), LIMIT_PERCENT, " % of a core"),),
            notes=(
                f"{arguments.runs} measurements of {arguments.seconds:g} s each, in turns",
                f"from {SETTLE_S:g} s after the prompt; the whole process, user and system time",
            ),
            samples={f"{name}, % of a core": values for name, values in found.items()},
        )
    )


if __name__ == "__main__":
    main()
