"""The primary's side of fault tolerance: checkpoints for ever, output by acknowledgement.

Performs what `rayvisor.migration.ft_protocol.Primary` says. One thread cuts, packs and decides; one
listens to the secondary. One epoch is under way at most, so a slow link makes epochs longer and
never fills memory.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Protocol

from rayvisor.migration import frames, pages
from rayvisor.migration import ft_protocol as ft
from rayvisor.migration.codec import Packer
from rayvisor.migration.config import PAGE_BYTES, Codec
from rayvisor.migration.errors import IllegalPhaseError, OwnershipLostError
from rayvisor.migration.ft_pace import Pace
from rayvisor.migration.ft_protocol import Primary, PrimaryPhase, Verdict
from rayvisor.migration.ft_source import plain_inputs, plain_state
from rayvisor.migration.sending import TRIAL_PAGES, Tally
from rayvisor.vmm.errors import MachineStateError, MigrationError
from rayvisor.vmm.stats import FtStats

if TYPE_CHECKING:
    from collections.abc import Callable

    from rayvisor.migration.ft_config import FtConfig
    from rayvisor.migration.ft_source import Checkpoint, VmCheckpoints
    from rayvisor.migration.pages import Picked
    from rayvisor.migration.precopy import Seeded

_log = logging.getLogger(__name__)

RETRY_S: Final = 0.1
LISTEN_S: Final = 0.02
CLOSE_S: Final = 1.0
DELTAS_PAY: Final = 2.0
"""How much better than not at all differences must pack to be worth their copies."""
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
        on_change: called when `state` has changed, on the thread that runs.

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
        self._packer = Packer()
        self._whole, self._deltas = Tally(), Tally()
        self._events: queue.SimpleQueue[ft.Event] = queue.SimpleQueue()
        self._console_offset = seeded.console_offset
        self._cuts: dict[int, _Cut] = {}
        self._last_cut_s = self._acked_cut_s = time.monotonic()
        self._changed = threading.Condition()
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
        with self._changed:
            self._changed.notify_all()

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
        return alone

    def _turn(self) -> None:
        event = self._next_event()
        if event is not None:
            self._take(event)
        elif self._role.may_cut and self._due_in_s() <= 0:
            self._cut()
        elif self._source.held_bytes > self._config.held_bytes:
            self._source.stall()

    def _next_event(self) -> ft.Event | None:
        wait_s = min(self._due_in_s(), LISTEN_S) if self._role.may_cut else LISTEN_S
        try:
            return self._events.get(timeout=wait_s) if wait_s > 0 else self._events.get_nowait()
        except queue.Empty:
            return None

    def _due_in_s(self) -> float:
        if self._role.phase is _P.SEEDING or self._leave:
            return 0.0
        wanted = self._waiting or self._source.held_bytes
        epoch_s = self._pace.epoch_s if wanted else self._pace.quiet_epoch_s
        return self._last_cut_s + epoch_s - time.monotonic()

    def _take(self, event: ft.Event) -> None:
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
        epoch = self._role.cut + 1
        self._cuts = {epoch: _Cut(checkpoint, now_s)}
        self._take(ft.Cut(last))
        self._count(checkpoint, now_s - self._last_cut_s)
        self._last_cut_s = now_s
        self._send(checkpoint, epoch, last=last)

    def _send(self, checkpoint: Checkpoint, epoch: int, *, last: bool) -> None:
        put = self._talk.outbox.put
        self._send_pages(checkpoint.picked)
        while self._console_offset < checkpoint.console_end:
            end = min(checkpoint.console_end, self._console_offset + frames.MAX_CONSOLE_BYTES)
            data = self._source.console_output(self._console_offset, end)
            put(frames.ConsoleOutput(self._console_offset, data), self._check)
            self._console_offset += len(data)
        put(frames.MachineState(plain_state(checkpoint), running=True, stopped_for_ns=0))
        put(frames.EpochEnd(epoch, last, plain_inputs(checkpoint)), self._check)
        if self._deltas.pages >= TRIAL_PAGES:
            if self._deltas.ratio < DELTAS_PAY:
                self._source.forget_copies()
            self._whole, self._deltas = Tally(), Tally()

    def _send_pages(self, picked: Picked) -> None:
        chunk_bytes = self._config.chunk_bytes
        zeros = picked.zeros
        for runs, content in pages.split(picked.runs, picked.whole, chunk_bytes):
            self._put_pages(runs, content, zeros, self._whole)
            zeros = b""
        for runs, content in pages.split(picked.change_runs, picked.changes, chunk_bytes):
            self._put_pages(runs, content, zeros, self._deltas)
            zeros = b""
        if zeros:
            self._put_pages(b"", memoryview(b""), zeros, self._whole)

    def _put_pages(self, runs: bytes, content: memoryview, zeros: bytes, tally: Tally) -> None:
        block = self._packer.pack(Codec.LZ4, content) if runs else b""
        delta = tally is self._deltas
        self._talk.outbox.put(
            frames.Pages(runs, zeros, Codec.LZ4, delta, len(content), block), self._check
        )
        tally.pages += pages.pages_in(runs)
        tally.raw_bytes += len(content)
        tally.packed_bytes += len(block)

    def _check(self) -> None:
        """While there is no room in the outbox, perhaps on the guest's thread: may this go on?"""
        if self._peer_lost.is_set():
            raise MigrationError(self._why or "the secondary is lost")

    # --- The secondary's word -------------------------------------------------------------------

    def _listen(self) -> None:
        quiet = 0
        while not self._role.over:
            try:
                frame = self._talk.next(LISTEN_S)
                # Counted in looks, not in time: who was himself frozen has not looked.
                quiet = quiet + 1 if frame is None else 0
                self._hear(frame, quiet * LISTEN_S)
            except MigrationError as error:
                self._why = self._why or str(error)
                self._peer_lost.set()
                self._events.put(ft.PeerLost())
                return

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
                self._events.put(ft.Acked(epoch))
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
            self._on_change()
