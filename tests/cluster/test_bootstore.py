"""What VMs boot, kept by content in a store that nobody need trust."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rayvisor.actors import bootstore
from rayvisor.actors.bootstore import BootStore
from rayvisor.vmm.errors import ClusterError, ConfigError
from rayvisor.vmm.spec import BootSource

if TYPE_CHECKING:
    from tests.cluster.conftest import MemoryStore

SOURCE = BootSource(
    b"kernel" * 1000, b"initrd" * 999, "quiet", (("module", b"content"),), format="linux"
)


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstore, "PART_BYTES", 1000)


def test_what_is_kept_comes_back(store: MemoryStore) -> None:
    digest = BootStore(store).keep(SOURCE)
    assert BootStore(store).load(digest) == SOURCE
    assert len(store.keys("boot-part/")) > 10


def test_the_same_is_kept_once(store: MemoryStore) -> None:
    first = BootStore(store).keep(SOURCE)
    keys = store.keys("")
    assert BootStore(store).keep(SOURCE) == first
    assert store.keys("") == keys


def test_what_is_gone_or_damaged_is_said_to_be(store: MemoryStore) -> None:
    boots = BootStore(store)
    digest = boots.keep(SOURCE)
    part = store.keys("boot-part/")[3]
    store.put(part, b"x" + store.values[part][1:])
    with pytest.raises(ClusterError, match="is damaged"):
        boots.load(digest)
    store.delete(part)
    with pytest.raises(ClusterError, match="is damaged"):
        boots.load(digest)
    store.put(f"boot/{digest}", b'{"parts": 99999999999, "size_bytes": 1, "asked_unix_s": 1}')
    with pytest.raises(ClusterError, match="is not in the cluster's store"):
        boots.load(digest)


def test_what_is_too_large_is_refused(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstore, "MAX_BYTES", 1 << 12)
    with pytest.raises(ConfigError, match="use --restart never"):
        BootStore(store).keep(SOURCE)
    assert store.values == {}


def test_what_nobody_uses_goes(store: MemoryStore) -> None:
    now = [1000.0]
    boots = BootStore(store, lambda: now[0])
    used = boots.keep(SOURCE)
    unused = boots.keep(BootSource(b"other"))
    assert boots.sweep([used]) == 0
    now[0] += bootstore.KEPT_UNUSED_S + 1
    fresh = boots.keep(BootSource(b"third"))
    assert boots.sweep([used]) == 1
    assert boots.load(used) == SOURCE
    assert boots.load(fresh).kernel == b"third"
    assert not any(unused in key for key in store.values)
