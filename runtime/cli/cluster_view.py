"""How hosts and VMs look on a terminal."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from rayvisor.actors.records import VmState
from rayvisor.runtime.units import format_bytes
from rayvisor.vmm.debug.direct import render_direct

if TYPE_CHECKING:
    from rich.console import RenderableType

    from rayvisor.actors.records import HostStatus, VmStatus

_COLOURS: Final = {
    VmState.RUNNING: "green",
    VmState.PAUSED: "yellow",
    VmState.CREATING: "yellow",
    VmState.RESTARTING: "yellow",
    VmState.CRASHED: "red",
    VmState.FAILED: "red",
    VmState.UNREACHABLE: "red",
}


def host_table(hosts: list[HostStatus]) -> RenderableType:
    """The hosts, one a line."""
    table = _table("HOST", "ADDRESS", "CORES", "VCPUS", "MEMORY", "VMS", "STATE")
    for host in hosts:
        used, has = format_bytes(host.memory_used_bytes), format_bytes(host.memory_bytes)
        table.add_row(
            host.name,
            host.address,
            str(host.cores),
            f"{host.vcpus_used} of {host.vcpus}",
            f"{used} of {has}",
            str(host.vms),
            _readiness(host),
        )
    return table


def _readiness(host: HostStatus) -> Text:
    if not host.reason:
        return Text("ready", "green")
    return Text(host.reason, "yellow" if host.maintenance and host.alive else "red")


def vm_table(vms: list[VmStatus]) -> RenderableType:
    """The VMs, one a line."""
    if not vms:
        return "No VMs. [cyan]rayvisor create NAME[/cyan] makes one."
    table = _table("NAME", "STATE", "HOST", "MEMORY", "UPTIME", "REASON")
    for vm in vms:
        table.add_row(
            vm.name,
            _state(vm.state),
            f"{vm.host} → {vm.moving_to}" if vm.moving_to else vm.host,
            format_bytes(vm.memory_bytes),
            format_duration(vm.uptime_s),
            Text(vm.reason),
        )
    return table


def vm_details(vm: VmStatus, report: dict[str, Any] | None) -> RenderableType:
    """One VM with all that is known of it."""
    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_column(style="dim")
    facts.add_column()
    rows: list[tuple[str, str | Text]] = [
        ("state", _state(vm.state)),
        ("reason", Text(vm.reason)),
        ("exit status", "" if vm.exit_status is None else str(vm.exit_status)),
        ("host", vm.host),
        ("moving to", vm.moving_to),
        ("process", str(vm.pid or "")),
        ("memory", format_bytes(vm.memory_bytes)),
        ("vCPUs", str(vm.cpus)),
        ("image", vm.image),
        ("restart", f"{vm.restart}, priority {vm.priority}" if vm.restart != "never" else ""),
        ("restarts", str(vm.restarts or "")),
        ("ends with job", vm.owner),
        ("created", time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(vm.created_unix_s))),
        ("uptime", format_duration(vm.uptime_s)),
    ]
    crash = None
    if report is not None:
        exits: dict[str, int] = report.get("exits", {})
        often = sorted(exits.items(), key=lambda item: -item[1])
        rows += [
            ("CPU time", f"{report.get('cpu_s', 0.0):.1f} s"),
            ("user code", render_direct(report["direct"]) if "direct" in report else ""),
            ("exits", ", ".join(f"{kind} {count:,}" for kind, count in often)),
        ]
        crash = report.get("crash")
    for label, value in rows:
        if value:
            facts.add_row(label, value)
    parts: list[RenderableType] = [Text(vm.name, "bold"), facts]
    if crash:
        parts += [Text("\nCrash report", "bold red"), Text(str(crash["text"]))]
    return Group(*parts)


def format_duration(seconds: float) -> str:
    """A span of time as people read it: "42 s", "3 min 20 s", "5 h 12 min", "3 d 4 h"."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole // 60 % 60} min"
    return f"{whole // 86400} d {whole // 3600 % 24} h"


def _state(state: VmState) -> Text:
    return Text(state.value, _COLOURS.get(state, "dim"))


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
