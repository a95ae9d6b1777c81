"""High availability: from a host's death to its VMs' first console line on another one.

    .venv/bin/python -m bench.ha --runs 5

Each run kills every process of a host, as when a machine dies. The detection is taken from the
event that tells of it; the boot is that of a VM that was created in the same run, from the request
to its first line. Then ten VMs, on two hosts that die in the same moment, come back by priority.
There is no peer: QEMU leaves the restart of a VM to whatever runs it.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.report import Report, finish, median, verdict
from rayvisor.actors.events import EventKind
from rayvisor.actors.lease import GRACE_S, HEARTBEAT_S, LEASE_S
from rayvisor.runtime import cluster_file, local_hosts
from rayvisor.runtime.api import VmSpec
from rayvisor.runtime.cluster import Cluster
from rayvisor.runtime.units import parse_memory
from rayvisor.vmm.errors import RayvisorError

if TYPE_CHECKING:
    from rayvisor.actors.events import Event
    from rayvisor.runtime.cluster_file import ClusterFile

HOSTS = 4
PATIENCE_S = 180.0
LOOK_EVERY_S = 0.02


@dataclass
class Run:
    """One death of a host, in seconds."""

    boot_s: float
    detection_s: float
    total_s: float
    took_s: float
    """From the decision to the start of the guest."""


def first_line_s(cluster: Cluster, names: list[str], begun_s: float) -> dict[str, float]:
    """When each VM wrote its first line, in seconds after `begun_s` of Unix time.

    Raises:
        TimeoutError: one did not.
    """
    seen: dict[str, float] = {}
    while len(seen) < len(names):
        if time.time() - begun_s > PATIENCE_S:
            raise TimeoutError(f"{set(names) - set(seen)} did not come back")
        for name in names:
            if name in seen:
                continue
            try:
                _, data = cluster.vm(name).console_output()
            except RayvisorError:
                continue  # between two processes
            if b"\n" in data:
                seen[name] = time.time() - begun_s
        time.sleep(LOOK_EVERY_S)
    return seen


def create(cluster: Cluster, name: str, host: str, memory: str, priority: int = 50) -> float:
    """Create a VM that is restarted; seconds until its first line."""
    begun_s = time.time()
    cluster.create(
        VmSpec(name=name, host=host, memory=memory, restart="on-failure", priority=priority)
    )
    return first_line_s(cluster, [name], begun_s)[name]


def wait_until_gone(cluster: Cluster, names: list[str], after_id: str) -> None:
    """Until the record has each VM on another host, so that what is read is no old process's."""
    left = set(names)
    while left:
        told = events(cluster, after_id, EventKind.VM_RESTARTED)
        left -= {event.vm for event in told}
        time.sleep(LOOK_EVERY_S)


def events(cluster: Cluster, after_id: str, kind: EventKind) -> list[Event]:
    """Events of one kind after the one with this id."""
    return [event for event in cluster.events(after_id) if event.kind is kind]


def one_run(cluster: Cluster, file: ClusterFile, memory: str) -> Run:
    """Kill the host of a VM, and wait for the VM."""
    name = "bench"
    boot_s = create(cluster, name, "host-2", memory)
    last_id = cluster.events()[-1].id
    begun_s = time.time()
    local_hosts.kill(file, "host-2")
    total_s = first_line_s(cluster, [name], begun_s)[name]
    wait_until_gone(cluster, [name], last_id)
    (dead, *_) = events(cluster, last_id, EventKind.HOST_DEAD) + events(
        cluster, last_id, EventKind.HOST_ISOLATED
    )
    (back, *_) = events(cluster, last_id, EventKind.VM_RESTARTED)
    cluster.remove(name, force=True)
    revive(cluster, file, ["host-2"])
    return Run(boot_s, dead.unix_s - begun_s, total_s, back.unix_s - dead.unix_s)


