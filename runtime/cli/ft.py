"""`rayvisor ft enable`, `disable`, `status` and `failover`."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Final

import typer

from rayvisor.runtime import protecting
from rayvisor.runtime.cli.output import JsonOption, emit, step

if TYPE_CHECKING:
    from rich.console import RenderableType

    from rayvisor.actors.records import FtStatus
    from rayvisor.runtime.cluster import Cluster

ENABLE_S: Final = 120.0

Name = Annotated[str, typer.Argument(metavar="NAME", help="The VM's name.")]

group = typer.Typer(
    no_args_is_help=True,
    help="Keep a VM running through the loss of its host.",
    epilog=(
        "A fault tolerant VM has a secondary on another host that is one checkpoint behind. What"
        " the VM says is shown once the secondary has what led to it, so nothing that anybody has"
        " seen is ever lost. Needs two hosts: try `rayvisor up --hosts 3`."
    ),
)


def register(app: typer.Typer) -> None:
    """Put the commands on the command line."""
    app.add_typer(group, name="ft")


def _connect() -> Cluster:
    from rayvisor.runtime.cluster import Cluster

    return Cluster.connect()


@group.command()
def enable(
    name: Name,
    *,
    epoch: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Time between two checkpoints; 25ms by default."),
    ] = None,
    silence: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="Not heard for so long, a host is taken for dead; 500ms."
        ),
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(metavar="HOST", help="Where the secondary is; most room by default."),
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Return when the VM is protected.")
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Give a VM a secondary on another host, and a new one whenever that is lost."""
    cluster = _connect()
    with step(f"Protecting {name}", quiet=as_json) as say:
        status = cluster.ft_enable(name, epoch=epoch, silence=silence, host=host)
        if wait:
            last = ""

            def look(now: FtStatus) -> None:
                nonlocal last
                text = now.reason or f"{now.state}, on {now.secondary}" if now.secondary else ""
                if text != last:
                    last = text
                    say(text)

            status = protecting.wait_until_protected(cluster, name, ENABLE_S, look)
    emit(dataclasses.asdict(status), as_json=as_json, render=lambda: line(status))


@group.command()
def disable(name: Name, *, as_json: JsonOption = False) -> None:
    """Make a VM an ordinary one again. It goes on where it is."""
    status = _connect().ft_disable(name)
    emit(dataclasses.asdict(status), as_json=as_json, render=lambda: line(status))


@group.command()
def failover(name: Name, *, as_json: JsonOption = False) -> None:
    """Have a VM go on at its secondary now, as before maintenance of its host. Nothing is lost."""
    cluster = _connect()
    with step(f"Switching {name} over", quiet=as_json):
        status = cluster.ft_failover(name)
    emit(dataclasses.asdict(status), as_json=as_json, render=lambda: line(status))


@group.command("status")
def show_status(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="One VM; all by default.")
    ] = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Show which VMs are protected, by what, and what it costs them."""
    cluster = _connect()
    found = cluster.ft_statuses() if name is None else [cluster.ft_status(name)]
    emit(
        [dataclasses.asdict(s) for s in found],
        as_json=as_json,
        render=lambda: (
            table(found) if found else "No VM is fault tolerant: `rayvisor ft enable NAME`."
        ),
    )


def words(status: FtStatus) -> str:
    """The state, as people read it."""
    return {
        "protected": "protected",
        "lagging": "protected, slow link",
        "seeding": "re-protecting" if status.failovers or status.reason else "being protected",
        "unprotected": "not protected",
        "off": "not fault tolerant",
    }[status.state]


def line(status: FtStatus) -> str:
    """How protected a VM is, in a line."""
    text = f"{status.vm} on {status.host} is {words(status)}"
    if status.secondary:
        text += f" by {status.secondary}"
    return f"{text}: {status.reason}" if status.reason else f"{text}."


def table(found: list[FtStatus]) -> RenderableType:
    """How protected VMs are, and below why some are not."""
    from rich import box
    from rich.console import Group
    from rich.table import Table

    from rayvisor.runtime.units import format_bytes

    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("VM", "HOST", "SECONDARY", "STATE"):
        shown.add_column(column, no_wrap=True)
    for column in ("EPOCH", "PAUSE", "DIRTY", "HELD", "FAILOVERS"):
        shown.add_column(column, justify="right")
    for s in found:
        counted = ["-"] * 4
        if s.stats is not None:
            counted = [
                f"{s.stats.epoch_s * 1000:.0f} ms",
                f"{s.stats.pause_s * 1000:.1f} ms",
                format_bytes(s.stats.dirty_bytes),
                format_bytes(s.stats.held_bytes),
            ]
        shown.add_row(s.vm, s.host, s.secondary or "-", words(s), *counted, str(s.failovers))
    return Group(shown, *(line(s) for s in found if s.reason))
