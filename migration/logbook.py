"""Keeping the books of one migration: its report, and its progress while it goes on."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from rayvisor.migration.report import MigrationReport, Progress, Round

if TYPE_CHECKING:
    from collections.abc import Callable

    from rayvisor.migration.convergence import Convergence
    from rayvisor.migration.outbox import Outbox
    from rayvisor.migration.sending import Tally

PROGRESS_EVERY_S: Final = 0.1


class Logbook:
    """Writes the report of a migration from what its parts count.

    Attributes:
        report: The report so far.
        tally: Pages sent; the page sender's.
        convergence: What is thought of the guest's writing.
        stopped_ns: When the guest's last instruction ran here, in nanoseconds of CLOCK_MONOTONIC;
            None while it runs.
    """

    def __init__(
        self,
        report: MigrationReport,
        outbox: Outbox,
        tally: Tally,
        convergence: Convergence,
        on_progress: Callable[[Progress], None],
        now_s: Callable[[], float],
    ) -> None:
        self.report = report
        self.tally = tally
        self.convergence = convergence
        self.stopped_ns: int | None = None
        self._outbox = outbox
        self._on_progress = on_progress
        self._now_s = now_s
        self._phase = ""
        self._started_s = self._phase_s = self._round_s = now_s()
        self._told_s = float("-inf")
        self._before = (0, 0, 0, 0)
        self._goal = 0
        self._dirty_per_s = 0.0

    @property
    def elapsed_s(self) -> float:
        """Seconds since the beginning."""
        return self._now_s() - self._started_s

    @property
    def still_s(self) -> float:
        """Seconds for which the guest has stood still; 0 while it runs."""
        return 0.0 if self.stopped_ns is None else (time.monotonic_ns() - self.stopped_ns) / 1e9

    @property
    def dirty_pages_per_s(self) -> float:
        """How fast the guest wrote pages during the last round."""
        return self._dirty_per_s

    def enter(self, phase: str) -> None:
        """A phase has begun, and the one before has ended."""
        now_s = self._now_s()
        if self._phase:
            self.report.phases[f"{self._phase}_s"] = now_s - self._phase_s
        self._phase, self._phase_s = phase, now_s
        self.tell(always=True)

    def begin_round(self, pages: int) -> None:
        """A round of `pages` begins."""
        self._round_s = self._now_s()
        self._before = self._counters()
        self._goal = self.tally.pages + self.tally.zero_pages + pages

    def end_round(self, dirty_pages: int) -> Round:
        """The round is over; the guest has written `dirty_pages` meanwhile."""
        seconds = self._now_s() - self._round_s
        whole, zeros, deltas, sent = (
            now - then for now, then in zip(self._counters(), self._before, strict=True)
        )
        number = len(self.report.rounds)
        throttle = self.convergence.throttle
        done = Round(number, whole, zeros, deltas, sent, seconds, dirty_pages, throttle)
        self.report.rounds.append(done)
        self._dirty_per_s = dirty_pages / seconds if seconds > 0 else 0.0
        self._goal = self.tally.pages + self.tally.zero_pages + dirty_pages
        self.tell(always=True)
        return done

    @property
    def sent_in_round(self) -> int:
        """Pages of this round so far, those that are zero included."""
        return self.tally.pages + self.tally.zero_pages - self._before[0] - self._before[1]

    def close(self) -> None:
        """Nothing more will be sent."""
        report = self.report
        if self._phase:
            report.phases[f"{self._phase}_s"] = self._now_s() - self._phase_s
        report.total_s = self.elapsed_s
        report.bytes_sent = self._outbox.bytes_sent
        report.pages_sent, report.zero_pages = self.tally.pages, self.tally.zero_pages
        report.compression_ratio = self.tally.ratio
        self.tell(always=True)

    def tell(self, *, always: bool = False) -> None:
        """Report progress, if some time has passed since the last."""
        now_s = self._now_s()
        if not always and now_s - self._told_s < PROGRESS_EVERY_S:
            return
        self._told_s = now_s
        remaining = max(0, self._goal - self.tally.pages - self.tally.zero_pages)
        sent = self._outbox.bytes_sent - self._before[3]
        seconds = now_s - self._round_s
        rounds = len(self.report.rounds)
        expected = self.convergence.expected_downtime_s(remaining) if rounds else None
        self._on_progress(
            Progress(
                phase=self._phase,
                round=rounds,
                remaining_pages=remaining,
                dirty_pages_per_s=self._dirty_per_s,
                bytes_per_s=sent / seconds if seconds > 0 else 0.0,
                bytes_sent=self._outbox.bytes_sent,
                expected_downtime_s=expected,
                throttle=self.convergence.throttle,
                elapsed_s=now_s - self._started_s,
                still_s=self.still_s,
            )
        )

    def _counters(self) -> tuple[int, int, int, int]:
        t = self.tally
        return t.pages, t.zero_pages, t.delta_pages, self._outbox.bytes_sent
