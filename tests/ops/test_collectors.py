"""From snapshots to samples, and as text that Prometheus reads."""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from rayvisor.ops import metrics
from rayvisor.ops.collectors import (
    FT_STATES,
    ClusterCollector,
    ClusterFacts,
    HostCollector,
    HostFacts,
    Lookout,
)
from rayvisor.ops.event_book import EventBook
from tests.ops.snapshots import A_MOVE, AN_FT, AN_HA, MIB, a_host, a_vm

if TYPE_CHECKING:
    from collections.abc import Callable

    from rayvisor.ops.page import Page

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def read(text: str) -> Samples:
    """Samples by name and labels."""
    return {
        (s.name, tuple(sorted(s.labels.items()))): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
    }


def host_samples(*vms: Any, **values: Any) -> Samples:  # noqa: ANN401
    return read(HostCollector(lambda: a_host(*vms, **values)).page().text().decode())


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples["rayvisor_" + name, tuple(sorted(labels.items()))]


def test_a_vm_and_its_host() -> None:
    found = host_samples(a_vm("web"), a_vm("db", state="crashed", memory_bytes=64 * MIB, cpus=2))
    assert value(found, "host_vms", state="running") == 1
    assert value(found, "host_vms", state="crashed") == 1
    assert value(found, "host_vms", state="paused") == 0
    assert value(found, "host_vcpus") == 3
    assert value(found, "host_guest_memory_bytes") == 192 * MIB
    assert value(found, "host_cpu_seconds_total", mode="user") == 100
    assert value(found, "vm_state", vm="db", state="crashed") == 1
    assert value(found, "vm_exits_total", vm="web", kind="io_in") == 700
    assert value(found, "vm_memory_touched_bytes", vm="web") == 75 * MIB
    spent = {
        kind: value(found, "vm_vcpu_seconds_total", vm="web", kind=kind)
        for kind in ("native", "translated", "switching", "stolen", "idle")
    }
    assert spent == {"native": 5, "translated": 11.5, "switching": 1, "stolen": 2, "idle": 80.5}
    late = {
        bound: value(found, "vm_timer_lateness_seconds_bucket", vm="web", le=bound)
        for bound in ("0.0005", "0.002", "0.01", "0.05", "0.2", "+Inf")
    }
    assert list(late.values()) == [800, 890, 890, 890, 900, 900]
    assert value(found, "vm_timer_lateness_seconds_count", vm="web") == 900
    assert value(found, "vm_timer_lateness_seconds_sum", vm="web") == 0.25
    assert value(found, "vm_interrupt_lateness_seconds_bucket", vm="web", le="0.2") == 0
    assert value(found, "vm_interrupt_lateness_seconds_sum", vm="web") == 0.125
    assert value(found, "vm_process_cpu_seconds_total", vm="web") == 10
    assert value(found, "vm_process_resident_bytes", vm="web", part="own") == 70 * MIB


def test_a_crash_can_be_seen_as_an_increase() -> None:
    before, after = (
        host_samples(a_vm(entered=entered))
        for entered in ({"running": 1}, {"running": 1, "crashed": 1})
    )
    assert value(before, "vm_transitions_total", vm="web", state="crashed") == 0
    assert value(after, "vm_transitions_total", vm="web", state="crashed") == 1


def test_a_vm_that_is_gone_leaves_no_series() -> None:
    hosts = [a_host(a_vm("web"), a_vm("db")), a_host(a_vm("db"))]
    collector = HostCollector(lambda: hosts.pop(0))
    first, second = (read(collector.page().text().decode()) for _ in range(2))
    assert any(("vm", "web") in labels for _, labels in first)
    assert not any(("vm", "web") in labels for _, labels in second)
    assert any(("vm", "db") in labels for _, labels in second)


def test_a_migration_that_goes_on() -> None:
    found = host_samples(a_vm("web", move=A_MOVE), a_vm("db"))
    assert value(found, "vm_migration_phase", vm="web", phase="precopy") == 1
    assert value(found, "vm_migration_remaining_bytes", vm="web") == 3 * MIB
    assert value(found, "vm_migration_dirty_bytes_per_second", vm="web") == 2 * MIB
    assert not any("migration" in name for name, labels in found if ("vm", "db") in labels)


