"""The serial console as the outside sees it: output that is kept, and input on its way in."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

SCROLLBACK_BYTES: Final = 1 << 20
GATHER_BYTES: Final = 4096
GATHER_S: Final = 0.001
"""A streaming guest writes 16 bytes at a time: a reader woken for each is only in its way."""


class Console:
    """Output scrollback with absolute offsets, so that readers come and go and miss nothing.

    Byte n of the guest's output has offset n for ever; the last `capacity_bytes` and more are
    kept. Thread-safe.

    It is also the one gate by which output leaves a VM that is fault tolerant: from `hold` on,
    readers see only what has been released.
    """

    def __init__(
        self, send: Callable[[bytes], None], capacity_bytes: int = SCROLLBACK_BYTES
    ) -> None:
        """Make an empty console whose input goes to `send`."""
        self._send = send
        self._capacity_bytes = capacity_bytes
        self._kept = bytearray()
        self._start = 0
        self._changed = threading.Condition()
        self._sending = threading.Lock()
        self._closed = False
        self._read_s = 0.0
        self._released: int | None = None

    @property
    def start_offset(self) -> int:
        """Offset of the oldest byte that is kept."""
        return self._start

    @property
    def end_offset(self) -> int:
        """How many bytes the guest has written so far, without those that are held."""
        with self._changed:
            return self._end

    @property
    def written_offset(self) -> int:
        """How many bytes the guest has written so far."""
        with self._changed:
            return self._written

    @property
    def held_bytes(self) -> int:
        """Bytes that are written and not released."""
        with self._changed:
            return self._written - self._end

    @property
    def _written(self) -> int:
        return self._start + len(self._kept)

    @property
    def _end(self) -> int:
        return self._written if self._released is None else self._released

    def write(self, data: bytes) -> None:
        """Append output. A `ByteSink`."""
        with self._changed:
            self._kept += data
            # Trimmed in large steps: each moves what stays.
            if len(self._kept) > 2 * self._capacity_bytes:
                # What is held has been shown to nobody yet, and stays.
                surplus = min(len(self._kept) - self._capacity_bytes, self._end - self._start)
                del self._kept[:surplus]
                self._start += surplus
            self._changed.notify_all()

    def hold(self) -> None:
        """Show nothing that is written from now on until it is released. Harmless when it holds."""
        with self._changed:
            self._released = self._end

    def release(self, offset: int | None = None) -> None:
        """Show what was written up to `offset`; with None everything, and hold no more."""
        with self._changed:
            if offset is None:
                self._released = None
            elif self._released is not None:
                self._released = max(self._released, min(offset, self._written))
            self._changed.notify_all()

    def written(self, offset: int, max_bytes: int) -> tuple[int, bytes]:
        """As `read`, of what is held, too. Never waits."""
        with self._changed:
            return self._piece(offset, max_bytes, self._written)

    def read(
        self, offset: int, *, max_bytes: int = 1 << 16, timeout_s: float | None = 0
    ) -> tuple[int, bytes]:
        """Output from `offset` on, waiting up to `timeout_s` for some (None: for ever).

        Returns:
            The offset of the first byte returned, which is later than asked if that part is no
            longer kept, and the bytes; none at the timeout, or when no more will come.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._is_over or self._end > offset, timeout_s)
            stream = time.monotonic() - self._read_s < GATHER_S
            few = 0 < self._end - offset < GATHER_BYTES
        if stream and few and not self._closed:
            time.sleep(GATHER_S)
        with self._changed:
            self._read_s = time.monotonic()
            return self._piece(offset, max_bytes, self._end)

    @property
    def _is_over(self) -> bool:
        """Whether nothing will come that has not come: what is held may still be released."""
        return self._closed and self._end == self._written

    def _piece(self, offset: int, max_bytes: int, end: int) -> tuple[int, bytes]:
        first = max(offset, self._start)
        skip = first - self._start
        return first, bytes(self._kept[skip : max(skip, min(skip + max_bytes, end - self._start))])

    def send(self, data: bytes) -> None:
        """Type `data` at the guest's console.

        Raises:
            MachineStateError: the guest does not read and too much is waiting already.
        """
        with self._sending:
            self._send(data)

    def redirect(self, send: Callable[[bytes], None]) -> None:
        """Have input go to `send` from now on; none is on its way to where it went before."""
        with self._sending:
            self._send = send

    def continue_at(self, offset: int) -> None:
        """Output goes on at `offset`, and none of what came before is kept here."""
        with self._changed:
            self._kept.clear()
            self._start = offset
            if self._released is not None:
                self._released = offset

    def close(self) -> None:
        """No more output will come: readers that wait are let go."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def reopen(self) -> None:
        """Output may come again."""
        with self._changed:
            self._closed = False
