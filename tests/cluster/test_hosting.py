"""A host starts what the ledger says and nothing else, and sees processes end."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import pytest

from rayvisor.actors import ft_record
from rayvisor.actors.ft_record import StoreCell
from rayvisor.actors.hosting import TAKEOVER_LOOK_S, Host
from rayvisor.actors.ledger import Ledger, StaleTokenError, read_end, write_end
from rayvisor.actors.records import (
    GuestStatus,
    LastWords,
    Pair,
    Placement,
    Protection,
    Spot,
    VmRequest,
    VmState,
)
from rayvisor.migration.ft_protocol import Verdict

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cluster.conftest import MemoryStore


@dataclass
class Spawner:
    started: list[str] = field(default_factory=list)

    def prepare(self) -> Spot:
        return Spot("me", "", "actor", 99)

    def boot(self, placement: Placement, boot: bytes) -> GuestStatus:
        self.started.append(placement.name)
        return GuestStatus(placement.token, VmState.RUNNING, pid=99, uptime_s=0.0)


@dataclass
class Watch:
    watched: dict[int, Callable[[str], None]] = field(default_factory=dict)

    def add(self, pid: int, ended: Callable[[str], None]) -> None:
        self.watched[pid] = ended

    def finish(self, pid: int, patience_s: float) -> None:
        raise NotImplementedError


REQUEST = VmRequest("web", memory_bytes=64 << 20)


def test_it_starts_what_the_ledger_gave_it(store: MemoryStore) -> None:
    spawner, watch = Spawner(), Watch()
    placement = Ledger(store).reserve(REQUEST, "me", "alpha")
    host = Host("me", store, spawner, watch)
    assert host.prepare_vm(placement).pid == 99
    assert host.start_vm(placement, b"").pid == 99
    assert spawner.started == ["web"]
    assert list(watch.watched) == [99]


@pytest.mark.parametrize("change", [{"token": 0}, {"token": 2}, {"request": VmRequest("b", 1)}])
def test_it_starts_nothing_under_another_token(
    store: MemoryStore, change: dict[str, object]
) -> None:
    spawner = Spawner()
    placement = Ledger(store).reserve(REQUEST, "me", "alpha")
    stale = replace(placement, **change)  # type: ignore[arg-type]
    with pytest.raises(StaleTokenError, match="not placed on this host"):
        Host("me", store, spawner, Watch()).start_vm(stale, b"")
    assert spawner.started == []


def test_it_starts_nothing_of_another_host(store: MemoryStore) -> None:
    spawner = Spawner()
    placement = Ledger(store).reserve(REQUEST, "other", "beta")
    with pytest.raises(StaleTokenError):
        Host("me", store, spawner, Watch()).start_vm(placement, b"")
    assert spawner.started == []


def test_a_process_that_ends_is_written_down(store: MemoryStore) -> None:
    watch = Watch()
    placement = Ledger(store).reserve(REQUEST, "me", "alpha")
    Host("me", store, Spawner(), watch).prepare_vm(placement)
    watch.watched[99]("killed by SIGKILL")
    words = read_end(store, "web", placement.token)
    assert words is not None
    assert (words.state, words.reason) == ("failed", "killed by SIGKILL")


def test_a_host_that_is_dying_says_so(store: MemoryStore) -> None:
    watch = Watch()
    placement = Ledger(store).reserve(REQUEST, "me", "alpha")
    Host("me", store, Spawner(), watch, is_dying=lambda: True).prepare_vm(placement)
    watch.watched[99]("ended with exit status 1")
    words = read_end(store, "web", placement.token)
    assert words is not None
    assert words.reason == "its host alpha is gone"


def test_it_does_not_talk_over_the_vm_itself(store: MemoryStore) -> None:
    watch = Watch()
    placement = Ledger(store).reserve(REQUEST, "me", "alpha")
    Host("me", store, Spawner(), watch).prepare_vm(placement)
    own = LastWords(VmState.HALTED, "powered off", 1.0)
    write_end(store, "web", placement.token, own)
    watch.watched[99]("killed by SIGKILL")
    assert read_end(store, "web", placement.token) == own


def paired(store: MemoryStore) -> tuple[Ledger, Placement]:
    """A VM on host `me` in process 99 whose secondary on another host is still being filled."""
    ledger = Ledger(store)
    mine = ledger.reserve(REQUEST, "me", "alpha")
    ledger.assign("web", mine.token, "actor")
    ledger.confirm("web", mine.token, pid=99)
    ledger.edit("web", ft_record.wanted(Protection(0.025, 0.5)))
    there = Spot("you", "beta", "other", 100)
    return ledger, ledger.edit("web", ft_record.paired(Pair("p", ledger.next_token(), there)))


@pytest.mark.parametrize("verdict", Verdict)
def test_a_vm_has_not_failed_while_its_secondary_may_go_on(
    store: MemoryStore, verdict: Verdict
) -> None:
    """The secondary has its first epoch before the ledger knows."""
    _, placement = paired(store)
    watch = Watch()
    Host("me", store, Spawner(), watch).prepare_vm(placement)
    watch.watched[99]("killed by SIGKILL")
    time.sleep(3 * TAKEOVER_LOOK_S)
    assert store.keys("end/") == []
    StoreCell(store, "p").decide(verdict)
    (waiting,) = (t for t in threading.enumerate() if t.name == "wait_and_tell")
    waiting.join(5)
    assert bool(store.keys("end/")) == (verdict is Verdict.PRIMARY)


def test_it_is_silent_about_a_vm_that_was_removed(store: MemoryStore) -> None:
    ledger, watch = Ledger(store), Watch()
    placement = ledger.reserve(REQUEST, "me", "alpha")
    Host("me", store, Spawner(), watch).prepare_vm(placement)
    ledger.release("web", placement.token)
    watch.watched[99]("killed by SIGKILL")
    assert store.keys("end/") == []


def test_a_new_host_watches_the_vms_of_the_old_one(store: MemoryStore) -> None:
    ledger, watch = Ledger(store), Watch()
    mine = ledger.reserve(REQUEST, "me", "alpha")
    ledger.confirm("web", mine.token, pid=77)
    other = ledger.reserve(VmRequest("db", 1), "other", "beta")
    ledger.confirm("db", other.token, pid=78)
    ledger.reserve(VmRequest("half", 1), "me", "alpha")
    Host("me", store, Spawner(), watch)
    assert list(watch.watched) == [77]
