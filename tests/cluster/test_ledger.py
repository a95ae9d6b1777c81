"""The placement record: one owner a VM, tokens that only grow, and nothing lost with a process."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayvisor.actors import ft_record
from rayvisor.actors.ft_record import StoreCell
from rayvisor.actors.ledger import (
    Ledger,
    NameTakenError,
    StaleTokenError,
    read_end,
    read_placement,
    write_end,
)
from rayvisor.actors.records import LastWords, Pair, Protection, Spot, VmRequest, VmState
from rayvisor.migration.ft_protocol import Verdict
from rayvisor.vmm.errors import MigrationError, UnknownVmError
from tests.cluster.conftest import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Sequence

REQUEST = VmRequest("web", memory_bytes=64 << 20)
WORDS = LastWords(VmState.CRASHED, "triple fault", ended_unix_s=5.0, uptime_s=1.5, exit_status=3)


def test_a_new_ledger_over_the_same_store_is_the_old_one(store: MemoryStore) -> None:
    old = Ledger(store, now_s=lambda: 12.5)
    placed = old.confirm("web", old.reserve(REQUEST, "id", "host").token, pid=42)
    new = Ledger(store)
    assert new.placements() == [placed]
    assert new.get("web") == read_placement(store, "web") == placed
    assert (placed.pid, placed.host_id, placed.created_unix_s) == (42, "id", 12.5)


def test_a_name_is_given_once(store: MemoryStore) -> None:
    ledger = Ledger(store)
    ledger.reserve(REQUEST, "id", "alpha")
    with pytest.raises(NameTakenError, match=r"'web' already, on host alpha; .*rayvisor rm web"):
        ledger.reserve(REQUEST, "other", "beta")
    assert ledger.get("web").host_name == "alpha"


@given(st.lists(st.sampled_from(["reserve", "release", "reload"]), max_size=30))
def test_tokens_grow_whatever_happens(steps: Sequence[str]) -> None:
    store = MemoryStore()
    ledger, tokens = Ledger(store), [0]
    for step in steps:
        if step == "reload":
            ledger = Ledger(store)
        elif step == "release":
            ledger.release("web", tokens[-1])
        elif read_placement(store, "web") is None:
            tokens.append(ledger.reserve(REQUEST, "id", "host").token)
    assert tokens == sorted(set(tokens))


def test_a_stale_token_changes_nothing(store: MemoryStore) -> None:
    ledger = Ledger(store)
    first = ledger.reserve(REQUEST, "id", "host").token
    ledger.release("web", first)
    second = ledger.reserve(REQUEST, "id", "host").token
    with pytest.raises(StaleTokenError):
        ledger.confirm("web", first, pid=1)
    ledger.release("web", first)
    assert ledger.get("web").token == second
    assert ledger.get("web").pid == 0


@given(
    st.lists(
        st.sampled_from(["begin", "commit", "back", "revert", "end", "reload", "old commit"]),
        max_size=25,
    )
)
def test_whatever_both_sides_ask_one_has_the_vm(steps: Sequence[str]) -> None:
    """A side that was told it has the VM has it until the other is told so, with more."""
    store = MemoryStore()
    ledger = Ledger(store)
    token = ledger.reserve(REQUEST, "a", "alpha").token
    ledger.assign("web", token, "actor-0")
    ledger.confirm("web", token, 10)
    told, actors, moves = [(token, "actor-0")], 1, 0
    asked = (token, "actor-0", "nobody")  # token, source and destination of the last move
    for step in steps:
        try:
            match step:
                case "begin":
                    moves += 1
                    source = ledger.get("web")
                    ledger.begin_move("web", f"m{moves}", "b", "beta")
                    ledger.aim("web", f"m{moves}", f"actor-{actors}", 10 + actors)
                    asked = (source.token, source.actor, f"actor-{actors}")
                    actors += 1
                case "commit":
                    told.append((ledger.commit("web", asked[0], asked[2]), asked[2]))
                case "old commit":
                    told.append((ledger.commit("web", told[0][0], asked[2]), asked[2]))
                case "back" | "revert":
                    revert = step == "revert"
                    found = ledger.take_back("web", asked[0], asked[1], revert=revert)
                    told.append((found, asked[1]))
                case "end":
                    ledger.end_move("web", f"m{moves}")
                case "reload":
                    ledger = Ledger(store)
        except MigrationError:
            pass
        now = ledger.get("web")
        assert (now.token, now.actor) == told[-1]
        assert read_placement(store, "web") == now
    tokens = [found for found, _ in told]
    assert tokens == sorted(tokens)
    assert len({found for found, _ in told}) == len(set(told)), "one token, one owner"


def test_last_words_belong_to_one_token(store: MemoryStore) -> None:
    ledger = Ledger(store)
    token = ledger.reserve(REQUEST, "id", "host").token
    write_end(store, "web", token, WORDS)
    assert read_end(store, "web", token) == WORDS
    assert read_end(store, "web", token + 1) is None
    ledger.release("web", token)
    assert read_end(store, "web", token) is None


def test_an_unknown_vm_is_one_line(store: MemoryStore) -> None:
    with pytest.raises(UnknownVmError, match="no VM is called 'web'; `rayvisor ls` lists them"):
        Ledger(store).get("web")


@pytest.mark.parametrize("raw", [b"", b"{}", b"\xff", b'{"request": 1}', b"[]"])
def test_an_unreadable_record_is_left_out(store: MemoryStore, raw: bytes) -> None:
    Ledger(store).reserve(REQUEST, "id", "host")
    store.put("vm/web", raw)
    store.put("end/web", raw)
    assert Ledger(store).placements() == []
    assert read_end(store, "web", 1) is None


def paired(ledger: Ledger) -> int:
    """A VM with a secondary that has had no epoch yet; its token."""
    token = ledger.reserve(REQUEST, "id", "alpha").token
    ledger.confirm("web", token, pid=42)
    ledger.edit("web", ft_record.wanted(Protection(0.025, 0.5)))
    there = Spot("other", "beta", "actor", 43)
    ledger.edit("web", ft_record.paired(Pair("p", ledger.next_token(), there)))
    return token


def test_a_secondary_without_an_epoch_does_not_keep_a_vm_from_coming_back(
    store: MemoryStore,
) -> None:
    ledger = Ledger(store)
    token = paired(ledger)
    back = ledger.begin_comeback("web", token, "third", "gamma", "its host alpha is dead")
    assert (back.host_name, back.pair) == ("gamma", None)
    assert StoreCell(store, "p").decide(Verdict.SECONDARY) is Verdict.PRIMARY
    assert [r.spot.pid for r in back.remains] == [43]


def test_a_secondary_that_goes_on_is_left_alone(store: MemoryStore) -> None:
    ledger = Ledger(store)
    token = paired(ledger)
    StoreCell(store, "p").decide(Verdict.SECONDARY)
    with pytest.raises(StaleTokenError):
        ledger.begin_comeback("web", token, "third", "gamma", "its host alpha is dead")
    assert ledger.get("web").pid == 43


def test_a_secondary_that_may_go_on_is_waited_for(store: MemoryStore) -> None:
    ledger = Ledger(store)
    token = paired(ledger)
    ledger.edit("web", ft_record.ready("p"))
    with pytest.raises(StaleTokenError, match="has a secondary, which takes over"):
        ledger.begin_comeback("web", token, "third", "gamma", "its host alpha is dead")
    assert StoreCell(store, "p").read() is None
