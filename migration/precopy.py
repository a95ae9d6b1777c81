"""The source's side of a migration: rounds while the guest runs, then the rest, then let go.

    greeting   HELLO, and the destination's WELCOME
    pre-copy   all pages once, then those written meanwhile, again and again, until what is left
               can be sent within the downtime target (rayvisor.migration.convergence)
    stopped    the guest is paused; the last pages, the console's last bytes, the machine's state
    handover   COMMIT; the destination claims the VM from the placement record and runs it

The order in which things are done, and who owns the VM when, is drawn in
rayvisor.migration.phases.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from rayvisor.migration import frames, pages
from rayvisor.migration.config import PAGE_BYTES, MigrationConfig
from rayvisor.migration.convergence import Convergence, Step
from rayvisor.migration.conversation import Conversation
from rayvisor.migration.errors import (
    IllegalPhaseError,
    MigrationCancelledError,
    MigrationFailedError,
    MigrationTimeoutError,
    OwnershipLostError,
    PeerAbortedError,
    UndecidedError,
)
from rayvisor.migration.host import boot_id, tsc_hz
from rayvisor.migration.logbook import Logbook
from rayvisor.migration.phases import SourcePhase, source_phases
from rayvisor.migration.postcopy import serve
from rayvisor.migration.report import MigrationReport, Progress
from rayvisor.migration.rounds import Rounds
from rayvisor.migration.sending import PageSender, Tally, Turn
from rayvisor.vmm.errors import MigrationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rayvisor.migration.roles import Ownership, Source, Transport

_log = logging.getLogger(__name__)

HANDOVER_COST_S: Final = 0.003
"""Measured: pause, save, restore and resume, without a page and without the carrier."""
HANDOVER_TRIPS: Final = 1.5
"""Round trips while the guest stands still: the claim, and half of one for STATE and COMMIT."""
RETRY_S: Final = 0.2
ABORT_TAKES_S: Final = 1.0
_P = SourcePhase


@dataclass(frozen=True, slots=True)
class Seeded:
    """What `Migration.seed` has brought about.

    Attributes:
        talk: the stream, which is open.
        pending: pages written since they were sent.
        console_offset: console output has been sent up to there.
        bytes_sent: what it took.
    """

    talk: Conversation
    pending: bytes
    console_offset: int
    bytes_sent: int


class Migration:
    """One attempt to move a running VM to another process.

    `run` does it on the calling thread; `cancel` may be called by any.

    Args:
        source: The VM here.
        transport: Carries frames to an `Arrival`. Closed at the end.
        ownership: The placement record.
        token: The fencing token under which the VM runs here.
        config: Limits and choices.
        route: Names of the two hosts, for the report.
        on_progress: Called now and then, by one thread at a time.
    """

    def __init__(
        self,
        source: Source,
        transport: Transport,
        ownership: Ownership,
        *,
        token: int,
        config: MigrationConfig | None = None,
        route: tuple[str, str] = ("here", "there"),
        on_progress: Callable[[Progress], None] = lambda _: None,
        now_s: Callable[[], float] = time.monotonic,
        pause_s: Callable[[float], None] = time.sleep,
    ) -> None:
        self._source = source
        self._ownership = ownership
        self._token = token
        self._config = config or MigrationConfig()
        self._now_s = now_s
        self._pause_s = pause_s
        self._phases = source_phases()
        self._cancelled = threading.Event()
        self._boot_id_there = ""
        self._talk = Conversation(transport, self._config)
        self._sender: PageSender | None = None
        self._missing = b""
        self._book = Logbook(
            MigrationReport(source.name, *route),
            self._talk.outbox,
            Tally(),
            Convergence(self._config, HANDOVER_COST_S),
            on_progress,
            now_s,
        )

    @property
    def phase(self) -> SourcePhase:
        """Where it stands."""
        return self._phases.now

    def cancel(self) -> None:
        """Call it off: the VM stays here. Too late, and without effect, from COMMIT on."""
        self._cancelled.set()

    def run(self) -> MigrationReport:
        """Move the VM.

        Returns:
            The report; the VM runs at the destination.

        Raises:
            MigrationFailedError: the VM runs on here, as it did; has the report.
            UndecidedError: the placement record does not answer: the VM is paused here, and
                `settle` asks again.
        """
        try:
            sender = self._greet()
            rounds = self._begin(sender, may_pause=True)
            step = rounds.run()
            self._stop_and_copy(sender, rounds, post_copy=step is Step.POST_COPY)
        except Exception as error:
            if self.phase is not _P.HANDOVER:
                raise self._keep(error) from error
            _log.warning("COMMIT may not have been sent: %s", error)
        return self.settle()

    def seed(self) -> Seeded:
        """Only the way there, for fault tolerance: the guest runs on here, and is never stopped.

        Returns:
            What to go on with; the dirty log is on.

        Raises:
            MigrationFailedError: the destination has not got the VM's pages.
        """
        try:
            sender = self._greet()
            rounds = self._begin(sender, may_pause=False)
            rounds.run()
        except Exception as error:
            raise self._keep(error) from error
        self._source.throttle(0.0)
        self._talk.outbox.pace(urgent=True)
        sender.close()
        self._book.close()
        sent = self._book.report.bytes_sent
        return Seeded(self._talk, rounds.pending, rounds.console_offset, sent)

    def settle(self) -> MigrationReport:
        """Learn who has the VM after COMMIT, and act on it. See `run`."""
        self._phases.require(_P.HANDOVER)
        try:
            running = self._talk.reply(frames.Running, self._config.stop_timeout_s)
        except MigrationError as error:
            running = None
            self._take_back(error)
        return self._moved(running)

    # --- The way there ------------------------------------------------------------------------

    def _enter(self, phase: SourcePhase) -> None:
        self._phases.enter(phase)
        self._book.enter(str(phase))

    def _greet(self) -> PageSender:
        self._enter(_P.GREETING)
        source, config, talk = self._source, self._config, self._talk
        asked_s = self._now_s()
        talk.put(
            frames.Hello(
                version=frames.PROTOCOL_VERSION,
                features=tuple(sorted(frames.FEATURES)),
                vm=source.name,
                memory_bytes=len(source.ram),
                page_bytes=PAGE_BYTES,
                machine=source.machine_schema,
                token=self._token,
                tsc_hz=tsc_hz(),
                boot_id=boot_id(),
            )
        )
        welcome = talk.reply(frames.Welcome, config.reply_timeout_s, self._check_limits)
        trip_s = self._now_s() - asked_s
        self._boot_id_there = welcome.boot_id
        agreed = replace(config, post_copy=config.post_copy and "postcopy" in welcome.features)
        self._book.convergence = Convergence(agreed, HANDOVER_COST_S + HANDOVER_TRIPS * trip_s)
        self._sender = PageSender(
            source.ram,
            talk.outbox,
            self._book.tally,
            largest_chunk_bytes=max(config.chunk_bytes, config.stop_chunk_bytes),
            delta_cache_bytes=config.delta_cache_bytes if "delta" in welcome.features else 0,
        )
        return self._sender

    def _begin(self, sender: PageSender, *, may_pause: bool) -> Rounds:
        self._enter(_P.PRECOPY)
        return Rounds(
            self._source,
            self._talk,
            self._book,
            sender,
            self._config,
            check=self._check,
            check_limits=self._check_limits,
            may_pause=may_pause,
        )

    def _stop_and_copy(self, sender: PageSender, rounds: Rounds, *, post_copy: bool) -> None:
        source, config, talk, book = self._source, self._config, self._talk, self._book
        self._enter(_P.STOPPED)
        if book.stopped_ns is None:
            book.stopped_ns = source.pause()
            rounds.hurry()
        left = pages.union(rounds.pending, source.harvest())
        if post_copy:
            talk.put(frames.Missing(pages.pack_runs(iter(pages.runs_of(left)))))
            self._missing, left = left, bytes(len(left))
        book.begin_round(pages.count(left))
        sender.send(
            left,
            config.stop_codec,
            config.stop_chunk_bytes,
            turn=Turn.LAST,
            check=self._check_stopped,
        )
        rounds.send_console()
        state = source.save()
        stopped_for_ns = time.monotonic_ns() - book.stopped_ns
        talk.put(frames.MachineState(state, source.runs, stopped_for_ns))
        book.end_round(0)
        # COMMIT goes last, and only once everything before it has been taken: a guest that waits
        # behind a stuck carrier can still be resumed.
        talk.outbox.flush(config.stop_timeout_s)
        self._check_stopped()
        self._enter(_P.HANDOVER)
        talk.put(frames.Commit())

    def _check(self) -> None:
        """Between two frames: is this to go on?"""
        self._check_limits()
        self._talk.expect_silence()

    def _check_limits(self) -> None:
        self._check_not_cancelled()
        elapsed_s = self._book.elapsed_s
        if elapsed_s > self._config.timeout_s:
            raise MigrationTimeoutError(f"not done after {elapsed_s:.1f} s")
        self._book.tell()

    def _check_stopped(self) -> None:
        self._check_not_cancelled()
        still_s = self._book.still_s
        if still_s > self._config.stop_timeout_s:
            raise MigrationTimeoutError(f"the guest stood still for {still_s:.1f} s")

    def _check_not_cancelled(self) -> None:
        if self._cancelled.is_set():
            raise MigrationCancelledError("cancelled")

    # --- The end ------------------------------------------------------------------------------

    def _keep(self, error: Exception) -> Exception:
        """The guest goes on here. The error to raise."""
        problems = [str(error) or type(error).__name__]
        report = self._book.report
        for step in (self._source.resume, self._calm_down):
            try:
                step()
            except Exception as worse:  # noqa: BLE001 - told together with what led to it
                problems.append(str(worse) or type(worse).__name__)
            if not report.downtime_s:
                report.downtime_s = self._book.still_s
        self._enter(_P.KEPT)
        try:
            self._talk.outbox.drop()
            self._talk.put(frames.Abort(problems[0][:1024]))
            self._talk.outbox.flush(ABORT_TAKES_S)
        except MigrationError as unheard:
            _log.debug("the destination could not be told: %s", unheard)
        cancelled = isinstance(error, MigrationCancelledError)
        report.outcome = "cancelled" if cancelled else "failed"
        report.error = "; ".join(problems)
        self._close()
        message = f"VM {report.vm} was not moved and stays at {report.source}: {report.error}"
        _log.warning("%s", message)
        return MigrationFailedError(message, report)

    def _calm_down(self) -> None:
        """Take everything away that a migration puts on a guest."""
        self._source.throttle(0.0)
        self._source.stop_log()

    def _take_back(self, error: MigrationError) -> None:
        """No word from the destination after COMMIT: returns if it has the VM."""
        _log.warning("no word from the destination (%s): asking the placement record", error)
        deadline_s = self._now_s() + self._config.settle_timeout_s
        while True:
            try:
                token = self._ownership.take_back(
                    self._source.name,
                    self._token,
                    given_up=isinstance(error, PeerAbortedError),
                )
            except OwnershipLostError:
                return
            except Exception as silence:
                if self._now_s() >= deadline_s:
                    raise UndecidedError(
                        f"VM {self._source.name} is paused at {self._book.report.source}: the "
                        f"placement record does not say who owns it ({silence})"
                    ) from silence
                self._pause_s(RETRY_S)
            else:
                self._book.report.token = token
                raise self._keep(error) from error

    def _moved(self, running: frames.Running | None) -> MigrationReport:
        report = self._book.report
        self._set_downtime(running)
        self._enter(_P.POSTCOPY if self._missing else _P.MOVED)
        late_input = self._source.release()
        try:
            self._talk.put(frames.Done(late_input[: frames.MAX_INPUT_BYTES]))
            self._talk.outbox.flush(self._config.reply_timeout_s)
        except MigrationError as error:
            _log.warning("%d bytes typed during the move are lost: %s", len(late_input), error)
        report.token = running.token if running else None
        if self._missing:
            self._serve_missing()
        report.outcome = "moved"
        self._close()
        _log.info("VM %s runs at %s", report.vm, report.destination)
        return report

    def _serve_missing(self) -> None:
        sender, config = self._sender, self._config
        if sender is None:
            raise IllegalPhaseError("post-copy: WELCOME comes first")
        book = self._book
        book.begin_round(pages.count(self._missing))
        codec = config.stop_codec
        try:
            serve(self._talk, sender, self._missing, codec, config.reply_timeout_s, book.tell)
        except MigrationError as error:
            self._enter(_P.LOST)
            report = book.report
            report.outcome, report.error = "lost", str(error)
            self._close()
            message = (
                f"VM {report.vm} is lost: it ran at {report.destination} and not all of its "
                f"pages had followed: {error}"
            )
            _log.critical("%s", message)
            raise MigrationFailedError(message, report) from error
        book.end_round(0)
        self._enter(_P.MOVED)

    def _set_downtime(self, running: frames.Running | None) -> None:
        now_ns = time.monotonic_ns()
        stopped_ns = now_ns if self._book.stopped_ns is None else self._book.stopped_ns
        bound_ns = now_ns - stopped_ns
        measured_ns = running.resumed_ns - stopped_ns if running else -1
        same_clock = bool(boot_id()) and boot_id() == self._boot_id_there
        exact = same_clock and 0 <= measured_ns <= bound_ns
        self._book.report.downtime_s = (measured_ns if exact else bound_ns) / 1e9
        self._book.report.downtime_is_bound = not exact

    def _close(self) -> None:
        if self._sender is not None:
            self._sender.close()
        self._talk.close()
        self._book.close()
