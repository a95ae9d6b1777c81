"""One cluster actor at a time writes the record, also when an old one wakes up.

Ray starts the cluster actor again when its node is lost. A node that only stood still comes back,
and for a moment with it the old actor, whose memory of the record is out of date. Each actor
counts itself before it reads the record, and writes only while it is the last one that did.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rayvisor.actors.events import EventKind
from rayvisor.vmm.errors import ClusterError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rayvisor.actors.events import EventLog
    from rayvisor.actors.store import KeyValueStore

_GENERATION: Final = "cluster/generation"


class SucceededError(ClusterError):
    """Another cluster actor has taken the record over."""


def accede(store: KeyValueStore, events: EventLog) -> int:
    """Take the record over; this cluster actor's number. Tells of one that is not the first."""
    generation = int(store.get(_GENERATION) or b"0") + 1
    store.put(_GENERATION, str(generation).encode())
    if generation > 1:
        text = "the cluster actor was started again, and took the placement record over"
        events.write(EventKind.CLUSTER_RECOVERED, text, data={"generation": generation})
    return generation


class ReignStore:
    """The store as one cluster actor may use it: it writes nothing once it has a successor.

    Between the look at the generation and the write lies a call to the store. An actor that stands
    still right there for seconds and goes on is not caught.

    Args:
        store: the cluster's.
        generation: the number of this actor.
        abdicate: called when there is a successor.
    """

    def __init__(
        self, store: KeyValueStore, generation: int, abdicate: Callable[[], object]
    ) -> None:
        self._store = store
        self._generation = str(generation).encode()
        self._abdicate = abdicate

    def get(self, key: str) -> bytes | None:
        """The value, or None."""
        return self._store.get(key)

    def keys(self, prefix: str) -> list[str]:
        """Every key that starts with `prefix`, sorted."""
        return self._store.keys(prefix)

    def items(self, prefix: str) -> dict[str, bytes]:
        """Every key that starts with `prefix` with its value."""
        return self._store.items(prefix)

    def put(self, key: str, value: bytes) -> None:
        """Set the value.

        Raises:
            SucceededError: there is a successor; nothing was written.
        """
        self._require_reign()
        self._store.put(key, value)

    def put_new(self, key: str, value: bytes) -> bytes:
        """Set the value if there is none; what is there now.

        Raises:
            SucceededError: there is a successor; nothing was written.
        """
        self._require_reign()
        return self._store.put_new(key, value)

    def delete(self, key: str) -> None:
        """Forget the key.

        Raises:
            SucceededError: there is a successor; nothing was forgotten.
        """
        self._require_reign()
        self._store.delete(key)

    def _require_reign(self) -> None:
        if self._store.get(_GENERATION) != self._generation:
            self._abdicate()
            raise SucceededError("another cluster actor has taken the record over: ask again")
