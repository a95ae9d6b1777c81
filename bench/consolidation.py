"""Forty idle Debian guests on this machine: what they cost, and whether what is shown is true.

`python -m bench.consolidation [--guests N]`. All are VMs of one local Ray host. At their prompts,
the CPU time of their processes is taken from /proc; what a console takes to answer is asked of
all at once; and the figures of consolidation are asked of three: of Prometheus (by the queries
that the dashboard has), of `rayvisor hosts --json`, and of /proc.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench.contestants import PROMPT, cpu_of
from bench.report import Report, finish, take_precedence, verdict
from rayvisor.actors.capacity import VCPUS_VARIABLE
from rayvisor.actors.observing import service_addresses
from rayvisor.ops.prometheus_server import PrometheusServer
from rayvisor.runtime.api import VmSpec
from rayvisor.runtime.cluster import Cluster

if TYPE_CHECKING:
    from rayvisor.runtime.vm_handle import VmHandle

MEMORY_MIB: Final = 128
AT_ONCE: Final = 4
BOOT_S: Final = 240.0
SETTLE_S: Final = 15.0
CORE_LIMIT_PERCENT: Final = 40.0
CONSOLE_LIMIT_S: Final = 1.0
AGREE_PERCENT: Final = 2.0
SCRAPE_EVERY_S: Final = 5
PARTS: Final = ("guest RAM", "translated code", "files", "heap and stacks")


def boot(cluster: Cluster, number: int) -> VmHandle:
    """A guest at its prompt."""
    vm = cluster.create(VmSpec(name=f"idle-{number:02}", memory=f"{MEMORY_MIB}M"))
    vm.console.read_until(PROMPT.decode(), timeout_s=BOOT_S)
    return vm


def part_of(mapping: str) -> str:
    """What a line of smaps that begins a mapping is of."""
    permissions, path = mapping.split()[1], " ".join(mapping.split()[5:])
    if "memfd:" in path:
        return "guest RAM"
    if path.startswith("/"):
        return "files"
    return "translated code" if "x" in permissions and not path else "heap and stacks"


def families(pids: list[int]) -> list[list[int]]:
    """Each VM's process and those it has made to execute guest code directly."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(path.parent.name))
    found = []
    for pid in pids:
        members = [pid]
        for member in members:  # grows meanwhile
            members += children.get(member, [])
        found.append(members)
    return found


def pss_by_part_mib(members: list[int]) -> dict[str, float]:
    """PSS of a VM by part, in MiB: a page that several processes share counts in parts."""
    found = dict.fromkeys(PARTS, 0.0)
    for member in members:
        part = ""
        for line in Path(f"/proc/{member}/smaps").read_text().splitlines():
            if not line[0].isupper():
                part = part_of(line)
            elif line.startswith("Pss:"):
                found[part] += int(line.split()[1]) / 1024
    return found


def cpus_s(pids: list[int]) -> list[float]:
    """CPU time of each VM's processes so far."""
    return [sum(map(cpu_of, members)) for members in families(pids)]


def answer_s(vm: VmHandle) -> float:
    """How long a guest's shell takes to print what it has worked out."""
    begun_s = time.perf_counter()
    vm.console.send("echo $((40 + 2))\n")
    vm.console.read_until("\n42\r\n", timeout_s=60)
    return time.perf_counter() - begun_s


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def machine_bytes() -> int:
    return int(Path("/proc/meminfo").read_text().split()[1]) << 10


def value(prometheus: PrometheusServer, promql: str) -> float:
    found = prometheus.query(promql)
    return float(found[0]["value"][1]) if found else float("nan")


def figures(prometheus: PrometheusServer, pids: list[int]) -> list[tuple[str, float, float, float]]:
    """(what, on the dashboard, by `rayvisor hosts --json` or nan, by /proc)."""
    words = [sys.executable, "-m", "rayvisor", "hosts", "--json"]
    (host,) = json.loads(subprocess.run(words, capture_output=True, check=True).stdout)
    alive = sum(Path(f"/proc/{pid}/statm").exists() for pid in pids)
    guest_bytes = len(pids) * MEMORY_MIB << 20
    cores = len(os.sched_getaffinity(0))
    nan = float("nan")
    return [
        ("VMs a host", value(prometheus, "rayvisor:vms_per_host:ratio"), host["vms"], alive),
        (
            "vCPUs a core",
            value(prometheus, "rayvisor:vcpus_per_core:ratio"),
            host["vcpus_used"] / host["cores"],
            alive / cores,
        ),
        (
            "guest memory / host memory",
            value(prometheus, "rayvisor:guest_memory:ratio"),
            nan,
            guest_bytes / machine_bytes(),
        ),
        (
            "memory promised, GiB",
            value(prometheus, "sum(rayvisor_host_vm_memory_promised_bytes)") / 2**30,
            host["memory_used_bytes"] / 2**30,
            nan,
        ),
        (
            "resident in VMs' processes, GiB",
            value(prometheus, "sum(rayvisor_vm_process_resident_bytes)") / 2**30,
            nan,
            sum(map(resident_bytes, pids)) / 2**30,
        ),
        (
            # Processes for direct execution come and go, and /proc forgets those that are gone.
            "CPU time of VMs' processes less direct execution, s",
            value(
                prometheus,
                "sum(rayvisor_vm_process_cpu_seconds_total)"
                ' - sum(rayvisor_vm_vcpu_seconds_total{kind="native"})',
            ),
            nan,
            sum(map(cpu_of, pids)),
        ),
    ]


