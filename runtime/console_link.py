"""A console at the other end of a slow wire: one read is always under way.

Knows no Ray: what submits a call and what waits for its answer are given to it.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from rayvisor.actors.records import ConsoleChunk

RefT = TypeVar("RefT")

CHUNK_BYTES: Final = 1 << 16
"""Most bytes of an answer: small enough for Ray to send it along instead of storing it."""

LONG_POLL_S: Final = 5.0


class ConsoleLink(Generic[RefT]):
    """Reads a VM's console from one place on, for one reader.

    Args:
        submit: `submit(offset, max_bytes, timeout_s)` asks for console output.
        collect: `collect(ref, timeout_s)` gives the answer, or None when it is not there yet.
            What it raises ends the link.
    """

    def __init__(
        self,
        submit: Callable[[int, int, float], RefT],
        collect: Callable[[RefT, float], ConsoleChunk | None],
    ) -> None:
        self._submit = submit
        self._collect = collect
        self._lock = threading.Lock()
        self._asked: tuple[int, RefT] | None = None
        self._live = True

    def read(self, offset: int, timeout_s: float) -> tuple[int, bytes]:
        """(offset of the first byte, bytes) from `offset` on; none after `timeout_s` seconds.

        Reading on where the last answer ended costs no wait for the wire.
        """
        with self._lock:
            if self._asked is None or self._asked[0] != offset:
                self._asked = (offset, self._ask(offset))
            chunk = self._collect(self._asked[1], timeout_s)
            if chunk is None:
                return offset, b""
            self._live = chunk.live
            end = chunk.offset + len(chunk.data)
            self._asked = (end, self._ask(end)) if chunk.live or chunk.data else None
            return chunk.offset, chunk.data

    def alive(self) -> bool:
        """Whether more output may come, as of the last answer."""
        return self._live

    def _ask(self, offset: int) -> RefT:
        return self._submit(offset, CHUNK_BYTES, LONG_POLL_S)
