"""Memory that direct execution takes: a VM with its stubs against one without.

Both run the same shells that compute without end, as many as there can be stubs, for some seconds.
What counts is PSS outside guest RAM: of the VM's process and of all stubs. The two processes of a
stub share an address space, which counts once.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench.contestants import OURS, OURS_TRANSLATED, Guest, boot_files
from bench.memory import pss_mib
from bench.report import Report, finish, median, take_precedence, verdict

if TYPE_CHECKING:
    from collections.abc import Iterator

PROGRAMS: Final = 8
LIMIT_MIB: Final = 8.0
SETTLE_S: Final = 5.0
_STUB: Final = "rayvisor-stub"
_LOAD: Final = f"for i in $(seq {PROGRAMS}); do sh -c 'while :; do :; done' & done; sleep 1"


def stubs(pid: int) -> Iterator[int]:
    """Processes of direct execution below `pid`, one for each address space."""
    seen = set()
    for child in _descendants(pid):
        if Path(f"/proc/{child}/comm").read_text().strip() == _STUB:
            maps = Path(f"/proc/{child}/maps").read_text()
            window = [line.split()[0] for line in maps.splitlines() if f"{_STUB}-text" in line]
            space = window[0] if window else str(child)
            if space not in seen:
                seen.add(space)
                yield child


def _descendants(pid: int) -> Iterator[int]:
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, path.read_text().split()):
            yield child
            yield from _descendants(child)


def main() -> None:
    take_precedence()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3, help="measurements of each")
    runs = parser.parse_args().runs
    process: dict[str, list[float]] = {OURS: [], OURS_TRANSLATED: []}
    spaces: dict[str, list[float]] = {OURS: [], OURS_TRANSLATED: []}
    counts: list[float] = []
    with boot_files() as files:
        for _ in range(runs):
            for who, found in process.items():
                with Guest(who, files) as guest:
                    guest.shell()
                    time.sleep(SETTLE_S)  # until what only the boot needed has been given back
                    guest.run(_LOAD)
                    time.sleep(SETTLE_S)
                    found.append(pss_mib(guest.process.pid)[0])
                    below = list(stubs(guest.process.pid))
                    spaces[who].append(sum(pss_mib(pid)[0] for pid in below))
                    counts += [len(below)] if who == OURS else []
                    print(f"{who}: {found[-1]:.1f} and {spaces[who][-1]:.1f} MiB", flush=True)
    whole = {who: median(process[who]) + median(spaces[who]) for who in process}
    more_mib = whole[OURS] - whole[OURS_TRANSLATED]
    finish(
        Report(
            name="stub_memory",
            title=f"Memory of direct execution, {PROGRAMS} programs computing",
            columns=("contestant", "VM's process, MiB", "stubs, MiB", "together, MiB"),
            rows=tuple(
                (who, median(process[who]), median(spaces[who]), whole[who]) for who in process
            ),
            verdicts=(verdict("PSS more with direct execution", more_mib, LIMIT_MIB, " MiB"),),
            notes=(
                f"{runs} runs each; PSS outside guest RAM, {SETTLE_S:g} s after the programs began",
                f"address spaces of stubs and of their maker: {median(counts)}",
            ),
            samples={
                f"{who}, {part}, MiB": values
                for part, found in (("VM's process", process), ("stubs", spaces))
                for who, values in found.items()
            },
        )
    )


if __name__ == "__main__":
    main()
