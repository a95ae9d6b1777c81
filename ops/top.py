"""What `rayvisor top` shows: hosts and VMs with their load, from two snapshots."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from rayvisor.ops.collectors import LIVE_STATES, HostFacts

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import RenderableType

    from rayvisor.vmm.stats import HostStats, VmStats

LIVE_CPU_TARGET: Final = 0.8
"""Share of a host's cores that VMs may keep busy before another host is counted as needed."""

_IDLE_MODES: Final = ("idle", "iowait")
_FRESH_S: Final = 15.0


@dataclass(frozen=True, slots=True)
class Sample:
    """The cluster at one moment. A host that does not answer has no stats."""

    at_s: float
    unix_s: float
    hosts: tuple[tuple[HostFacts, HostStats | None], ...]


@dataclass(frozen=True, slots=True)
class HostRow:
    """A host. Shares are 0 to 1 of the whole machine; None before there are two samples."""

    host: str
    up: bool
    vms: int
    vcpus: int
    cores: int
    cpu_share: float | None
    vms_cpu_cores: float | None
    guest_bytes: int
    memory_bytes: int
    available_bytes: int


@dataclass(frozen=True, slots=True)
class VmRow:
    """A VM. `cpu_cores` is what its process used, in cores."""

    vm: str
    host: str
    state: str
    cpu_cores: float | None
    exits_per_s: float | None
    touched_bytes: int
    memory_bytes: int
    uptime_s: float
    silent_s: float
    """How long its process has told nothing; a few seconds are usual."""


@dataclass(frozen=True, slots=True)
class Totals:
    """The cluster; ratios are None where there is nothing to divide by."""

    hosts: int
    hosts_up: int
    vms: int
    vms_running: int
    vms_per_host: float | None
    vcpus_per_core: float | None
    guest_memory_ratio: float | None
    hosts_needed: int | None


@dataclass(frozen=True, slots=True)
class View:
    """Everything `top` shows."""

    totals: Totals
    hosts: tuple[HostRow, ...]
    vms: tuple[VmRow, ...]

    def as_dict(self) -> dict[str, Any]:
        """The view in JSON's terms."""
        return asdict(self)


def view(now: Sample, before: Sample | None = None) -> View:
    """What to show; rates are those between the two samples. The busiest VMs come first."""
    earlier = dict(_stats(before)) if before is not None else {}
    elapsed_s = now.at_s - before.at_s if before is not None else 0.0
    hosts, vms = [], []
    for facts, stats in now.hosts:
        was = earlier.get(facts.name)
        rows = _vm_rows(facts.name, stats, was, elapsed_s, now.unix_s) if stats else []
        hosts.append(_host_row(facts, stats, was, rows))
        vms += rows
    vms.sort(key=lambda row: (-(row.cpu_cores or 0.0), row.vm))
    return View(_totals(hosts, vms, dict(_stats(now))), tuple(hosts), tuple(vms))


def render(shown: View, *, rows: int | None = None) -> RenderableType:
    """The view for a terminal of 80 columns; of VMs only as many as `rows` lines allow."""
    parts: list[RenderableType] = [_summary(shown.totals), _host_table(shown.hosts)]
    space = len(shown.vms) if rows is None else max(1, rows - len(shown.hosts) - 11)
    if shown.vms:
        parts.append(_vm_table(shown.vms[:space]))
    left_out = len(shown.vms) - space
    if left_out > 0:
        parts.append(Text(f"and {left_out} VMs less busy", "dim"))
    return Group(*parts)


def _stats(sample: Sample) -> Iterable[tuple[str, HostStats]]:
    return ((facts.name, stats) for facts, stats in sample.hosts if stats is not None)


def _vm_rows(
    host: str, stats: HostStats, was: HostStats | None, elapsed_s: float, now_unix_s: float
) -> list[VmRow]:
    # By token: a VM of the same name that was made anew counts from zero.
    told = {vm.token: vm for vm in was.vms} if was else {}
    rows = []
    for vm in stats.vms:
        past = told.get(vm.token)
        process = stats.processes.get(vm.name)
        old_process = was.processes.get(vm.name) if was and past else None
        cpu_cores = None
        if process and old_process and elapsed_s > 0:
            cpu_cores = max(0.0, process.cpu_s - old_process.cpu_s) / elapsed_s
        rows.append(
            VmRow(
                vm=vm.name,
                host=host,
                state=vm.state,
                cpu_cores=cpu_cores,
                exits_per_s=_exits_per_s(vm, past),
                touched_bytes=vm.touched_bytes,
                memory_bytes=vm.memory_bytes,
                uptime_s=max(0.0, now_unix_s - vm.started_unix_s),
                silent_s=max(0.0, now_unix_s - vm.told_unix_s),
            )
        )
    return rows


def _exits_per_s(vm: VmStats, past: VmStats | None) -> float | None:
    """Between two tellings, or since power-on: a VM tells less often than a screen is drawn."""
    exits, begun_s = sum(vm.exits.values()), vm.started_unix_s
    if past is not None and past.told_unix_s < vm.told_unix_s:
        exits, begun_s = exits - sum(past.exits.values()), past.told_unix_s
    seconds = vm.told_unix_s - begun_s
    return max(0, exits) / seconds if seconds > 0 else None


