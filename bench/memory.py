"""Memory of a VM's process outside guest RAM, and what guest RAM costs that nobody touches.

PSS (proportional set size) from smaps: pages shared with other processes count in parts. Guest
RAM is a memory file in all contestants; its mapping is counted apart.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from pathlib import Path

from bench.contestants import OURS, QEMU_PVH, BootFiles, Guest, boot_files, command, contestants
from bench.report import Report, finish, median, take_precedence, verdict
from rayvisor.vmm.memory import GuestRam

SETTLE_S = 5.0
LIMIT_MIB = 48.0
_MAPPING = re.compile(r"^[0-9a-f]+-[0-9a-f]+ ")


def pss_mib(pid: int) -> tuple[float, float]:
    """(PSS outside guest RAM, PSS of guest RAM) of a process, in MiB."""
    outside_kib = ram_kib = 0
    is_ram = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if _MAPPING.match(line):
            is_ram = "memfd:" in line
        elif line.startswith("Pss:"):
            kib = int(line.split()[1])
            ram_kib += kib if is_ram else 0
            outside_kib += 0 if is_ram else kib
    return outside_kib / 1024, ram_kib / 1024


class _Contestant(Guest):
    """As others start it; ours from its image, whose files are mapped and not read."""

    def __init__(self, who: str, files: BootFiles, memory_mib: int) -> None:
        self.who = who
        ours = [sys.executable, "-m", "rayvisor", "run", "debian", "--memory", f"{memory_mib}M"]
        self._start(ours if who == OURS else command(who, files, memory_mib))


def untouched_mib(size_mib: int) -> float:
    """What the host has allocated for guest RAM that was only made, in MiB."""
    ram = GuestRam(size_mib << 20)
    try:
        return os.fstat(ram.fd).st_blocks * 512 / (1 << 20)
    finally:
        ram.close()


def main() -> None:
    take_precedence()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3, help="measurements of each contestant")
    runs = parser.parse_args().runs
    names = [name for name in contestants() if name in {OURS, QEMU_PVH}]
    sizes = (256, 2048)
    outside: dict[tuple[str, int], list[float]] = {}
    inside: dict[tuple[str, int], list[float]] = {}
    with boot_files() as files:
        for _ in range(runs):
            for name in names:
                for size in sizes:
                    with _Contestant(name, files, size) as guest:
                        guest.shell()
                        time.sleep(SETTLE_S)
                        apart, ram = pss_mib(guest.process.pid)
                    outside.setdefault((name, size), []).append(apart)
                    inside.setdefault((name, size), []).append(ram)
                    print(f"{name}, {size} MiB: {apart:.1f} MiB beside {ram:.1f} MiB", flush=True)
    free = untouched_mib(4096)
    finish(
        Report(
            name="memory",
            title="Memory of a VM's process, at the guest's shell prompt",
            columns=("contestant", "guest RAM, MiB", "PSS outside guest RAM, MiB", "touched, MiB"),
            rows=tuple(
                (name, size, median(outside[name, size]), median(inside[name, size]))
                for name, size in outside
            ),
            verdicts=(
                verdict("PSS outside guest RAM", median(outside[OURS, 256]), LIMIT_MIB, " MiB"),
                verdict("4 GiB of guest RAM, never touched", free, 0.0, " MiB"),
            ),
            notes=(
                f"{runs} runs each, {SETTLE_S:g} s after the prompt",
                "the process is `rayvisor run debian`, command line and all, without Ray",
                "touched: guest RAM that the kernel wrote while booting (it notes each page)",
            ),
            samples={f"{n}, {s} MiB, outside MiB": v for (n, s), v in outside.items()},
        )
    )


if __name__ == "__main__":
    main()
