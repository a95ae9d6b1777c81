"""Frames on their way out: a thread that encodes and sends them while the next are packed."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Final

from rayvisor.migration import frames
from rayvisor.migration.background import give_way
from rayvisor.migration.errors import MigrationTimeoutError, TransportError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rayvisor.migration.frames import Frame
    from rayvisor.migration.roles import Transport

LOOK_EVERY_S: Final = 0.05
TOGETHER_BYTES: Final = 64 << 10
"""Small frames that wait are sent at once, up to so many bytes."""


class Outbox:
    """Sends frames in order. `put` waits while `room` frames are in it: back-pressure.

    Args:
        transport: Takes the encoded frames.
        room: How many frames may wait.
        bytes_per_s: At most so much is sent on average; None for no limit.

    Attributes:
        bytes_sent: Bytes that the transport has taken.
        capped_s: Seconds that it has waited for the sake of the bandwidth cap.
        full_s: Seconds that `put` has waited for room.
    """

    def __init__(self, transport: Transport, room: int, bytes_per_s: float | None) -> None:
        self.bytes_sent = 0
        self.capped_s = 0.0
        self.full_s = 0.0
        self._transport = transport
        self._room = room
        self._bytes_per_s = bytes_per_s
        self._seq = 0
        self._waiting: deque[Frame] = deque()
        self._changed = threading.Condition()
        self._error: Exception | None = None
        self._closed = False
        self._busy = False
        self._worker = 0
        self.pace(urgent=True)

    def put(
        self, frame: Frame, meanwhile: Callable[[], None] = lambda: None, *, more: bool = False
    ) -> None:
        """Send `frame` after those before it.

        Args:
            frame: What to send.
            meanwhile: Called now and then while there is no room; it may raise.
            more: Others follow at once: it may wait, to be sent with them.

        Raises:
            TransportError: the transport has failed, or the outbox is closed.
        """
        while True:
            with self._changed:
                since_s = time.monotonic()
                self._changed.wait_for(
                    lambda: self._error or self._closed or len(self._waiting) < self._room,
                    LOOK_EVERY_S,
                )
                self.full_s += time.monotonic() - since_s
                self._fail_if_broken()
                if len(self._waiting) < self._room:
                    self._waiting.append(frame)
                    if not more or len(self._waiting) >= self._room:
                        self._changed.notify_all()
                    return
            meanwhile()

    def flush(self, timeout_s: float) -> None:
        """Wait until the transport has taken everything.

        Raises:
            MigrationTimeoutError: it has not in time.
            TransportError: the transport has failed.
        """
        with self._changed:
            taken = self._changed.wait_for(
                lambda: self._error or self._closed or not (self._waiting or self._busy),
                timeout_s,
            )
            self._fail_if_broken()
            if not taken:
                raise MigrationTimeoutError(f"the other side took nothing for {timeout_s:g} s")

    def drop(self) -> None:
        """Forget the frames that wait."""
        with self._changed:
            self._waiting.clear()
            self._changed.notify_all()

    def pace(self, *, urgent: bool) -> None:
        """From now on give way to the guest, or, if `urgent`, to nobody."""
        with self._changed:
            self._worker += 1
            number = self._worker
            self._changed.notify_all()
        threading.Thread(
            target=self._work, args=(number, urgent), name="migration-out", daemon=True
        ).start()

    def limit(self, bytes_per_s: float | None) -> None:
        """The bandwidth cap from now on: none while the guest stands still."""
        with self._changed:
            self._bytes_per_s = bytes_per_s
            self._changed.notify_all()

    def close(self) -> None:
        """Send nothing more; what waits is dropped. Harmless twice."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify_all()

    def _fail_if_broken(self) -> None:
        if self._error is not None:
            raise TransportError(f"cannot send: {self._error}") from self._error
        if self._closed:
            raise TransportError("cannot send: the stream is closed")

    def _work(self, number: int, urgent: bool) -> None:
        if not urgent:
            give_way()
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: (
                        self._closed or self._worker != number or (self._waiting and not self._busy)
                    )
                )
                if self._closed or self._worker != number:
                    return
                together = self._take_together()
                self._busy = True
                self._changed.notify_all()
            try:
                self._send(together)
            except Exception as error:  # noqa: BLE001 - raised where the next frame is put
                with self._changed:
                    self._error = error
                    self._waiting.clear()
                    self._changed.notify_all()
                return
            with self._changed:
                self._busy = False
                self._changed.notify_all()

    def _take_together(self) -> list[Frame]:
        taken, total = [self._waiting.popleft()], 0
        while self._waiting:
            total += _data_bytes(taken[-1])
            if total + _data_bytes(self._waiting[0]) > TOGETHER_BYTES:
                break
            taken.append(self._waiting.popleft())
        return taken

    def _send(self, together: list[Frame]) -> None:
        encoded = [frames.encode(self._seq + i, frame) for i, frame in enumerate(together)]
        self._seq += len(encoded)
        total = sum(map(len, encoded))
        started_s = time.monotonic()
        self._transport.send(*encoded)
        sent_s = time.monotonic()
        with self._changed:
            self.bytes_sent += total
            # The cap is on the average: after the frames comes the pause that they have earned.
            while self._bytes_per_s is not None and not self._closed:
                pause_s = started_s + total / self._bytes_per_s - time.monotonic()
                if pause_s <= 0:
                    break
                self._changed.wait(pause_s)
            if self._bytes_per_s is not None:
                self.capped_s += time.monotonic() - sent_s


def _data_bytes(frame: Frame) -> int:
    return len(getattr(frame, "data", b""))
