"""What the cluster's event log says, counted: events by kind, and migrations that ended."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

OUTCOMES: Final = {
    "migration_moved": "moved",
    "migration_failed": "failed",
    "migration_cancelled": "cancelled",
}
"""Outcome by kind of event."""

WATCHED: Final = (
    *("ft_protected", "ft_unprotected", "ft_lagging", "ft_failover", "vm_failed"),
    *("vm_restarted", "vm_restart_failed", "vm_hung", "host_isolated", "host_dead"),
)
"""Shown with 0, too: an increase is only seen of a series that was there before."""

READ_AT_ONCE: Final = 1000

DURATION_BUCKETS_S: Final = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
DOWNTIME_BUCKETS_S: Final = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0)


class EventLike(Protocol):
    """What is read of an event."""

    @property
    def id(self) -> str: ...  # noqa: D102
    @property
    def kind(self) -> str: ...  # noqa: D102
    @property
    def data(self) -> Mapping[str, Any]: ...  # noqa: D102


@dataclass(slots=True)
class Histogram:
    """Values by upper bound, as Prometheus has them: `counts` has one more, for the rest."""

    bounds: tuple[float, ...]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def __post_init__(self) -> None:
        """Start empty, if nothing was given."""
        self.counts = self.counts or [0] * (len(self.bounds) + 1)

    def observe(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


class EventBook:
    """What happened since the log began. Read and written by one thread."""

    def __init__(self) -> None:
        self.kinds: Counter[str] = Counter(dict.fromkeys(WATCHED, 0))
        self.outcomes: Counter[str] = Counter(dict.fromkeys(OUTCOMES.values(), 0))
        self.duration = Histogram(DURATION_BUCKETS_S)
        self.downtime = Histogram(DOWNTIME_BUCKETS_S)
        self.bytes_sent = 0
        self.last = ""
        """The id of the last event that was read."""

    def read(self, events: Sequence[EventLike]) -> None:
        """Take in events that come after `last`, oldest first."""
        for event in events:
            self.last = event.id
            self.kinds[event.kind] += 1
            outcome = OUTCOMES.get(event.kind)
            if outcome is None:
                continue
            self.outcomes[outcome] += 1
            report: Mapping[str, Any] = event.data.get("report") or {}
            self.bytes_sent += report.get("bytes_sent", 0)
            if outcome == "moved" and report:
                self.duration.observe(report["total_s"])
                self.downtime.observe(report["downtime_s"])
