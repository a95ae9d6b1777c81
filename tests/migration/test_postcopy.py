"""Post-copy: pages follow a guest that runs already, those first that it waits for."""

from __future__ import annotations

import mmap
import os
import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayvisor.migration import demand, frames
from rayvisor.migration.arrival import Arrival
from rayvisor.migration.config import MigrationConfig
from rayvisor.migration.errors import MigrationFailedError
from rayvisor.migration.host import tsc_hz
from rayvisor.migration.phases import DestinationPhase, SourcePhase
from rayvisor.migration.precopy import Migration
from rayvisor.vmm.core import _native
from rayvisor.vmm.errors import MigrationError
from tests.migration.fakes import BreakingTransport, FakeDestination, FakeSource, Record, cut

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PAGE = 4096
PAGES = 1024
CONFIG = MigrationConfig(downtime_s=1e-9, post_copy=True, stop_timeout_s=0.5, reply_timeout_s=0.5)
needs_userfaultfd = pytest.mark.skipif(not demand.available(), reason="needs userfaultfd")


class Pair:
    """A guest that writes so much that only post-copy can move it."""

    def __init__(self, writes: int = 800) -> None:
        self.source, self.destination = FakeSource(PAGES), FakeDestination(PAGES)
        self.record = Record(lambda: self.destination.alive)
        self.arrival = Arrival(self.destination, self.record)
        self._values = iter(range(1, 1 << 30))
        self._writes = writes
        self.source.before_harvest = self.rewrite
        self.rewrite()

    def rewrite(self) -> None:
        value = next(self._values)
        for page in range(self._writes):
            self.source.write(page, value.to_bytes(4, "little"), page % 4000)

    def migration(
        self, at: int | None = None, **hooks: Callable[[], None]
    ) -> tuple[Migration, BreakingTransport]:
        transport = BreakingTransport(self.arrival, at, **hooks)  # type: ignore[arg-type]
        migration = Migration(self.source, transport, self.record, token=1, config=CONFIG)
        return migration, transport


def test_the_pages_follow_and_ram_is_the_same() -> None:
    pair = Pair()
    pair.source.late_input = b"typed"
    migration, transport = pair.migration()
    report = migration.run()
    transport.close()
    assert pair.destination.memory == pair.source.memory
    assert pair.destination.running
    assert pair.destination.completed
    assert pair.destination.typed == b"typed"
    assert pair.arrival.phase is DestinationPhase.DONE
    assert report.outcome == "moved"
    assert "postcopy_s" in report.phases
    assert sum(r.pages + r.zero_pages for r in report.rounds) >= 800


@given(st.lists(st.lists(st.integers(0, 2000), max_size=5), max_size=10))
def test_pages_that_are_waited_for_come_next(wishes: list[list[int]]) -> None:
    pair = Pair()
    pair.destination.wishes = [list(pages) for pages in wishes]
    migration, transport = pair.migration()
    migration.run()
    transport.close()
    assert pair.destination.memory == pair.source.memory
    order = pair.destination.order
    assert sorted(order) == list(range(800))
    if wishes and wishes[0]:
        after_first = min(len(order), 64)
        waited = [page for page in wishes[0] if after_first <= page < 800]
        assert not waited or order[after_first] == waited[0]


def test_a_destination_that_cannot_is_not_asked_to() -> None:
    pair = Pair()
    pair.destination.incomplete_allowed = False
    config = MigrationConfig(downtime_s=1e-9, post_copy=True, auto_converge=False, max_rounds=6)
    transport = BreakingTransport(pair.arrival)
    migration = Migration(pair.source, transport, pair.record, token=1, config=config)
    with pytest.raises(MigrationFailedError, match="still writes"):
        migration.run()
    assert pair.source.running


def kinds() -> list[str]:
    pair = Pair()
    migration, transport = pair.migration()
    migration.run()
    transport.close()
    return [frames.decode(f, i).KIND for i, f in enumerate(transport.frames)]


KINDS = kinds()
COMMIT = KINDS.index("commit")
STEPS = [pytest.param(i, id=f"{i}-{kind}") for i, kind in enumerate(KINDS)]


@pytest.mark.parametrize("at", STEPS)
@pytest.mark.parametrize("when", ["before", "after"])
def test_the_line_is_cut(at: int, when: str) -> None:
    """Until COMMIT nothing is lost; later, both sides know that it is: the price."""
    pair = Pair()
    migration, transport = pair.migration(at, **{when: cut})
    try:
        outcome = migration.run().outcome
    except MigrationFailedError as error:
        outcome = error.report.outcome
    transport.close()
    last = len(KINDS) - 1
    if at < COMMIT or (at == COMMIT and when == "before"):
        assert (outcome, pair.source.running, pair.destination.running) == ("failed", True, False)
        assert migration.phase is SourcePhase.KEPT
    elif at == last and when == "after":
        assert pair.destination.running
        assert pair.destination.memory == pair.source.memory
        assert not pair.source.running
    else:
        assert outcome == "lost"
        assert pair.destination.lost
        assert not pair.source.running
        assert not pair.destination.running


