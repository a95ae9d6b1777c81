"""`rayvisor demo`: an unmodified Debian on a Ray of this machine, moved while it computes."""

from __future__ import annotations

import contextlib
import hashlib
import re
import signal
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from rayvisor.runtime.cli.output import JsonOption, emit, step
from rayvisor.vmm.errors import ConfigError, RayvisorError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from rayvisor.migration.report import MigrationReport
    from rayvisor.runtime.cluster import Cluster
    from rayvisor.runtime.vm_handle import VmHandle

NAME = "demo"
BOOT_S = 120.0
COMMAND_S = 60.0
PROMPT = "# "

SESSION = (
    ("uname -a", r"Linux .* x86_64 GNU/Linux"),
    ("head -5 /proc/cpuinfo", r"processor\s+: 0"),
    ("free", r"Mem:\s+\d+"),
    ("grep -E 'ttyS0|timer' /proc/interrupts", r"LOC:\s+[1-9]"),
    ("i=0; s=0; while [ $i -lt 1000 ]; do i=$((i+1)); s=$((s+i*i)); done; echo $s", "333833500"),
    ("seq 100000 | sha256sum", "b2bc7d3f8b652d2e"),
    ("dmesg | tail -3", r"\[ *\d+\.\d+\]"),
)
"""Commands for the guest's shell, and what each must print."""

MOVES = 4
LINES_BETWEEN = 3
INTERRUPTS = 20
WORK = (
    "i=0; while :; do i=$((i+1)); seq 1 20000 > /tmp/w; "
    "echo work $i $(sha256sum < /tmp/w | cut -c1-16); done"
)
"""What the guest does while it is moved: each line tells a checksum of a file it has written."""

WORK_LINE = re.compile(r"work (\d+) ([0-9a-f]{16})\r?\n")
WORK_DIGEST = hashlib.sha256(b"".join(b"%d\n" % n for n in range(1, 20001))).hexdigest()[:16]

EPILOG = """
This machine stands for two hosts. The guest computes and prints while it moves from one to the other and back, and what it printed is checked. Then, on a terminal, its shell is yours; `exit` or ctrl-] ends the demo. Without one, a scripted session runs in the guest first, and the exit status says whether all went as it should.

What the demo started it also ends: the VM, and the cluster if none was up before.

[bold]Examples[/bold]

[cyan]rayvisor demo[/cyan]

[cyan]rayvisor demo --script < /dev/null[/cyan]
"""  # noqa: E501 - one line is one paragraph of help


class DemoError(RayvisorError):
    """The scripted session did not go as it should."""


def register(app: typer.Typer) -> None:
    """Put `demo` on the command line."""
    app.command("demo", epilog=EPILOG)(demo)


def demo(
    *,
    script: Annotated[
        bool, typer.Option("--script", help="Run the scripted session, on a terminal too.")
    ] = False,
    memory: Annotated[str, typer.Option(metavar="SIZE", help="Memory of the VM.")] = "256M",
    as_json: JsonOption = False,
) -> None:
    """Boot an unmodified Debian, move it between two hosts while it computes, hand it to you."""
    from rayvisor.runtime.api import VmSpec
    from rayvisor.runtime.cli.bootsource import DEFAULT_IMAGE, ensure_image, terminal_size
    from rayvisor.runtime.images import ImageStore
    from rayvisor.runtime.terminal import is_interactive

    signal.signal(signal.SIGTERM, _interrupt)
    begin_s = time.monotonic()
    ensure_image(ImageStore(), DEFAULT_IMAGE, quiet=as_json)
    interactive = is_interactive() and sys.stdout.isatty() and not (script or as_json)
    with _cluster(quiet=as_json) as cluster:
        name = _free_name(cluster)
        with step(f"Creating the VM {name}: {memory} of memory, Debian", quiet=as_json):
            spec = VmSpec(name=name, image=DEFAULT_IMAGE, memory=memory, append=terminal_size())
            vm = cluster.create(spec)
        try:
            show = _Show(vm, live=not as_json)
            show.boot()
            transcript = [] if interactive else show.session()
            hosts = [h for h in cluster.hosts() if not h.reason]
            moves, lines = show.travel() if len(hosts) > 1 else ([], 0)
            if not moves:
                _say("the cluster that is up has one host, so nothing moved")
            if interactive:
                _print_moves(moves)
                _hand_over(vm)
                return
        finally:
            with step(f"Removing the VM {name}", quiet=as_json):
                vm.remove(force=True)
    took_s = time.monotonic() - begin_s
    if not as_json:
        _print_moves(moves)
    emit(
        {
            "ok": True,
            "seconds": round(took_s, 3),
            "session": transcript,
            "lines": lines,
            "moves": [report.as_dict() for report in moves],
        },
        as_json=as_json,
        render=lambda: (
            f"All {len(SESSION)} commands ran as they should. Moved {len(moves)} times, the guest"
            f" wrote {lines} lines, all right and none missing; {took_s:.1f} s in all."
        ),
    )


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    """SIGTERM as ctrl-C, so that what was started is ended."""
    raise KeyboardInterrupt


