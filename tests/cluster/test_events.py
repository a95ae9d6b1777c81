"""The event log: in order, bounded, readable by whoever comes."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from rayvisor.actors.events import TRIM_EVERY, EventKind, EventLog

if TYPE_CHECKING:
    from tests.cluster.conftest import MemoryStore


def test_events_come_back_in_order(store: MemoryStore) -> None:
    clock = itertools.count(1_000_000_000)
    one, other = (EventLog(store, now_ns=lambda: next(clock)) for _ in range(2))
    first = one.write(EventKind.VM_CREATED, "made", vm="web", host="alpha")
    second = other.write(EventKind.VM_FAILED, "died", vm="web", data={"pid": 7})
    assert EventLog(store).read() == [first, second]
    assert (first.unix_s, second.data) == (1.0, {"pid": 7})
    assert one.read(after=first.id) == [second]
    assert one.read(after=second.id) == []
    assert one.read(limit=1) == [second]


def test_the_oldest_are_dropped(store: MemoryStore) -> None:
    clock = itertools.count(1)
    log = EventLog(store, kept=10, now_ns=lambda: next(clock))
    for number in range(5 * TRIM_EVERY):
        log.write(EventKind.VM_CREATED, str(number))
    assert len(store.keys("event/")) < 10 + TRIM_EVERY
    assert log.read()[-1].text == str(5 * TRIM_EVERY - 1)


def test_what_cannot_be_read_is_left_out(store: MemoryStore) -> None:
    log = EventLog(store)
    kept = log.write(EventKind.VM_REMOVED, "gone")
    store.put("event/0", b"{")
    assert log.read() == [kept]
