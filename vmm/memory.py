"""Guest RAM: one memfd, mapped once.

Guest physical layout, that of a PC:

    0          .. 640 KiB   RAM
    640 KiB    .. 768 KiB   no RAM (the VGA window)
    768 KiB    .. 1 MiB     RAM, but the firmware's (shadow RAM): e820 calls it reserved
    1 MiB      .. 3 GiB     RAM
    3 GiB      .. 4 GiB     no RAM (chips, PCI, APIC)
    4 GiB      ..           the RAM that did not fit below

A byte's offset in the memory file is its guest physical address below 3 GiB, and that
address less 1 GiB from 4 GiB on; so the file is as long as the machine's memory.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
from typing import TYPE_CHECKING, Final

from rayvisor.vmm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

PAGE_BYTES: Final = 4096
LARGE_PAGE_BYTES: Final = 1 << 21
MIN_MEMORY_BYTES: Final = 1 << 20
CONVENTIONAL_END: Final = 0xA_0000
SHADOW_START: Final = 0xC_0000
EXTENDED_START: Final = 0x10_0000
LOW_END: Final = 3 << 30
HIGH_START: Final = 4 << 30

_RESERVED: Final = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000  # MAP_NORESERVE

Range = tuple[int, int]
"""(guest physical address, length in bytes)."""


def backed_ranges(memory_bytes: int) -> tuple[Range, ...]:
    """Where a machine of `memory_bytes` has RAM, in ascending order."""
    low_end = min(memory_bytes, LOW_END)
    ranges = [(0, CONVENTIONAL_END), (SHADOW_START, low_end - SHADOW_START)]
    if memory_bytes > LOW_END:
        ranges.append((HIGH_START, memory_bytes - LOW_END))
    return tuple(ranges)


def file_offset(gpa: int) -> int:
    """Where the byte at `gpa`, an address that has RAM, lies in the memory file."""
    return gpa if gpa < LOW_END else gpa - (HIGH_START - LOW_END)


class GuestRam:
    """The RAM of one machine. Pages that are never touched cost nothing.

    Attributes:
        size_bytes: The machine's memory, and the length of the memory file.
        fd: The memory file (a memfd whose size is sealed). Owned by this object.
    """

    def __init__(self, memory_bytes: int) -> None:
        """Make zeroed RAM.

        Raises:
            ConfigError: `memory_bytes` is not a multiple of 4096, is below 1 MiB, or is more
                than this host can map.
        """
        # Here, and not at start-up: `rayvisor --help` needs the sizes above, and no engine.
        from rayvisor.vmm.core import _native

        if memory_bytes < MIN_MEMORY_BYTES or memory_bytes % PAGE_BYTES:
            raise ConfigError(
                f"memory of {memory_bytes} bytes: give at least 1 MiB, in multiples of 4 KiB"
            )
        self.size_bytes: Final = memory_bytes
        self.fd = os.memfd_create("guest-ram", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.fd, memory_bytes)
            # Whoever else maps the file must not be able to cut pages from under us (SIGBUS).
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
            # Room for the file at an address where the host can put large pages behind it.
            self._mapping = mmap.mmap(-1, memory_bytes + LARGE_PAGE_BYTES, _RESERVED)
            room = memoryview(self._mapping)
            self._at = _native.map_file(room, self.fd, memory_bytes, LARGE_PAGE_BYTES)
        except (OSError, OverflowError, ValueError) as error:
            os.close(self.fd)
            raise ConfigError(
                f"memory of {memory_bytes} bytes cannot be mapped on this host ({error})"
            ) from error
        self._memory = room[self._at : self._at + memory_bytes]
        room.release()
        self.before_use: Callable[[int, int], None] | None = None
        """Called with a run of pages (first, count in the memory file) before a view of it is
        given out: pages may still be on their way here."""
        self._ranges = backed_ranges(memory_bytes)

    @property
    def buffer(self) -> memoryview:
        """The whole memory file, writable and not copied; see `file_offset`."""
        return self._memory

    def ranges(self) -> tuple[Range, ...]:
        """Every (GPA, bytes) that has RAM behind it, the firmware's 256 KiB included."""
        return self._ranges

    def usable(self) -> tuple[Range, ...]:
        """The (GPA, bytes) that belong to the operating system: what e820 calls RAM."""
        usable = [(0, CONVENTIONAL_END)]
        for start, count in self._ranges[1:]:
            first = max(start, EXTENDED_START)
            if start + count > first:
                usable.append((first, start + count - first))
        return tuple(usable)

    def view(self, gpa: int, count: int) -> memoryview:
        """`count` bytes of RAM at `gpa`, writable and not copied.

        Raises:
            ValueError: part of it is not RAM, or the RAM is closed.
        """
        if count >= 0:
            for start, length in self._ranges:
                if start <= gpa and gpa + count <= start + length:
                    offset = file_offset(gpa)
                    if self.before_use is not None and count:
                        first = offset // PAGE_BYTES
                        self.before_use(first, (offset + count - 1) // PAGE_BYTES - first + 1)
                    return self._memory[offset : offset + count]
        raise ValueError(f"{count} bytes at {gpa:#x} are not in RAM")

    def read(self, gpa: int, count: int) -> bytes:
        """A copy of `count` bytes at `gpa`.

        Raises:
            ValueError: part of it is not RAM, or the RAM is closed.
        """
        return bytes(self.view(gpa, count))

    def write(self, gpa: int, data: bytes | memoryview | mmap.mmap) -> None:
        """Put `data` at `gpa`.

        Raises:
            ValueError: part of it would not be in RAM (nothing is written), or the RAM is closed.
        """
        source = memoryview(data).cast("B")
        self.view(gpa, source.nbytes)[:] = source

    def zero(self, gpa: int, count: int) -> None:
        """Make `count` bytes at `gpa` read as zero; whole pages go back to the host.

        Raises:
            ValueError: part of it is not in RAM, or the RAM is closed.
        """
        target = self.view(gpa, count)
        first = min(-gpa % PAGE_BYTES, count)
        last = count - (gpa + count) % PAGE_BYTES
        if last <= first:
            target[:] = bytes(count)
            return
        target[:first] = bytes(first)
        target[last:] = bytes(count - last)
        # Punches a hole in the file: reading zeros back allocates nothing until it is used.
        start = self._at + file_offset(gpa) + first
        self._mapping.madvise(mmap.MADV_REMOVE, start, last - first)

    def close(self) -> None:
        """Give the memory back. Harmless when done twice.

        Memory that a `view` still refers to goes when the last view does.
        """
        if self.fd < 0:
            return
        os.close(self.fd)
        self.fd = -1
        self._memory.release()
        with contextlib.suppress(BufferError):
            self._mapping.close()
