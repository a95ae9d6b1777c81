"""What this machine, or the container this process is in, has for VMs."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rayvisor.actors.records import Capacity
from rayvisor.vmm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

VCPUS_PER_CORE: Final = 8
"""vCPUs promised for each core: a guest that waits for input sleeps in HLT."""
MAX_VCPUS_PER_CORE: Final = 64
VCPUS_VARIABLE: Final = "RAYVISOR_VCPUS_PER_CORE"
"""In the environment of the Ray node, or of `rayvisor up`: another number than the usual."""

RESERVE_BYTES: Final = 512 << 20
"""Memory kept for the system and for Ray, or a tenth of it all where that is less."""

CORES_RESOURCE: Final = "rayvisor_cores"
MEMORY_RESOURCE: Final = "rayvisor_memory"
"""Custom resources of a Ray node: what of it VMs may have, in cores and bytes. All if not set."""

_CGROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")


def measure(cgroup: Path = _CGROUP, meminfo: Path = _MEMINFO) -> Capacity:
    """Cores and memory, at most what the cgroup (v2 or v1) allows.

    Raises:
        ConfigError: RAYVISOR_VCPUS_PER_CORE is no number that can be kept.
    """
    cores = int(max(1, min(len(os.sched_getaffinity(0)), _cgroup_cores(cgroup))))
    memory_bytes = int(min(_total_bytes(meminfo), _cgroup_bytes(cgroup)))
    reserve_bytes = min(RESERVE_BYTES, memory_bytes // 10)
    return Capacity(
        cores=cores, vcpus=cores * vcpus_per_core(), memory_bytes=memory_bytes - reserve_bytes
    )


def vcpus_per_core() -> int:
    """VCPUs that are promised for each core.

    Raises:
        ConfigError: see `measure`.
    """
    asked = os.environ.get(VCPUS_VARIABLE, "")
    if not asked:
        return VCPUS_PER_CORE
    if not asked.isdigit() or not 1 <= int(asked) <= MAX_VCPUS_PER_CORE:
        raise ConfigError(
            f"{VCPUS_VARIABLE}={asked!r}: give a number from 1 to {MAX_VCPUS_PER_CORE}"
        )
    return int(asked)


def limited(measured: Capacity, resources: Mapping[str, float]) -> Capacity:
    """What is left of `measured` when the Ray node keeps VMs to a part of it."""
    cores = int(min(measured.cores, max(1, resources.get(CORES_RESOURCE, math.inf))))
    memory_bytes = min(measured.memory_bytes, resources.get(MEMORY_RESOURCE, math.inf))
    return Capacity(cores, cores * vcpus_per_core(), int(memory_bytes))


def memory_now(cgroup: Path = _CGROUP, meminfo: Path = _MEMINFO) -> tuple[int, int]:
    """(total, available) bytes of memory of this machine or container, as of now.

    Available is what can be used before something must be written out or ended: the kernel's
    own estimate for the machine (MemAvailable), or what the cgroup has left where that is less.
    """
    total_bytes = available_bytes = _total_bytes(meminfo)
    for line in _read(meminfo).splitlines():
        if line.startswith("MemAvailable:"):
            available_bytes = int(line.split()[1]) << 10
    limit_bytes = _cgroup_bytes(cgroup)
    if limit_bytes < total_bytes:
        total_bytes = int(limit_bytes)
        left_bytes = total_bytes - _cgroup_used_bytes(cgroup)
        available_bytes = min(available_bytes, max(left_bytes, 0))
    return total_bytes, available_bytes


def _cgroup_used_bytes(cgroup: Path) -> int:
    """Memory charged to the cgroup, less the file pages that the kernel takes back first."""
    for usage, old_pages in (
        ("memory.current", "memory.stat"),
        ("memory/memory.usage_in_bytes", "memory/memory.stat"),
    ):
        text = _read(cgroup / usage)
        if text.isdigit():
            stat = dict(line.split() for line in _read(cgroup / old_pages).splitlines())
            inactive = stat.get("total_inactive_file") or stat.get("inactive_file") or "0"
            return int(text) - int(inactive)
    return 0


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _total_bytes(meminfo: Path) -> int:
    for line in _read(meminfo).splitlines():
        name, _, value = line.partition(":")
        if name == "MemTotal":
            return int(value.split()[0]) << 10
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _cgroup_bytes(cgroup: Path) -> float:
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        text = _read(cgroup / name)
        if text.isdigit():
            return int(text)
    return math.inf


def _cgroup_cores(cgroup: Path) -> float:
    quota, _, period = _read(cgroup / "cpu.max").partition(" ")
    if not quota:
        quota = _read(cgroup / "cpu/cpu.cfs_quota_us")
        period = _read(cgroup / "cpu/cpu.cfs_period_us")
    if quota.isdigit() and period.isdigit() and int(period):
        return math.ceil(int(quota) / int(period))
    return math.inf
