"""What `rayvisor top` makes of two snapshots."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from rayvisor.ops.collectors import HostFacts
from rayvisor.ops.top import Sample, render, view
from rayvisor.vmm.stats import ProcessStats
from tests.ops.snapshots import MIB, NOW_S, a_host, a_vm

if TYPE_CHECKING:
    from rayvisor.ops.top import View
    from rayvisor.vmm.stats import HostStats


def sample(at_s: float, *hosts: tuple[HostFacts, HostStats | None]) -> Sample:
    return Sample(at_s, NOW_S + at_s, hosts)


def two_looks() -> View:
    up = HostFacts("a", True, 2)
    before = a_host(a_vm("web", token=1), a_vm("db", token=2), cpu_s=10.0)
    web = a_vm("web", token=1, told_unix_s=NOW_S + 2, exits={"io_in": 900, "hlt": 500})
    db = a_vm("db", token=2, told_unix_s=NOW_S - 60)
    after = a_host(
        web,
        db,
        processes={"web": ProcessStats(11.0), "db": ProcessStats(10.0)},
        cpu_s=0.0,
    )
    after.cpu_s.update(user=103.0, idle=301.0)
    down = (HostFacts("b", False, 1), None)
    return view(sample(2.0, (up, after), down), sample(0.0, (up, before), down))


def test_rates_are_those_between_two_looks() -> None:
    shown = two_looks()
    web, db = shown.vms
    assert (web.vm, web.cpu_cores, web.exits_per_s) == ("web", 0.5, 200.0)
    assert (db.vm, db.cpu_cores, db.silent_s) == ("db", 0.0, 62.0)
    a, b = shown.hosts
    assert (a.cpu_share, a.vms_cpu_cores, a.vcpus) == (0.75, 0.5, 2)
    assert (b.host, b.up, b.cpu_share) == ("b", False, None)


def test_totals_say_what_consolidation_saves() -> None:
    totals = two_looks().totals
    assert (totals.hosts, totals.hosts_up, totals.vms, totals.vms_running) == (2, 1, 2, 2)
    assert (totals.vms_per_host, totals.vcpus_per_core) == (2.0, 1.0)
    assert totals.guest_memory_ratio == pytest.approx(256 / 4096)
    # CPU is scarcest: half a core of 1.6.
    assert totals.hosts_needed == 1


@pytest.mark.parametrize(("vms", "hosts"), [(1, 1), (17, 1), (18, 2)])
def test_hosts_needed_by_promised_memory(vms: int, hosts: int) -> None:
    # 224 MiB each, of 4000.
    many = [a_vm(f"vm-{i}", token=i, cpus=0) for i in range(vms)]
    totals = view(sample(0.0, (HostFacts("a", True, vms), a_host(*many)))).totals
    assert totals.hosts_needed == hosts


def test_a_vm_of_the_same_name_that_was_made_anew_has_no_rate() -> None:
    up = HostFacts("a", True, 1)
    before = sample(0.0, (up, a_host(a_vm("web", token=1), cpu_s=50.0)))
    after = sample(2.0, (up, a_host(a_vm("web", token=2), cpu_s=1.0)))
    (row,) = view(after, before).vms
    assert row.cpu_cores is None


def test_the_first_look_has_no_rates_and_says_so() -> None:
    shown = view(sample(0.0, (HostFacts("a", True, 1), a_host(a_vm()))))
    assert shown.vms[0].cpu_cores is None
    assert shown.hosts[0].cpu_share is None
    assert json.loads(json.dumps(shown.as_dict()))["vms"][0]["vm"] == "web"


def drawn(shown: View, rows: int | None = None) -> list[str]:
    console = Console(width=80, record=True, file=None, force_terminal=False)
    with console.capture() as captured:
        console.print(render(shown, rows=rows))
    return captured.get().splitlines()


def test_eighty_columns_are_enough() -> None:
    name = "a-vm-with-a-rather-long-name-indeed"
    vms = [a_vm(f"{name}-{i}", token=i, memory_bytes=2048 * MIB, state="unreachable") for i in "12"]
    host = HostFacts("a-host-with-a-long-name.example.org", True, 2)
    shown = view(sample(0.0, (host, a_host(*vms))))
    lines = drawn(shown)
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    for wanted in ("HOST", "UPTIME", "EXITS/S", "a-vm-with-a-rath", "75M/2.0G", "up"):
        assert wanted in text


def test_what_is_down_or_silent_stands_out() -> None:
    text = "\n".join(drawn(two_looks()))
    assert "1 of 2 hosts up" in text
    assert "down" in text
    assert "silent 62s" in text


def test_a_small_screen_shows_the_busiest() -> None:
    vms = [a_vm(f"vm-{i:02}", token=i) for i in range(40)]
    shown = view(sample(0.0, (HostFacts("a", True, 40), a_host(*vms))))
    lines = drawn(shown, rows=24)
    assert len(lines) <= 24
    assert "VMs less busy" in "\n".join(lines)


def test_an_empty_cluster() -> None:
    shown = view(sample(0.0))
    assert shown.totals.vms_per_host is None
    assert "0 of 0 hosts up" in drawn(shown)[0]
