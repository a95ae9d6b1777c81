"""VMs that end with the Ray job that made them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from rayvisor.actors.directory import Directory
from rayvisor.actors.events import EventLog
from rayvisor.actors.jobs import JobWatch
from tests.cluster.test_directory import REQUEST, Carrier

if TYPE_CHECKING:
    from tests.cluster.conftest import MemoryStore


class Bench:
    def __init__(self, store: MemoryStore) -> None:
        self.carrier = Carrier()
        self.directory: Directory[bytes] = Directory(
            store, self.carrier, pause_s=lambda _seconds: None
        )
        self.ended: set[str] = set()
        self.asked = 0
        self.watch = JobWatch(self.directory, self._ended)

    def _ended(self) -> set[str]:
        self.asked += 1
        return self.ended

    def create(self, name: str, owner: str) -> None:
        self.directory.create(replace(REQUEST, name=name, owner=owner), b"")

    @property
    def names(self) -> list[str]:
        return [p.name for p in self.directory.ledger.placements()]


@pytest.fixture
def bench(store: MemoryStore) -> Bench:
    return Bench(store)


def test_a_job_takes_its_vms_along_and_no_others(bench: Bench, store: MemoryStore) -> None:
    bench.create("one", "01000000")
    bench.create("two", "02000000")
    bench.create("free", "")
    bench.watch.look()
    assert bench.names == ["free", "one", "two"]
    bench.ended = {"01000000", ""}
    bench.watch.look()
    assert bench.names == ["free", "two"]
    assert bench.carrier.killed == ["one"]
    texts = [event.text for event in EventLog(store).read()]
    assert texts[-1] == "VM one was removed: the job 01000000 that made it has ended"


def test_a_vm_that_is_being_created_is_left_until_it_is_there(bench: Bench) -> None:
    request = replace(REQUEST, owner="01000000")
    placement = bench.directory.ledger.reserve(request, "aa", "alpha")
    bench.ended = {"01000000"}
    bench.watch.look()
    assert bench.names == ["web"]
    bench.directory.ledger.assign("web", placement.token, "web")
    bench.directory.ledger.confirm("web", placement.token, 99)
    bench.carrier.answers["web"] = bench.carrier.start(bench.directory.placement("web"), b"")
    bench.watch.look()
    assert bench.names == []


def test_ray_is_asked_only_where_a_vm_has_an_owner(bench: Bench) -> None:
    bench.create("free", "")
    bench.watch.look()
    assert bench.asked == 0


def test_the_owner_survives_in_the_record(bench: Bench, store: MemoryStore) -> None:
    bench.create("one", "01000000")
    again: Directory[bytes] = Directory(store, bench.carrier, pause_s=lambda _seconds: None)
    assert again.statuses()[0].owner == "01000000"
