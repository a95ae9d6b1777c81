"""What a scrape of a host's metrics costs: a synthetic host of 100 VMs, and a real VM.

    .venv/bin/python bench/scrape.py [--vms N] [--scrapes N] [--real]

Each synthetic VM tells as a real one does, into a folder, under the number of this process; the
scrape goes over HTTP. CPU is that of the whole process, both ends of the connection included.
The budget is 20 ms and 1 % of a core for a scrape each 15 s, with the VMs' own telling.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
import urllib.request
from functools import partial
from pathlib import Path
from typing import Any, Final

from rayvisor.actors.stats import TELL_EVERY_S, HostMeter, Teller
from rayvisor.ops.collectors import HostCollector
from rayvisor.ops.exposition import MetricsServer
from rayvisor.vmm.core.vcpu import KINDS
from rayvisor.vmm.spec import BootSource, MachineSpec
from rayvisor.vmm.stats import VmStats, measure
from rayvisor.vmm.vm import Vm

SCRAPE_EVERY_S: Final = 15.0


def synthetic(number: int) -> VmStats:
    """A VM that has seen some days."""
    now_s = time.time()
    return VmStats(
        name=f"vm-{number:03}",
        state="running",
        token=number,
        pid=os.getpid(),
        told_unix_s=now_s,
        started_unix_s=now_s - 86400,
        cpus=1,
        memory_bytes=128 << 20,
        touched_bytes=77 << 20,
        vcpu_cpu_s=4321.125 + number,
        console_bytes=123_456 + number,
        resets=1,
        image="debian",
        exits={kind: 1_000_003 * (i + number) for i, kind in enumerate(KINDS)},
        entered={"running": 2, "stopped": 1},
    )


def scrape(url: str) -> tuple[float, float, int]:
    """(seconds, CPU seconds, bytes) of one."""
    begun_s, begun_cpu_s = time.perf_counter(), time.process_time()
    with urllib.request.urlopen(url) as answer:  # noqa: S310 - a loopback address made here
        size = len(answer.read())
    return time.perf_counter() - begun_s, time.process_time() - begun_cpu_s, size


def synthetic_host(vms: int, scrapes: int) -> dict[str, Any]:
    """Scrapes of a host with so many VMs, and what one VM's telling costs."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        tellers = [Teller(place, i, partial(synthetic, i)) for i in range(1, vms + 1)]
        begun_s = time.process_time()
        for teller in tellers:
            teller.tell()
        tell_cpu_s = (time.process_time() - begun_s) / vms
        meter = HostMeter("synthetic", place)
        server = MetricsServer(HostCollector(meter.measure))
        server.start()
        url = f"http://{server.address}/metrics"
        scrape(url)
        found = [scrape(url) for _ in range(scrapes)]
        server.stop()
    cpu_s = statistics.median(c for _, c, _ in found)
    core = cpu_s / SCRAPE_EVERY_S + vms * tell_cpu_s / TELL_EVERY_S
    return {
        "vms": vms,
        "scrapes": scrapes,
        "scrape_ms_median": 1e3 * statistics.median(s for s, _, _ in found),
        "scrape_ms_max": 1e3 * max(s for s, _, _ in found),
        "scrape_cpu_ms_median": 1e3 * cpu_s,
        "scrape_cpu_ms_min": 1e3 * min(c for _, c, _ in found),
        "bytes": found[-1][2],
        "tell_cpu_us": 1e6 * tell_cpu_s,
        "core_percent": 100 * core,
    }


def real_vm(tells: int) -> dict[str, Any]:
    """What measuring and telling costs in a VM's own process while its guest spins."""
    vm = Vm(MachineSpec(8 << 20, BootSource(b"\xeb\xfe", format="flat"), name="spin"))
    vm.start()
    with tempfile.TemporaryDirectory() as folder:
        teller = Teller(
            Path(folder),
            1,
            lambda: measure(vm, state="running", token=1, started_unix_s=0.0, entered={}),
        )
        begun_s, costs = time.perf_counter(), []
        for _ in range(tells):
            thread_s = time.thread_time()
            teller.tell()
            costs.append(time.thread_time() - thread_s)
        wall_s = time.perf_counter() - begun_s
    vm.close()
    return {
        "tells": tells,
        "tell_cpu_us_median": 1e6 * statistics.median(costs),
        "tell_wall_us_mean": 1e6 * wall_s / tells,
    }


def main() -> None:
    """Measure, and print one JSON object."""
    parser = argparse.ArgumentParser(description="What a scrape costs.")
    parser.add_argument("--vms", type=int, default=100)
    parser.add_argument("--scrapes", type=int, default=30)
    options = parser.parse_args()
    result = {"host": synthetic_host(options.vms, options.scrapes), "real_vm": real_vm(200)}
    json.dump(result, sys.stdout, indent=2)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
