"""What a benchmark leaves behind: a table on the terminal, results/NAME.json and NAME.md."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

ROOT: Final = Path(__file__).resolve().parents[1]
RESULTS: Final = Path(__file__).resolve().parent / "results"

Cell = str | float | int | None


@dataclass(frozen=True, slots=True)
class Report:
    """One benchmark's outcome.

    Attributes:
        name: of the module below bench/ and of its files in results/.
        title: what was measured, in one line.
        columns: headings; units stand in them.
        rows: one a contestant or workload.
        verdicts: the figures the project promises, each with what was found.
        notes: how it was measured, and what was missing.
        samples: every single measurement, for whoever wants another statistic.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    verdicts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    samples: dict[str, list[float]] = field(default_factory=dict)


def take_precedence() -> None:
    """Run, with all that is started from here, before other work on the machine, if allowed."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, -20)
        # Where sessions share the CPUs first, nice values count only within one.
        autogroup = Path("/proc/self/autogroup")
        autogroup.write_text("-20")
        atexit.register(autogroup.write_text, "0")


def _priority() -> str:
    real_time = {os.SCHED_RR, os.SCHED_FIFO}
    before_all = "real time, " if os.sched_getscheduler(0) in real_time else ""
    return f"{before_all}nice {os.getpriority(os.PRIO_PROCESS, 0)}"


def percentile(values: list[float], percent: float) -> float:
    """The value that `percent` of `values` do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def median(values: list[float]) -> float:
    return statistics.median(values)


def verdict(what: str, found: float, limit: float, unit: str, *, at_most: bool = True) -> str:
    """A promise with its outcome, such as "boot / QEMU: 0.9, at most 1.2: met"."""
    met = found <= limit if at_most else found >= limit
    bound = "at most" if at_most else "at least"
    return (
        f"{what}: {_text(found)}{unit}, {bound} {_text(limit)}{unit}: {'met' if met else 'MISSED'}"
    )


def finish(report: Report) -> None:
    """Print the table and write both files."""
    setting = _setting(report.name)
    console = Console(width=max(100, shutil.get_terminal_size().columns))
    table = Table(title=report.title)
    for index, column in enumerate(report.columns):
        table.add_column(column, justify="left" if index == 0 else "right")
    for row in report.rows:
        table.add_row(*map(_text, row))
    console.print(table)
    for line in (*report.verdicts, *report.notes):
        console.print(line, highlight=False)
    RESULTS.mkdir(exist_ok=True)
    plain = {**setting, **asdict(report)}
    (RESULTS / f"{report.name}.json").write_text(json.dumps(plain, indent=2) + "\n")
    (RESULTS / f"{report.name}.md").write_text(_markdown(report, setting))


def _text(value: Cell) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"
    return str(value)


def _markdown(report: Report, setting: dict[str, str]) -> str:
    lines = [f"# {report.title}", ""]
    lines += [f"| {' | '.join(report.columns)} |", "|" + " --- |" * len(report.columns)]
    lines += [f"| {' | '.join(map(_text, row))} |" for row in report.rows]
    for heading, texts in (("Promises", report.verdicts), ("Notes", report.notes)):
        if texts:
            lines += ["", f"## {heading}", "", *(f"* {text}" for text in texts)]
    lines += ["", "## Setting", "", *(f"* {key}: {value}" for key, value in setting.items())]
    return "\n".join(lines) + "\n"


def _setting(name: str) -> dict[str, str]:
    """Machine, date, versions and the command."""
    load = os.getloadavg()
    arguments = "".join(f" {argument}" for argument in sys.argv[1:])
    return {
        "command": f"python -m bench.{name}{arguments}",
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _output("git", "-C", str(ROOT), "describe", "--always", "--dirty"),
        "machine": f"{_cpu_model()}, {os.cpu_count()} CPUs, {_memory_gib()} GiB",
        "load": f"{load[0]:.1f} over the last minute, other work on the machine included",
        "priority": f"{_priority()}, contestants included",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "unicorn": metadata.version("unicorn"),
        "qemu": _output("qemu-system-x86_64", "--version").partition("\n")[0] or "not installed",
    }


def _output(*command: str) -> str:
    if shutil.which(command[0]) is None:
        return ""
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _memory_gib() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 30