def revive(cluster: Cluster, file: ClusterFile, names: list[str]) -> None:
    """Start hosts again that have died, and wait until they take VMs."""
    for name in names:
        local_hosts.start(file, int(name.removeprefix("host-")))
    while sum(not h.reason for h in cluster.hosts()) < HOSTS:
        time.sleep(0.1)


def ten_at_once(cluster: Cluster, file: ClusterFile, memory: str) -> dict[str, tuple[float, float]]:
    """When each of ten ran, and when it wrote its first line, s; by name, the urgent first.

    Ran: its first instruction, as its own process has it, not when that was told of.
    """
    names = [f"vm-{n}" for n in range(10)]
    for n, name in enumerate(names):
        create(cluster, name, f"host-{2 + n % 2}", memory, priority=100 - 10 * n)
    last_id = cluster.events()[-1].id
    begun_s = time.time()
    for host in ("host-2", "host-3"):
        local_hosts.kill(file, host)
    lines = first_line_s(cluster, names, begun_s)
    wait_until_gone(cluster, names, last_id)
    starts = {vm.name: time.time() - vm.uptime_s - begun_s for vm in cluster.vms()}
    return {name: (starts[name], lines[name]) for name in names}


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--memory", default="256M")
    arguments = parser.parse_args()
    parse_memory(arguments.memory)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_STATE_HOME"] = folder
        with Cluster.up(hosts=HOSTS, object_store="100M") as cluster:
            file = cluster_file.load()
            assert file is not None
            runs = [one_run(cluster, file, arguments.memory) for _ in range(arguments.runs)]
            ten = ten_at_once(cluster, file, arguments.memory)
    finish(_report(runs, ten, arguments.memory))
    return 0


def _report(runs: list[Run], ten: dict[str, tuple[float, float]], memory: str) -> Report:
    surplus = [run.total_s - run.detection_s - run.boot_s for run in runs]
    starts = [start_s for start_s, _ in ten.values()]
    overtaken = sum(a > b for n, a in enumerate(starts) for b in starts[n + 1 :])
    first = median([run.detection_s for run in runs])
    limit_s = LEASE_S + GRACE_S + HEARTBEAT_S
    columns = ("what", "median s", "worst s")
    rows = [
        (text, median(values), max(values))
        for text, values in (
            ("boot: a request to create to the first line", [r.boot_s for r in runs]),
            ("detection: the kill to the event that tells of it", [r.detection_s for r in runs]),
            ("from that to the guest's start elsewhere", [r.took_s for r in runs]),
            ("in all: the kill to the first line elsewhere", [r.total_s for r in runs]),
            ("in all, less detection and boot", surplus),
            ("ten at once: the kill to a guest's first instruction", starts),
            ("ten at once: the kill to a first line", [line_s for _, line_s in ten.values()]),
        )
    ]
    order = ", ".join(f"{start_s:.1f}" for start_s in starts)
    return Report(
        "ha",
        f"A host dies, and its VMs are started elsewhere ({memory} Debian, {HOSTS} hosts)",
        columns,
        tuple(rows),
        (
            verdict("first line, less detection and boot, median", median(surplus), 1.0, " s"),
            verdict("detection, median", first, limit_s, " s"),
        ),
        (
            f"{len(runs)} deaths of a host with one VM; {len(ten)} VMs on two that die together",
            f"lease {LEASE_S:g} s (RAYVISOR_HOST_LEASE_S), grace {GRACE_S:g} s",
            f"ten at once, the most urgent first, ran their first instruction at s: {order}",
            f"{overtaken} of 45 pairs in the wrong order",
        ),
        {
            "boot_s": [r.boot_s for r in runs],
            "detection_s": [r.detection_s for r in runs],
            "total_s": [r.total_s for r in runs],
            "ten_start_s": starts,
            "ten_line_s": [line_s for _, line_s in ten.values()],
        },
    )


if __name__ == "__main__":
    sys.exit(main())
