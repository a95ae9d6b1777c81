"""Processes and hosts are killed while a VM moves: one copy of it runs, and none is lost.

A VM whose own process is killed before it was handed over is gone, as it is without a migration;
then no copy runs anywhere.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import ray

from rayvisor.actors.cluster import cluster_actor
from rayvisor.actors.ledger import read_placement
from rayvisor.actors.records import VmState
from rayvisor.actors.store import RayStore
from rayvisor.migration.errors import MigrationFailedError
from rayvisor.runtime import cluster_file, local_hosts
from rayvisor.vmm.errors import MachineStateError, MigrationError
from tests.cluster.moving import PATIENCE_S, Reader, make_traveller, slow_move, spec_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rayvisor.actors.records import Placement
    from rayvisor.runtime.cluster import Cluster
    from rayvisor.runtime.vm_handle import VmHandle

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]


@pytest.fixture
def vm(two_hosts: Cluster, tmp_path: Path) -> Iterator[VmHandle]:
    """A guest that counts, on the first host."""
    yield two_hosts.create(spec_of("traveller", make_traveller(tmp_path), host="host-1"))
    for left in two_hosts.vms():
        two_hosts.remove(left.name, force=True)


def record(vm: VmHandle) -> Placement:
    found = read_placement(RayStore(), vm.name)
    assert found is not None
    return found


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_gone(pid: int) -> bool:
    """Whether the process has ended; a zombie has."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() == b""
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_the_destination_is_killed(two_hosts: Cluster, vm: VmHandle) -> None:
    with Reader(vm) as reader:
        reader.wait_for(5)
        with slow_move(two_hosts, vm) as errors:
            os.kill(record(vm).moving.target.pid, signal.SIGKILL)
            wait_until(lambda: bool(errors))
        assert isinstance(errors[0], MigrationFailedError)
        assert errors[0].report.outcome == "failed"
        reader.wait_for(reader.steps + 10)
        assert (vm.status().state, vm.status().host) == (VmState.RUNNING, "host-1")
        assert vm.migrate().outcome == "moved"
        reader.wait_for(reader.steps + 10)


def test_the_source_is_killed(two_hosts: Cluster, vm: VmHandle) -> None:
    with slow_move(two_hosts, vm) as errors:
        target = record(vm).moving.target
        os.kill(vm.status().pid, signal.SIGKILL)
        wait_until(lambda: bool(errors))
    assert "the VM's process on host-1 has ended" in str(errors[0])
    status = vm.status()
    assert (status.state, status.host) == (VmState.FAILED, "host-1")
    wait_until(lambda: is_gone(target.pid))
    with pytest.raises(MachineStateError, match="'traveller' is failed"):
        vm.send(b"x")
    with pytest.raises(MigrationError, match="is failed: only one that runs can be moved"):
        vm.migrate()
    failed = [e for e in two_hosts.events() if e.kind == "vm_failed"]
    assert failed[-1].vm == "traveller"


def test_the_record_is_killed(two_hosts: Cluster, vm: VmHandle) -> None:
    reports = []
    with Reader(vm) as reader:
        reader.wait_for(5)
        mover = threading.Thread(
            target=lambda: reports.append(two_hosts.vm(vm.name).migrate(bandwidth="8M"))
        )
        mover.start()
        wait_until(lambda: record(vm).move is not None and record(vm).moving.target.actor != "")
        ray.kill(cluster_actor(), no_restart=False)
        mover.join()
        reader.wait_for(reader.steps + 10)
    assert reports[0].outcome == "moved"
    assert (vm.status().state, vm.status().host) == (VmState.RUNNING, "host-2")


@pytest.mark.parametrize("round_", range(6))
@pytest.mark.parametrize("whom", ["origin", "target"])
def test_one_is_killed_when_the_vm_is_handed_over(
    two_hosts: Cluster, vm: VmHandle, whom: str, round_: int
) -> None:
    """Around the commit, each time a little later."""
    with Reader(vm) as reader:
        reader.wait_for(5)
        outcome: list[str] = []

        def move() -> None:
            try:
                outcome.append(two_hosts.vm(vm.name).migrate().outcome)
            except MigrationError as error:
                outcome.append(str(error))

        mover = threading.Thread(target=move)
        mover.start()
        wait_until(lambda: record(vm).move is not None and record(vm).moving.target.pid != 0)
        move_ = record(vm).moving
        spot = move_.origin if whom == "origin" else move_.target
        time.sleep(0.03 * round_)
        os.kill(spot.pid, signal.SIGKILL)
        mover.join()
        now = record(vm)
        assert now.move is None
        status = vm.status()
        owner_died = now.pid == spot.pid
        assert status.state is (VmState.FAILED if owner_died else VmState.RUNNING), outcome
        other = move_.target if now.pid == move_.origin.pid else move_.origin
        wait_until(lambda: is_gone(other.pid))
        if not owner_died:
            reader.wait_for(reader.steps + 10)
            return
        assert status.token == now.token
        reader.ends()


def test_a_whole_host_dies(two_hosts: Cluster, vm: VmHandle, tmp_path: Path) -> None:
    file = cluster_file.load()
    assert file is not None
    other = two_hosts.create(spec_of("other", make_traveller(tmp_path), host="host-2"))
    with Reader(vm) as reader:
        reader.wait_for(5)
        with slow_move(two_hosts, vm) as errors:
            assert local_hosts.kill(file, "host-2") > 2
            wait_until(lambda: bool(errors))
        assert "stays at host-1" in str(errors[0])
        reader.wait_for(reader.steps + 10)
        wait_until(lambda: not all(h.alive for h in two_hosts.hosts()))
        wait_until(lambda: other.status().state is VmState.FAILED)
        assert other.status().reason == "its host host-2 is gone"
        assert vm.status().state is VmState.RUNNING
        other.remove()
        local_hosts.start(file, 2)
        wait_until(lambda: [h.name for h in two_hosts.hosts()] == ["host-1", "host-2"])
        assert vm.migrate("host-2").outcome == "moved"
        reader.wait_for(reader.steps + 10)
