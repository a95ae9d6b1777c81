"""The destination's side of a migration: frames in, replies out.

Whoever carries frames calls `feed` with each, in order, and sends back what it returns. Nothing
here waits for the other side, so an actor's method, a socket's loop and a test can all drive it.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Final

from rayvisor.migration import frames, pages
from rayvisor.migration.config import PAGE_BYTES
from rayvisor.migration.errors import (
    IllegalPhaseError,
    OwnershipLostError,
    StreamError,
    UndecidedError,
)
from rayvisor.migration.intake import Intake
from rayvisor.migration.phases import DestinationPhase, destination_phases
from rayvisor.vmm.errors import RayvisorError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rayvisor.migration.frames import Frame
    from rayvisor.migration.roles import Destination, Ownership

_log = logging.getLogger(__name__)

RETRY_S: Final = 0.2
_P = DestinationPhase


class Arrival:
    """Receives one VM. Thread-safe, one frame at a time.

    From the moment it has asked the placement record for the VM until it has an answer it can do
    nothing else (`feed` does not return): the VM may be its own.

    Attributes:
        token: The fencing token under which the VM runs here, once it does.
        must_end: The placement record may have given the VM to this process, which cannot run it:
            the record did not answer for `claim_timeout_s`, or the machine did not start. The
            source is told; in case it does not hear it, the process must end, so that the record
            can give the VM back.
    """

    def __init__(
        self,
        destination: Destination,
        ownership: Ownership,
        *,
        claim_timeout_s: float = 30.0,
        pause_s: Callable[[float], None] = time.sleep,
    ) -> None:
        self.token: int | None = None
        self.must_end = False
        self._destination = destination
        self._ownership = ownership
        self._claim_timeout_s = claim_timeout_s
        self._pause_s = pause_s
        self._phases = destination_phases()
        self._lock = threading.Lock()
        self._expected = 0
        self._reply_seq = 0
        self._hello: frames.Hello | None = None
        self._state: frames.MachineState | None = None
        self._state_came_ns = 0
        self._intake = Intake(destination)
        self._urgent = False

    @property
    def urgent(self) -> bool:
        """Whether the guest stands still until the next frame, or runs here: do not give way."""
        return self._urgent or self._phases.now not in {_P.WAITING, _P.RECEIVING}

    @property
    def phase(self) -> DestinationPhase:
        """Where it stands."""
        return self._phases.now

    def feed(self, frame: bytes | bytearray) -> list[bytes]:
        """Take the source's next frame; the replies, in order. Never raises MigrationError.

        A stream that is damaged or out of order, and a machine that refuses what it is given, end
        the attempt: the reply says why, and the source keeps the VM.
        """
        with self._lock:
            came_ns = time.monotonic_ns()
            try:
                decoded = frames.decode(frame, self._expected)
                self._expected += 1
                replies = self._take(decoded, came_ns)
            except Exception as error:  # noqa: BLE001 - the stream is hostile; the source is told
                replies = self._give_up(error)
            return [self._encode(reply) for reply in replies]

    def idle(self, *, heard: bool) -> list[bytes]:
        """No frame has come for a while."""
        return []

    def disconnected(self) -> None:
        """The source is gone. What has not been claimed by now never will be."""
        with self._lock:
            if self._phases.now is _P.RUNNING:
                self._destination.console_input(b"")
                self._phases.enter(_P.DONE)
            else:
                self._lose_or_discard()

    def _encode(self, frame: Frame) -> bytes:
        data = frames.encode(self._reply_seq, frame)
        self._reply_seq += 1
        return data

    def _take(self, frame: Frame, came_ns: int) -> list[Frame]:
        phases = self._phases
        match frame:
            case frames.Hello():
                phases.enter(_P.RECEIVING)
                self._hello = frame
                return [self._intake.welcome(frame)]
            case frames.Pages():
                if phases.now is _P.FILLING:
                    return [self._fill_pages(frame)]
                phases.require(_P.RECEIVING)
                self._intake.put(frame)
            case frames.Missing():
                phases.require(_P.RECEIVING)
                self._expect(frame)
            case frames.Coming():
                phases.require(_P.RECEIVING)
                self._intake.make_room(frame)
            case frames.Pace():
                phases.require(_P.RECEIVING)
                self._urgent = frame.urgent
            case frames.RoundEnd():
                phases.require(_P.RECEIVING)
                return [frames.Ack(self._expected - 1, time.monotonic_ns())]
            case frames.ConsoleOutput():
                phases.require(_P.RECEIVING)
                self._destination.console_output(frame.offset, frame.data)
            case frames.MachineState():
                phases.require(_P.RECEIVING)
                self._restore(frame, came_ns)
            case frames.Commit():
                phases.enter(_P.CLAIMING)
                return [self._claim()]
            case frames.Done():
                phases.require(_P.RUNNING, _P.FILLING)
                self._destination.console_input(frame.data)
                if phases.now is _P.RUNNING:
                    phases.enter(_P.DONE)
            case frames.Abort():
                _log.info("the source gave up: %s", frame.reason)
                self._lose_or_discard()
            case _:
                raise StreamError(f"{frame.KIND}: a source does not send this")
        return []

    def _restore(self, frame: frames.MachineState, came_ns: int) -> None:
        self._destination.restore(frame.state)
        self._state, self._state_came_ns = frame, came_ns
        self._phases.enter(_P.READY)

    def _claim(self) -> frames.Running:
        hello, state = self._hello, self._state
        if hello is None or state is None:
            raise IllegalPhaseError("commit: HELLO and STATE come first")
        token = self._claimed(hello)
        self.must_end = True
        here_ns = time.monotonic_ns() - self._state_came_ns
        # What the frame took to get here is not known, and left out: the clock never gains more
        # than the guest stood still.
        gained_ns = state.stopped_for_ns + here_ns if state.running else 0
        resumed_ns = self._destination.adopt(gained_ns, running=state.running)
        incomplete = self._destination.missing_pages > 0
        self._phases.enter(_P.FILLING if incomplete else _P.RUNNING)
        self.token, self.must_end = token, False
        _log.info("VM %s runs here, token %d", hello.vm, token)
        return frames.Running(token, resumed_ns, gained_ns)

    def _claimed(self, hello: frames.Hello) -> int:
        deadline_s = time.monotonic() + self._claim_timeout_s
        while True:
            try:
                return self._ownership.commit(hello.vm, hello.token)
            except OwnershipLostError:
                raise
            except Exception as error:  # whatever it is, the record did not answer
                if time.monotonic() > deadline_s:
                    self.must_end = True
                    raise UndecidedError(
                        f"the placement record does not answer ({error}): this process must end"
                    ) from error
                _log.warning("VM %s: the placement record does not answer: %s", hello.vm, error)
                self._pause_s(RETRY_S)

    def _expect(self, frame: frames.Missing) -> None:
        if not self._destination.can_run_incomplete:
            raise StreamError("missing: this side does not do post-copy")
        missing = pages.read_runs(frame.data, len(self._destination.ram) // PAGE_BYTES)
        self._destination.expect(missing)

    def _fill_pages(self, frame: frames.Pages) -> frames.Wanted:
        mine = self._destination
        page_count = len(mine.ram) // PAGE_BYTES
        runs = pages.read_runs(frame.runs, page_count)
        zeros = pages.read_runs(frame.zeros, page_count)
        if frame.delta or sum(length for _, length in runs) * PAGE_BYTES != frame.raw_bytes:
            raise StreamError("pages: whole pages are wanted, as many as the runs have")
        raw = memoryview(self._intake.unpack(frame))
        for first, length in runs:
            mine.fill(first, raw[: length * PAGE_BYTES])
            raw = raw[length * PAGE_BYTES :]
        for first, length in zeros:
            mine.fill_zero(first, length)
        wanted = mine.wanted()[: frames.MAX_WANTED]
        if not mine.missing_pages:
            mine.complete()
            self._phases.enter(_P.DONE)
        return frames.Wanted(tuple(wanted))

    def _lose_or_discard(self) -> None:
        if self._phases.now is _P.FILLING:
            _log.critical("the source is gone before the last page came: the VM is lost")
            self._phases.enter(_P.LOST)
            self._destination.lose()
        elif self._phases.now not in {_P.RUNNING, _P.DONE, _P.LOST}:
            self._discard()

    def _give_up(self, error: Exception) -> list[Frame]:
        if self._phases.now is _P.FILLING:
            self._lose_or_discard()
            return [frames.Abort(f"the VM is lost: {error}"[:1024])]
        if self._phases.now in {_P.RUNNING, _P.DONE, _P.LOST}:
            # The VM is ours whatever the source says now.
            _log.warning("after the move: %s", error)
            return []
        if not isinstance(error, RayvisorError):
            _log.exception("the machine cannot be taken in")
        self._discard()
        return [frames.Abort((str(error) or type(error).__name__)[:1024])]

    def _discard(self) -> None:
        if self._phases.now is not _P.DISCARDED:
            self._phases.enter(_P.DISCARDED)
            self._destination.discard()
