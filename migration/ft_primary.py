"""The primary's side of fault tolerance: checkpoints for ever, output by acknowledgement.

Performs what `rayvisor.migration.ft_protocol.Primary` says. One thread cuts and packs; one listens
to the secondary, and shows what it has acknowledged. One epoch is under way at most, so a slow link
makes epochs longer and never fills memory.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Protocol

from rayvisor.migration import frames
from rayvisor.migration import ft_protocol as ft
from rayvisor.migration.config import PAGE_BYTES
from rayvisor.migration.errors import IllegalPhaseError, OwnershipLostError
from rayvisor.migration.ft_pace import Pace
from rayvisor.migration.ft_protocol import Primary, PrimaryPhase, Verdict
from rayvisor.migration.ft_sending import EpochSender
from rayvisor.migration.ft_source import packed_inputs, packed_state
from rayvisor.vmm.errors import MachineStateError, MigrationError
from rayvisor.vmm.stats import FtStats

if TYPE_CHECKING:
    from collections.abc import Callable

    from rayvisor.migration.ft_config import FtConfig
    from rayvisor.migration.ft_sending import Aside
    from rayvisor.migration.ft_source import Checkpoint, VmCheckpoints
    from rayvisor.migration.precopy import Seeded

_log = logging.getLogger(__name__)

RETRY_S: Final = 0.1
LOOK_EVERY_S: Final = 0.02
"""How often it is looked whether somebody waits for output by now."""
CLOSE_S: Final = 1.0
_P = PrimaryPhase


class Cell(Protocol):
    """The cell of a pair in the placement record: the first verdict written is the verdict."""

    def decide(self, verdict: Verdict) -> Verdict:
        """Write `verdict` if nothing is there yet; what is there. Any error: no answer."""


@dataclass(slots=True)
class _Cut:
    """An epoch: what was cut, and when."""

    checkpoint: Checkpoint
    at_s: float


class Protector:
    """Protects one running VM until its pair is over. `run` does it on the calling thread.

    Args:
        source: the guest.
        seeded: the stream to the secondary, which has the guest's pages but those pending.
        cell: who goes on when the two part.
        config: limits and choices.
        on_change: called when `state` has changed, on a thread of its own: checkpoints go on
            however long it takes.

    Attributes:
        reason: why the pair has ended, once it has.
    """

    def __init__(
        self,
        source: VmCheckpoints,
        seeded: Seeded,
        cell: Cell,
        config: FtConfig,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self.reason = ""
        self._source = source
        self._talk = seeded.talk
        self._cell = cell
        self._config = config
        self._on_change = on_change
        self._role = Primary()
        self._pace = Pace(config)
        self._sender = EpochSender(source.page_count, seeded.talk.outbox, config)
        self._turning = threading.RLock()
        self._events: queue.SimpleQueue[ft.Event | None] = queue.SimpleQueue()
        self._console_offset = seeded.console_offset
        self._cuts: dict[int, _Cut] = {}
        self._last_cut_s = self._acked_cut_s = time.monotonic()
        self._changed = threading.Condition()
        self._untold: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._peer_lost = threading.Event()
        self._waiting = 0
        self._safe_inputs = 0
        self._leave = False
        self._why = ""
        self._stats = FtStats("seeding")

    # --- Asked by others, on any thread ---------------------------------------------------------

    @property
    def phase(self) -> PrimaryPhase:
        """Where it stands."""
        return self._role.phase

    def stats(self) -> FtStats:
        """What is counted."""
        return replace(
            self._stats,
            lag_s=time.monotonic() - self._acked_cut_s,
            sent_bytes_total=self._talk.outbox.bytes_sent,
            held_bytes=self._source.held_bytes,
        )

    def dissolve(self, why: str) -> None:
        """End the pair; the guest goes on here, if the secondary has not taken over yet."""
        self._why = self._why or why
        self._events.put(ft.Dissolve())

    def switch_over(self) -> None:
        """Have the secondary go on, at the next cut. See `wait`."""
        self._leave = True
        self._wake()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Whether the pair is over, waiting up to `timeout_s` for that."""
        with self._changed:
            return self._changed.wait_for(lambda: self._role.over, timeout_s)

    def commit(self, mark: int, timeout_s: float) -> None:
        """Wait until what has been typed up to `mark` is the secondary's, too.

        Raises:
            OwnershipLostError: the secondary goes on with the VM, and may not know it.
            MigrationError: neither is known in time.
        """
        with self._changed:
            self._waiting += 1
            self._wake()
            try:
                known = self._changed.wait_for(lambda: self._is_safe(mark), timeout_s)
            finally:
                self._waiting -= 1
            if self._role.phase is _P.FENCED and self._safe_inputs < mark:
                raise OwnershipLostError("the VM goes on elsewhere")
            if not known:
                raise MigrationError(f"what was typed is not safe after {timeout_s:g} s")

    def _is_safe(self, mark: int) -> bool:
        role = self._role
        return role.over or role.phase is _P.SEEDING or self._safe_inputs >= mark

    # --- The loop -------------------------------------------------------------------------------

    def run(self) -> bool:
        """Protect the VM; whether it goes on here when the pair is over."""
        listener = threading.Thread(target=self._listen, name="ft-listen", daemon=True)
        listener.start()
        teller = threading.Thread(target=self._tell_all, name="ft-tell", daemon=True)
        teller.start()
        while not self._role.over:
            try:
                self._turn()
            except MigrationError as error:
                self._lost(str(error))
            except Exception as error:  # noqa: BLE001 - the guest goes on, whatever it is
                _log.exception("checkpoints cannot go on")
                self._lost(f"internal error: {error}")
        alone = self._role.phase is _P.ALONE
        self._say_goodbye("the pair is over")
        listener.join()
        self._untold.put(False)
        teller.join()
        return alone

    def _tell_all(self) -> None:
        while self._untold.get():
            self._on_change()

    def _turn(self) -> None:
        event = self._next_event()
        if event is not None:
            self._take(event)
        elif self._role.may_cut and self._due_in_s() <= 0:
            self._cut()
        elif self._source.held_bytes > self._config.held_bytes:
            self._source.stall()

    def _next_event(self) -> ft.Event | None:
        due_s = self._due_in_s()
        # The time of an epoch for which somebody waits is known, and an acknowledgement that is
        # late wakes this thread; whether somebody waits is looked at.
        wait_s = due_s if due_s > 0 and self._is_wanted else min(due_s, LOOK_EVERY_S)
        if due_s <= 0 and not self._role.may_cut:
            wait_s = LOOK_EVERY_S
        try:
            return self._events.get(timeout=wait_s) if wait_s > 0 else self._events.get_nowait()
        except queue.Empty:
            return None

    def _wake(self) -> None:
        self._events.put(None)

    @property
    def _is_wanted(self) -> bool:
        return bool(self._waiting or self._source.held_bytes)

    def _due_in_s(self) -> float:
        if self._role.phase is _P.SEEDING or self._leave:
            return 0.0
        epoch_s = self._pace.epoch_s if self._is_wanted else self._pace.quiet_epoch_s
        return self._last_cut_s + epoch_s - time.monotonic()

    def _take(self, event: ft.Event) -> None:
        with self._turning:
            with self._changed:
                role, instructions = self._role.on(event)
            # What is released, and by whom, is settled before others hear of it.
            for instruction in instructions:
                self._perform(instruction)
            with self._changed:
                self._role = role
                if isinstance(event, ft.Acked):
                    self._note_ack(event.epoch)
                self._changed.notify_all()
            self._tell()

    def _perform(self, do: ft.Instruction) -> None:
        match do:
            case ft.Release(epoch):
                self._source.release(self._cuts[epoch].checkpoint.console_end)
            case ft.Decide(verdict):
                threading.Thread(
                    target=self._decide, args=(verdict,), name="ft-decide", daemon=True
                ).start()
            case ft.GoAlone():
                self.reason = self.reason or self._why or "disabled"
                self._source.go_alone()
            case ft.Fence():
                self.reason = "the secondary has taken over"
                self._source.fence()
            case ft.Hold() | ft.Send():
                pass  # done by `_cut`, which is where the guest stood still
            case _:
                raise IllegalPhaseError(f"{do}: not for a primary")

    def _decide(self, verdict: Verdict) -> None:
        while True:
            try:
                found = self._cell.decide(verdict)
            except Exception as error:  # noqa: BLE001 - whatever it is, the record did not answer
                _log.warning("the placement record does not answer: %s", error)
                time.sleep(RETRY_S)
            else:
                self._events.put(ft.Decided(found))
                return

    def _lost(self, why: str) -> None:
        self._why = self._why or why
        self._take(ft.PeerLost())

    # --- Checkpoints ----------------------------------------------------------------------------

    def _cut(self) -> None:
        last = self._leave and self._role.phase is _P.GUARDED
        try:
            checkpoint = self._source.cut(
                hold=self._role.phase is _P.SEEDING, stay=last, overflow=self._send_pages
            )
        except MachineStateError as error:
            self._why = self._why or str(error)
            self._take(ft.Dissolve())
            return
        now_s = time.monotonic()
        with self._turning:
            epoch = self._role.cut + 1
            self._cuts = {epoch: _Cut(checkpoint, now_s)}
            self._count(checkpoint, now_s - self._last_cut_s)
            self._last_cut_s = now_s
            self._take(ft.Cut(last))
        self._send(checkpoint, epoch, last=last)

    def _send(self, checkpoint: Checkpoint, epoch: int, *, last: bool) -> None:
        put = self._talk.outbox.put
        self._send_pages(checkpoint.aside)
        while self._console_offset < checkpoint.console_end:
            end = min(checkpoint.console_end, self._console_offset + frames.MAX_CONSOLE_BYTES)
            data = self._source.console_output(self._console_offset, end)
            put(frames.ConsoleOutput(self._console_offset, data), self._check, more=True)
            self._console_offset += len(data)
        typed, state = packed_inputs(checkpoint), packed_state(checkpoint)
        put(frames.EpochEnd(epoch, last, typed, state), self._check)
        self._sender.judge()

    def _send_pages(self, aside: Aside) -> None:
        self._sender.send(aside, self._check)

    def _check(self) -> None:
        """While there is no room in the outbox, perhaps on the guest's thread: may this go on?"""
        if self._peer_lost.is_set():
            raise MigrationError(self._why or "the secondary is lost")

    # --- The secondary's word -------------------------------------------------------------------

    def _listen(self) -> None:
        quiet, look_s = 0, self._config.look_s
        while not self._role.over:
            try:
                frame = self._talk.next(look_s)
                # Counted in looks, not in time: who was himself frozen has not looked.
                quiet = quiet + 1 if frame is None else 0
                self._hear(frame, quiet * look_s)
            except MigrationError as error:
                self._lose_peer(str(error))
                return
            except Exception as error:  # noqa: BLE001 - the guest goes on, whatever it is
                _log.exception("acknowledgements cannot be taken")
                self._lose_peer(f"internal error: {error}")
                return

    def _lose_peer(self, why: str) -> None:
        self._why = self._why or why
        self._peer_lost.set()
        self._events.put(ft.PeerLost())

    def _hear(self, frame: frames.Frame | None, quiet_s: float) -> None:
        match frame:
            case None:
                if quiet_s >= self._config.silence_s:
                    raise MigrationError(
                        f"the secondary was silent for {self._config.silence_s:g} s"
                    )
            case frames.Beat():
                pass
            case frames.Guarded(epoch):
                self._take(ft.Acked(epoch))
                if self._due_in_s() <= 0:
                    self._wake()
            case frames.Running():
                raise MigrationError("switched over")
            case _:
                raise IllegalPhaseError(f"{frame.KIND}: a secondary does not send this")

    def _say_goodbye(self, why: str) -> None:
        outbox = self._talk.outbox
        try:
            outbox.drop()
            outbox.put(frames.Abort(why))
            outbox.flush(CLOSE_S)
        except MigrationError as error:
            _log.debug("the secondary could not be told: %s", error)
        self._talk.close()

    # --- Counting -------------------------------------------------------------------------------

    def _count(self, checkpoint: Checkpoint, epoch_s: float) -> None:
        pause_s = checkpoint.pause_ns / 1e9
        self._pace.paused(pause_s)
        dirty_bytes = checkpoint.dirty_pages * PAGE_BYTES
        self._stats = replace(
            self._stats,
            epoch_s=epoch_s,
            pause_s=pause_s,
            dirty_bytes=dirty_bytes,
            dirty_bytes_total=self._stats.dirty_bytes_total + dirty_bytes,
        )

    def _note_ack(self, epoch: int) -> None:
        if epoch in self._cuts:
            self._acked_cut_s = self._cuts[epoch].at_s
            self._safe_inputs = self._cuts[epoch].checkpoint.typed
        self._stats = replace(self._stats, epochs=self._stats.epochs + 1)

    def _tell(self) -> None:
        """Say so when the state, as others see it, is another."""
        lagging = self._pace.is_lagging(self._stats.epoch_s)
        state = {
            _P.SEEDING: "seeding",
            _P.GUARDED: "lagging" if lagging else "protected",
            _P.LEAVING: "protected",
        }.get(self._role.phase, "unprotected")
        if state == "protected" and not self._role.acked:
            state = "seeding"
        if state != self._stats.state:
            self._stats = replace(self._stats, state=state)
            self._untold.put(True)
