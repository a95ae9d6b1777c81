"""Metrics of a live cluster: over HTTP, in a real Prometheus, and on the command line."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rayvisor.ops.prometheus_server import PrometheusServer
from rayvisor.runtime.cli.app import main
from rayvisor.vmm.errors import PlacementError
from tests.cluster.watching import addresses, every_panel_shows_something, page, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rayvisor.runtime.api import VmSpec
    from rayvisor.runtime.cluster import Cluster

    MakeSpec = Callable[..., VmSpec]

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]


@pytest.fixture(name="host_page")
def _host_page(cluster: Cluster) -> Callable[[], str]:
    (host,) = cluster.hosts()
    return lambda: page(addresses()[host.host_id])


def test_a_vm_appears_and_leaves_nothing_behind(
    cluster: Cluster, make_spec: MakeSpec, host_page: Callable[[], str]
) -> None:
    vm = cluster.create(make_spec("seen"))
    vm.console.read_until("ready")
    assert 'rayvisor_vm_state{vm="seen",state="running"} 1\n' in until(
        lambda: 'vm="seen"' in (text := host_page()) and text, "the VM in /metrics"
    )
    vm.stop()
    until(lambda: 'vm_state{vm="seen",state="stopped"} 1\n' in host_page(), "that it was stopped")
    vm.remove()
    until(lambda: 'vm="seen"' not in host_page(), "that it is gone")


def test_a_crash_is_counted(
    cluster: Cluster, make_spec: MakeSpec, host_page: Callable[[], str]
) -> None:
    vm = cluster.create(make_spec("dies"))
    vm.console.read_until("ready")
    vm.send(b"T")
    crashed = 'rayvisor_vm_transitions_total{vm="dies",state="crashed"} 1\n'
    until(lambda: crashed in host_page(), "the crash")


def test_a_refusal_is_counted(cluster: Cluster, make_spec: MakeSpec) -> None:
    def refused() -> float:
        text = page(addresses()["cluster"])
        found = re.search(r'placements_total\{outcome="refused"\} (\S+)', text)
        return float(found[1]) if found else 0.0

    before = refused()
    with pytest.raises(PlacementError):
        cluster.create(make_spec("huge", memory="900G"))
    until(lambda: refused() == before + 1, "the refusal")


def test_the_cluster_tells_where_its_hosts_are(cluster: Cluster) -> None:
    (host,) = cluster.hosts()
    where = addresses()
    (group,) = until(lambda: json.loads(page(where["cluster"], "/sd")), "a target")
    assert group["targets"] == [where[host.host_id]]
    assert group["labels"]["host"] == host.name
    assert all(address.startswith("127.0.0.1:") for address in where.values())


def test_top_and_metrics_on_the_command_line(
    cluster: Cluster, make_spec: MakeSpec, capfd: pytest.CaptureFixture[str]
) -> None:
    vm = cluster.create(make_spec("shown"))
    vm.console.read_until("ready")
    (host,) = cluster.hosts()

    def said(*words: str) -> str:
        capfd.readouterr()
        assert main(words) == 0
        out, err = capfd.readouterr()
        assert err == ""
        return out

    until(lambda: "shown" in said("metrics"), "the VM")
    shown = json.loads(said("top", "--json", "--interval", "0.3"))
    (row,) = [v for v in shown["vms"] if v["vm"] == "shown"]
    assert (row["state"], row["host"], row["memory_bytes"]) == ("running", host.name, 4 << 20)
    assert row["cpu_cores"] is not None
    assert shown["totals"]["hosts_up"] == 1
    text = said("top", "--once", "--interval", "0.3")
    assert "shown" in text
    assert max(map(len, text.splitlines())) <= 80
    assert 'rayvisor_vm_info{vm="shown"' in said("metrics", "--host", host.name)
    samples = json.loads(said("metrics", "--json"))
    assert {"name": "rayvisor_host_cores", "labels": {}, "value": host.cores} in samples
    assert f'rayvisor_cluster_host_up{{host="{host.name}"}} 1\n' in said("metrics", "--cluster")
    assert json.loads(said("metrics", "--targets", "--json")) == {
        "cluster": addresses()["cluster"],
        "hosts": [{"host": host.name, "address": addresses()[host.host_id]}],
    }


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("metrics", "--host", "nowhere"), "no host is called 'nowhere'; hosts: "),
        (("top", "--interval", "0"), "interval of 0.0 s: give at least 0.2"),
    ],
)
@pytest.mark.usefixtures("cluster")
def test_what_cannot_be_shown_is_told_in_a_line(
    capfd: pytest.CaptureFixture[str], words: tuple[str, ...], text: str
) -> None:
    assert main(words) == 2
    err = capfd.readouterr().err
    assert text in err
    assert err.count("\n") == 1


@pytest.fixture(name="prometheus", scope="module")
def _prometheus(cluster: Cluster) -> Iterator[PrometheusServer]:
    assert cluster.hosts()
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is missing: apt-get install prometheus")
    with PrometheusServer(addresses()["cluster"], every_s=1) as server:
        yield server


def test_every_panel_shows_something(
    cluster: Cluster, make_spec: MakeSpec, prometheus: PrometheusServer
) -> None:
    """The dashboards' own queries, on real VMs, in a real Prometheus."""
    for name in ("one", "two"):
        cluster.create(make_spec(name)).console.read_until("ready")
    with pytest.raises(PlacementError):
        cluster.create(make_spec("huge", memory="900G"))
    every_panel_shows_something(prometheus, "cluster", "host", "vm")
    for variable in ("host", "vm"):
        metric = {"host": "rayvisor_host_cores", "vm": "rayvisor_vm_info"}[variable]
        values = prometheus.get(f"label/{variable}/values", **{"match[]": metric})
        assert values, variable


