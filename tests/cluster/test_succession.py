"""A cluster actor that has a successor writes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rayvisor.actors.events import EventLog
from rayvisor.actors.ledger import Ledger
from rayvisor.actors.records import VmRequest
from rayvisor.actors.succession import ReignStore, SucceededError, accede

if TYPE_CHECKING:
    from tests.cluster.conftest import MemoryStore

REQUEST = VmRequest("web", 1 << 20)


def test_generations_are_counted_and_told(store: MemoryStore) -> None:
    events = EventLog(store)
    assert [accede(store, events) for _ in range(3)] == [1, 2, 3]
    assert [e.kind.value for e in events.read()] == ["cluster_recovered"] * 2


def test_an_old_actor_that_wakes_up_changes_nothing(store: MemoryStore) -> None:
    events, ended = EventLog(store), []
    old = Ledger(ReignStore(store, accede(store, events), lambda: ended.append(1)))
    first = old.reserve(REQUEST, "aa", "alpha")
    new = Ledger(ReignStore(store, accede(store, events), lambda: ended.append(2)))
    moved = new.begin_comeback("web", first.token, "bb", "beta", "its host alpha is dead")
    before = dict(store.values)
    with pytest.raises(SucceededError):
        old.assign("web", first.token, "actor")
    with pytest.raises(SucceededError):
        old.release("web", first.token)
    with pytest.raises(SucceededError):
        old.reserve(VmRequest("other", 1 << 20), "aa", "alpha")
    assert store.values == before
    assert set(ended) == {1}
    assert new.get("web") == moved
    assert new.come_back("web", moved.token, 9).restarts == 1
