"""What a machine is made from: its size and what it boots."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from mmap import MADV_DONTNEED, mmap


@dataclass(frozen=True, slots=True)
class BootSource:
    """What the loader is given: bytes in memory, or files mapped into it. They are untrusted.

    `format` is "auto" (recognise the kernel by its content), or one of "linux", "elf",
    "multiboot" and "flat" to insist. "flat" accepts any bytes that fit below 640 KiB and starts
    them as a boot sector: 16-bit real mode at 0000:7C00.
    """

    kernel: bytes | mmap = field(repr=False)
    initrd: bytes | mmap = field(default=b"", repr=False)
    cmdline: str = ""
    modules: tuple[tuple[str, bytes], ...] = field(default=(), repr=False)
    """(command line, content) of each Multiboot module."""
    format: str = "auto"

    def __reduce__(self) -> tuple[type[BootSource], tuple[object, ...]]:
        """By value, so that it can travel to another process."""
        content = (bytes(self.kernel), bytes(self.initrd))
        return BootSource, (*content, self.cmdline, self.modules, self.format)

    def release(self) -> None:
        """Let go of what the loader has read, where it is mapped from a file."""
        for part in (self.kernel, self.initrd):
            if isinstance(part, mmap):
                part.madvise(MADV_DONTNEED)


class HangAction(StrEnum):
    """What is done with a guest that hangs: its watchdog expired, or its heartbeat stopped."""

    RESET = "reset"
    """Start it over, as the watchdog of a real machine does."""
    STOP = "stop"
    """End it as a crash, for its restart policy to see to."""
    IGNORE = "ignore"
    """Count it and say so."""


@dataclass(frozen=True, slots=True)
class MachineSpec:
    """One machine. `memory_bytes` is checked where the RAM is made (vmm.memory).

    `heartbeat_s` is how long its console may be silent before it counts as hung; 0 for ever.
    """

    memory_bytes: int
    boot: BootSource
    cpus: int = 1
    name: str = "vm"
    direct: bool = True
    """Execute user code on the processor itself where the host lets that be done."""
    on_hang: HangAction = HangAction.RESET
    heartbeat_s: float = 0.0
