"""`rayvisor migrate`, `evacuate`, `resume-host` and `events`."""

from __future__ import annotations

import dataclasses
import json
import signal
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn

import typer

from rayvisor.runtime.cli.output import JsonOption, emit, stderr_console, step
from rayvisor.vmm.errors import RayvisorError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    from rich.console import RenderableType

    from rayvisor.actors.events import Event
    from rayvisor.migration.report import MigrationReport, Progress
    from rayvisor.runtime.cluster import Cluster
    from rayvisor.runtime.migrating import Evacuation

LINE_EVERY_S: Final = 1.0
FOLLOW_EVERY_S: Final = 0.5
OVERLAP: Final = 50
"""Events looked at again while following: hosts' clocks differ a little."""

Host = Annotated[str, typer.Argument(metavar="HOST", help="A host's name; see rayvisor hosts.")]


class EvacuationError(RayvisorError):
    """Some VMs are still on the host."""


def register(app: typer.Typer) -> None:
    """Put the commands that move VMs on the command line."""
    app.command("migrate")(migrate)
    app.command("evacuate")(evacuate)
    app.command("resume-host")(resume_host)
    app.command("events")(events)


def _connect() -> Cluster:
    from rayvisor.runtime.cluster import Cluster

    return Cluster.connect()


def migrate(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The VM's name.")],
    *,
    host: Annotated[
        str | None,
        typer.Option(metavar="HOST", help="Where to; the host with most room by default."),
    ] = None,
    downtime: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="How long the guest may stand still, such as 30ms."),
    ] = None,
    bandwidth: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="Most bytes a second, such as 500M; no limit if left out."
        ),
    ] = None,
    timeout: Annotated[
        str | None, typer.Option(metavar="TIME", help="When to give up, such as 90s or 5min.")
    ] = None,
    post_copy: Annotated[
        bool,
        typer.Option("--post-copy", help="If nothing else helps, run there before all is there."),
    ] = False,
    cancel: Annotated[
        bool, typer.Option("--cancel", help="Call the VM's migration off instead.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Move a running VM to another host. ctrl-C calls it off: the VM stays where it is.

    One that is fault tolerant goes on at its secondary, and gets another one.
    """
    from rayvisor.migration.errors import MigrationFailedError

    cluster = _connect()
    if cancel:
        was = cluster.cancel_migration(name)
        emit(
            {"vm": name, "cancelled": was},
            as_json=as_json,
            render=lambda: (
                f"The migration of {name} is called off." if was else f"{name} does not move."
            ),
        )
        return
    vm = cluster.vm(name)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with _progress(f"Moving {name}", quiet=as_json) as show:
            report = vm.migrate(
                host,
                downtime=downtime,
                bandwidth=bandwidth,
                timeout=timeout,
                post_copy=post_copy,
                on_progress=show,
            )
    except MigrationFailedError as error:
        if as_json:
            emit({**error.report.as_dict(), "error": str(error)}, as_json=True, render=lambda: "")
        raise
    except KeyboardInterrupt:
        sys.stderr.write(f"rayvisor: called off: {name} is {vm.status().state} where it was\n")
        raise
    emit(report.as_dict(), as_json=as_json, render=lambda: report_table(report))


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    """SIGTERM as ctrl-C, so that nothing is left half-done."""
    raise KeyboardInterrupt


@contextmanager
def _progress(text: str, *, quiet: bool) -> Iterator[Callable[[Progress], None]]:
    """Show a migration's progress on standard error: a bar on a terminal, lines elsewhere."""
    if quiet:
        yield lambda _progress: None
        return
    if not sys.stderr.isatty():
        last_s = time.monotonic()

        def line(progress: Progress) -> None:
            nonlocal last_s
            if time.monotonic() - last_s >= LINE_EVERY_S:
                last_s = time.monotonic()
                sys.stderr.write(f"  {describe(progress)}\n")

        with step(text):
            yield line
        return
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[what]}"),
        TimeElapsedColumn(),
    )
    with Bar(*columns, console=stderr_console(), transient=True) as bar:
        task = bar.add_task(text, total=None, what="")
        most = 0

        def show(progress: Progress) -> None:
            nonlocal most
            most = max(most, progress.remaining_pages) if progress.round else most
            most = most or progress.remaining_pages
            done = most - progress.remaining_pages
            bar.update(task, total=most or None, completed=max(done, 0), what=describe(progress))

        yield show


def describe(progress: Progress) -> str:
    """Where a migration stands, in a line."""
    from rayvisor.runtime.units import format_bytes

    parts = [
        f"{progress.phase}, round {progress.round}",
        f"{progress.remaining_pages:,} pages left",
        f"{progress.dirty_pages_per_s:,.0f} written/s",
        f"{format_bytes(int(progress.bytes_per_s))}/s",
    ]
    if progress.expected_downtime_s is not None:
        parts.append(f"downtime {progress.expected_downtime_s * 1000:.0f} ms")
    if progress.throttle:
        parts.append(f"slowed by {progress.throttle:.0%}")
    return ", ".join(parts)