def apart_percent(values: tuple[float, ...]) -> float:
    """How far the numbers among `values` lie apart."""
    known = [v for v in values if v == v]  # noqa: PLR0124 - nan is not itself
    return 100 * (max(known) - min(known)) / max(known)


def main() -> None:
    """Boot, measure, compare."""
    parser = argparse.ArgumentParser(description="Idle guests, and what is shown of them.")
    parser.add_argument("--guests", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=30, help="how long to measure CPU time")
    options = parser.parse_args()
    take_precedence()
    cores = len(os.sched_getaffinity(0))
    os.environ[VCPUS_VARIABLE] = str(-(-options.guests // cores))
    os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="rayvisor-bench-")
    with Cluster.up() as cluster, ThreadPoolExecutor(options.guests) as everyone:
        begun_s = time.perf_counter()
        with ThreadPoolExecutor(AT_ONCE) as some:
            vms = list(some.map(lambda n: boot(cluster, n), range(1, options.guests + 1)))
        booted_s = time.perf_counter() - begun_s
        print(f"{len(vms)} guests at their prompts after {booted_s:.0f} s", flush=True)
        pids = [vm.status().pid for vm in vms]
        while len(service_addresses()) < 2:
            time.sleep(0.2)
        where = service_addresses()["cluster"]
        with PrometheusServer(where, every_s=SCRAPE_EVERY_S) as prometheus:
            time.sleep(SETTLE_S)
            before, start_s = cpus_s(pids), time.perf_counter()
            time.sleep(options.seconds)
            spent_s = time.perf_counter() - start_s
            used = [
                100 * (now - was) / spent_s for now, was in zip(cpus_s(pids), before, strict=True)
            ]
            shown = figures(prometheus, pids)
        parts = [pss_by_part_mib(members) for members in families(pids)]
        consoles_s = [answer_s(vm) for vm in vms]
        at_once_s = list(everyone.map(answer_s, vms))
    _finish(options.guests, booted_s, used, (consoles_s, at_once_s), parts, shown)


def _finish(
    guests: int,
    booted_s: float,
    used: list[float],
    consoles_s: tuple[list[float], list[float]],
    parts: list[dict[str, float]],
    shown: list[tuple[str, float, float, float]],
) -> None:
    def mean(part: str) -> float:
        return statistics.fmean(p[part] for p in parts)

    one_by_one_s, at_once_s = consoles_s
    rows: list[tuple[str | float | None, ...]] = [
        ("CPU of all guests, % of a core", sum(used)),
        ("CPU of a guest, median, % of a core", statistics.median(used)),
        ("a console answers, median, s", statistics.median(one_by_one_s)),
        ("a console answers, slowest, s", max(one_by_one_s)),
        ("all asked at the same moment: median, s", statistics.median(at_once_s)),
        ("all asked at the same moment: slowest, s", max(at_once_s)),
        ("boot of all to their prompts, s", booted_s),
        *((f"PSS of a VM: {part}, MiB", mean(part)) for part in PARTS),
        ("PSS of a VM, all, MiB", sum(map(mean, PARTS))),
        ("PSS of all VMs, GiB", sum(map(mean, PARTS)) * guests / 1024),
    ]
    for what, *values in shown:
        rows += [
            (f"{what}: {by}", found)
            for by, found in zip(("dashboard", "hosts --json", "/proc"), values, strict=True)
            if found == found  # noqa: PLR0124 - nan is not itself
        ]
    worst = max(apart_percent(tuple(values)) for _, *values in shown)
    finish(
        Report(
            "consolidation",
            f"{guests} idle Debian guests of {MEMORY_MIB} MiB on one machine",
            ("what", "found"),
            tuple(rows),
            verdicts=(
                verdict("CPU of all guests", sum(used), CORE_LIMIT_PERCENT, " % of a core"),
                verdict("slowest console", max(one_by_one_s), CONSOLE_LIMIT_S, " s"),
                verdict("dashboard, hosts --json and /proc differ by", worst, AGREE_PERCENT, " %"),
            ),
            notes=(
                "CPU: user and system time of the VMs' processes, telling of statistics included",
                "consoles: from typing `echo $((40 + 2))` to its answer, one after another",
                "asked at the same moment: by one program, whose own work is in it",
                "of a VM's CPU most is Ray's: an actor looks for signals 100 times a second",
                "no peer: QEMU has no cluster; bench/idle.py and bench/memory.py compare one guest",
            ),
            samples={
                "cpu_percent": used,
                "console_s": one_by_one_s,
                "console_at_once_s": at_once_s,
            },
        )
    )


if __name__ == "__main__":
    main()