def _host_row(
    facts: HostFacts, stats: HostStats | None, was: HostStats | None, rows: Sequence[VmRow]
) -> HostRow:
    if stats is None:
        return HostRow(facts.name, False, facts.vms, 0, 0, None, None, 0, 0, 0)
    share = None
    if was is not None:
        spent = {mode: s - was.cpu_s.get(mode, 0.0) for mode, s in stats.cpu_s.items()}
        whole_s = sum(spent.values())
        if whole_s > 0:
            share = 1 - sum(spent.get(mode, 0.0) for mode in _IDLE_MODES) / whole_s
    used = [row.cpu_cores for row in rows if row.cpu_cores is not None]
    return HostRow(
        host=facts.name,
        up=facts.up,
        vms=len(stats.vms),
        vcpus=sum(vm.cpus for vm in stats.vms),
        cores=stats.cores,
        cpu_share=share,
        vms_cpu_cores=sum(used) if used or was is not None else None,
        guest_bytes=sum(vm.memory_bytes for vm in stats.vms),
        memory_bytes=stats.memory_bytes,
        available_bytes=stats.memory_available_bytes,
    )


def _totals(hosts: Sequence[HostRow], vms: Sequence[VmRow], stats: dict[str, HostStats]) -> Totals:
    up = [host for host in hosts if host.up]
    cores, memory_bytes = sum(h.cores for h in up), sum(h.memory_bytes for h in up)
    return Totals(
        hosts=len(hosts),
        hosts_up=len(up),
        vms=len(vms),
        vms_running=sum(row.state in LIVE_STATES for row in vms),
        vms_per_host=len(vms) / len(up) if up else None,
        vcpus_per_core=sum(h.vcpus for h in up) / cores if cores else None,
        guest_memory_ratio=sum(h.guest_bytes for h in up) / memory_bytes if memory_bytes else None,
        hosts_needed=_hosts_needed(hosts, stats),
    )


def _hosts_needed(hosts: Sequence[HostRow], stats: dict[str, HostStats]) -> int | None:
    """Hosts of the mean size that would carry what there is; as the recording rule has it."""
    alike = [s for s in stats.values() if s.vm_memory_limit_bytes]
    if not alike:
        return None
    shares = [
        sum(s.vm_memory_promised_bytes for s in alike)
        / sum(s.vm_memory_limit_bytes for s in alike),
        sum(vm.cpus for s in alike for vm in s.vms) / sum(s.vcpus_limit for s in alike),
        sum(h.vms_cpu_cores or 0.0 for h in hosts)
        / (LIVE_CPU_TARGET * sum(s.cores for s in alike)),
    ]
    return math.ceil(max(shares) * len(alike))


def _summary(totals: Totals) -> Text:
    hosts = f"{totals.hosts_up} of {totals.hosts} hosts up"
    line = Text.assemble(
        ("Rayvisor", "bold"),
        "  ",
        (hosts, "green" if totals.hosts_up == totals.hosts else "red"),
        f"  {totals.vms_running} of {totals.vms} VMs running\n",
    )
    ratios = [
        ("VMs/host", totals.vms_per_host),
        ("vCPUs/core", totals.vcpus_per_core),
        ("guest/host memory", totals.guest_memory_ratio),
    ]
    line.append("  ".join(f"{name} {value:.2f}" for name, value in ratios if value is not None))
    if totals.hosts_needed is not None:
        line.append(f"  hosts needed {totals.hosts_needed}")
    return line


def _host_table(hosts: Sequence[HostRow]) -> Table:
    table = _table(
        "HOST:20", "VMS:>", "VCPUS/CORES:>", "CPU:>", "BY VMS:>", "MEMORY FREE:>", "STATE"
    )
    for h in hosts:
        table.add_row(
            h.host,
            str(h.vms),
            f"{h.vcpus}/{h.cores}",
            _percent(h.cpu_share),
            _percent(h.vms_cpu_cores),
            f"{_size(h.available_bytes)}/{_size(h.memory_bytes)}",
            Text("up", "green") if h.up else Text("down", "red"),
        )
    return table


def _vm_table(vms: Sequence[VmRow]) -> Table:
    table = _table("VM:18", "HOST:12", "STATE", "CPU:>", "EXITS/S:>", "TOUCHED:>", "UPTIME:>")
    for vm in vms:
        live = vm.state in LIVE_STATES
        state = Text(vm.state, "green" if live else "red" if vm.state == "crashed" else "dim")
        if vm.silent_s > _FRESH_S:
            state = Text(f"silent {vm.silent_s:.0f}s", "red")
        table.add_row(
            vm.vm,
            vm.host,
            state,
            _percent(vm.cpu_cores),
            "-" if vm.exits_per_s is None or not live else f"{vm.exits_per_s:.0f}",
            f"{_size(vm.touched_bytes)}/{_size(vm.memory_bytes)}",
            _span(vm.uptime_s) if live else "-",
        )
    return table


def _table(*columns: str) -> Table:
    """A table; a column is NAME, NAME:> to align right, or NAME:WIDTH at most."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in columns:
        name, _, how = column.partition(":")
        table.add_column(
            name,
            justify="right" if how == ">" else "left",
            min_width=None if how.isdigit() else len(name),
            max_width=int(how) if how.isdigit() else None,
            overflow="ellipsis",
            no_wrap=True,
        )
    return table


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f}%"


def _size(count: int) -> str:
    """At most five characters: "96M", "1.5G"."""
    value, units = count / (1 << 20), "MGTP"
    for unit in units:
        if value < 1000 or unit == units[-1]:
            break
        value /= 1024
    return f"{value:.1f}{unit}" if unit != "M" and value < 10 else f"{value:.0f}{unit}"


def _span(seconds: float) -> str:
    """At most six characters: "42s", "3m20s", "5h12m", "3d4h"."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole // 60 % 60:02}m"
    return f"{whole // 86400}d{whole // 3600 % 24}h"
