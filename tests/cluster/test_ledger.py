"""The placement record: one owner a VM, tokens that only grow, and nothing lost with a process."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayvisor.actors.ledger import (
    Ledger,
    NameTakenError,
    StaleTokenError,
    read_end,
    read_placement,
    write_end,
)
from rayvisor.actors.records import LastWords, VmRequest, VmState
from rayvisor.vmm.errors import UnknownVmError
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
