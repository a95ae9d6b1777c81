"""Two sides without a machine, a record of who owns the VM, and carriers that break."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

from rayvisor.migration.config import PAGE_BYTES
from rayvisor.migration.errors import OwnershipLostError, StreamError, TransportError
from rayvisor.migration.memory_transport import MemoryTransport
from rayvisor.vmm.errors import CorruptStateError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rayvisor.migration.arrival import Arrival

SCHEMA = "machine/1"
MIN_PAGES = 256
"""1 MiB, the smallest machine."""


class FakeSource:
    """A guest that is a bytearray and a set of dirty pages."""

    def __init__(self, pages: int = MIN_PAGES, *, runs: bool = True) -> None:
        self.memory = bytearray(pages * PAGE_BYTES)
        self.pages = pages
        self.running = self._ran = runs
        self.alive = True
        self.released = False
        self.log_on = False
        self.shares: list[float] = []
        self.console = b""
        self.late_input = b""
        self.state: dict[str, Any] = {"answer": 42}
        self.before_harvest: Callable[[], None] = lambda: None
        self._dirty = 0
        self._lock = threading.Lock()

    name = "fake"
    machine_schema = SCHEMA

    @property
    def ram(self) -> memoryview:
        return memoryview(self.memory)

    @property
    def runs(self) -> bool:
        return self._ran

    def write(self, page: int, content: bytes, offset: int = 0) -> None:
        """What a guest's store does: to a page that is dirty from then on."""
        with self._lock:
            if not self.running:
                return
            start = page * PAGE_BYTES + offset
            self.memory[start : start + len(content)] = content
            self._dirty |= 1 << page

    def written_pages(self) -> list[tuple[int, int]]:
        rows = (self.memory[i : i + PAGE_BYTES] for i in range(0, len(self.memory), PAGE_BYTES))
        return [(page, 1) for page, row in enumerate(rows) if any(row)]

    def start_log(self) -> None:
        self.log_on = True
        with self._lock:
            self._dirty = 0

    def harvest(self) -> bytes:
        self.before_harvest()
        with self._lock:
            bits = self._dirty.to_bytes(self.pages // 8, "little")
            self._dirty = 0
        return bits

    def stop_log(self) -> None:
        self.log_on = False

    def throttle(self, share: float) -> None:
        self.shares.append(share)

    def pause(self) -> int:
        with self._lock:
            self.running = False
        return time.monotonic_ns()

    def resume(self) -> None:
        self.running = self._ran

    def save(self) -> dict[str, Any]:
        assert not self.running
        return self.state

    def console_output(self, offset: int) -> tuple[int, bytes]:
        return offset, self.console[offset : offset + (1 << 20)]

    def release(self) -> bytes:
        assert not self.running
        self.released = True
        return self.late_input


class FakeDestination:
    """RAM that is a bytearray, and a flag that says whether the guest runs."""

    machine_schema = SCHEMA

    def __init__(self, pages: int = MIN_PAGES) -> None:
        self.memory = bytearray(pages * PAGE_BYTES)
        self.running = False
        self.alive = True
        self.discarded = False
        self.adopted = False
        self.console = b""
        self.typed = b""
        self.gained_ns = -1
        self.state: dict[str, Any] | None = None
        self.refuse_state = False
        self.incomplete_allowed = True
        self.missing: set[int] = set()
        self.order: list[int] = []
        self.wishes: list[list[int]] = []
        self.completed = self.lost = False
        self.refuse_to_run = False

    @property
    def memory_bytes(self) -> int:
        return len(self.memory)

    @property
    def ram(self) -> memoryview:
        return memoryview(self.memory)

    def zero(self, first_page: int, count: int) -> None:
        self.memory[first_page * PAGE_BYTES : (first_page + count) * PAGE_BYTES] = bytes(
            count * PAGE_BYTES
        )

    @property
    def can_run_incomplete(self) -> bool:
        return self.incomplete_allowed

    @property
    def missing_pages(self) -> int:
        return len(self.missing)

    def expect(self, missing: list[tuple[int, int]]) -> None:
        for first, count in missing:
            self.zero(first, count)
            self.missing |= set(range(first, first + count))

    def fill(self, first_page: int, content: memoryview) -> None:
        start = first_page * PAGE_BYTES
        self.memory[start : start + len(content)] = content
        self._came(first_page, len(content) // PAGE_BYTES)

    def fill_zero(self, first_page: int, count: int) -> None:
        self.zero(first_page, count)
        self._came(first_page, count)

    def _came(self, first: int, count: int) -> None:
        for page in range(first, first + count):
            self.missing.remove(page)
            self.order.append(page)

    def wanted(self) -> list[int]:
        return self.wishes.pop(0) if self.wishes else []

    def complete(self) -> None:
        assert not self.missing
        self.completed = True

    def lose(self) -> None:
        self.lost = True
        self.running = False

    def console_output(self, offset: int, data: bytes) -> None:
        if offset != len(self.console):
            raise StreamError("console: a piece is missing")
        self.console += data

    def restore(self, state: dict[str, Any]) -> None:
        if self.refuse_state:
            raise CorruptStateError("fake: out of range")
        self.state = state

    def adopt(self, gained_ns: int, *, running: bool) -> int:
        assert self.alive
        assert not self.discarded
        if self.refuse_to_run:
            raise OSError("no threads left")
        self.gained_ns = gained_ns
        self.adopted = True
        self.running = running
        return time.monotonic_ns()

    def console_input(self, data: bytes) -> None:
        self.typed += data

    def discard(self) -> None:
        self.discarded = True
        self.running = False

    def die(self) -> None:
        """The process is killed."""
        self.alive = self.running = False


class Record:
    """The placement record: one VM, held by "source" under token 1 at first."""

    def __init__(self, destination_alive: Callable[[], bool] = lambda: True) -> None:
        self.owner, self.token = "source", 1
        self.silent = False
        self._before: tuple[str, int] | None = None
        self._confirmed = False
        self._destination_alive = destination_alive
        self._lock = threading.Lock()

    def commit(self, vm: str, token: int) -> int:
        return self._take("destination", token, dead_owner=False)

    def take_back(self, vm: str, token: int, *, given_up: bool) -> int:
        return self._take("source", token, dead_owner=given_up or not self._destination_alive())

    def _take(self, who: str, token: int, *, dead_owner: bool) -> int:
        if self.silent:
            raise ConnectionError("the record is away")
        with self._lock:
            if self._before == (who, token):
                return self.token
            if token != self.token and not (dead_owner and self.owner == "destination"):
                raise OwnershipLostError(f"token {token} is not {self.token}")
            self._before = (who, token)
            self.owner, self.token = who, self.token + 1
            return self.token


class BreakingTransport(MemoryTransport):
    """A carrier at whose frame `at` something happens.

    `before` and `after` are called when that frame has been sent and has not, or has, been fed;
    what they raise breaks the line. `change` may replace the frame.
    """

    def __init__(
        self,
        arrival: Arrival,
        at: int | None = None,
        *,
        before: Callable[[], None] = lambda: None,
        after: Callable[[], None] = lambda: None,
        change: Callable[[bytes], bytes] = lambda frame: frame,
    ) -> None:
        self.frames: list[bytes] = []

        def feed(frame: bytes) -> list[bytes]:
            number = len(self.frames)
            self.frames.append(frame)
            if number != at:
                return arrival.feed(frame)
            before()
            replies = arrival.feed(change(frame))
            after()
            return replies

        super().__init__(feed, arrival.disconnected)


def cut() -> None:
    """The line breaks."""
    raise TransportError("cut")
