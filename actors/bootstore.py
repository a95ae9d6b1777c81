"""What VMs boot, kept in the cluster's store, so that they can be started again on any host.

Keys in the store::

    boot/DIGEST          how many parts there are, and when it was last asked for, as JSON
    boot-part/DIGEST/N   a part of the encoded boot source

By content: any number of VMs of one image share one copy. Only VMs with a restart policy have
theirs kept.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgpack
from pydantic import TypeAdapter, ValidationError

from rayvisor.vmm.errors import ClusterError, ConfigError
from rayvisor.vmm.spec import BootSource

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from rayvisor.actors.store import KeyValueStore

PART_BYTES: Final = 4 << 20
MAX_BYTES: Final = 256 << 20
"""The store is in the memory of Ray's control service, so not everything has room there."""
KEPT_UNUSED_S: Final = 600.0
"""Who keeps a source has so long to create a VM from it."""

_HEAD: Final = "boot/"
_PART: Final = "boot-part/"


@dataclass(frozen=True, slots=True)
class _Head:
    parts: int
    size_bytes: int
    asked_unix_s: float


_HEADS = TypeAdapter(_Head)


class BootStore:
    """Keeps boot sources by their content. Any number of processes may have one."""

    def __init__(self, store: KeyValueStore, now_s: Callable[[], float] = time.time) -> None:
        self._store = store
        self._now_s = now_s

    def keep(self, source: BootSource) -> str:
        """Keep a source, unless it is kept already; its name.

        Raises:
            ConfigError: it is larger than the cluster keeps.
        """
        data = _encode(source)
        if len(data) > MAX_BYTES:
            raise ConfigError(
                f"what this VM boots has {len(data) >> 20} MiB, and the cluster keeps at most"
                f" {MAX_BYTES >> 20} MiB to start it again: use --restart never, or less initrd"
            )
        digest = hashlib.sha256(data).hexdigest()
        parts = -(-len(data) // PART_BYTES)
        if self._head(digest) is None:
            for number in range(parts):
                at = number * PART_BYTES
                self._store.put(f"{_PART}{digest}/{number}", data[at : at + PART_BYTES])
        # Last, so that what is there is whole.
        head = _Head(parts, len(data), self._now_s())
        self._store.put(_HEAD + digest, _HEADS.dump_json(head))
        return digest

    def load(self, digest: str) -> BootSource:
        """A source that was kept.

        Raises:
            ClusterError: it is not there, or not whole.
        """
        head = self._head(digest)
        if head is None:
            raise ClusterError("what it boots is not in the cluster's store")
        parts = [self._store.get(f"{_PART}{digest}/{n}") or b"" for n in range(head.parts)]
        data = b"".join(parts)
        if hashlib.sha256(data).hexdigest() != digest:
            raise ClusterError("what it boots is damaged in the cluster's store")
        return _decode(data)

    def sweep(self, used: Iterable[str]) -> int:
        """Forget what no VM uses and nobody asked for lately; how many that were."""
        used = set(used)
        swept = 0
        for key in self._store.keys(_HEAD):
            digest = key.removeprefix(_HEAD)
            head = self._head(digest)
            if digest in used or (
                head is not None and self._now_s() - head.asked_unix_s < KEPT_UNUSED_S
            ):
                continue
            self._store.delete(key)
            for part in self._store.keys(f"{_PART}{digest}/"):
                self._store.delete(part)
            swept += 1
        return swept

    def _head(self, digest: str) -> _Head | None:
        raw = self._store.get(_HEAD + digest)
        if raw is None:
            return None
        try:
            head = _HEADS.validate_json(raw)
        except ValidationError:
            return None
        return head if 0 < head.parts <= MAX_BYTES // PART_BYTES + 1 else None


def _encode(source: BootSource) -> bytes:
    plain = {
        "kernel": bytes(source.kernel),
        "initrd": bytes(source.initrd),
        "cmdline": source.cmdline,
        "modules": [list(module) for module in source.modules],
        "format": source.format,
    }
    packed: bytes = msgpack.packb(plain)
    return packed


def _decode(data: bytes) -> BootSource:
    # Its digest was right, so it is what `keep` wrote: this is for the types.
    plain: Any = msgpack.unpackb(data, max_bin_len=MAX_BYTES)
    modules = tuple((str(name), bytes(content)) for name, content in plain["modules"])
    content = (bytes(plain["kernel"]), bytes(plain["initrd"]))
    return BootSource(*content, str(plain["cmdline"]), modules, str(plain["format"]))
