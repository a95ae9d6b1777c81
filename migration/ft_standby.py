"""The secondary's side of fault tolerance: a VM as it was at the end of the last whole epoch.

Performs what `rayvisor.migration.ft_protocol.Secondary` says. What comes of an epoch is set aside
until all of it is there, so whatever happens this side has one state of the guest and not a
mixture of two.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from rayvisor.migration import frames
from rayvisor.migration import ft_protocol as ft
from rayvisor.migration.errors import IllegalPhaseError, StreamError, TransportError
from rayvisor.migration.ft_protocol import Secondary, SecondaryPhase
from rayvisor.migration.intake import Intake
from rayvisor.vmm.errors import RayvisorError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rayvisor.migration.frames import Frame
    from rayvisor.migration.ft_config import FtConfig
    from rayvisor.migration.ft_inputs import Inputs
    from rayvisor.migration.ft_primary import Cell
    from rayvisor.migration.roles import Destination

_log = logging.getLogger(__name__)

RETRY_S: Final = 0.05
FILLING_PATIENCE_S: Final = 30.0
"""Before the first epoch there is nothing to take over, and the primary may be busy."""
_S = SecondaryPhase


@dataclass(slots=True)
class _Epoch:
    """What has come of an epoch that is not whole yet."""

    pages: list[tuple[frames.Pages, bytes]] = field(default_factory=list)
    output: list[frames.ConsoleOutput] = field(default_factory=list)
    end: frames.EpochEnd | None = None


@dataclass(frozen=True, slots=True)
class Takeover:
    """How the VM came to run here: times of CLOCK_MONOTONIC.

    Attributes:
        epoch: the last whole epoch.
        heard_ns: when the primary was heard last.
        lost_ns: when it was taken for dead.
        decided_ns: when the placement record had given the VM to this side.
        resumed_ns: when the guest's first instruction ran here.
    """

    epoch: int
    heard_ns: int
    lost_ns: int
    decided_ns: int
    resumed_ns: int


class Standby:
    """Receives one VM, epoch by epoch, and runs it when its primary is lost. See `Receiver`.

    Args:
        destination: a machine that has not run.
        inputs: the input of its console.
        cell: who goes on when the two part.
        config: limits and choices; those of the primary.
        on_run: called once the VM runs here.

    Attributes:
        takeover: how it came to run here, once it does.
    """

    def __init__(
        self,
        destination: Destination,
        inputs: Inputs,
        cell: Cell,
        config: FtConfig,
        *,
        on_run: Callable[[Takeover], None] = lambda _: None,
        pause_s: Callable[[float], None] = time.sleep,
    ) -> None:
        self.takeover: Takeover | None = None
        self._destination = destination
        self._inputs = inputs
        self._cell = cell
        self._config = config
        self._on_run = on_run
        self._pause_s = pause_s
        self._role = Secondary()
        self._intake = Intake(destination)
        self._lock = threading.Lock()
        self._expected = self._reply_seq = 0
        self._coming = _Epoch()
        self._last: frames.EpochEnd | None = None
        self._last_came_ns = 0
        self._quiet_looks = 0
        self._sent_s = time.monotonic()
        self._heard_ns = self._lost_ns = self._decided_ns = time.monotonic_ns()

    @property
    def phase(self) -> SecondaryPhase:
        """Where it stands."""
        return self._role.phase

    @property
    def epoch(self) -> int:
        """The last whole epoch."""
        return self._role.epoch

    def feed(self, frame: bytes | bytearray) -> list[bytes]:
        """Take the primary's next frame; what to send back.

        A stream that is damaged ends the standing by: the primary is told, and goes on alone.
        """
        with self._lock:
            self._heard_ns = time.monotonic_ns()
            self._quiet_looks = 0
            if not self._role.listens:
                return []
            try:
                decoded = frames.decode(frame, self._expected)
                self._expected += 1
                replies = self._take(decoded)
            except Exception as error:  # noqa: BLE001 - the stream is hostile; the source is told
                replies = self._give_up(error)
            return self._encode(replies)

    @property
    def urgent(self) -> bool:
        """See `Receiver`: a protected guest waits for its epochs."""
        return True

    def idle(self, *, heard: bool) -> list[bytes]:
        """Nothing has come for `FtConfig.look_s`, unless part of a frame has.

        Raises:
            TransportError: the primary has been silent for too long.
        """
        with self._lock:
            # Counted in looks, not in time: who was himself frozen has not looked.
            self._quiet_looks = 0 if heard else self._quiet_looks + 1
            filling = self._role.phase is _S.FILLING
            patience_s = FILLING_PATIENCE_S if filling else self._config.silence_s
            if self._quiet_looks * self._config.look_s >= patience_s:
                raise TransportError(f"the primary was silent for {patience_s:g} s")
            return self._encode([])

    def disconnected(self) -> None:
        """The primary is gone, or was silent for too long: the record says who goes on."""
        with self._lock:
            self._tell(ft.PeerLost())

    def _encode(self, replies: list[Frame]) -> list[bytes]:
        now_s = time.monotonic()
        if not replies and self._role.listens and now_s - self._sent_s >= self._config.beat_s:
            replies = [frames.Beat()]
        if replies:
            self._sent_s = now_s
        encoded = []
        for reply in replies:
            encoded.append(frames.encode(self._reply_seq, reply))
            self._reply_seq += 1
        return encoded

    def _take(self, frame: Frame) -> list[Frame]:
        filling = self._role.phase is _S.FILLING
        match frame:
            case frames.Hello():
                return [self._intake.welcome(frame)]
            case frames.RoundEnd():
                return [frames.Ack(self._expected - 1, time.monotonic_ns())]
            case frames.Pages():
                if filling:
                    self._intake.put(frame)
                else:
                    raw = self._intake.unpack(frame) if frame.raw_bytes else b""
                    self._coming.pages.append((frame, raw))
            case frames.Coming():
                self._intake.make_room(frame)
            case frames.ConsoleOutput():
                if filling:
                    self._destination.console_output(frame.offset, frame.data)
                else:
                    self._coming.output.append(frame)
            case frames.EpochEnd():
                return self._end_epoch(frame)
            case frames.Beat():
                pass
            case frames.Abort():
                _log.info("the primary ends it: %s", frame.reason)
                self._tell(ft.PeerLost())
            case _:
                raise StreamError(f"{frame.KIND}: a primary does not send this")
        return []

    def _end_epoch(self, frame: frames.EpochEnd) -> list[Frame]:
        if self._last is None:
            # Whether this machine takes such a state at all must not turn out when it is needed.
            self._destination.restore(frames.read_state(frame.data))
        self._coming.end = frame
        replies = self._tell(ft.EpochComplete(frame.epoch, frame.last))
        taken = self.takeover
        if taken is not None:
            replies.append(frames.Running(0, taken.resumed_ns, 0))
        return replies

    def _tell(self, event: ft.Event) -> list[Frame]:
        self._role, instructions = self._role.on(event)
        replies: list[Frame] = []
        for instruction in instructions:
            replies += self._perform(instruction)
        return replies

    def _perform(self, do: ft.Instruction) -> list[Frame]:
        match do:
            case ft.Apply(epoch):
                self._apply()
                return [frames.Guarded(epoch)]
            case ft.Decide(verdict):
                self._lost_ns = time.monotonic_ns()
                found = self._decide(verdict)
                self._decided_ns = time.monotonic_ns()
                return self._tell(ft.Decided(found))
            case ft.Run():
                self._run()
            case ft.Discard():
                self._destination.discard()
            case _:
                raise IllegalPhaseError(f"{do}: not for a secondary")
        return []

    def _apply(self) -> None:
        coming, self._coming = self._coming, _Epoch()
        for frame, raw in coming.pages:
            self._intake.place(frame, raw)
        for piece in coming.output:
            self._destination.console_output(piece.offset, piece.data)
        self._last, self._last_came_ns = coming.end, time.monotonic_ns()

    def _decide(self, verdict: ft.Verdict) -> ft.Verdict:
        while True:
            try:
                return self._cell.decide(verdict)
            except Exception as error:  # noqa: BLE001 - whatever it is, the record did not answer
                _log.warning("the placement record does not answer: %s", error)
                self._pause_s(RETRY_S)

    def _run(self) -> None:
        if self._last is None:
            raise IllegalPhaseError("run: no epoch has come")
        self._destination.restore(frames.read_state(self._last.data))
        self._inputs.restore(self._last.typed)
        gained_ns = time.monotonic_ns() - self._last_came_ns
        resumed_ns = self._destination.adopt(gained_ns, running=True)
        self._destination.console_input(b"")
        self.takeover = Takeover(
            self._role.epoch, self._heard_ns, self._lost_ns, self._decided_ns, resumed_ns
        )
        self._on_run(self.takeover)

    def _give_up(self, error: Exception) -> list[Frame]:
        if self._role.phase is _S.RUNNING:
            _log.error("after taking over: %s", error)
            return []
        if not isinstance(error, RayvisorError):
            _log.exception("the standby cannot go on")
        self._role = Secondary(_S.DISCARDED, self._role.epoch)
        self._destination.discard()
        return [frames.Abort((str(error) or type(error).__name__)[:1024])]
