"""The dashboards, in `ALL`. `python -m rayvisor.ops.grafana` writes them as JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from grafana_foundation_sdk.builders.dashboard import Row
from grafana_foundation_sdk.cog.encoder import JSONEncoder

from rayvisor.ops import metrics
from rayvisor.ops.grafana.ft import ft
from rayvisor.ops.grafana.migration import migration
from rayvisor.ops.grafana.panels import OF_VM, ON_HOST, RATE, choice, dashboard, graph, stat

if TYPE_CHECKING:
    from collections.abc import Callable

    from grafana_foundation_sdk.builders.dashboard import Dashboard

BUSY: Final = 'mode!="idle"'
HOST_CPU: Final = metrics.HOST_CPU.full_name
VM_CPU: Final = metrics.VM_PROCESS_CPU.full_name
VCPU: Final = metrics.VM_TIME.full_name
WORKING: Final = 'kind=~"native|translated|switching"'
CONSOLE: Final = metrics.VM_CONSOLE.full_name


def cluster() -> Dashboard:
    """How many VMs stand on how many hosts, what that saves, and what goes wrong."""
    return (
        dashboard("rayvisor-cluster", "Rayvisor / Cluster", "Consolidation and load.", [])
        .with_row(Row("Consolidation"))
        .with_panel(stat("Hosts up", "short", "sum(rayvisor_cluster_host_up)"))
        .with_panel(
            stat(
                "Hosts down",
                "short",
                "count(rayvisor_cluster_host_up) - sum(rayvisor_cluster_host_up)",
                limits=(None, 1),
            )
        )
        .with_panel(stat("VMs", "short", "sum(rayvisor_host_vms)"))
        .with_panel(stat("VMs a host", "none", "rayvisor:vms_per_host:ratio"))
        .with_panel(stat("vCPUs a core", "none", "rayvisor:vcpus_per_core:ratio", limits=(8, 16)))
        .with_panel(
            stat(
                "Hosts needed",
                "short",
                "rayvisor:hosts_needed:count",
                about="Hosts of the mean size that would carry the present load.",
            )
        )
        .with_panel(
            graph(
                "Hosts there are, and hosts needed",
                "short",
                ("count(rayvisor_host_cores)", "there are"),
                ("rayvisor:hosts_needed:count", "needed"),
            )
        )
        .with_panel(
            graph(
                "VMs by state",
                "short",
                ("sum by (state) (rayvisor_host_vms)", "{{state}}"),
                stacked=True,
            )
        )
        .with_panel(
            graph("VMs a host", "short", ("host:rayvisor_vms:count", "{{host}}"), stacked=True)
        )
        .with_panel(
            graph(
                "Guest memory over host memory",
                "percentunit",
                ("host:rayvisor_guest_memory:ratio", "{{host}}"),
                ("rayvisor:guest_memory:ratio", "cluster"),
                limits=(1, 1.5),
                about="Above 100 % more is configured than there is; what guests touch counts.",
            )
        )
        .with_row(Row("Load"))
        .with_panel(
            graph(
                "CPU of the hosts",
                "percentunit",
                ("host:rayvisor_cpu_busy:ratio", "{{host}}"),
                limits=(0.8, 0.95),
                at_most=1,
            )
        )
        .with_panel(
            graph(
                "CPU of the VMs, in cores",
                "none",
                ("host:rayvisor_vm_cpu_cores:rate2m", "{{host}}"),
                stacked=True,
            )
        )
        .with_panel(
            graph(
                "Memory that is left",
                "percentunit",
                ("host:rayvisor_memory_available:ratio", "{{host}}"),
                at_most=1,
            )
        )
        .with_panel(
            graph(
                "Guest memory: configured and touched",
                "bytes",
                ("sum(rayvisor_vm_memory_bytes)", "configured"),
                ("sum(rayvisor_vm_memory_touched_bytes)", "touched"),
            )
        )
        .with_row(Row("High availability"))
        .with_panel(
            stat("VMs to be restarted", "short", "sum(rayvisor_cluster_vms_waiting)", limits=(1, 5))
        )
        .with_panel(stat("Hosts kept in reserve", "short", "sum(rayvisor_cluster_reserve_hosts)"))
        .with_panel(
            graph(
                "Last heard of",
                "s",
                ("max by (host) (rayvisor_cluster_host_lease_age_seconds)", "{{host}}"),
                limits=(2, 10),
                about="A host that is not heard of loses its lease; its VMs start elsewhere.",
            )
        )
        .with_panel(
            graph(
                "VMs started again, in 5 minutes",
                "short",
                (
                    "sum by (outcome) (increase(rayvisor_cluster_vm_restarts_total[5m]))",
                    "{{outcome}}",
                ),
            )
        )
        .with_row(Row("What happened"))
        .with_panel(
            graph(
                "Requests to create a VM, in 5 minutes",
                "short",
                (
                    "sum by (outcome) (increase(rayvisor_cluster_placements_total[5m]))",
                    "{{outcome}}",
                ),
            )
        )
        .with_panel(
            graph(
                "VMs that started, failed, crashed, in 5 minutes",
                "short",
                ("sum(increase(rayvisor_host_vms_started_total[5m]))", "started by a host"),
                ("sum(increase(rayvisor_host_vm_failures_total[5m]))", "process died"),
                (
                    'sum(increase(rayvisor_vm_transitions_total{state="crashed"}[5m]))',
                    "guest crashed",
                ),
                ("sum(increase(rayvisor_vm_resets_total[5m]))", "guest started over"),
            )
        )
    )


def host() -> Dashboard:
    """One host, or several beside each other."""
    return (
        dashboard(
            "rayvisor-host",
            "Rayvisor / Host",
            "A machine and the VMs on it.",
            [choice("host", "label_values(rayvisor_host_cores, host)")],
        )
        .with_row(Row("$host"))
        .with_panel(stat("VMs", "short", f"sum(rayvisor_host_vms{{{ON_HOST}}})"))
        .with_panel(stat("Cores", "short", f"sum(rayvisor_host_cores{{{ON_HOST}}})"))
        .with_panel(
            stat(
                "CPU",
                "percentunit",
                f"avg(host:rayvisor_cpu_busy:ratio{{{ON_HOST}}})",
                limits=(0.8, 0.95),
            )
        )
        .with_panel(
            stat(
                "Memory used",
                "percentunit",
                f"1 - sum(rayvisor_host_memory_available_bytes{{{ON_HOST}}})"
                f" / sum(rayvisor_host_memory_bytes{{{ON_HOST}}})",
                limits=(0.8, 0.9),
            )
        )
        .with_panel(
            stat(
                "Memory promised",
                "percentunit",
                f"sum(rayvisor_host_vm_memory_promised_bytes{{{ON_HOST}}})"
                f" / sum(rayvisor_host_vm_memory_limit_bytes{{{ON_HOST}}})",
                limits=(0.9, 1),
                about="Of what may be promised to VMs.",
            )
        )
        .with_panel(
            stat(
                "Collecting",
                "s",
                f"max(rayvisor_host_collect_seconds{{{ON_HOST}}})",
                limits=(0.02, 0.1),
                about="What the host spends to answer a scrape.",
            )
        )
        .with_panel(
            graph(
                "CPU by mode, in cores",
                "none",
                (
                    f"sum by (mode) (rate({HOST_CPU}{{{ON_HOST},{BUSY}}}[{RATE}]))",
                    "{{mode}}",
                ),
                stacked=True,
                about="Steal is what other machines on the same hardware took.",
            )
        )
        .with_panel(
            graph(
                "CPU by VM, in cores",
                "none",
                (
                    f"topk(20, sum by (vm) (rate({VM_CPU}{{{ON_HOST}}}[{RATE}])))",
                    "{{vm}}",
                ),
                stacked=True,
                about="The twenty busiest.",
            )
        )
        .with_panel(
            graph(
                "Memory",
                "bytes",
                (f"rayvisor_host_memory_bytes{{{ON_HOST}}}", "{{host}} all"),
                (f"rayvisor_host_memory_available_bytes{{{ON_HOST}}}", "{{host}} available"),
                (f"rayvisor_host_vm_memory_promised_bytes{{{ON_HOST}}}", "{{host}} promised"),
            )
        )
        .with_panel(
            graph(
                "Resident memory of the VMs' processes",
                "bytes",
                (
                    f"sum by (part) (rayvisor_vm_process_resident_bytes{{{ON_HOST}}})",
                    "{{part}}",
                ),
                stacked=True,
                about="Shared is guest RAM and files; pages of files count in each process.",
            )
        )
        .with_panel(
            graph(
                "Exits by kind, a second",
                "ops",
                (
                    f"sum by (kind) (rate(rayvisor_vm_exits_total{{{ON_HOST}}}[{RATE}])) > 0",
                    "{{kind}}",
                ),
            )
        )
        .with_panel(
            graph(
                "vCPUs a core",
                "none",
                (f"host:rayvisor_vcpus_per_core:ratio{{{ON_HOST}}}", "{{host}}"),
                limits=(8, 16),
            )
        )
    )


def _percentile_99(histogram: str) -> str:
    """Of each VM's values in a moment."""
    return (
        f"histogram_quantile(0.99, sum by (vm, le) (rate({histogram}_bucket{{{OF_VM}}}[{RATE}])))"
    )


