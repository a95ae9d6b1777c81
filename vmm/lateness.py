"""How late something was, time after time: counts by bounded buckets, and the sum."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import Final

from rayvisor.vmm.core import _native

BOUNDS_NS: Final[tuple[int, ...]] = _native.LATENESS_BOUNDS_NS
"""Upper bounds of the buckets, ascending; beyond the last there is one more."""


@dataclass(frozen=True, slots=True)
class Lateness:
    """What has been counted: `counts` has a number for each bucket, and they do not add up."""

    counts: tuple[int, ...] = (0,) * (len(BOUNDS_NS) + 1)
    total_ns: int = 0

    def __post_init__(self) -> None:
        """Counts from JSON are a list.

        Raises:
            ValueError: not as many as there are buckets.
        """
        object.__setattr__(self, "counts", tuple(self.counts))
        if len(self.counts) != len(BOUNDS_NS) + 1:
            raise ValueError(f"{len(self.counts)} buckets of lateness")

    def __add__(self, other: Lateness) -> Lateness:
        """Both together."""
        counts = tuple(map(sum, zip(self.counts, other.counts, strict=True)))
        return Lateness(counts, self.total_ns + other.total_ns)

    @property
    def times(self) -> int:
        """How often something was counted."""
        return sum(self.counts)


class LatenessCounter:
    """Counts on one thread; any thread may look, and may miss the last."""

    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS_NS) + 1)
        self._total_ns = 0

    def count(self, late_ns: int) -> None:
        """It was so late this time."""
        self._counts[bisect_left(BOUNDS_NS, late_ns)] += 1
        self._total_ns += late_ns

    def now(self) -> Lateness:
        """What has been counted so far."""
        return Lateness(tuple(self._counts), self._total_ns)
