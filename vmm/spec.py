"""What a machine is made from: its size and what it boots."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class BootSource:
    """What the loader is given, already read into memory. The bytes are untrusted.

    `format` is "auto" (recognise the kernel by its content), or one of "linux", "elf",
    "multiboot" and "flat" to insist. "flat" accepts any bytes that fit below 640 KiB and starts
    them as a boot sector: 16-bit real mode at 0000:7C00.
    """

    kernel: bytes = field(repr=False)
    initrd: bytes = field(default=b"", repr=False)
    cmdline: str = ""
    modules: tuple[tuple[str, bytes], ...] = field(default=(), repr=False)
    """(command line, content) of each Multiboot module."""
    format: str = "auto"


@dataclass(frozen=True, slots=True)
class MachineSpec:
    """One machine. `memory_bytes` is checked where the RAM is made (vmm.memory)."""

    memory_bytes: int
    boot: BootSource
    cpus: int = 1
    name: str = "vm"
