"""A carrier within one process: each frame is fed to the other side by a thread of its own."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING

from rayvisor.migration.errors import TransportError

if TYPE_CHECKING:
    from collections.abc import Callable


class MemoryTransport:
    """Calls `feed` with each frame sent, in order, and receives what it returns.

    Args:
        feed: The other side, such as `Arrival.feed`.
        on_close: Called once when this side closes, after the last frame has been fed.
        in_flight: Frames that wait to be fed before `send` waits.
    """

    def __init__(
        self,
        feed: Callable[[bytes], list[bytes]],
        on_close: Callable[[], None] = lambda: None,
        in_flight: int = 4,
    ) -> None:
        self._feed = feed
        self._on_close = on_close
        self._in_flight = in_flight
        self._out: deque[bytes] = deque()
        self._back: deque[bytes] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._broken: Exception | None = None
        self._thread = threading.Thread(target=self._work, name="migration-carry", daemon=True)
        self._thread.start()

    def send(self, *frames: bytes) -> None:
        """Queue frames. See `rayvisor.migration.roles.Transport`."""
        for frame in frames:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._closed or self._broken or len(self._out) < self._in_flight
                )
                if self._closed or self._broken:
                    raise TransportError(f"the other side is gone: {self._broken or 'closed'}")
                self._out.append(frame)
                self._changed.notify_all()

    def receive(self, timeout_s: float) -> bytes | None:
        """The next reply. See `rayvisor.migration.roles.Transport`."""
        with self._changed:
            self._changed.wait_for(lambda: self._back or self._closed or self._broken, timeout_s)
            if self._back:
                return self._back.popleft()
            if self._closed or self._broken:
                raise TransportError(f"the other side is gone: {self._broken or 'closed'}")
            return None

    def close(self) -> None:
        """Feed what was sent, then nothing more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._out or self._closed)
                if not self._out:
                    break
                frame = self._out.popleft()
                self._changed.notify_all()
            try:
                replies = self._feed(frame)
            except Exception as error:  # noqa: BLE001 - the other side is gone, whatever happened
                with self._changed:
                    self._broken = error
                    self._changed.notify_all()
                break
            with self._changed:
                self._back.extend(replies)
                self._changed.notify_all()
        self._on_close()
