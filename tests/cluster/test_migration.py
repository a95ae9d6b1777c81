"""VMs that run are moved between two hosts of a real Ray, and do not notice."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest

from rayvisor.actors.records import VmState
from rayvisor.migration.config import MigrationConfig
from rayvisor.migration.errors import MigrationFailedError
from rayvisor.runtime.api import VmSpec
from rayvisor.runtime.migrating import migrate
from rayvisor.vmm.errors import ConfigError, MigrationError, PlacementError, UnknownVmError
from tests.cluster.moving import Reader, make_traveller, other_host, slow_move, spec_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from rayvisor.runtime.cluster import Cluster
    from rayvisor.runtime.vm_handle import VmHandle

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    return make_traveller(tmp_path)


@pytest.fixture
def vm(two_hosts: Cluster, kernel: Path) -> Iterator[VmHandle]:
    """A guest that counts, on the first host."""
    made = two_hosts.create(spec_of("traveller", kernel, host="host-1"))
    yield made
    for left in two_hosts.vms():
        two_hosts.remove(left.name, force=True)


def test_it_counts_on_while_it_moves_to_and_fro(two_hosts: Cluster, vm: VmHandle) -> None:
    token = vm.status().token
    with Reader(vm) as reader:
        reader.wait_for(20)
        for there, here in (("host-2", "host-1"), ("host-1", "host-2"), ("host-2", "host-1")):
            report = vm.migrate(downtime="50ms")
            assert (report.outcome, report.source, report.destination) == ("moved", here, there)
            assert 0 < report.downtime_s <= report.total_s
            assert report.pages_sent >= 2048
            vm.send(there[-1:].encode())
            reader.wait_for(reader.steps + 20)
        assert reader.journal.keys == ["2", "1", "2"]
    status = vm.status()
    assert (status.state, status.host, status.moving_to) == (VmState.RUNNING, "host-2", "")
    assert status.token > token
    assert vm.console_offsets()[0] == 0, "the scrollback has come along"
    assert {h.name: h.vms for h in two_hosts.hosts()} == {"host-1": 0, "host-2": 1}


def test_what_is_typed_while_it_moves_arrives_once(vm: VmHandle) -> None:
    text = "the quick brown fox jumps over the lazy dog, twice" * 2
    with Reader(vm) as reader:
        reader.wait_for(5)

        def type_on() -> None:
            for key in text:
                vm.send(key.encode())

        typist = threading.Thread(target=type_on)
        typist.start()
        vm.migrate()
        typist.join()
        reader.wait_until(lambda: len(reader.journal.keys) >= len(text))
        assert "".join(reader.journal.keys) == text


def test_a_guest_that_stopped_there_says_how(vm: VmHandle) -> None:
    with Reader(vm) as reader:
        reader.wait_for(5)
        created_s = vm.status().created_unix_s
        vm.migrate()
        vm.send(b"Q")
        ended = vm.wait(30)
    assert ended is not None
    assert (ended.state, ended.host) == (VmState.HALTED, "host-2")
    assert ended.uptime_s <= time.time() - created_s
    with pytest.raises(MigrationError, match="is halted: only one that runs can be moved"):
        vm.migrate()
    vm.reset()
    first, _ = vm.console_offsets()
    with Reader(vm, at=None) as reader:
        assert first == 0
        assert vm.status().host == "host-2"
        reader.wait_for_output()


def test_cancel_leaves_it_where_it_is(two_hosts: Cluster, vm: VmHandle) -> None:
    with Reader(vm) as reader:
        reader.wait_for(5)
        with slow_move(two_hosts, vm) as errors:
            assert vm.status().moving_to == "host-2"
            assert {h.name: h.arriving for h in two_hosts.hosts()}["host-2"] == 1
            with pytest.raises(MigrationError, match="on its way to host host-2 already"):
                vm.migrate()
            assert vm.cancel_migration()
        (error,) = errors
        assert isinstance(error, MigrationFailedError)
        assert error.report.outcome == "cancelled"
        assert "stays at host-1" in str(error)
        reader.wait_for(reader.steps + 10)
        assert not vm.cancel_migration()
        assert (vm.status().host, vm.status().state) == ("host-1", VmState.RUNNING)
        assert {h.name: h.arriving for h in two_hosts.hosts()}["host-2"] == 0
        assert vm.migrate().outcome == "moved"
        reader.wait_for(reader.steps + 10)


def test_a_timeout_leaves_it_where_it_is(vm: VmHandle) -> None:
    with Reader(vm) as reader:
        reader.wait_for(5)
        with pytest.raises(MigrationFailedError, match="not done after"):
            vm.migrate(bandwidth="200K", timeout="1s")
        reader.wait_for(reader.steps + 10)
    assert vm.status().host == "host-1"


def test_post_copy_is_the_last_resort(two_hosts: Cluster, vm: VmHandle) -> None:
    hopeless = MigrationConfig(
        downtime_s=0.001, max_rounds=1, bandwidth_bytes_per_s=4 << 20, post_copy=True
    )
    with Reader(vm) as reader:
        reader.wait_for(1100)  # from here on each step checks a page written before
        report = migrate(two_hosts, vm.name, None, hopeless)
        assert (report.outcome, report.destination) == ("moved", "host-2")
        assert "postcopy_s" in report.phases
        vm.send(b"p")
        reader.wait_until(lambda: reader.journal.keys == ["p"])
        reader.wait_for(reader.steps + 1100)
        assert vm.migrate().outcome == "moved"
        reader.wait_for(reader.steps + 20)


def test_bad_requests_are_one_line(two_hosts: Cluster, vm: VmHandle, kernel: Path) -> None:
    with pytest.raises(UnknownVmError):
        two_hosts.start_move("nobody", None, MigrationConfig())
    with pytest.raises(PlacementError, match="no host is called 'mars'; hosts: host-1, host-2"):
        vm.migrate("mars")
    with pytest.raises(MigrationError, match="'traveller' is on host host-1 already"):
        vm.migrate("host-1")
    with pytest.raises(ConfigError, match="'soon' is not a span of time"):
        vm.migrate(downtime="soon")
    with pytest.raises(ConfigError, match="give more than 0 seconds"):
        vm.migrate(downtime=0)
    has = {h.name: h.memory_bytes for h in two_hosts.hosts()}["host-2"]
    memory = f"{(has >> 20) - 140}M"
    two_hosts.create(spec_of("large", kernel, host="host-2", memory=memory))
    for wanted in (None, "host-2"):
        with pytest.raises(PlacementError, match=r"no room for VM 'traveller': .* MiB free"):
            vm.migrate(wanted)
    assert vm.status().moving_to == ""


def test_a_host_is_evacuated_and_takes_vms_again(
    two_hosts: Cluster, vm: VmHandle, kernel: Path
) -> None:
    other = two_hosts.create(spec_of("other", kernel, host="host-1"))
    dead = two_hosts.create(spec_of("dead", kernel, host="host-1"))
    dead.stop()
    told: list[str] = []
    with Reader(vm) as reader, Reader(other) as second:
        reader.wait_for(5)
        second.wait_for(5)
        done = two_hosts.evacuate("host-1", on_event=told.append)
        reader.wait_for(reader.steps + 5)
        second.wait_for(second.steps + 5)
    assert sorted(r.vm for r in done.moved) == ["other", "traveller"]
    assert done.stayed == {"dead": "it is stopped: `rayvisor rm dead` removes it"}
    assert len(told) == 3
    state = {h.name: h for h in two_hosts.hosts()}
    assert (state["host-1"].maintenance, state["host-1"].reason) == (True, "in maintenance")
    with pytest.raises(PlacementError, match="host-1: in maintenance"):
        two_hosts.create(spec_of("new", kernel, host="host-1"))
    with pytest.raises(PlacementError, match="host-1: in maintenance"):
        vm.migrate()
    assert not two_hosts.resume_host("host-1").maintenance
    assert vm.migrate(other_host(vm)).destination == "host-1"
    kinds = [e.kind.value for e in two_hosts.events() if e.host == "host-1"]
    assert kinds.index("maintenance_begun") < kinds.index("maintenance_ended")


def test_events_tell_the_story(two_hosts: Cluster, vm: VmHandle) -> None:
    before = two_hosts.events()[-1]
    assert (before.kind, before.vm, before.host) == ("vm_created", "traveller", "host-1")
    report = vm.migrate()
    vm.remove(force=True)
    started, moved, removed = two_hosts.events(after=before.id)
    assert started.text == "VM traveller is moved from host-1 to host-2"
    assert moved.data["report"] == report.as_dict()
    assert (removed.kind, removed.host) == ("vm_removed", "host-2")


def test_a_spec_names_the_host(two_hosts: Cluster, kernel: Path) -> None:
    spec = VmSpec(name="there", kernel=kernel, format="flat", memory="16M", host="host-2")
    vm = two_hosts.create(spec)
    try:
        assert vm.status().host == "host-2"
    finally:
        vm.remove(force=True)
