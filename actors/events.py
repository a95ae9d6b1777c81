"""What happened in the cluster: a bounded log beside the placement record.

Each event is a key of its own, named by the time it was written, so that hosts, VMs and the
cluster actor can all write without asking each other, and the keys in order are the events in
order. The oldest are dropped.
"""

from __future__ import annotations

import logging
import secrets
import time
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from pydantic import TypeAdapter, ValidationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rayvisor.actors.store import KeyValueStore

_log = logging.getLogger(__name__)

KEPT: Final = 1000
TRIM_EVERY: Final = 50
_PREFIX: Final = "event/"


class EventKind(StrEnum):
    """What an event is about."""

    VM_CREATED = "vm_created"
    VM_REMOVED = "vm_removed"
    VM_FAILED = "vm_failed"
    """A VM's process ended without being told to."""
    VM_ENDED = "vm_ended"
    """A guest ended by itself: it powered off, left, or crashed."""
    VM_HUNG = "vm_hung"
    VM_THAWED = "vm_thawed"
    """It stood still because its host had lost the cluster, and goes on."""
    VM_FENCED = "vm_fenced"
    """It stood still, was started elsewhere meanwhile, and its old copy has ended."""
    VM_RESTARTED = "vm_restarted"
    VM_RESTART_FAILED = "vm_restart_failed"
    PLACEMENT_REFUSED = "placement_refused"
    HOST_LATE = "host_late"
    HOST_ISOLATED = "host_isolated"
    HOST_DEAD = "host_dead"
    HOST_BACK = "host_back"
    CLUSTER_RECOVERED = "cluster_recovered"
    """The cluster actor was started again and took the record over."""
    HA_CHANGED = "ha_changed"
    MIGRATION_STARTED = "migration_started"
    MIGRATION_MOVED = "migration_moved"
    MIGRATION_FAILED = "migration_failed"
    MIGRATION_CANCELLED = "migration_cancelled"
    FT_ENABLED = "ft_enabled"
    FT_DISABLED = "ft_disabled"
    FT_PROTECTED = "ft_protected"
    """A VM has a secondary that can take over."""
    FT_UNPROTECTED = "ft_unprotected"
    """A VM has lost its secondary, or gets none, and goes on without."""
    FT_LAGGING = "ft_lagging"
    """A VM's epochs are far longer than they should ever be: the link to its secondary is slow."""
    FT_FAILOVER = "ft_failover"
    """A VM goes on at its secondary."""
    MAINTENANCE_BEGUN = "maintenance_begun"
    MAINTENANCE_ENDED = "maintenance_ended"


@dataclass(frozen=True, slots=True)
class Event:
    """One event. `id` grows with time; `data` is what JSON can carry."""

    id: str
    unix_s: float
    kind: EventKind
    text: str
    vm: str = ""
    host: str = ""
    data: dict[str, Any] = field(default_factory=dict)


_EVENT = TypeAdapter(Event)


class EventLog:
    """Writes and reads events. Any number of processes may have one over the same store."""

    def __init__(
        self,
        store: KeyValueStore,
        *,
        kept: int = KEPT,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._store = store
        self._kept = kept
        self._now_ns = now_ns
        self._written = 0

    def write(
        self,
        kind: EventKind,
        text: str,
        *,
        vm: str = "",
        host: str = "",
        data: dict[str, Any] | None = None,
    ) -> Event:
        """Add an event; it is there for every reader when this returns."""
        now_ns = self._now_ns()
        name = f"{now_ns:020d}-{secrets.token_hex(3)}"
        event = Event(name, now_ns / 1e9, kind, text, vm, host, data or {})
        self._store.put(_PREFIX + name, _EVENT.dump_json(event))
        self._written += 1
        if self._written % TRIM_EVERY == 1:
            self._trim()
        return event

    def read(self, after: str = "", limit: int = KEPT) -> list[Event]:
        """The last `limit` events whose id is greater than `after`, oldest first."""
        names = [key.removeprefix(_PREFIX) for key in self._store.keys(_PREFIX)]
        found = []
        for name in [n for n in names if n > after][-limit:]:
            raw = self._store.get(_PREFIX + name)
            if raw is None:
                continue  # dropped since
            try:
                found.append(_EVENT.validate_json(raw))
            except ValidationError:
                _log.warning("event %s is unreadable and is left out", name)
        return found

    def _trim(self) -> None:
        for key in self._store.keys(_PREFIX)[: -self._kept]:
            self._store.delete(key)