@contextmanager
def _cluster(*, quiet: bool) -> Iterator[Cluster]:
    """A cluster; one that had to be started is brought down at the end."""
    from rayvisor.runtime.cluster import Cluster

    with step("Starting two Ray hosts on this machine", quiet=quiet) as progress:
        try:
            cluster = Cluster.up(hosts=2, progress=progress)
        except ConfigError:  # it is up, with another number of them
            cluster = Cluster.up(progress=progress)
    try:
        yield cluster
    finally:
        if cluster.started:
            with step("Bringing the cluster down", quiet=quiet) as progress:
                cluster.down(progress)
        else:
            cluster.close()


def _free_name(cluster: Cluster) -> str:
    taken = {vm.name for vm in cluster.vms()}
    return next(name for name in _names() if name not in taken)


def _names() -> Iterator[str]:
    yield NAME
    number = 2
    while True:
        yield f"{NAME}-{number}"
        number += 1


def _hand_over(vm: VmHandle) -> None:
    from rayvisor.runtime.terminal import AttachEnd, attach

    _say("the console is yours. `exit` or ctrl-] ends the demo.")
    link = vm.console_link()
    vm.console.send("\n")
    end = attach(link.read, vm.send, start_offset=vm.console.position, alive=link.alive)
    _say("left the console" if end is AttachEnd.DETACHED else f"the guest is {vm.status().state}")


class _Show:
    """What happens in the guest, and is printed as it happens."""

    def __init__(self, vm: VmHandle, *, live: bool) -> None:
        self._vm = vm
        self._live = live
        self._prompt = ""

    def boot(self) -> None:
        """Wait for the shell."""
        from rayvisor.runtime.images import BANNER_PREFIX

        console = self._vm.console
        boot = console.read_until(BANNER_PREFIX, BOOT_S) + console.read_until(PROMPT, BOOT_S)
        _print(boot, live=self._live)
        self._prompt = boot.rpartition("\n")[2]

    def session(self) -> list[dict[str, str]]:
        """Run the session and give what each command printed.

        Raises:
            DemoError: a command failed or did not print what it must.
            RayvisorError: the guest ended or did not answer in time.
        """
        if self._live:
            _say("a scripted session runs in the guest")
        transcript = []
        for command, expected in SESSION:
            _print(f"{command}\n", live=self._live)
            result = self._vm.console.run(command, COMMAND_S)
            _print(f"{result.output}{self._prompt}", live=self._live)
            if result.status or re.search(expected, result.output) is None:
                raise DemoError(
                    f"{command!r} in the guest gave status {result.status} and"
                    f" {result.output.strip()[-200:]!r}; {expected!r} was expected"
                )
            transcript.append({"command": command, "output": result.output})
        return transcript

    def travel(self) -> tuple[list[MigrationReport], int]:
        """Move the guest to and fro while it works: the reports, and how many lines it wrote.

        Raises:
            DemoError: a line is wrong, or missing.
            RayvisorError: it could not be moved.
        """
        console, seen = self._vm.console, ""
        console.send(WORK + "\n")
        reports = []
        for move in range(MOVES + 1):
            for _ in range(LINES_BETWEEN):
                text = console.read_until(WORK_LINE, COMMAND_S)
                _print(text, live=self._live)
                seen += text
            if move < MOVES:
                report = self._vm.migrate()
                reports.append(report)
                if self._live:
                    _say(
                        f"moved from {report.source} to {report.destination};"
                        f" downtime {report.downtime_s * 1000:.0f} ms"
                    )
        text = self._interrupt()
        _print(text, live=self._live)
        found = WORK_LINE.findall(seen + text)
        if [int(number) for number, _ in found] != list(range(1, len(found) + 1)):
            raise DemoError("the guest's lines are not all there, or not in order")
        if {digest for _, digest in found} != {WORK_DIGEST}:
            raise DemoError("the guest computed a wrong checksum")
        return reports, len(found)

    def _interrupt(self) -> str:
        """Type ctrl-C until the prompt is back: one may hit a command that the loop outlives."""
        from rayvisor.runtime.expect import ConsoleTimeoutError

        console = self._vm.console
        for _ in range(INTERRUPTS):
            console.send("\x03")
            with contextlib.suppress(ConsoleTimeoutError):
                return console.read_until(PROMPT, 1.0)
        return console.read_until(PROMPT, COMMAND_S)


def _print_moves(moves: list[MigrationReport]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from rayvisor.runtime.units import format_bytes

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("FROM", "TO", "TOTAL", "DOWNTIME", "SENT", "ROUNDS"):
        table.add_column(column)
    for report in moves:
        table.add_row(
            report.source,
            report.destination,
            f"{report.total_s:.2f} s",
            f"{report.downtime_s * 1000:.0f} ms",
            format_bytes(report.bytes_sent),
            str(len(report.rounds)),
        )
    if moves:
        Console().print(table)


def _print(text: str, *, live: bool) -> None:
    if live:
        sys.stdout.write(text)
        sys.stdout.flush()


def _say(text: str) -> None:
    sys.stderr.write(f"rayvisor: {text}\n")
    sys.stderr.flush()
