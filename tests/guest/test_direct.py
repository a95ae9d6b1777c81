"""Direct execution: the two worlds alternating at random, and what a stub can reach."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rayvisor.runtime.images import ImageStore, exec_argument
from rayvisor.vmm.machine import PowerState
from tests.support import programs
from tests.support.machines import HANGS_AFTER_S, debian_vm, expect, require_direct

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rayvisor.vmm.core.vcpu import DirectCounts
    from rayvisor.vmm.vm import Vm
    from tests.guest.conftest import Selfcheck

pytestmark = [pytest.mark.guest, pytest.mark.network]

MAPPED_BY_STUBS = {"guest-ram", "rayvisor-stub", "rayvisor-stub-text", "[vsyscall]"}


def test_worlds_that_alternate_at_random_lose_nothing(selfcheck: Selfcheck) -> None:
    with selfcheck.started(tick_us=1000) as vm:
        require_direct(vm)
        vm.pause()
        vm.machine.vcpu.choose_at_random(on=True)
        vm.resume()
        selfcheck.check(vm)
        counts = vm.machine.vcpu.direct_counts()
        assert counts.stays > 1000
        assert counts.native_s > 0


def test_interrupts_that_come_before_the_stub_has_gone_on_lose_nothing(
    selfcheck: Selfcheck,
) -> None:
    """So many that most find the stub in its handler, again and again."""
    part = selfcheck.only("signals", "timers")
    with part.started() as vm:
        require_direct(vm)
        vm.pause()
        vm.machine.vcpu.choose_at_random(on=True)
        vm.resume()
        while vm.wait(0.0005) is None:
            for _ in range(2000):
                vm.machine.vcpu.kick()
        part.check(vm)
        assert vm.machine.vcpu.direct_counts().native_s > 0


def test_interrupts_that_come_beside_page_faults_do_not_end_native_execution() -> None:
    """Signals that were under way when the stub trapped by itself find it resumed already."""
    if missing := programs.missing_tools():
        pytest.skip(f"needs {', '.join(missing)}")
    path = "/usr/bin/workloads"
    files = {path: programs.build_program("workloads")}
    script = exec_argument(f"{path} quicksort 1; {path} sha256 1")
    with debian_vm(ImageStore().build("debian"), script, files=files) as vm:
        require_direct(vm)
        deadline = time.monotonic() + 2 * HANGS_AFTER_S
        while vm.wait(0.0002) is None and time.monotonic() < deadline:
            vm.machine.vcpu.kick()
        assert vm.power is PowerState.HALTED
        counts = vm.machine.vcpu.direct_counts()
        assert counts.native_s > 0.4 * vm.cpu_s
    with debian_vm(ImageStore().build("debian"), direct=False) as vm:
        _until_busy(vm)
        assert vm.machine.vcpu.direct_counts().stays == 0
        assert not list(_children(os.getpid(), "rayvisor-stub"))


def test_stubs_reach_nothing_but_guest_ram() -> None:
    before = set(_children(os.getpid(), "rayvisor-stub"))
    with debian_vm(ImageStore().build("debian")) as vm:
        require_direct(vm)
        _until_busy(vm)
        family = set(_children(os.getpid(), "rayvisor-stub")) - before
        stubs = {pid for pid in family if "rayvisor-stub" in _mapped(pid)}
        assert len(stubs) >= 2
        for pid in family:
            status = _status(pid)
            assert status["NoNewPrivs"] == "1"
            assert int(status["CapEff"], 16) == 0
            assert int(status["CapPrm"], 16) == 0
            assert Path(f"/proc/{pid}/environ").read_bytes() == b""
        for pid in stubs:
            assert _status(pid)["Seccomp"] == "2"
            assert _mapped(pid) <= MAPPED_BY_STUBS
            descriptors = [str(fd.readlink()) for fd in Path(f"/proc/{pid}/fd").iterdir()]
            assert all("guest-ram" in target for target in descriptors)
            assert len(descriptors) <= 1
        assert any(not list(Path(f"/proc/{pid}/fd").iterdir()) for pid in stubs)
    assert not family & set(_children(os.getpid(), "rayvisor-stub"))


@pytest.mark.parametrize("alone", [True, False])
def test_a_stub_that_dies_costs_one_program(alone: bool) -> None:
    """Both of its processes, or the one that executes guest code."""
    before = set(_children(os.getpid(), "rayvisor-stub"))
    with debian_vm(ImageStore().build("debian")) as vm:
        require_direct(vm)
        console = expect(vm)
        console.read_until(":~# ")
        vm.console.send(b"sh -c 'while :; do :; done'; echo \"status\"=$?\n")
        stubs: set[int] = set()
        for _ in range(300):
            stubs = {
                pid
                for pid in set(_children(os.getpid(), "rayvisor-stub")) - before
                if "rayvisor-stub" in _mapped(pid)
            }
            if stubs and vm.machine.vcpu.direct_counts().native_s > 1:
                break
            time.sleep(0.1)
        runner = max(stubs, key=_user_ticks)
        window = _window(runner)
        for pid in [runner] if alone else [pid for pid in stubs if _window(pid) == window]:
            os.kill(pid, signal.SIGKILL)
        console.read_until("status=139", timeout_s=60)
        assert vm.power is PowerState.RUNNING


def test_code_before_a_page_that_could_go_on_with_cpuid_runs_natively() -> None:
    assert _counts_of("attack", "crossing").native_s > 0.05


def test_busy_code_beside_a_cpuid_runs_natively_where_that_can_trap() -> None:
    if "cpuid_fault" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("CPUID does not trap on this processor")
    assert _counts_of("attack", "beside").native_s > 0.05


def test_a_page_that_the_guest_has_just_supplied_is_there_when_its_program_goes_on() -> None:
    """Hundreds of page faults of a program that computes: one trap each, not a second to map it."""
    counts = _counts_of("workloads", "matmul 8")
    assert counts.stays > 100
    assert counts.traps < 1.5 * counts.stays


def _counts_of(program: str, arguments: str) -> DirectCounts:
    """What direct execution counts while a program runs to its end."""
    if missing := programs.missing_tools():
        pytest.skip(f"needs {', '.join(missing)}")
    path = f"/usr/bin/{program}"
    files = {path: programs.build_program(program)}
    with debian_vm(
        ImageStore().build("debian"), exec_argument(f"{path} {arguments}"), files=files
    ) as vm:
        require_direct(vm)
        assert vm.wait(2 * HANGS_AFTER_S) is PowerState.HALTED
        return vm.machine.vcpu.direct_counts()


def _until_busy(vm: Vm) -> None:
    """A shell that computes for a while."""
    console = expect(vm)
    console.read_until(":~# ")
    vm.console.send(b"i=0; while [ $i -lt 30000 ]; do i=$((i+1)); done; echo 'lo'op\n")
    console.read_until("loop\r\n", timeout_s=120)


def _children(pid: int, name: str) -> Iterator[int]:
    """Live processes of that name below `pid`, however deep."""
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, path.read_text().split()):
            if _status(child).get("Name") == name and _status(child)["State"][0] != "Z":
                yield child
            yield from _children(child, name)


def _window(pid: int) -> str:
    """Where the monitor's own pages are: another place in each stub."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return next(line.split()[0] for line in lines if "rayvisor-stub-text" in line)


def _user_ticks(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11])


def _status(pid: int) -> dict[str, str]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {"Name": "", "State": "Z"}
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _mapped(pid: int) -> set[str]:
    """What a process has mapped, by name; "" for memory without one."""
    names = set()
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        name = line.split(maxsplit=5)[5] if len(line.split(maxsplit=5)) == 6 else ""
        names.add(re.sub(r"^/memfd:(\S+).*", r"\1", name))
    return names
