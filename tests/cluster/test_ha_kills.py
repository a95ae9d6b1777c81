"""Processes, guests and hosts die for real: what has a policy comes back, once."""

from __future__ import annotations

import os
import signal
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import ray

from rayvisor.actors.calls import find_actor
from rayvisor.actors.cluster import cluster_actor
from rayvisor.actors.ledger import read_placement
from rayvisor.actors.names import host_actor_name
from rayvisor.actors.records import VmState
from rayvisor.actors.store import RayStore
from rayvisor.runtime import cluster_file, local_hosts
from rayvisor.runtime.api import VmSpec
from rayvisor.vmm.errors import ClusterError
from tests.cluster.moving import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rayvisor.actors.records import Placement, VmStatus
    from rayvisor.runtime.cluster import Cluster
    from rayvisor.runtime.cluster_file import ClusterFile
    from rayvisor.runtime.vm_handle import VmHandle

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]


@pytest.fixture
def make(
    three_hosts: Cluster, echo_guest: bytes, tmp_path: Path
) -> Iterator[Callable[..., VmHandle]]:
    """Creates echo guests; all are removed after the test."""
    kernel = tmp_path / "echo.bin"
    kernel.write_bytes(echo_guest)

    def create(name: str, **values: object) -> VmHandle:
        plain = {"kernel": kernel, "format": "flat", "memory": "4M", **values}
        vm = three_hosts.create(VmSpec(name=name, **plain))
        vm.console.read_until("ready")
        return vm

    yield create
    three_hosts.set_reserve(0)
    for left in three_hosts.vms():
        three_hosts.remove(left.name, force=True)


def the_file() -> ClusterFile:
    file = cluster_file.load()
    assert file is not None
    return file


def record(name: str) -> Placement:
    found = read_placement(RayStore(), name)
    assert found is not None
    return found


