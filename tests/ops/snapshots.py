"""Hosts and VMs for tests, as plain values."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from rayvisor.actors.guardian import HaStats
from rayvisor.vmm.lateness import Lateness
from rayvisor.vmm.stats import FtStats, HostStats, MoveStats, ProcessStats, VmStats

MIB = 1 << 20
NOW_S = 1_800_000_000.0


A_MOVE = MoveStats("precopy", 2, 3 * MIB, 90 * MIB, 2.0 * MIB, 50.0 * MIB, 0.2, 1.5)
AN_FT = FtStats("protected", 100, 0.025, 0.002, 0.03, MIB, 80 * MIB, 20 * MIB, 12, 1)


AN_HA = HaStats(
    restarts={"restarted": 3, "failed": 1},
    causes={"host-dead": 2, "guest": 1},
    refusals={"memory": 4},
    waiting=1,
    reserve_hosts=1,
    leases={"a": "held", "b": "expired"},
    lease_age_s={"a": 0.2, "b": 30.0},
)


def a_vm(name: str = "web", **values: Any) -> VmStats:  # noqa: ANN401 - fields of VmStats
    plain = VmStats(
        name=name,
        state="running",
        token=1,
        pid=os.getpid(),
        told_unix_s=NOW_S,
        started_unix_s=NOW_S - 100,
        cpus=1,
        memory_bytes=128 * MIB,
        touched_bytes=75 * MIB,
        vcpu_cpu_s=12.5,
        native_s=5.0,
        switching_s=1.0,
        stolen_s=2.0,
        wall_s=100.0,
        timers_late=Lateness((800, 90, 0, 0, 10, 0), 250_000_000),
        interrupts_late=Lateness((0, 0, 0, 0, 0, 1), 125_000_000),
        console_bytes=196,
        resets=0,
        image="debian",
        exits={"io_in": 700, "hlt": 300},
        entered={"running": 1},
    )
    return replace(plain, **values)


def a_host(*vms: VmStats, cpu_s: float = 10.0, **values: Any) -> HostStats:  # noqa: ANN401
    plain = HostStats(
        host_id="ab" * 28,
        cores=2,
        vcpus_limit=16,
        vm_memory_limit_bytes=4000 * MIB,
        vm_memory_promised_bytes=sum(vm.memory_bytes + 96 * MIB for vm in vms),
        memory_bytes=4096 * MIB,
        memory_available_bytes=3000 * MIB,
        cpu_s={"user": 100.0, "idle": 300.0},
        vms=vms,
        processes={vm.name: ProcessStats(cpu_s, 70 * MIB, 140 * MIB) for vm in vms},
        vms_started=len(vms),
    )
    return replace(plain, **values)
