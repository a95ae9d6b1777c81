"""Pre-copy: pages go while the guest runs, round after round, until it may be stopped.

A round sends what was written during the one before it. Rounds give way to the guest: they are
packed in the background (rayvisor.migration.background), on what it leaves of the cores, and so say
little about how fast pages go once it stands still. Where that decides, it is tried: the guest is
paused, a sample of what is left is sent as the last round would be, and either the rest follows at
once, within the downtime target, or the guest runs on after a few milliseconds.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Final

from rayvisor.migration import frames, pages
from rayvisor.migration.background import in_background, starved
from rayvisor.migration.convergence import Step
from rayvisor.migration.errors import MigrationTimeoutError
from rayvisor.migration.hot import HotPages
from rayvisor.migration.sending import Turn

if TYPE_CHECKING:
    from collections.abc import Callable

    from rayvisor.migration.config import MigrationConfig
    from rayvisor.migration.conversation import Conversation
    from rayvisor.migration.logbook import Logbook
    from rayvisor.migration.roles import Source
    from rayvisor.migration.sending import PageSender

_log = logging.getLogger(__name__)

WORTH_LOOKING_PAGES: Final = 2048
"""A first round of fewer is over before a look has paid for itself."""
LEAD: Final = 3
"""One part of so many of a sample fills the line and both sides; the others are measured."""


class Rounds:
    """One migration's rounds while the guest runs.

    Args:
        source: The VM here.
        talk: Frames to the other side, and its answers.
        book: Where rounds are written down.
        sender: Sends pages of the source.
        config: Limits and choices.
        check: Called between two frames; it may raise.
        check_limits: As `check`, while an answer is due.
        may_pause: Whether the guest may be paused for a sample.

    Attributes:
        console_offset: Console output has been sent up to there.
        pending: Pages that have not been sent as they are now, as a bitmap.
    """

    def __init__(
        self,
        source: Source,
        talk: Conversation,
        book: Logbook,
        sender: PageSender,
        config: MigrationConfig,
        *,
        check: Callable[[], None],
        check_limits: Callable[[], None],
        may_pause: bool = True,
    ) -> None:
        self._source = source
        self._talk = talk
        self._book = book
        self._sender = sender
        self._config = config
        self._check = check
        self._check_limits = check_limits
        self._may_pause = may_pause
        self._watch = HotPages(source, sender.pages)
        self._next_page = 0
        self._capped_s = 0.0
        self._starved = False
        self.console_offset = 0
        self.pending = b""

    def run(self) -> Step:
        """Send pages until the guest should be stopped (STOP) or run there at once (POST_COPY).

        It may be paused already: `Logbook.stopped_ns` says so.

        Raises:
            MigrationTimeoutError: rounds do not help, and post-copy is not allowed.
        """
        self._talk.outbox.pace(urgent=False)
        step = in_background(self._begin, "migration-pack")
        while step in {Step.TRY, Step.ROUND}:
            if step is Step.TRY:
                step = self._try_to_stop()
            elif self._starved:
                step = self._until_decided()
            else:
                step = in_background(self._until_decided, "migration-pack")
        return step

    def hurry(self) -> None:
        """The guest stands still: neither the cap nor other work may hold its pages up."""
        self._talk.outbox.limit(None)
        self._pace(urgent=True)

    def send_console(self) -> None:
        """Send the console output that has not been sent."""
        while True:
            offset, data = self._source.console_output(self.console_offset)
            if not data:
                return
            self._talk.put(frames.ConsoleOutput(offset, data))
            self.console_offset = offset + len(data)

    def _begin(self) -> Step:
        source, sender = self._source, self._sender
        source.start_log()
        written = source.written_pages()
        sender.send_holes(pages.gaps(written, sender.pages))
        self.pending = pages.bitmap_of(iter(written), sender.pages)
        return self._until_decided()

    def _until_decided(self) -> Step:
        """The next step; ROUND if this thread gives way to too many."""
        book, outbox = self._book, self._talk.outbox
        since_s = time.monotonic()
        while True:
            if not self._next_page:
                self._capped_s = outbox.capped_s
                book.begin_round(pages.count(self.pending))
            if not self._send_pages(since_s):
                _log.info("this host is overloaded: the move does not give way any more")
                self._starved = True
                self._pace(urgent=True)
                return Step.ROUND
            count = self._end_round()
            self.pending = self._watch.take()
            left = pages.count(self.pending)
            done = book.end_round(left)
            self._check()
            # The last round will not be held back by the cap.
            free_s = max(0.0, done.seconds - (outbox.capped_s - self._capped_s))
            decision = book.convergence.after(count, free_s, left)
            _log.debug("round %d: %d pages, %d left, %s", done.number, count, left, decision)
            self._source.throttle(decision.throttle)
            if decision.step is Step.GIVE_UP:
                raise MigrationTimeoutError(
                    f"after {done.number + 1} rounds the guest still writes "
                    f"{book.dirty_pages_per_s:,.0f} pages a second with its vCPU slowed down by "
                    f"{decision.throttle:.0%}: allow a longer downtime"
                )
            if decision.step is Step.TRY and not self._may_pause:
                continue
            if decision.step is not Step.ROUND:
                return decision.step

    def _send_pages(self, since_s: float) -> bool:
        """Send the round's pages; whether all have been: not if this thread is starved."""
        number = len(self._book.report.rounds)
        looks = number == 0 and pages.count(self.pending) >= WORTH_LOOKING_PAGES
        page = self._sender.send(
            self.pending,
            self._config.round_codec,
            self._config.chunk_bytes,
            turn=Turn.LATER if number else Turn.FIRST,
            check=self._check,
            skip=self._look if looks else lambda: None,
            first=self._next_page,
            leave=lambda: not self._starved and starved(since_s),
        )
        self._next_page = page if page < self._sender.pages else 0
        return page == self._sender.pages

    def _end_round(self) -> int:
        self.send_console()
        self._talk.put(frames.RoundEnd(len(self._book.report.rounds)))
        self._talk.reply(frames.Ack, None, self._check_limits)
        return self._book.sent_in_round

    def _pace(self, *, urgent: bool) -> None:
        self._talk.outbox.pace(urgent=urgent)
        if self._may_pause:  # a secondary is always as fast as it can be
            self._talk.put(frames.Pace(urgent=urgent))

    def _look(self) -> bytes | None:
        """Pages that need not be sent in the first round; the destination makes room for them."""
        hot = self._watch.look()
        if hot is not None:
            self._talk.put(frames.Coming(pages.pack_runs(iter(pages.runs_of(hot)))))
        return hot

    def _try_to_stop(self) -> Step:
        """STOP with the guest paused, or ROUND with the guest running."""
        book = self._book
        book.stopped_ns = self._source.pause()
        self.hurry()
        self.pending = pages.union(self.pending, self._watch.take())
        sample = pages.sample_of(self.pending, book.convergence.sample_pages)
        count, seconds = self._send_sample(sample)
        self.pending = pages.without(self.pending, sample)
        left = pages.count(self.pending)
        done = book.end_round(left)
        decision = book.convergence.after_sample(count, seconds, left, book.still_s)
        _log.debug("sample %d: %d pages in %.4f s, %s", done.number, count, seconds, decision)
        if decision.step is Step.ROUND:
            self._source.resume()
            book.stopped_ns = None
            self._talk.outbox.limit(self._config.bandwidth_bytes_per_s)
            self._pace(urgent=self._starved)
        return decision.step

    def _send_sample(self, sample: bytes) -> tuple[int, float]:
        """Pages, and how long they took once the first were through to the other side."""
        book, talk = self._book, self._talk
        turn = Turn.LATER if len(book.report.rounds) > 1 else Turn.FIRST
        lead = pages.first_of(sample, pages.count(sample) // LEAD)
        book.begin_round(pages.count(sample))
        for part in (lead, pages.without(sample, lead)):
            self._sender.send(
                part,
                self._config.stop_codec,
                self._config.stop_chunk_bytes,
                turn=turn,
                check=self._check_limits,  # an answer is under way
            )
            talk.put(frames.RoundEnd(len(book.report.rounds)))
        first, last = (talk.reply(frames.Ack, None, self._check_limits) for _ in range(2))
        return pages.count(sample) - pages.count(lead), (last.at_ns - first.at_ns) / 1e9