def test_pages_that_were_not_announced_are_refused() -> None:
    pair = Pair()
    pair.destination.incomplete_allowed = False
    arrival = pair.arrival
    hello = frames.Hello(
        frames.PROTOCOL_VERSION,
        ("postcopy",),
        "vm",
        PAGES * PAGE,
        PAGE,
        "machine/1",
        1,
        tsc_hz(),
        "",
    )
    arrival.feed(frames.encode(0, hello))
    reply = arrival.feed(frames.encode(1, frames.Missing(b"")))[0]
    assert isinstance(frames.decode(reply, 1), frames.Abort)


@pytest.fixture(name="ram")
def _ram() -> Iterator[memoryview]:
    fd = os.memfd_create("ram", os.MFD_CLOEXEC)
    os.ftruncate(fd, 32 * PAGE)
    with mmap.mmap(fd, 32 * PAGE, mmap.MAP_SHARED) as mapping:
        view = memoryview(mapping)
        yield view
        view.release()
    os.close(fd)


def touch(ram: memoryview, page: int) -> tuple[threading.Thread, list[bytes]]:
    """Read a page as a guest does: on a thread of its own, without the interpreter lock."""
    seen: list[bytes] = []
    nothing = memoryview(bytearray())

    def work() -> None:
        out = memoryview(bytearray(PAGE))
        pending = (1 << page).to_bytes(4, "little")
        _native.pick_pages(ram, 32, pending, 0, out, nothing, nothing, bytearray(), -1)
        seen.append(bytes(out))

    thread = threading.Thread(target=work)
    thread.start()
    return thread, seen


def wanted_soon(awaited: demand.Demand, count: int) -> list[int]:
    """The pages that are waited for, once there are `count`."""
    pause, found = threading.Event(), awaited.wanted()
    for _ in range(2000):
        if len(found) >= count:
            return sorted(found)
        pause.wait(0.005)
        found += awaited.wanted()
    return pytest.fail(f"only {found} were waited for")


@needs_userfaultfd
def test_whoever_touches_a_missing_page_waits_for_it(ram: memoryview) -> None:
    awaited = demand.Demand(ram, [(3, 4)])
    thread, seen = touch(ram, 5)
    assert wanted_soon(awaited, 1) == [5]
    assert awaited.wanted() == []
    assert not seen
    awaited.fill(4, b"a" * PAGE + b"b" * PAGE)
    thread.join(20)
    assert seen == [b"b" * PAGE]
    awaited.fill(3, b"x" * 4 * PAGE)
    assert bytes(ram[4 * PAGE : 6 * PAGE : PAGE]) == b"ab", "what is here stays as it is"
    assert awaited.missing_pages == 0
    awaited.close()


@needs_userfaultfd
def test_a_hole_that_is_not_missing_is_zeros_at_once(ram: memoryview) -> None:
    awaited = demand.Demand(ram, [(3, 1)])
    thread, seen = touch(ram, 9)
    thread.join(20)
    assert seen == [bytes(PAGE)]
    awaited.fill_zero(3, 1)
    assert awaited.missing_pages == 0
    awaited.close()


@needs_userfaultfd
def test_the_hosts_code_waits_without_the_interpreter_lock(ram: memoryview) -> None:
    awaited = demand.Demand(ram, [(3, 2)])
    came = threading.Event()

    def work() -> None:
        awaited.wait_for(2, 3)
        came.set()

    thread = threading.Thread(target=work)
    thread.start()
    assert wanted_soon(awaited, 2) == [3, 4]
    assert not came.is_set()
    awaited.fill(3, b"z" * 2 * PAGE)
    thread.join(20)
    assert came.is_set()
    awaited.close()


@needs_userfaultfd
def test_when_pages_are_lost_nobody_waits_for_ever(ram: memoryview) -> None:
    awaited = demand.Demand(ram, [(0, 32)])
    guest, seen = touch(ram, 7)
    failed: list[MigrationError] = []

    def work() -> None:
        try:
            awaited.wait_for(1, 1)
        except MigrationError as error:
            failed.append(error)

    host = threading.Thread(target=work)
    host.start()
    assert wanted_soon(awaited, 2) == [1, 7]
    awaited.close()
    awaited.close()
    guest.join(20)
    host.join(20)
    assert seen == [bytes(PAGE)]
    assert "lost" in str(failed[0])