def vm() -> Dashboard:
    """One VM, or several beside each other, wherever they are."""
    return (
        dashboard(
            "rayvisor-vm",
            "Rayvisor / VM",
            "A VM, wherever it runs.",
            [choice("vm", "label_values(rayvisor_vm_info, vm)")],
        )
        .with_row(Row("$vm"))
        .with_panel(
            stat("Running", "short", f'count(rayvisor_vm_state{{{OF_VM},state="running"}})')
        )
        .with_panel(stat("Up for", "s", f"time() - max(rayvisor_vm_start_time_seconds{{{OF_VM}}})"))
        .with_panel(
            stat(
                "CPU, in cores",
                "none",
                f"sum(rate(rayvisor_vm_process_cpu_seconds_total{{{OF_VM}}}[{RATE}]))",
                limits=(0.8, 0.98),
            )
        )
        .with_panel(stat("Guest memory", "bytes", f"sum(rayvisor_vm_memory_bytes{{{OF_VM}}})"))
        .with_panel(
            stat(
                "Touched",
                "percentunit",
                f"sum(rayvisor_vm_memory_touched_bytes{{{OF_VM}}})"
                f" / sum(rayvisor_vm_memory_bytes{{{OF_VM}}})",
            )
        )
        .with_panel(
            stat(
                "Last told",
                "s",
                f"max(rayvisor_vm_stats_age_seconds{{{OF_VM}}})",
                limits=(15, 60),
                about="How long ago the VM's process told what is shown here.",
            )
        )
        .with_panel(
            graph(
                "CPU, in cores",
                "none",
                (
                    f"sum by (vm) (rate({VCPU}{{{OF_VM},{WORKING}}}[{RATE}]))",
                    "{{vm}} guest and chips",
                ),
                (
                    f"sum by (vm) (rate(rayvisor_vm_process_cpu_seconds_total{{{OF_VM}}}[{RATE}]))",
                    "{{vm}} whole process",
                ),
            )
        )
        .with_panel(
            graph(
                "Where the vCPUs' time goes",
                "percentunit",
                (
                    (
                        f"sum by (kind) (rate({VCPU}{{{OF_VM}}}[{RATE}]))"
                        f" / scalar(sum(rate({VCPU}{{{OF_VM}}}[{RATE}])))"
                    ),
                    "{{kind}}",
                ),
                stacked=True,
                at_most=1,
                about="Native is guest code run directly; stolen, ready but without a CPU.",
            )
        )
        .with_panel(
            graph(
                "Lateness, 99th percentile",
                "s",
                (
                    _percentile_99("rayvisor_vm_timer_lateness_seconds"),
                    "{{vm}} timers",
                ),
                (
                    _percentile_99("rayvisor_vm_interrupt_lateness_seconds"),
                    "{{vm}} interrupts",
                ),
                limits=(0.01, 0.1),
                about="Timers after their deadlines; interrupts until the guest takes them.",
            )
        )
        .with_panel(
            graph(
                "Exits by kind, a second",
                "ops",
                (
                    f"sum by (kind) (rate(rayvisor_vm_exits_total{{{OF_VM}}}[{RATE}])) > 0",
                    "{{kind}}",
                ),
                about="Times the guest left the translator.",
            )
        )
        .with_panel(
            graph(
                "Guest memory",
                "bytes",
                (f"rayvisor_vm_memory_bytes{{{OF_VM}}}", "{{vm}} configured"),
                (f"rayvisor_vm_memory_touched_bytes{{{OF_VM}}}", "{{vm}} touched"),
            )
        )
        .with_panel(
            graph(
                "Resident memory of the process",
                "bytes",
                (f"rayvisor_vm_process_resident_bytes{{{OF_VM}}}", "{{vm}} {{part}}"),
                stacked=True,
            )
        )
        .with_panel(
            graph(
                "Console output",
                "Bps",
                (
                    f"sum by (vm) (rate({CONSOLE}{{{OF_VM}}}[{RATE}]))",
                    "{{vm}}",
                ),
            )
        )
        .with_panel(
            graph(
                "Entered a state, in 5 minutes",
                "short",
                (
                    f"sum by (vm, state) (increase(rayvisor_vm_transitions_total{{{OF_VM}}}[5m]))",
                    "{{vm}} {{state}}",
                ),
                (
                    f"sum by (vm) (increase(rayvisor_vm_resets_total{{{OF_VM}}}[5m]))",
                    "{{vm}} started over",
                ),
            )
        )
    )


ALL: Final[dict[str, Callable[[], Dashboard]]] = {
    "cluster": cluster,
    "host": host,
    "vm": vm,
    "migration": migration,
    "ft": ft,
}
"""By the name of the file."""


def render(build: Callable[[], Dashboard]) -> str:
    """A dashboard as the JSON that Grafana imports and provisions."""
    made: dict[str, Any] = json.loads(JSONEncoder().encode(build().build()))
    for number, panel in enumerate(made["panels"], 1):
        panel["id"] = number  # links to a panel name it
    return json.dumps(made, sort_keys=True, indent=2) + "\n"


def queries(text: str) -> list[tuple[str, str]]:
    """(panel's title, PromQL) of every query in a rendered dashboard."""
    found: list[tuple[str, str]] = []

    def visit(panels: list[dict[str, Any]]) -> None:
        for panel in panels:
            found.extend((panel["title"], t["expr"]) for t in panel.get("targets") or [])
            visit(panel.get("panels") or [])

    visit(json.loads(text)["panels"])
    return found
