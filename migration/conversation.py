"""The source's talk with the destination: frames out, and the answers that are waited for."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from rayvisor.migration import frames
from rayvisor.migration.errors import IllegalPhaseError, MigrationTimeoutError, PeerAbortedError
from rayvisor.migration.outbox import Outbox

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from rayvisor.migration.config import MigrationConfig
    from rayvisor.migration.frames import Frame
    from rayvisor.migration.roles import Transport

    F = TypeVar("F", bound=Frame)

LOOK_EVERY_S: Final = 0.05


class Conversation:
    """One migration's frames in both directions.

    Attributes:
        outbox: What goes out.
    """

    def __init__(self, transport: Transport, config: MigrationConfig) -> None:
        self._transport = transport
        self._received = 0
        self.outbox = Outbox(transport, config.frames_in_flight, config.bandwidth_bytes_per_s)

    def put(self, frame: Frame) -> None:
        """Send a frame after those before it; see `Outbox.put`."""
        self.outbox.put(frame)

    def reply(
        self, kind: type[F], timeout_s: float | None, meanwhile: Callable[[], None] = lambda: None
    ) -> F:
        """The destination's next frame, which must be a `kind`.

        Args:
            kind: The class of the frame.
            timeout_s: How long to wait; None waits for as long as the destination lives.
            meanwhile: Called now and then while waiting; it may raise.

        Raises:
            MigrationTimeoutError: nothing came in time.
            PeerAbortedError: the destination has given up.
            IllegalPhaseError: it sent another frame.
            StreamError: what it sent is damaged.
            TransportError: it is gone.
        """
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            data = self._transport.receive(LOOK_EVERY_S)
            if data is not None:
                frame = self._decode(data)
                if isinstance(frame, kind):
                    return frame
                if isinstance(frame, frames.Beat):
                    continue
                raise IllegalPhaseError(f"{kind.KIND} wanted, the destination sent {frame.KIND}")
            meanwhile()
            if deadline_s is not None and time.monotonic() > deadline_s:
                raise MigrationTimeoutError(f"the destination did not answer in {timeout_s:g} s")

    def next(self, timeout_s: float) -> Frame | None:
        """The destination's next frame, whichever it is; None if none comes in time.

        Raises:
            PeerAbortedError, StreamError, TransportError: as `reply`.
        """
        data = self._transport.receive(timeout_s)
        return None if data is None else self._decode(data)

    def expect_silence(self) -> None:
        """Raise as `reply` does if the destination has sent anything: nothing is due now."""
        while (data := self._transport.receive(0)) is not None:
            frame = self._decode(data)
            if not isinstance(frame, frames.Beat):
                raise IllegalPhaseError(f"the destination sent {frame.KIND} unasked")

    def close(self) -> None:
        """Nothing more, in either direction."""
        self.outbox.close()
        self._transport.close()

    def _decode(self, data: bytes) -> Frame:
        frame = frames.decode(data, self._received)
        self._received += 1
        if isinstance(frame, frames.Abort):
            raise PeerAbortedError(f"the destination gave up: {frame.reason}")
        return frame
