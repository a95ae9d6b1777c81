"""Metrics of VMs that move and of VMs with a secondary, in a real Prometheus."""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING

import pytest

from rayvisor.ops.grafana.dashboards import ALL
from rayvisor.ops.prometheus_server import PrometheusServer
from rayvisor.runtime.protecting import wait_until_protected
from tests.cluster.moving import make_traveller, slow_move, spec_of
from tests.cluster.watching import addresses, every_panel_shows_something, page, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from rayvisor.runtime.cluster import Cluster
    from rayvisor.runtime.vm_handle import VmHandle

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

PROTECT_S = 120.0


@pytest.fixture(name="prometheus", scope="module")
def _prometheus(two_hosts: Cluster) -> Iterator[PrometheusServer]:
    assert two_hosts.hosts()
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is missing: apt-get install prometheus")
    with PrometheusServer(addresses(3)["cluster"], every_s=1) as server:
        yield server


@pytest.fixture(name="vm")
def _vm(two_hosts: Cluster, tmp_path: Path) -> Iterator[VmHandle]:
    yield two_hosts.create(spec_of("moves", make_traveller(tmp_path), host="host-1"))
    for left in two_hosts.vms():
        two_hosts.remove(left.name, force=True)


def test_a_migration_is_seen_while_it_goes_on_and_not_after(
    two_hosts: Cluster, vm: VmHandle, prometheus: PrometheusServer
) -> None:
    (host,) = [h for h in two_hosts.hosts() if h.name == "host-1"]
    where = addresses(3)[host.host_id]

    def shown(metric: str) -> float | None:
        found = re.search(
            rf'^rayvisor_vm_migration_{metric}{{vm="moves".*}} (\S+)$', page(where), re.MULTILINE
        )
        return float(found[1]) if found else None

    with slow_move(two_hosts, vm):
        until(lambda: shown("phase"), "the phase")
        first = until(lambda: shown("sent_bytes"), "bytes")
        until(lambda: (shown("sent_bytes") or 0) > first, "that more is sent")
        remaining = shown("remaining_bytes")
        assert remaining is not None
        assert 0 <= remaining <= 16 << 20
        assert (shown("elapsed_seconds") or 0) > 0
        every_panel_shows_something(prometheus, "migration")
    until(lambda: shown("phase") is None, "that it is over")
    until(
        lambda: prometheus.query('rayvisor_cluster_migrations_total{outcome="cancelled"} > 0'),
        "that it was counted",
    )


def test_a_protected_vm_is_on_the_dashboard(
    two_hosts: Cluster, vm: VmHandle, prometheus: PrometheusServer
) -> None:
    vm.protect(host="host-2")
    wait_until_protected(two_hosts, vm.name, PROTECT_S)
    until(
        lambda: prometheus.query('rayvisor_vm_ft_state{vm="moves",state="protected"} == 1'),
        "that it is protected",
    )
    every_panel_shows_something(prometheus, "ft")
    epochs = float(prometheus.query("rayvisor_vm_ft_epochs_total")[0]["value"][1])
    until(
        lambda: float(prometheus.query("rayvisor_vm_ft_epochs_total")[0]["value"][1]) > epochs,
        "more epochs",
    )


def test_no_dashboard_is_left_out() -> None:
    """This file asks two, test_monitoring.py three."""
    assert set(ALL) == {"cluster", "host", "vm", "migration", "ft"}
