"""What is told of a migration: while it goes on, and afterwards."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Round:
    """One pre-copy round, or the last one with the guest stopped."""

    number: int
    pages: int
    """Pages that were sent with their content."""
    zero_pages: int
    delta_pages: int
    """Of `pages`, those sent as differences."""
    bytes_sent: int
    seconds: float
    dirty_pages: int
    """Pages that the guest wrote meanwhile."""
    throttle: float
    """The share of its time that the vCPU was kept from running."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a migration stands."""

    phase: str
    round: int
    remaining_pages: int
    dirty_pages_per_s: float
    bytes_per_s: float
    bytes_sent: int
    expected_downtime_s: float | None
    """What stopping the guest now would cost; None before anything has been measured."""
    throttle: float
    elapsed_s: float
    still_s: float = 0.0
    """For how long the guest has stood still by now; 0 while it runs."""


@dataclass(slots=True)
class MigrationReport:
    """What a migration did.

    Attributes:
        outcome: "moved", "cancelled", "failed", or "lost" (post-copy that was cut off).
        downtime_s: From the guest's last instruction at the source to its first at the
            destination. Both sides' CLOCK_MONOTONIC are compared if they run under one kernel.
            If not, it is what the source saw, from the last instruction to the word that the
            guest runs: too long by the time that word took. Without a move, how long the guest
            stood still here.
        downtime_is_bound: `downtime_s` is that upper bound.
        phases: Seconds in each phase that was reached.
        compression_ratio: Bytes of the pages sent with content over the bytes they took.
        token: The fencing token under which the VM runs now, if this side was told.
    """

    vm: str
    source: str
    destination: str
    outcome: str = "failed"
    error: str = ""
    total_s: float = 0.0
    downtime_s: float = 0.0
    downtime_is_bound: bool = False
    phases: dict[str, float] = field(default_factory=dict)
    rounds: list[Round] = field(default_factory=list)
    bytes_sent: int = 0
    pages_sent: int = 0
    zero_pages: int = 0
    compression_ratio: float = 1.0
    token: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """The report in JSON's terms."""
        return {
            "vm": self.vm,
            "source": self.source,
            "destination": self.destination,
            "outcome": self.outcome,
            "total_s": self.total_s,
            "downtime_s": self.downtime_s,
            "phases": dict(self.phases),
            "rounds": [asdict(r) for r in self.rounds],
            "bytes_sent": self.bytes_sent,
            "pages_sent": self.pages_sent,
            "zero_pages": self.zero_pages,
            "compression_ratio": self.compression_ratio,
        }