def test_prometheus_agrees_with_hosts_and_proc(
    cluster: Cluster, make_spec: MakeSpec, prometheus: PrometheusServer
) -> None:
    vms = [cluster.create(make_spec(name)) for name in ("a", "b", "c")]
    for vm in vms:
        vm.console.read_until("ready")
    (host,) = cluster.hosts()

    def value(promql: str) -> float:
        found = prometheus.query(promql)
        return float(found[0]["value"][1]) if found else float("nan")

    until(lambda: value("sum(rayvisor_host_vms)") == host.vms, "as many VMs as `hosts` says")
    assert value("rayvisor_host_cores") == host.cores
    assert value("rayvisor_host_vcpus") == host.vcpus_used
    assert value("rayvisor_host_vm_memory_limit_bytes") == pytest.approx(
        host.memory_bytes, rel=0.02
    )
    assert value("rayvisor_host_vm_memory_promised_bytes") == pytest.approx(
        host.memory_used_bytes, rel=0.02
    )
    until(
        lambda: (
            value("rayvisor:vms_per_host:ratio") == host.vms
            and value("rayvisor:vcpus_per_core:ratio") == host.vcpus_used / host.cores
        ),
        "the recorded ratios",
    )
    status = vms[0].status()
    resident, _ = (
        int(v) * os.sysconf("SC_PAGE_SIZE")
        for v in Path(f"/proc/{status.pid}/statm").read_text().split()[1:3]
    )
    told = value('sum(rayvisor_vm_process_resident_bytes{vm="a"})')
    assert told == pytest.approx(resident, rel=0.02)


def test_a_vm_that_is_gone_is_no_series_any_more(
    cluster: Cluster, make_spec: MakeSpec, prometheus: PrometheusServer
) -> None:
    vm = cluster.create(make_spec("brief"))
    vm.console.read_until("ready")
    until(lambda: prometheus.query('rayvisor_vm_info{vm="brief"}'), "the VM in Prometheus")
    vm.remove(force=True)
    until(lambda: not prometheus.query('{vm="brief"}'), "that it is gone")
