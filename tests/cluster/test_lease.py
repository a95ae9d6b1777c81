"""A host's lease: its file, its renewals, and what the environment says of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rayvisor.actors import lease
from rayvisor.actors.lease import LEASE_S, Held, LeaseFile, Renewal, read_beat
from rayvisor.actors.records import Capacity

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cluster.conftest import MemoryStore

SECOND = 1_000_000_000


@pytest.fixture
def file(tmp_path: Path) -> LeaseFile:
    return LeaseFile(tmp_path / "new" / "lease")


def test_no_lease_ended_long_ago(file: LeaseFile, tmp_path: Path) -> None:
    assert file.read() == Held(0, 0)
    file.write(Held(3, 5))
    assert file.read() == Held(3, 5)
    (tmp_path / "new" / "lease").write_bytes(b"torn")
    assert file.read() == Held(0, 0)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["lease"]


def test_it_holds_from_when_it_was_begun(file: LeaseFile, store: MemoryStore) -> None:
    now = [100 * SECOND]

    class Slow:
        def __getattr__(self, name: str) -> object:
            return getattr(store, name)

        def put(self, key: str, value: bytes) -> None:
            now[0] += 1 * SECOND
            store.put(key, value)

    has = Capacity(1, 8, 1 << 30)
    renewal = Renewal(
        "aa",
        Slow(),  # type: ignore[arg-type]
        file,
        lease_s=4.0,
        capacity=lambda: has,
        clock_ns=lambda: now[0],
    )
    renewal.renew()
    assert file.read() == Held(1, 104 * SECOND)
    beat = read_beat(store.values["lease/aa"])
    assert beat is not None
    assert (beat.lease_s, beat.capacity) == (4.0, has)
    renewal.renew()
    assert file.read() == Held(1, 105 * SECOND)
    now[0] = 105 * SECOND  # it ends before the next one is there
    renewal.renew()
    assert file.read() == Held(2, 109 * SECOND)


def test_who_stands_in_keeps_what_the_host_said(file: LeaseFile, store: MemoryStore) -> None:
    has = Capacity(2, 16, 1 << 30)
    Renewal("aa", store, file, lease_s=4.0, capacity=lambda: has).renew()
    before = read_beat(store.values["lease/aa"])
    Renewal("aa", store, file, lease_s=4.0).renew()
    after = read_beat(store.values["lease/aa"])
    assert before is not None
    assert after is not None
    assert after.capacity == has
    assert after.mark != before.mark


def test_a_beat_that_is_none_is_none() -> None:
    assert read_beat(b"{}") is None
    assert read_beat(b'{"mark": 5, "lease_s": "x"}') is None


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        (None, LEASE_S),
        ("", LEASE_S),
        ("ten", LEASE_S),
        ("nan", LEASE_S),
        ("10", 10.0),
        ("0", 1.0),
        ("1e9", 3600.0),
    ],
)
def test_the_environment_may_say_how_long(
    monkeypatch: pytest.MonkeyPatch, said: str | None, seconds: float
) -> None:
    monkeypatch.delenv(lease.LEASE_VARIABLE, raising=False)
    if said is not None:
        monkeypatch.setenv(lease.LEASE_VARIABLE, said)
    assert lease.lease_s() == seconds
