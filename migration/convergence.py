"""Deciding, after each round, what comes next. Numbers in, a decision out: no I/O, no time.

The guest is stopped as soon as what is left can be sent within the downtime target. How fast pages
go while it runs is known from the rounds; how much faster they go once it stands still is not, so
where up to `HOPE` times as fast would do, it is to be tried with a sample. After the first round
that is less: what it left out is sent whole.

While rounds get smaller by themselves, nothing else is done. When two in a row did not get much
smaller than what had just been sent, the guest writes faster than pages can be sent. Then post-copy
follows, if it is allowed; if not, the vCPU is slowed down: its share of time is cut in proportion
to what is missing, at most to a fifth and at least by a fifth in one step, and never below one
percent. If even that does not help for long, it is given up: a guest must not crawl for the sake of
a move that does not come about.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rayvisor.migration.config import MigrationConfig

STUCK_RATIO: Final = 0.7
"""A round that leaves more than this share of what it sent has not helped."""
STUCK_ROUNDS: Final = 2
UNSETTLED_ROUNDS: Final = 2
"""The first round leaves pages out and the second sends whole what the others send as differences:
neither says how large or how fast the next one will be."""
VAIN_ROUNDS: Final = 50
"""Given up after so many rounds that did not help with the vCPU as slow as it gets."""
SMALLEST_SHARE: Final = 0.01
MEASURABLE_PAGES: Final = 256
"""Rounds of fewer pages say more about fixed costs than about throughput."""
ALWAYS_ALLOWED_PAGES: Final = 64
"""A target below the fixed costs cannot be met; so few pages do not make it worse."""
FIRST_GUESS_PAGES_PER_S: Final = 50_000.0
SMOOTHING: Final = 0.5

HOPE: Final = 6.0
"""How many times as fast as while the guest ran pages may go once it stands still: they have its
core, and are sent as differences, or need no packing."""
HOPE_WHOLE: Final = 2.5
"""The same of pages that have not been sent at all. A sample in vain costs the guest more than the
round does that sends them while it runs."""
MOST_SAMPLES: Final = 3
"""Each costs the guest a few milliseconds: whole pages, differences, and a slowed-down guest's."""
LARGEST_SAMPLE: Final = 2048
SAMPLE_SHARE: Final = 0.3
"""Of the downtime target, what a sample may take at the rate of the rounds."""
MARGIN: Final = 0.77
"""Of the downtime target, what a sample must say that it will take: others are at work, too."""


class Step(Enum):
    """What to do next."""

    ROUND = "round"
    TRY = "try"
    """Pause the guest and send a sample."""
    STOP = "stop"
    POST_COPY = "post-copy"
    GIVE_UP = "give up"


@dataclass(frozen=True, slots=True)
class Decision:
    """The next step, and the share of time that the vCPU is kept from running meanwhile."""

    step: Step
    throttle: float


class Convergence:
    """Follows one migration's rounds."""

    def __init__(self, config: MigrationConfig, fixed_cost_s: float) -> None:
        """`fixed_cost_s` is what the last step costs without a single page."""
        self._config = config
        self._fixed_cost_s = fixed_cost_s
        self._pages_per_s: float | None = None
        self._sampled_pages_per_s = 0.0
        self._samples = 0
        self._share = 1.0
        self._stuck = 0
        self._rounds = 0
        self._in_vain = 0

    @property
    def throttle(self) -> float:
        """The share of its time that the vCPU is kept from running now."""
        return 1.0 - self._share

    @property
    def sample_pages(self) -> int:
        """How many pages are to be tried with."""
        affordable = int(self._rate * self._config.downtime_s * SAMPLE_SHARE)
        return max(MEASURABLE_PAGES, min(LARGEST_SAMPLE, affordable))

    def expected_downtime_s(self, pages: int) -> float:
        """What stopping the guest with `pages` left would cost."""
        rate = max(self._rate, min(self._sampled_pages_per_s, HOPE * self._rate))
        return self._fixed_cost_s + pages / rate

    def after(self, sent_pages: int, seconds: float, dirty_pages: int) -> Decision:
        """A round of `sent_pages` has taken `seconds`; `dirty_pages` were written meanwhile."""
        self._rounds += 1
        self._measure(sent_pages, seconds)
        if self.small_enough(dirty_pages):
            return Decision(Step.STOP, self.throttle)
        settled = self._rounds > UNSETTLED_ROUNDS
        helped = not settled or dirty_pages <= STUCK_RATIO * sent_pages
        self._stuck = 0 if helped else self._stuck + 1
        if self._rounds >= self._config.max_rounds:
            return Decision(self._last_resort(), self.throttle)
        if self._stuck >= STUCK_ROUNDS:
            if self._config.post_copy:
                return Decision(Step.POST_COPY, self.throttle)
            if self._config.auto_converge and self._share > SMALLEST_SHARE:
                self._slow_down(dirty_pages)
            elif self._config.auto_converge:
                self._in_vain += 1
                if self._in_vain >= VAIN_ROUNDS:
                    return Decision(Step.GIVE_UP, self.throttle)
        step = Step.TRY if self._worth_a_try(dirty_pages) else Step.ROUND
        return Decision(step, self.throttle)

    def after_sample(
        self, sent_pages: int, seconds: float, left_pages: int, still_s: float
    ) -> Decision:
        """A sample of `sent_pages` has taken `seconds` of the `still_s` that the guest was paused.

        Returns:
            STOP: the `left_pages` can follow at once. ROUND: the guest has to run on.
        """
        self._samples += 1
        if sent_pages and seconds > 0:
            self._sampled_pages_per_s = sent_pages / seconds
            all_s = still_s + self._fixed_cost_s + left_pages / self._sampled_pages_per_s
            if all_s <= MARGIN * self._config.downtime_s:
                return Decision(Step.STOP, self.throttle)
        return Decision(Step.ROUND, self.throttle)

    def small_enough(self, pages: int) -> bool:
        """Whether `pages` can be sent within the downtime target."""
        return (
            pages <= ALWAYS_ALLOWED_PAGES
            or self.expected_downtime_s(pages) <= self._config.downtime_s
        )

    @property
    def _rate(self) -> float:
        return self._pages_per_s or FIRST_GUESS_PAGES_PER_S

    def _worth_a_try(self, pages: int) -> bool:
        hope = HOPE if self._rounds > 1 else HOPE_WHOLE
        hoped_s = self._fixed_cost_s + pages / (hope * self._rate)
        return self._samples < MOST_SAMPLES and hoped_s <= MARGIN * self._config.downtime_s

    def _last_resort(self) -> Step:
        return Step.POST_COPY if self._config.post_copy else Step.GIVE_UP

    def _measure(self, pages: int, seconds: float) -> None:
        if pages < MEASURABLE_PAGES or seconds <= 0:
            return
        rate, before = pages / seconds, self._pages_per_s
        if before is None or self._rounds <= UNSETTLED_ROUNDS + 1:
            self._pages_per_s = rate
        else:
            self._pages_per_s = before + SMOOTHING * (rate - before)

    def _slow_down(self, pages: int) -> None:
        self._stuck = STUCK_ROUNDS - 1
        wanted = self._config.downtime_s / self.expected_downtime_s(pages)
        self._share = max(SMALLEST_SHARE, self._share * min(0.8, max(0.2, wanted)))
