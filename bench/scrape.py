"""What a scrape of a host's metrics costs: a synthetic host of 100 VMs, and a real VM.

`python -m bench.scrape [--vms N] [--scrapes N]`. Each synthetic VM tells as a real one does, into
a folder, under the number of this process; the scrape goes over HTTP.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
import urllib.request
from functools import partial
from pathlib import Path
from typing import Final

from bench.report import Report, finish, median, take_precedence, verdict
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


def synthetic_host(vms: int, scrapes: int) -> tuple[list[tuple[float, float, int]], float]:
    """Each scrape of a host with so many VMs, and the CPU seconds of one VM's telling."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        tellers = [Teller(place, i, partial(synthetic, i)) for i in range(1, vms + 1)]
        begun_s = time.process_time()
        for teller in tellers:
            teller.tell()
        tell_cpu_s = (time.process_time() - begun_s) / vms
        server = MetricsServer(HostCollector(HostMeter("synthetic", place).measure))
        server.start()
        url = f"http://{server.address}/metrics"
        scrape(url)
        found = [scrape(url) for _ in range(scrapes)]
        server.stop()
    return found, tell_cpu_s


def real_vm(tells: int) -> list[float]:
    """CPU seconds of each telling in a VM's own process, while its guest spins."""
    vm = Vm(MachineSpec(8 << 20, BootSource(b"\xeb\xfe", format="flat"), name="spin"))
    vm.start()
    with tempfile.TemporaryDirectory() as folder:
        teller = Teller(
            Path(folder),
            1,
            lambda: measure(vm, state="running", token=1, started_unix_s=0.0, entered={}),
        )
        costs = []
        for _ in range(tells):
            begun_s = time.thread_time()
            teller.tell()
            costs.append(time.thread_time() - begun_s)
    vm.close()
    return costs


def main() -> None:
    """Measure, and leave table and files behind."""
    parser = argparse.ArgumentParser(description="What a scrape costs.")
    parser.add_argument("--vms", type=int, default=100)
    parser.add_argument("--scrapes", type=int, default=30)
    options = parser.parse_args()
    take_precedence()
    found, tell_cpu_s = synthetic_host(options.vms, options.scrapes)
    tells = real_vm(200)
    wall_ms, cpu_ms = ([1e3 * one[i] for one in found] for i in (0, 1))
    tells_us = [1e6 * cost for cost in tells]
    scraping = 100 * median(cpu_ms) / 1e3 / SCRAPE_EVERY_S
    telling = 100 * options.vms * median(tells) / TELL_EVERY_S
    finish(
        Report(
            "scrape",
            f"A scrape of a host with {options.vms} VMs",
            ("what", "median", "worst"),
            (
                ("a scrape, ms", median(wall_ms), max(wall_ms)),
                ("a scrape, ms of CPU", median(cpu_ms), max(cpu_ms)),
                ("a synthetic VM tells, us of CPU", 1e6 * tell_cpu_s, None),
                ("a real VM tells, us of CPU", median(tells_us), max(tells_us)),
                ("scraping, % of a core", scraping, None),
                ("the VMs' telling, % of a core", telling, None),
                ("page, KiB", found[-1][2] / 1024, None),
            ),
            verdicts=(
                verdict("a scrape", median(wall_ms), 20.0, " ms"),
                verdict("scraping and telling", scraping + telling, 1.0, " % of a core"),
            ),
            notes=(
                "no peer: what is measured is our own exporter",
                f"a scrape each {SCRAPE_EVERY_S:.0f} s; a VM tells each {TELL_EVERY_S:.0f} s",
                "CPU of both ends of the connection; the real VM's guest spins meanwhile",
            ),
            samples={"scrape_ms": wall_ms, "scrape_cpu_ms": cpu_ms, "tell_us": tells_us},
        )
    )


if __name__ == "__main__":
    main()
