"""Fault tolerant VMs on three hosts of a real Ray: processes and hosts are killed and frozen."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from rayvisor.actors.events import EventKind
from rayvisor.actors.ledger import read_placement
from rayvisor.actors.names import CLUSTER_ACTOR, NAMESPACE
from rayvisor.actors.records import VmState
from rayvisor.actors.store import RayStore
from rayvisor.runtime import cluster_file, local_hosts
from rayvisor.runtime.cli.app import register_all
from rayvisor.runtime.protecting import wait_until_protected
from rayvisor.vmm.errors import MigrationError
from tests.cluster.moving import Reader, make_traveller, spec_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from rayvisor.actors.records import Placement
    from rayvisor.runtime.cluster import Cluster
    from rayvisor.runtime.vm_handle import VmHandle

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

NAME = "traveller"
PATIENCE_S = 120.0
SILENCE_S = (
    2.0  # a machine that runs three hosts and the tests is silent for half a second at times
)


@pytest.fixture
def vm(three_hosts: Cluster, tmp_path: Path) -> Iterator[VmHandle]:
    """A guest that counts, protected, not on the first host."""
    made = three_hosts.create(spec_of(NAME, make_traveller(tmp_path), host="host-2"))
    made.protect(host="host-3", silence=SILENCE_S)
    wait_until_protected(three_hosts, NAME, PATIENCE_S)
    yield made
    for event in three_hosts.events():
        print(event)  # of a test that fails, pytest shows it
    for left in three_hosts.vms():
        three_hosts.remove(left.name, force=True)


def placement() -> Placement:
    found = read_placement(RayStore(), NAME)
    assert found is not None
    return found


def goes_on(reader: Reader, steps: int = 20) -> None:
    reader.wait_for(reader.steps + steps)


def goes_on_elsewhere(reader: Reader, before: Placement) -> None:
    """Not told by what it says alone: words released before may still be on their way."""
    reader.wait_until(lambda: placement().token > before.token)
    goes_on(reader)


@contextmanager
def typing(vm: VmHandle) -> Iterator[list[str]]:
    """Inside, somebody types all the time; what was typed."""
    typed: list[str] = []
    stop = threading.Event()
    errors: list[BaseException] = []

    def work() -> None:
        try:
            while not stop.wait(0.02):
                key = chr(ord("a") + len(typed) % 16)
                vm.send(key.encode())
                typed.append(key)
        except BaseException as error:  # noqa: BLE001 - raised by the test's thread
            errors.append(error)

    typist = threading.Thread(target=work, daemon=True)
    typist.start()
    yield typed
    stop.set()
    typist.join(60)
    assert not errors, errors


def test_a_primary_is_killed_again_and_again(three_hosts: Cluster, vm: VmHandle) -> None:
    """What the guest says has no gap and no repetition; each key that was typed arrives once."""
    with Reader(vm) as reader, typing(three_hosts.vm(NAME)) as typed:
        for killed in range(1, 4):
            goes_on(reader)
            before = placement()
            os.kill(before.pid, signal.SIGKILL)
            goes_on_elsewhere(reader, before)
            status = wait_until_protected(three_hosts, NAME, PATIENCE_S)
            assert status.failovers == killed
            assert status.secondary != status.host
        sure = len(typed)
        reader.wait_until(lambda: len(reader.journal.keys) >= sure)
    assert reader.journal.keys[:sure] == typed[:sure]
    kinds = [e.kind for e in three_hosts.events() if e.vm == NAME]
    assert kinds.count(EventKind.FT_FAILOVER) >= 3
    assert EventKind.VM_FAILED not in kinds


def test_a_secondary_is_killed_and_another_takes_its_place(
    three_hosts: Cluster, vm: VmHandle
) -> None:
    with Reader(vm) as reader:
        goes_on(reader)
        before = placement()
        assert before.pair is not None
        os.kill(before.pair.secondary.pid, signal.SIGKILL)
        goes_on(reader)
        reader.wait_until(lambda: placement().pair != before.pair)
        wait_until_protected(three_hosts, NAME, PATIENCE_S)
        assert (placement().token, placement().pid) == (before.token, before.pid)
        goes_on(reader)


def test_a_frozen_primary_is_replaced_and_shows_nothing_when_it_wakes(vm: VmHandle) -> None:
    with Reader(vm) as reader:
        goes_on(reader)
        before = placement()
        os.kill(before.pid, signal.SIGSTOP)
        try:
            reader.wait_until(lambda: placement().token > before.token)
        finally:
            os.kill(before.pid, signal.SIGCONT)
        goes_on(reader, 100)
        assert placement().host_name == "host-3"


def test_a_frozen_secondary_is_done_without(three_hosts: Cluster, vm: VmHandle) -> None:
    with Reader(vm) as reader:
        goes_on(reader)
        before = placement()
        assert before.pair is not None
        os.kill(before.pair.secondary.pid, signal.SIGSTOP)
        try:
            goes_on(reader, 100)
        finally:
            os.kill(before.pair.secondary.pid, signal.SIGCONT)
        assert placement().token == before.token
        wait_until_protected(three_hosts, NAME, PATIENCE_S)


def test_a_switch_over_loses_nothing_and_the_old_process_goes(
    three_hosts: Cluster, vm: VmHandle
) -> None:
    with Reader(vm) as reader:
        goes_on(reader)
        before = placement()
        status = vm.failover()
        assert (status.host, status.failovers) == ("host-3", 1)
        goes_on(reader, 100)
        reader.wait_until(lambda: not _lives(before.pid))
        wait_until_protected(three_hosts, NAME, PATIENCE_S)


def test_the_cluster_actor_dies_with_the_primary(three_hosts: Cluster, vm: VmHandle) -> None:
    """The two sides settle it without it, and a new one finds out."""
    import ray

    with Reader(vm) as reader:
        goes_on(reader)
        cluster = ray.get_actor(CLUSTER_ACTOR, namespace=NAMESPACE)
        ray.kill(cluster, no_restart=False)
        before = placement()
        os.kill(before.pid, signal.SIGKILL)
        goes_on_elsewhere(reader, before)
        status = wait_until_protected(three_hosts, NAME, PATIENCE_S)
        assert status.failovers == 1
        assert vm.status().state is VmState.RUNNING


def test_a_guest_that_ends_has_said_all_it_said(three_hosts: Cluster, vm: VmHandle) -> None:
    with Reader(vm) as reader:
        goes_on(reader)
        vm.send(b"Q")
        end = vm.wait(60)
        assert end is not None
        assert end.state is VmState.HALTED
        offset, output = vm.console_output()
        assert offset == 0
        reader.wait_until(lambda: reader.journal.offset == len(output))
        reader.ends()
    assert three_hosts.ft_status(NAME).state == "unprotected"
    vm.reset()
    wait_until_protected(three_hosts, NAME, PATIENCE_S)


def test_stopping_and_removing_leave_nothing(three_hosts: Cluster, vm: VmHandle) -> None:
    before = placement()
    assert before.pair is not None
    assert vm.stop().state is VmState.STOPPED
    three_hosts.remove(NAME)
    deadline_s = time.monotonic() + PATIENCE_S
    while _lives(before.pid) or _lives(before.pair.secondary.pid):
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def test_it_moves_to_any_host(three_hosts: Cluster, vm: VmHandle) -> None:
    """To its secondary at once, to another host after a secondary was made there."""
    with Reader(vm) as reader:
        goes_on(reader)
        with pytest.raises(MigrationError, match="is on host host-2 already"):
            vm.migrate("host-2")
        report = vm.migrate("host-3")
        assert (report.source, report.destination, report.outcome) == ("host-2", "host-3", "moved")
        assert report.downtime_is_bound
        goes_on(reader)
        wait_until_protected(three_hosts, NAME, PATIENCE_S)
        (other,) = {"host-1", "host-2"} - {three_hosts.ft_status(NAME).secondary}
        assert vm.migrate(other).destination == other
        goes_on(reader)
        assert vm.status().host == other


def test_its_hosts_are_evacuated(three_hosts: Cluster, vm: VmHandle) -> None:
    told: list[str] = []
    with Reader(vm) as reader:
        goes_on(reader)
        try:
            done = three_hosts.evacuate("host-3", on_event=told.append)
            assert (done.secondaries, done.stayed) == ({NAME: "host-1"}, {})
            assert told == [f"the secondary of {NAME} is on host-1"]
            goes_on(reader)
            done = three_hosts.evacuate("host-2", on_event=told.append)
            assert [(r.vm, r.destination) for r in done.moved] == [(NAME, "host-1")]
            goes_on(reader)
            # Now nobody is left who could have a secondary: it runs, unprotected, and says why.
            done = three_hosts.evacuate("host-1", timeout="3s")
            assert "in maintenance" in done.stayed[NAME]
            goes_on(reader)
        finally:
            for host in three_hosts.hosts():
                three_hosts.resume_host(host.name)
        wait_until_protected(three_hosts, NAME, PATIENCE_S)


@pytest.mark.usefixtures("vm")
def test_the_commands() -> None:
    def run(*words: str, fails: bool = False) -> str:
        result = CliRunner().invoke(register_all(), ["ft", *words])
        assert (result.exit_code != 0) == fails, result.output
        return result.stdout if not fails else str(result.exception)

    (status,) = json.loads(run("status", NAME, "--json"))
    assert (status["state"], status["secondary"]) == ("protected", "host-3")
    assert status["stats"]["epochs"] > 0
    assert "host-3" in run("status")
    assert "protected already" in run("enable", NAME, "--epoch", "50ms", fails=True)
    assert "a third of the silence" in run("enable", NAME, "--epoch", "1s", fails=True)
    # Whether the next secondary is being made by the time this is told, is open.
    assert re.search(r"on host-3 is (not protected|re-protecting)", run("failover", NAME))
    assert "not fault tolerant" in run("disable", NAME)
    assert "No VM is fault tolerant" in run("status")
    assert json.loads(run("enable", NAME, "--json"))["state"] == "protected"


def test_a_whole_host_dies(three_hosts: Cluster, vm: VmHandle) -> None:
    """Last: the host comes back as another Ray node."""
    with Reader(vm) as reader:
        goes_on(reader)
        file = cluster_file.load()
        assert file is not None
        before = placement()
        local_hosts.kill(file, before.host_name)
        goes_on_elsewhere(reader, before)
        assert placement().host_name == "host-3"
        status = wait_until_protected(three_hosts, NAME, PATIENCE_S)
        assert status.secondary == "host-1"


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
