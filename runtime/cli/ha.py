"""`rayvisor ha`: what is kept alive, and what is done when it dies."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rayvisor.actors.policy import Restart
from rayvisor.runtime.cli.output import JsonOption, emit
from rayvisor.vmm.errors import ConfigError
from rayvisor.vmm.spec import HangAction

if TYPE_CHECKING:
    from rich.console import RenderableType

    from rayvisor.actors.guardian import HaStats
    from rayvisor.actors.records import HostStatus, VmStatus


def register(app: typer.Typer) -> None:
    """Put the command on the command line."""
    app.command("ha")(ha)


def ha(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="A VM whose policy is to be changed.")
    ] = None,
    *,
    restart: Annotated[
        Restart | None, typer.Option(help="When NAME is started again after it ended.")
    ] = None,
    priority: Annotated[
        int | None, typer.Option(help="Of VMs that are down the greater goes first; 0 to 100.")
    ] = None,
    delay: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Before a second restart in a row; it doubles."),
    ] = None,
    on_hang: Annotated[
        HangAction | None, typer.Option(help="When NAME's watchdog expires or its heartbeat stops.")
    ] = None,
    heartbeat: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="NAME hangs when silent for so long; 0s for never."),
    ] = None,
    reserve: Annotated[
        int | None,
        typer.Option(metavar="N", help="Keep room for the loss of so many hosts; 0 for none."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show high availability: hosts' leases, VMs' policies, the reserve. Or change them.

    A VM with a policy is started again from its boot source, on any host with room: its memory is
    lost, and what only it knew. Protection that loses nothing is `rayvisor ft`.
    """
    from rayvisor.runtime.cluster import Cluster

    asked: dict[str, Any] = {
        "restart": restart,
        "priority": priority,
        "delay": delay,
        "on_hang": on_hang,
        "heartbeat": heartbeat,
    }
    asked_any = any(value is not None for value in asked.values())
    if name is None and asked_any:
        raise ConfigError("give the NAME of the VM whose policy is to be changed")
    if name is not None and not asked_any:
        options = ", ".join(f"--{option.replace('_', '-')}" for option in asked)
        raise ConfigError(f"say what is to be changed of {name}: {options}")
    cluster = Cluster.connect()
    if name is not None:
        cluster.vm(name).set_ha(**asked)
    if reserve is not None:
        cluster.set_reserve(reserve)
    stats, hosts, vms = cluster.ha_stats(), cluster.hosts(), cluster.vms()
    emit(_as_dict(stats, hosts, vms), as_json=as_json, render=lambda: _table(stats, hosts, vms))


def _as_dict(stats: HaStats, hosts: list[HostStatus], vms: list[VmStatus]) -> dict[str, Any]:
    return {
        **dataclasses.asdict(stats),
        "hosts": [
            {"name": h.name, "lease": h.lease, "heard_s": h.heard_s, "reason": h.reason}
            for h in hosts
        ],
        "vms": [
            {
                "name": vm.name,
                "state": vm.state,
                "host": vm.host,
                "restart": vm.restart,
                "priority": vm.priority,
                "restarts": vm.restarts,
                "reason": vm.reason,
            }
            for vm in vms
        ],
    }


def _table(stats: HaStats, hosts: list[HostStatus], vms: list[VmStatus]) -> RenderableType:
    from rich import box
    from rich.console import Group
    from rich.table import Table

    there = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("HOST", "LEASE", "HEARD OF", "VMS"):
        there.add_column(column, overflow="fold")
    for host in hosts:
        heard = "" if host.heard_s is None else f"{host.heard_s:.1f} s ago"
        there.add_row(host.name, host.lease or "unknown", heard, str(host.vms))
    kept = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("VM", "STATE", "HOST", "RESTART", "PRIORITY", "RESTARTS", "REASON"):
        kept.add_column(column, overflow="fold")
    for vm in vms:
        numbers = (str(vm.priority), str(vm.restarts))
        kept.add_row(vm.name, vm.state.value, vm.host, vm.restart, *numbers, vm.reason)
    n = stats.reserve_hosts
    first = (
        f"Room is kept for the loss of {n} host{'s' * (n != 1)}."
        if n
        else "No room is kept for the loss of a host: rayvisor ha --reserve 1 keeps it."
    )
    return Group(first, there, kept)
