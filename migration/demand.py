"""RAM whose pages come when they are needed: post-copy's destination.

A page that is missing is a hole of the memory file, and the mapping is registered with
userfaultfd (Linux man-pages, userfaultfd(2) and ioctl_userfaultfd(2)): whoever touches a hole
sleeps until the page is put there, in one step with its content. A thread collects what is waited
for. A hole that is not missing is a page of zeros, and is filled at once.

The guest touches RAM without the interpreter lock; the host's Python code must not, for it would
sleep with the lock that the thread needs. So `GuestRam` asks `wait_for` before it gives out a
view. Not handled: faults of the kernel (UFFD_USER_MODE_ONLY, which needs no privilege), as in a
read(2) into RAM; nothing here does that.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import logging
import mmap
import os
import platform
import select
import struct
import threading
from functools import cache
from typing import TYPE_CHECKING, Final

from rayvisor.migration.config import PAGE_BYTES
from rayvisor.vmm.errors import MigrationError

if TYPE_CHECKING:
    from collections.abc import Iterable

_log = logging.getLogger(__name__)

_SYSCALL: Final = {"x86_64": 323, "aarch64": 282}
_USER_MODE_ONLY: Final = 1
_API: Final = 0xAA
_FEATURE_MISSING_SHMEM: Final = 1 << 5
_MODE_MISSING: Final = 1
_EVENT_PAGEFAULT: Final = 0x12
_MESSAGE: Final = struct.Struct("<B7xQQQ")

_IOCTL_API, _API_ARGUMENT = 0xC018AA3F, struct.Struct("<QQQ")
_IOCTL_REGISTER, _REGISTER_ARGUMENT = 0xC020AA00, struct.Struct("<QQQQ")
_IOCTL_UNREGISTER, _RANGE_ARGUMENT = 0x8010AA01, struct.Struct("<QQ")
_IOCTL_COPY, _COPY_ARGUMENT = 0xC028AA03, struct.Struct("<QQQQq")
_IOCTL_ZEROPAGE, _ZEROPAGE_ARGUMENT = 0xC020AA04, struct.Struct("<QQQq")


def _open() -> int:
    number = _SYSCALL.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, "userfaultfd")
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.syscall(number, os.O_CLOEXEC | os.O_NONBLOCK | _USER_MODE_ONLY)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "userfaultfd")
    return int(fd)


def address_of(memory: memoryview) -> int:
    """Where writable memory is mapped."""
    anchor = ctypes.c_char.from_buffer(memory)
    return ctypes.addressof(anchor)


class Demand:
    """Which pages of one RAM are missing, and who waits for them. Thread-safe.

    Args:
        ram: The whole mapping of the memory file; the missing pages are holes of it.
        missing: Runs (first, count) of pages that will come.

    Raises:
        MigrationError: this host does not allow it.
    """

    def __init__(self, ram: memoryview, missing: Iterable[tuple[int, int]]) -> None:
        self._base = address_of(ram)
        self._bytes = len(ram)
        self._changed = threading.Condition()
        self._missing = {p for first, count in missing for p in range(first, first + count)}
        self._wanted: dict[int, None] = {}
        self._asked: set[int] = set()
        self._closed = False
        try:
            self._fd = _open()
        except OSError as error:
            raise MigrationError(f"post-copy needs userfaultfd: {error.strerror}") from error
        try:
            features = _API_ARGUMENT.pack(_API, _FEATURE_MISSING_SHMEM, 0)
            fcntl.ioctl(self._fd, _IOCTL_API, features)
            region = _REGISTER_ARGUMENT.pack(self._base, self._bytes, _MODE_MISSING, 0)
            fcntl.ioctl(self._fd, _IOCTL_REGISTER, region)
        except OSError as error:
            os.close(self._fd)
            raise MigrationError(
                f"post-copy needs userfaultfd on shared memory: {error.strerror}"
            ) from error
        self._stop_read, self._stop_write = os.pipe2(os.O_CLOEXEC)
        self._thread = threading.Thread(target=self._work, name="migration-faults", daemon=True)
        self._thread.start()

    @property
    def missing_pages(self) -> int:
        """How many pages have not come yet."""
        with self._changed:
            return len(self._missing)

    def wanted(self) -> list[int]:
        """Pages that somebody waits for and that have not been asked for, oldest first."""
        with self._changed:
            pages = [page for page in self._wanted if page not in self._asked]
            self._asked.update(pages)
            return pages

    def fill(self, first: int, content: bytes | memoryview) -> None:
        """Put pages that have come from page `first` on; those that are here stay as they are."""
        if not len(content):
            return
        source = (ctypes.c_char * len(content)).from_buffer_copy(content)
        for page, count in self._still_missing(first, len(content) // PAGE_BYTES):
            start = ctypes.addressof(source) + (page - first) * PAGE_BYTES
            target = self._base + page * PAGE_BYTES
            self._put(_IOCTL_COPY, target, count * PAGE_BYTES, start)
            self._came(page, count)

    def fill_zero(self, first: int, count: int) -> None:
        """As `fill`, with pages of zeros."""
        for page, length in self._still_missing(first, count):
            self._zero(page, length)
            self._came(page, length)

    def wait_for(self, first: int, count: int) -> None:
        """Wait, without the interpreter lock, until no page of these is missing.

        Raises:
            MigrationError: they will not come any more.
        """
        pages = range(first, first + count)
        with self._changed:
            for page in pages:
                if page in self._missing:
                    self._wanted[page] = None
            self._changed.wait_for(
                lambda: self._closed or not any(page in self._missing for page in pages)
            )
            if any(page in self._missing for page in pages):
                raise MigrationError("pages of this VM were lost with its source")

    def close(self) -> None:
        """Nobody is held up any more; pages that are missing read as zero. Harmless twice."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify_all()
        os.write(self._stop_write, b"x")
        self._thread.join()
        region = _RANGE_ARGUMENT.pack(self._base, self._bytes)
        fcntl.ioctl(self._fd, _IOCTL_UNREGISTER, region)
        for fd in (self._fd, self._stop_read, self._stop_write):
            os.close(fd)

    def _still_missing(self, first: int, count: int) -> list[tuple[int, int]]:
        runs: list[tuple[int, int]] = []
        with self._changed:
            for page in range(first, first + count):
                if page not in self._missing:
                    continue
                if runs and sum(runs[-1]) == page:
                    runs[-1] = (runs[-1][0], runs[-1][1] + 1)
                else:
                    runs.append((page, 1))
        return runs

    def _came(self, first: int, count: int) -> None:
        pages = range(first, first + count)
        with self._changed:
            self._missing.difference_update(pages)
            self._asked.difference_update(pages)
            for page in pages:
                self._wanted.pop(page, None)
            self._changed.notify_all()

    def _zero(self, page: int, count: int) -> None:
        self._put(_IOCTL_ZEROPAGE, self._base + page * PAGE_BYTES, count * PAGE_BYTES, None)

    def _put(self, request: int, target: int, length: int, source: int | None) -> None:
        done = 0
        while done < length:
            to, left = target + done, length - done
            if source is None:
                argument, at = bytearray(_ZEROPAGE_ARGUMENT.pack(to, left, 0, 0)), 24
            else:
                argument, at = bytearray(_COPY_ARGUMENT.pack(to, source + done, left, 0, 0)), 32
            try:
                fcntl.ioctl(self._fd, request, argument)
            except OSError as error:
                if error.errno == errno.EEXIST:  # somebody's zeros were here first
                    done += PAGE_BYTES
                elif error.errno != errno.EAGAIN:
                    raise
                # EAGAIN: the mapping was changing; so much has been done.
                (some,) = struct.unpack_from("<q", argument, at)
                done += max(0, some)
            else:
                return

    def _work(self) -> None:
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        poll.register(self._stop_read, select.POLLIN)
        while True:
            ready = {fd for fd, _ in poll.poll()}
            if self._stop_read in ready:
                return
            try:
                messages = os.read(self._fd, 64 * _MESSAGE.size)
            except BlockingIOError:
                continue
            for event, _, address, _ in _MESSAGE.iter_unpack(messages):
                if event == _EVENT_PAGEFAULT:
                    self._fault((address - self._base) // PAGE_BYTES)

    def _fault(self, page: int) -> None:
        with self._changed:
            if page in self._missing:
                self._wanted[page] = None
                return
        self._zero(page, 1)


@cache
def available() -> bool:
    """Whether this process may do it: tried, not guessed."""
    fd = os.memfd_create("probe", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, PAGE_BYTES)
        with mmap.mmap(fd, PAGE_BYTES, mmap.MAP_SHARED) as mapping, memoryview(mapping) as ram:
            Demand(ram, ()).close()
    except MigrationError as error:
        _log.info("no post-copy to this host: %s", error)
        return False
    finally:
        os.close(fd)
    return True
