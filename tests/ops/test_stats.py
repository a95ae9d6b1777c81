"""What VMs tell and hosts collect, with real processes and a real guest."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from rayvisor.actors.capacity import memory_now
from rayvisor.actors.stats import HostMeter, Teller
from rayvisor.vmm.errors import CorruptStateError
from rayvisor.vmm.machine import PowerState
from rayvisor.vmm.stats import decode, encode, measure
from tests.ops.snapshots import A_MOVE, AN_FT, a_vm
from tests.support import flat
from tests.support.machines import flat_vm

if TYPE_CHECKING:
    from pathlib import Path

    from rayvisor.vmm.stats import VmStats
    from rayvisor.vmm.vm import Vm

SPIN = "again:\n    mov dx, 0x3F8\n    mov al, 'x'\n    out dx, al\n    jmp again\n"


def told_by(pid: int, token: int = 1) -> VmStats:
    return a_vm(f"vm-{token}", token=token, pid=pid, told_unix_s=time.time())


def test_a_host_sees_what_a_vm_tells(tmp_path: Path) -> None:
    place = tmp_path / "stats"
    told = told_by(os.getpid())
    Teller(place, 1, lambda: told).tell()
    found = HostMeter("id", place).measure(vms_started=3, vm_failures=1)
    assert found.vms == (told,)
    assert (found.vms_started, found.vm_failures) == (3, 1)
    process = found.processes["vm-1"]
    assert process.own_bytes > 1 << 20
    assert process.shared_bytes > 0
    assert process.cpu_s > 0
    assert found.vm_memory_promised_bytes > told.memory_bytes
    assert found.cpu_s["user"] > 0


def test_a_vm_whose_process_is_gone_is_left_out_and_forgotten(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        for pid, token in ((process.pid, 1), (os.getpid(), 2)):
            stats = told_by(pid, token)
            Teller(tmp_path, token, lambda stats=stats: stats).tell()  # type: ignore[misc]
        meter = HostMeter("id", tmp_path)
        assert {vm.token for vm in meter.measure().vms} == {1, 2}
        process.kill()
    assert [vm.token for vm in meter.measure().vms] == [2]
    assert [path.name for path in tmp_path.iterdir()] == ["2.json"]


def test_a_process_that_was_given_a_dead_ones_number_is_not_taken_for_it(tmp_path: Path) -> None:
    long_ago = replace(told_by(os.getpid()), told_unix_s=1_000_000.0)
    Teller(tmp_path, 1, lambda: long_ago).tell()
    assert HostMeter("id", tmp_path).measure().vms == ()


def test_what_nobody_told_is_no_vm(tmp_path: Path) -> None:
    (tmp_path / "1.json").write_text("{")
    (tmp_path / "2.json").write_text('{"name": "web"}')
    (tmp_path / "3.new").write_bytes(encode(told_by(os.getpid())))
    assert HostMeter("id", tmp_path).measure().vms == ()
    assert HostMeter("id", tmp_path / "nowhere").measure().vms == ()


def test_a_teller_tells_at_once_and_takes_it_back(tmp_path: Path) -> None:
    teller = Teller(tmp_path, 7, lambda: told_by(os.getpid(), 7))
    teller.start()
    deadline_s = time.monotonic() + 10
    while not (tmp_path / "7.json").exists() and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert decode((tmp_path / "7.json").read_bytes()).token == 7
    teller.stop()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_no_reason_to_fail(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    Teller(tmp_path / "file", 1, lambda: told_by(os.getpid())).tell()
    assert "statistics are not told" in caplog.text


def test_stats_survive_the_way_through_a_file() -> None:
    stats = a_vm()
    assert decode(encode(stats)) == stats
    for bad in (b"[]", b'{"ft": 1}', b'{"ft": {"state": "x", "y": 1}}'):
        with pytest.raises(CorruptStateError, match="no statistics of a VM"):
            decode(bad)


def stats_of(vm: Vm) -> VmStats:
    return measure(vm, state="running", token=1, started_unix_s=0.0, entered={"running": 1})


def test_a_guest_that_runs_is_measured_without_stopping_it() -> None:
    with flat_vm(flat.protected(SPIN), memory_bytes=4 << 20) as vm:
        vm.start()
        first = stats_of(vm)
        deadline_s = time.monotonic() + 20
        later = first
        while not (later.console_bytes and later.vcpu_cpu_s > first.vcpu_cpu_s > 0):
            assert time.monotonic() < deadline_s, "nothing is counted"
            first, later = later, stats_of(vm)
        assert vm.power is PowerState.RUNNING
        assert stats_of(vm).exits["io_out"] > 0
        assert later.exits["sysenter"] == 0
        assert 0 < later.touched_bytes <= later.memory_bytes == 4 << 20
        vm.reset()
        while stats_of(vm).resets != 1:
            assert time.monotonic() < deadline_s, "the reset is not counted"
        vm.stop()
        ended = stats_of(vm)
        assert ended.exits["io_out"] >= later.exits["io_out"]
        assert ended.console_bytes >= later.console_bytes
        assert ended.vcpu_cpu_s >= later.vcpu_cpu_s


def test_the_exits_are_those_of_the_census() -> None:
    with flat_vm(flat.protected("mov dx, 0xF4\nmov al, 3\nout dx, al\n")) as vm:
        vm.start()
        assert vm.wait(20) is PowerState.EXITED
        counted = {kind: n for kind, n in stats_of(vm).exits.items() if n}
        assert counted == vm.exits().counts
        assert counted["io_out"] > 0


def test_memory_of_a_container_is_that_of_its_cgroup(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 8000000 kB\nMemAvailable: 6000000 kB\n")
    cgroup = tmp_path / "cgroup"
    cgroup.mkdir()
    assert memory_now(cgroup, meminfo) == (8_192_000_000, 6_144_000_000)
    (cgroup / "memory.max").write_text("1000000000\n")
    (cgroup / "memory.current").write_text("700000000\n")
    (cgroup / "memory.stat").write_text("anon 500000000\ninactive_file 100000000\n")
    assert memory_now(cgroup, meminfo) == (1_000_000_000, 400_000_000)


def test_fault_tolerance_is_told_too() -> None:
    told = a_vm(ft=AN_FT)
    assert decode(encode(told)) == told


def test_a_migration_is_told_too() -> None:
    told = a_vm(move=A_MOVE)
    assert decode(encode(told)) == told


def test_a_teller_in_a_hurry_tells_at_once_and_ends_when_told(tmp_path: Path) -> None:
    told: list[float] = []

    def tell() -> VmStats:
        told.append(time.monotonic())
        return a_vm()

    teller = Teller(tmp_path, 1, tell)
    teller.start()
    for hurried in (True, False):
        before = len(told)
        teller.hurry(hurried)
        deadline_s = time.monotonic() + 20
        while len(told) == before:
            assert time.monotonic() < deadline_s, "not told at once"
            time.sleep(0.01)
    teller.stop()
    assert list(tmp_path.iterdir()) == []


TICKS = """
    pic_init 0xFFFE
    gate64 0x20, handler
    pit_start 2, 11932
    xor ebp, ebp
    sti
1:  hlt
    cmp ebp, 50
    jb 1b
    cli
    xor eax, eax
    exit_al
handler:
    inc ebp
    push rax
    eoi
    pop rax
    iretq
"""


def test_timers_interrupts_and_what_the_time_went_to() -> None:
    """50 ticks of 10 ms, between which the guest halts."""
    with flat_vm(flat.long_mode(TICKS), memory_bytes=4 << 20) as vm:
        vm.start()
        assert vm.wait(60) is PowerState.EXITED
        told = stats_of(vm)
        assert told.wall_s >= 0.49
        assert told.vcpu_cpu_s + told.stolen_s <= told.wall_s
        assert told.timers_late.times >= 1
        assert told.timers_late.total_ns > 0
        assert told.exits["interrupt"] >= 1
        assert told.interrupts_late.times == told.exits["interrupt"]
        assert 0 < told.interrupts_late.total_ns < told.wall_s * 1e9
        assert (told.native_s, told.switching_s) == (0, 0)