def test_fault_tolerance() -> None:
    found = host_samples(a_vm("web", ft=AN_FT), a_vm("db"))
    states = {s: value(found, "vm_ft_state", vm="web", state=s) for s in FT_STATES}
    assert states == {"seeding": 0, "protected": 1, "lagging": 0, "unprotected": 0}
    assert value(found, "vm_ft_held_output_bytes", vm="web") == 12
    assert value(found, "vm_ft_failovers_total", vm="web") == 1
    assert not any("_ft_" in name for name, labels in found if ("vm", "db") in labels)


_HISTOGRAM = ("_bucket", "_count", "_sum")


def test_every_metric_of_a_host_is_measured() -> None:
    found = {name for name, _ in host_samples(a_vm(move=A_MOVE, ft=AN_FT))}
    wanted: set[str] = set()
    for metric in metrics.ALL:
        if metric.scope is metrics.Scope.HOST:
            parts = _HISTOGRAM if metric.kind is metrics.Kind.HISTOGRAM else ("",)
            wanted |= {metric.full_name + part for part in parts}
    assert found == wanted


def test_the_cluster() -> None:
    facts = ClusterFacts(
        (HostFacts("a", True, 3), HostFacts("b", False, 1)),
        {"placed": 4, "refused": 2},
        looked_unix_s=time.time(),
        book=EventBook(),
        ha=AN_HA,
    )
    found = read(ClusterCollector(lambda: facts).page().text().decode())
    assert value(found, "cluster_host_up", host="a") == 1
    assert value(found, "cluster_host_up", host="b") == 0
    assert value(found, "cluster_host_vms", host="a") == 3
    assert value(found, "cluster_placements_total", outcome="refused") == 2
    assert value(found, "cluster_events_total", kind="ft_failover") == 0
    assert value(found, "cluster_vm_restarts_total", outcome="restarted") == 3
    assert value(found, "cluster_vm_restarts_total", outcome="refused") == 0
    assert value(found, "cluster_vm_restart_causes_total", kind="host-dead") == 2
    assert value(found, "cluster_refusals_total", kind="memory") == 4
    assert value(found, "cluster_vms_waiting") == 1
    assert value(found, "cluster_host_lease", host="b", state="expired") == 1
    assert value(found, "cluster_host_lease_age_seconds", host="b") == 30
    wanted = {m.full_name for m in metrics.ALL if m.scope is metrics.Scope.CLUSTER}
    names = {re.sub("_(bucket|sum|count)$", "", name) for name, _ in found}
    assert names == wanted | {"rayvisor_build_info"}


@pytest.mark.parametrize(
    "page",
    [
        lambda: HostCollector(lambda: a_host(a_vm("web"), a_vm("db"))).page(),
        lambda: ClusterCollector(
            lambda: ClusterFacts(
                (HostFacts('q"uo\\te\n', True, 0),), {"placed": 1}, 0.0, EventBook()
            )
        ).page(),
    ],
)
def test_our_text_says_what_prometheus_client_says(page: Callable[[], Page]) -> None:
    made = page()

    class Once:
        def collect(self) -> Any:  # noqa: ANN401
            return made.families()

    registry = CollectorRegistry()
    registry.register(Once())
    theirs = generate_latest(registry).decode()
    assert read(made.text().decode()) == read(theirs)
    heads = [line for line in made.text().decode().splitlines() if line.startswith("#")]
    assert heads == [line for line in theirs.splitlines() if line.startswith("#")]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool: apt-get install prometheus")
def test_promtool_has_no_objection() -> None:
    text = HostCollector(lambda: a_host(a_vm())).page().text()
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_a_look_that_hangs_holds_up_nobody() -> None:
    release = threading.Event()
    looks: list[ClusterFacts] = [ClusterFacts((HostFacts("a", True, 1),))]
    looked = threading.Event()

    def look() -> ClusterFacts:
        if looks:
            return looks.pop()
        looked.set()
        release.wait()
        return ClusterFacts()

    lookout = Lookout(look, every_s=0.01)
    lookout.start()
    try:
        assert looked.wait(10)
        assert [h.name for h in lookout.facts.hosts] == ["a"]
    finally:
        release.set()
        lookout.stop()
