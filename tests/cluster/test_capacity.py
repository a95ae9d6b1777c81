"""What a host has, in a container or not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rayvisor.actors.capacity import RESERVE_BYTES, VCPUS_PER_CORE, limited, measure
from rayvisor.vmm.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

GIB = 1 << 30


@pytest.fixture
def meminfo(tmp_path: Path) -> Path:
    path = tmp_path / "meminfo"
    path.write_text("MemTotal:       16777216 kB\nMemFree:        1 kB\n")
    return path


def write(cgroup: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (cgroup / name).parent.mkdir(parents=True, exist_ok=True)
        (cgroup / name).write_text(text + "\n")
    return cgroup


def test_without_limits_it_is_the_machine(tmp_path: Path, meminfo: Path) -> None:
    found = measure(tmp_path / "none", meminfo)
    assert found.memory_bytes == 16 * GIB - RESERVE_BYTES
    assert found.vcpus == found.cores * VCPUS_PER_CORE > 0


@pytest.mark.parametrize(
    "files",
    [
        {"memory.max": str(GIB), "cpu.max": "100000 100000"},
        {
            "memory/memory.limit_in_bytes": str(GIB),
            "cpu/cpu.cfs_quota_us": "50000",
            "cpu/cpu.cfs_period_us": "100000",
        },
    ],
)
def test_a_container_has_what_its_cgroup_allows(
    tmp_path: Path, meminfo: Path, files: dict[str, str]
) -> None:
    found = measure(write(tmp_path, files), meminfo)
    assert (found.cores, found.memory_bytes) == (1, GIB - GIB // 10)


@pytest.mark.parametrize(
    "files",
    [
        {"memory.max": "max", "cpu.max": "max 100000"},
        {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"},
    ],
)
def test_no_limit_is_no_limit(tmp_path: Path, meminfo: Path, files: dict[str, str]) -> None:
    assert measure(write(tmp_path, files), meminfo) == measure(tmp_path / "none", meminfo)


def test_another_number_of_vcpus_a_core(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 8000000 kB\n")
    monkeypatch.setenv("RAYVISOR_VCPUS_PER_CORE", "24")
    found = measure(tmp_path / "none", meminfo)
    assert found.vcpus == 24 * found.cores
    assert limited(found, {"rayvisor_cores": 1}).vcpus == 24
    for bad in ("0", "65", "many", "-1"):
        monkeypatch.setenv("RAYVISOR_VCPUS_PER_CORE", bad)
        with pytest.raises(ConfigError, match="give a number from 1 to 64"):
            measure(tmp_path / "none", meminfo)