def wait_until(true: Callable[[], bool], patience_s: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + patience_s
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_back(cluster: Cluster, name: str, restarts: int) -> Callable[[], bool]:
    def look() -> bool:
        try:
            status = cluster.status(name)
        except ClusterError:
            return False  # the cluster actor was on the host that is silent
        return (status.state, status.restarts) == (VmState.RUNNING, restarts)

    return look


def answers(cluster: Cluster, name: str) -> None:
    """The guest echoes what is typed, so it runs."""
    console = cluster.vm(name).console
    console.send("x1y2")
    console.read_until("x1y2")


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() == b""
    except (FileNotFoundError, ProcessLookupError):
        return True


def running_copies(pids: set[int]) -> set[int]:
    """Of these processes those that are there and not stopped."""
    return {pid for pid in pids if not is_gone(pid) and _state_of(pid) != "T"}


def _state_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


@contextmanager
def all_back(cluster: Cluster, file: ClusterFile, *hosts: str) -> Iterator[None]:
    """Afterwards the hosts are started again."""
    try:
        yield
    finally:
        for name in hosts:
            local_hosts.start(file, int(name.removeprefix("host-")))
        wait_until(lambda: sum(not h.reason for h in cluster.hosts()) == 3)


def test_a_killed_process_comes_back(three_hosts: Cluster, make: Callable[..., VmHandle]) -> None:
    vm = make("web", restart="on-failure", host="host-2")
    token = vm.status().token
    os.kill(vm.status().pid, signal.SIGKILL)
    wait_until(is_back(three_hosts, "web", 1))
    assert vm.status().token > token
    answers(three_hosts, "web")
    told = [e for e in three_hosts.events() if e.kind == "vm_restarted" and e.vm == "web"]
    assert "killed by SIGKILL" in told[-1].text


def test_without_a_policy_it_stays_down(make: Callable[..., VmHandle]) -> None:
    vm = make("plain")
    os.kill(vm.status().pid, signal.SIGKILL)
    wait_until(lambda: vm.status().state is VmState.FAILED)
    time.sleep(2.0)
    assert (vm.status().state, vm.status().restarts) == (VmState.FAILED, 0)


@pytest.mark.parametrize(
    ("restart", "key", "back"),
    [
        ("on-failure", "T", True),  # a triple fault
        ("on-failure", "X", True),  # a status of 7
        ("on-failure", "Q", False),  # it powers off
        ("always", "Q", True),
    ],
)
def test_guests_that_end(
    three_hosts: Cluster, make: Callable[..., VmHandle], restart: str, key: str, *, back: bool
) -> None:
    vm = make("ends", restart=restart)
    vm.console.send(key)
    if back:
        wait_until(is_back(three_hosts, "ends", 1))
        answers(three_hosts, "ends")
    else:
        wait_until(lambda: vm.status().state is VmState.HALTED)
        time.sleep(1.0)
        assert (vm.status().state, vm.status().restarts) == (VmState.HALTED, 0)


def test_what_is_stopped_stays_so(three_hosts: Cluster, make: Callable[..., VmHandle]) -> None:
    vm = make("stopped", restart="always")
    vm.stop()
    time.sleep(1.5)
    assert (vm.status().state, vm.status().restarts) == (VmState.STOPPED, 0)
    assert three_hosts.ha_stats().waiting == 0


def test_a_host_dies(three_hosts: Cluster, make: Callable[..., VmHandle]) -> None:
    file = the_file()
    for n in range(3):
        make(f"kept-{n}", restart="on-failure", host="host-2", priority=10 * n)
    plain = make("plain", host="host-2")
    with all_back(three_hosts, file, "host-2"):
        last = three_hosts.events()[-1].id
        local_hosts.kill(file, "host-2")
        for n in range(3):
            wait_until(is_back(three_hosts, f"kept-{n}", 1))
            answers(three_hosts, f"kept-{n}")
        assert plain.status().state is VmState.FAILED
        told = [e for e in three_hosts.events(after=last) if e.kind == "vm_restarted"]
        assert sorted(e.vm for e in told) == ["kept-0", "kept-1", "kept-2"]
        dead = [e for e in three_hosts.events(after=last) if e.kind == "host_dead"]
        assert [e.host for e in dead] == ["host-2"]
        assert three_hosts.status("kept-0").host != "host-2"


def test_an_isolated_host_stops_before_another_starts(
    three_hosts: Cluster, make: Callable[..., VmHandle]
) -> None:
    """Its processes stand still, its VM is started elsewhere, and then it wakes up."""
    file = the_file()
    make("web", restart="on-failure", host="host-3")
    old = record("web").pid
    host = local_hosts.processes(file, "host-3")
    with all_back(three_hosts, file):
        for pid in host:
            os.kill(pid, signal.SIGSTOP)
        try:
            wait_until(is_back(three_hosts, "web", 1))
            new = record("web").pid
            answers(three_hosts, "web")
            assert running_copies({old, new}) == {new}
        finally:
            for pid in host:
                os.kill(pid, signal.SIGCONT)
        wait_until(lambda: is_gone(old))
        answers(three_hosts, "web")
        assert record("web").pid == new
        if not any(h.name == "host-3" and h.alive for h in three_hosts.hosts()):
            # Ray gave the node up, and it ended itself.
            local_hosts.start(file, 3)


def test_a_short_silence_costs_nothing(three_hosts: Cluster, make: Callable[..., VmHandle]) -> None:
    file = the_file()
    vm = make("web", restart="on-failure", host="host-2")
    before = record("web")
    pids = [vm.status().pid]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(2.0)
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    answers(three_hosts, "web")
    assert record("web") == before
    assert local_hosts.processes(file, "host-2")


def test_the_cluster_actor_dies(three_hosts: Cluster, make: Callable[..., VmHandle]) -> None:
    for n in range(3):
        make(f"vm-{n}", restart="on-failure", host=f"host-{n + 1}")
    before = {vm.name: (vm.pid, vm.token) for vm in three_hosts.vms()}
    ray.kill(cluster_actor(), no_restart=False)
    began = time.monotonic()
    after: list[VmStatus] = three_hosts.vms()
    assert {vm.name: (vm.pid, vm.token) for vm in after} == before
    assert all(vm.state is VmState.RUNNING for vm in after)
    assert time.monotonic() - began < PATIENCE_S
    for name in before:
        answers(three_hosts, name)
    assert any(e.kind == "cluster_recovered" for e in three_hosts.events())


def test_a_restart_outlives_the_cluster_actor(
    three_hosts: Cluster, make: Callable[..., VmHandle]
) -> None:
    """Both die at once: whoever takes the record over starts the VM again."""
    vm = make("web", restart="on-failure")
    os.kill(vm.status().pid, signal.SIGKILL)
    time.sleep(0.25)
    ray.kill(cluster_actor(), no_restart=False)
    wait_until(lambda: three_hosts.status("web").state is VmState.RUNNING)
    answers(three_hosts, "web")
    assert [s.name for s in three_hosts.vms()] == ["web"]


def test_a_host_actor_dies(three_hosts: Cluster, make: Callable[..., VmHandle]) -> None:
    """Its VMs run on and are adopted: their ends are noticed as before."""
    vm = make("web", restart="on-failure", host="host-2")
    before = record("web")
    actor = find_actor(host_actor_name(before.host_id))
    ray.kill(actor, no_restart=False)
    time.sleep(6.0)  # longer than a lease and its grace
    answers(three_hosts, "web")
    assert record("web") == before
    os.kill(vm.status().pid, signal.SIGKILL)
    wait_until(is_back(three_hosts, "web", 1))


def test_a_crash_loop_slows_down(three_hosts: Cluster, make: Callable[..., VmHandle]) -> None:
    vm = make("loop", restart="on-failure", restart_delay="1s")
    for n in range(1, 3):
        os.kill(record("loop").pid, signal.SIGKILL)
        wait_until(is_back(three_hosts, "loop", n))
    os.kill(vm.status().pid, signal.SIGKILL)
    wait_until(lambda: vm.status().state is VmState.RESTARTING)
    began = time.monotonic()
    assert "SIGKILL" in vm.status().reason
    wait_until(is_back(three_hosts, "loop", 3))
    assert time.monotonic() - began > 1.0
    vm.remove(force=True)


def test_room_is_kept_for_a_loss(three_hosts: Cluster, make: Callable[..., VmHandle]) -> None:
    three_hosts.set_reserve(3)
    with pytest.raises(Exception, match="--ha-reserve 3"):
        make("web")
    assert three_hosts.ha_stats().refusals["reserve"] == 1
    three_hosts.set_reserve(1)
    make("web", restart="on-failure")
    assert three_hosts.ha_stats().reserve_hosts == 1


def test_a_policy_can_be_given_later(three_hosts: Cluster, make: Callable[..., VmHandle]) -> None:
    vm = make("late")
    vm.set_ha(restart="on-failure", priority=90)
    assert (vm.status().restart, vm.status().priority) == ("on-failure", 90)
    os.kill(vm.status().pid, signal.SIGKILL)
    wait_until(is_back(three_hosts, "late", 1))
    answers(three_hosts, "late")


def test_what_a_hang_is_can_be_changed(three_hosts: Cluster, make: Callable[..., VmHandle]) -> None:
    """The echo guest is silent: from now on that is a hang, on another host, too."""
    vm = make("quiet", heartbeat="1h", on_hang="ignore", host="host-2")
    vm.migrate("host-3")
    vm.set_ha(on_hang="stop", heartbeat="1s")
    wait_until(lambda: vm.status().state is VmState.CRASHED)
    assert "said nothing for 1 s" in vm.status().reason
    (hung,) = [e for e in three_hosts.events() if e.kind == "vm_hung" and e.vm == "quiet"]
    assert hung.data["action"] == "stop"
    policy = three_hosts.policy("quiet")
    assert (policy.on_hang, policy.heartbeat_s) == ("stop", 1.0)