def report_table(report: MigrationReport) -> RenderableType:
    """A migration's report for a terminal."""
    from rich import box
    from rich.console import Group
    from rich.table import Table

    from rayvisor.runtime.units import format_bytes

    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_column(style="dim")
    facts.add_column()
    phases = ", ".join(
        f"{phase.removesuffix('_s').replace('_', ' ')} {seconds * 1000:.0f} ms"
        for phase, seconds in report.phases.items()
    )
    for label, value in (
        ("total", f"{report.total_s:.3f} s"),
        ("downtime", _downtime(report)),
        ("phases", phases),
    ):
        facts.add_row(label, value)
    first = f"[bold]{report.vm}[/bold] moved from {report.source} to {report.destination}"
    if not report.rounds:  # its secondary had all its pages
        return Group(first, facts)
    sent = format_bytes(report.bytes_sent)
    facts.add_row("sent", f"{sent}, packed {report.compression_ratio:.1f} to 1")
    facts.add_row("pages", f"{report.pages_sent:,} with content, {report.zero_pages:,} empty")
    rounds = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("ROUND", "PAGES", "EMPTY", "DELTAS", "SENT", "SECONDS", "WRITTEN", "SLOWED"):
        rounds.add_column(column, justify="right")
    for done in report.rounds:
        rounds.add_row(
            str(done.number),
            f"{done.pages:,}",
            f"{done.zero_pages:,}",
            f"{done.delta_pages:,}",
            format_bytes(done.bytes_sent),
            f"{done.seconds:.3f}",
            f"{done.dirty_pages:,}",
            f"{done.throttle:.0%}",
        )
    return Group(first, facts, rounds)


def evacuate(
    host: Host,
    *,
    timeout: Annotated[
        str | None, typer.Option(metavar="TIME", help="When to begin no more, such as 5min.")
    ] = None,
    undo: Annotated[
        bool, typer.Option("--undo", help="End the maintenance instead, as resume-host does.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Put a host in maintenance: it takes no VM, and its VMs move elsewhere, several at a time.

    Secondaries of fault tolerant VMs that are on it are made anew elsewhere.
    """
    if undo:
        resume_host(host, as_json=as_json)
        return
    cluster = _connect()
    signal.signal(signal.SIGTERM, _interrupt)
    with step(f"Evacuating {host}", quiet=as_json) as say:
        done = cluster.evacuate(host, timeout=timeout, on_event=say)
    moved, stayed = len(done.moved) + len(done.secondaries), len(done.stayed)
    emit(done.as_dict(), as_json=as_json, render=lambda: _evacuated(done))
    if stayed:
        raise EvacuationError(
            f"{stayed} of {moved + stayed} VMs are still on {done.host}; it takes no new ones until"
            f" `rayvisor resume-host {done.host}`"
        )


def _evacuated(done: Evacuation) -> RenderableType:
    from rich import box
    from rich.console import Group
    from rich.table import Table

    moved, stayed = len(done.moved) + len(done.secondaries), len(done.stayed)
    if not moved and not stayed:
        return f"{done.host} is in maintenance; there was nothing on it."
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("VM", "NOW ON", "DOWNTIME", "REASON"):
        table.add_column(column, overflow="fold")
    for report in done.moved:
        table.add_row(report.vm, report.destination, _downtime(report), "")
    for name, where in done.secondaries.items():
        table.add_row(f"{name}'s secondary", where, "", "")
    for name, why in done.stayed.items():
        table.add_row(name, done.host, "", why)
    return Group(f"{done.host} is in maintenance: {moved} moved, {stayed} stayed.", table)


def _downtime(report: MigrationReport) -> str:
    bound = "at most " if report.downtime_is_bound else ""
    return f"{bound}{report.downtime_s * 1000:.1f} ms"


def resume_host(host: Host, *, as_json: JsonOption = False) -> None:
    """End a host's maintenance: it takes VMs again."""
    status = _connect().resume_host(host)
    emit(
        dataclasses.asdict(status),
        as_json=as_json,
        render=lambda: f"{status.name} takes VMs again.",
    )


def events(
    *,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on as they come, until ctrl-C.")
    ] = False,
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=1, help="How many of the last ones.")
    ] = 100,
    vm: Annotated[
        str | None, typer.Option("--vm", metavar="NAME", help="Only what is about this VM.")
    ] = None,
    host: Annotated[
        str | None, typer.Option("--host", metavar="HOST", help="Only what is about this host.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what happened in the cluster, oldest first.

    With --json one array, with --follow too one object a line.
    """

    def wanted(event: Event) -> bool:
        return vm in {None, event.vm} and host in {None, event.host}

    cluster = _connect()
    kept = cluster.events()
    found = [event for event in kept if wanted(event)][-limit:]
    if not follow:
        emit(
            [_as_dict(event) for event in found],
            as_json=as_json,
            render=lambda: "\n".join(map(_line, found)) or "Nothing has happened yet.",
        )
        return
    seen = dict.fromkeys(event.id for event in kept)
    while True:
        for event in found:
            sys.stdout.write((json.dumps(_as_dict(event)) if as_json else _line(event)) + "\n")
        sys.stdout.flush()
        time.sleep(FOLLOW_EVERY_S)
        # Clocks of hosts differ a little: what comes late may sort before what was there.
        recent = list(seen)[-10 * OVERLAP :]
        fresh = cluster.events(after=recent[-OVERLAP] if len(recent) >= OVERLAP else "")
        found = [event for event in fresh if event.id not in seen and wanted(event)]
        seen = dict.fromkeys([*recent, *(e.id for e in fresh if e.id not in seen)])


def _as_dict(event: Event) -> dict[str, Any]:
    return dataclasses.asdict(event)


def _line(event: Event) -> str:
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.unix_s))
    return f"{when}  {event.kind:20}  {event.text}"
