"""What the cluster makes of what hosts and VMs say, and of their silence."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from rayvisor.actors.directory import Answer, Directory, Gone, Node, Silent
from rayvisor.actors.ledger import NameTakenError, read_placement, write_end
from rayvisor.actors.records import (
    Capacity,
    GuestStatus,
    LastWords,
    Placement,
    Spot,
    VmRequest,
    VmState,
)
from rayvisor.vmm.errors import LoaderError, MachineStateError, PlacementError, UnknownVmError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.cluster.conftest import MemoryStore

REQUEST = VmRequest("web", memory_bytes=64 << 20, image="debian")
ALPHA = Node("aa", "alpha", "10.0.0.1", alive=True, capacity=Capacity(2, 16, 1 << 30))


def running(token: int) -> GuestStatus:
    return GuestStatus(token, VmState.RUNNING, pid=99, uptime_s=2.0)


@dataclass
class Carrier:
    """Hosts and VMs that say what the test wants."""

    listed: list[Node] = field(default_factory=lambda: [ALPHA])
    answers: dict[str, Answer] = field(default_factory=dict)
    fails: Exception | None = None
    killed: list[str] = field(default_factory=list)

    def nodes(self) -> list[Node]:
        return self.listed

    def is_alive(self, host_id: str) -> bool:
        return any(n.host_id == host_id and n.alive for n in self.listed)

    def ask(self, spots: Sequence[Spot]) -> list[Answer]:
        return [self.answers[spot.actor] for spot in spots]

    def prepare(self, placement: Placement) -> Spot:
        return Spot(placement.host_id, placement.host_name, placement.name, 99)

    def start(self, placement: Placement, boot: bytes) -> GuestStatus:
        if self.fails is not None:
            raise self.fails
        self.answers[placement.name] = running(placement.token)
        return running(placement.token)

    def kill(self, spot: Spot) -> None:
        self.killed.append(spot.actor)


@pytest.fixture
def carrier() -> Carrier:
    return Carrier()


@pytest.fixture
def directory(store: MemoryStore, carrier: Carrier) -> Directory[bytes]:
    return Directory(store, carrier, pause_s=lambda _seconds: None)


def test_what_is_created_is_listed(directory: Directory[bytes]) -> None:
    made = directory.create(REQUEST, b"")
    assert (made.state, made.host, made.pid, made.image) == ("running", "alpha", 99, "debian")
    assert directory.statuses() == [made]
    (host,) = directory.hosts()
    assert (host.vms, host.vcpus_used) == (1, 1)
    assert host.memory_used_bytes > REQUEST.memory_bytes


def test_a_vm_that_cannot_start_leaves_nothing(
    directory: Directory[bytes], carrier: Carrier, store: MemoryStore
) -> None:
    carrier.fails = LoaderError("not a kernel")
    with pytest.raises(LoaderError, match="not a kernel"):
        directory.create(REQUEST, b"")
    assert directory.statuses() == []
    assert carrier.killed == ["web"]
    assert store.keys("vm/") == []
    carrier.fails = None
    assert directory.create(REQUEST, b"").token == 2


def test_refusals_touch_no_host(directory: Directory[bytes], carrier: Carrier) -> None:
    directory.create(REQUEST, b"")
    carrier.fails = AssertionError("asked to start")
    with pytest.raises(NameTakenError):
        directory.create(REQUEST, b"")
    with pytest.raises(PlacementError):
        directory.create(VmRequest("big", memory_bytes=1 << 40), b"")
    assert [vm.name for vm in directory.statuses()] == ["web"]
    assert carrier.killed == []


def test_a_new_directory_is_the_old_one(
    directory: Directory[bytes], carrier: Carrier, store: MemoryStore
) -> None:
    made = directory.create(REQUEST, b"")
    assert Directory(store, carrier).statuses() == [made]
    assert carrier.killed == []


def test_what_was_half_made_goes_with_its_maker(
    directory: Directory[bytes], carrier: Carrier, store: MemoryStore
) -> None:
    directory.create(REQUEST, b"")
    placement = read_placement(store, "web")
    assert placement is not None
    store.put("vm/web", store.values["vm/web"].replace(b'"pid":99', b'"pid":0'))
    assert Directory(store, carrier).statuses() == []
    assert carrier.killed == ["web"]


def test_a_dead_process_is_failed_with_what_its_host_wrote(
    directory: Directory[bytes], carrier: Carrier, store: MemoryStore
) -> None:
    token = directory.create(REQUEST, b"").token
    carrier.answers["web"] = Gone("")
    write_end(store, "web", token, LastWords(VmState.FAILED, "killed by SIGSEGV", 1.0, 0.5))
    status = directory.status("web")
    assert (status.state, status.reason, status.uptime_s) == ("failed", "killed by SIGSEGV", 0.5)


def test_a_dead_process_nobody_saw_end_has_what_the_carrier_knows(
    directory: Directory[bytes], carrier: Carrier
) -> None:
    directory.create(REQUEST, b"")
    carrier.answers["web"] = Gone("ended by Ray")
    assert directory.status("web").reason == "ended by Ray"
    carrier.answers["web"] = Gone("")
    assert directory.status("web").reason == "ended by Ray"


def test_a_vm_goes_with_its_host(directory: Directory[bytes], carrier: Carrier) -> None:
    directory.create(REQUEST, b"")
    carrier.answers["web"] = Gone("")
    carrier.listed = [Node("aa", "alpha", "10.0.0.1", alive=False)]
    status = directory.status("web")
    assert (status.state, status.reason) == ("failed", "its host alpha is gone")


def test_the_end_of_a_guest_outlives_its_process(
    directory: Directory[bytes], carrier: Carrier, store: MemoryStore
) -> None:
    token = directory.create(REQUEST, b"").token
    write_end(store, "web", token, LastWords(VmState.EXITED, "debug exit", 1.0, 0.5, 7))
    carrier.answers["web"] = Gone("")
    status = directory.status("web")
    assert (status.state, status.exit_status) == ("exited", 7)


def test_silence_is_not_death(directory: Directory[bytes], carrier: Carrier) -> None:
    directory.create(REQUEST, b"")
    carrier.answers["web"] = Silent()
    assert directory.status("web").state == "unreachable"
    with pytest.raises(MachineStateError, match="--force"):
        directory.remove("web", force=False)


def test_a_running_vm_is_removed_only_by_force(
    directory: Directory[bytes], carrier: Carrier, store: MemoryStore
) -> None:
    directory.create(REQUEST, b"")
    with pytest.raises(MachineStateError, match="'web' is running: `rayvisor stop web` first"):
        directory.remove("web", force=False)
    assert carrier.killed == []
    assert directory.remove("web", force=True).state == "running"
    assert carrier.killed == ["web"]
    assert store.keys("vm/") == []
    with pytest.raises(UnknownVmError):
        directory.remove("web", force=True)


def test_a_host_that_is_gone_is_listed_while_it_has_vms(
    directory: Directory[bytes], carrier: Carrier
) -> None:
    directory.create(REQUEST, b"")
    carrier.listed = [Node("aa", "alpha", "10.0.0.1", alive=False, reason="gone")]
    (host,) = directory.hosts()
    assert (host.alive, host.vms, host.reason) == (False, 1, "gone")
    directory.remove("web", force=True)
    assert directory.hosts() == []
