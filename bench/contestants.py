"""The VMs that are compared: ours and QEMU's, each a process whose console is a pipe.

All boot the same kernel and the same initrd. On QEMU's machine type microvm the kernel finds its
interrupt controllers, and a clock, only without the argument noapic; everything else on its command
line is the same.
"""

from __future__ import annotations

import os
import selectors
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from rayvisor.runtime.images import BANNER_PREFIX, ImageStore
from rayvisor.vmm.boot import bzimage, payload
from rayvisor.vmm.spec import MachineSpec

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import TracebackType

QEMU: Final = "qemu-system-x86_64"
MEMORY_MIB: Final = 256
READY: Final = BANNER_PREFIX.encode()
PROMPT: Final = b":~# "
_TICKS_A_SECOND: Final = os.sysconf("SC_CLK_TCK")
_NOT_FOR_MICROVM: Final = frozenset({"noapic"})


class GuestError(Exception):
    """A guest did not do what the benchmark needs; the message has the end of its console."""


@dataclass(frozen=True, slots=True)
class BootFiles:
    """What all contestants boot. `vmlinux` is the kernel's own ELF, which has a PVH entry."""

    kernel: Path
    vmlinux: Path
    initrd: Path
    cmdline: str


@contextmanager
def boot_files(
    append: str = "", files: Mapping[str, bytes | Path] | None = None
) -> Iterator[BootFiles]:
    """The Debian image as files, with `files` added to its file system."""
    source = ImageStore().build("debian").boot_source(append, files=files)
    with tempfile.TemporaryDirectory(prefix="rayvisor-bench-") as folder:
        made = BootFiles(
            Path(folder) / "vmlinuz",
            Path(folder) / "vmlinux",
            Path(folder) / "initrd",
            source.cmdline,
        )
        made.kernel.write_bytes(source.kernel)
        made.initrd.write_bytes(source.initrd)
        compressed = bzimage._parse(memoryview(source.kernel)).payload
        made.vmlinux.write_bytes(payload.unpack(compressed, 1 << 30) or b"")
        yield made


def _ours(files: BootFiles, memory_mib: int, *options: str) -> list[str]:
    return [
        *(sys.executable, "-m", "rayvisor", "run", *options, "--memory", f"{memory_mib}M"),
        *("--kernel", str(files.kernel), "--initrd", str(files.initrd), "--append", files.cmdline),
    ]


def _qemu(kernel: Path, files: BootFiles, memory_mib: int) -> list[str]:
    words = [word for word in files.cmdline.split() if word not in _NOT_FOR_MICROVM]
    return [
        *(QEMU, "-accel", "tcg", "-M", "microvm,acpi=off,memory-backend=ram"),
        *("-object", f"memory-backend-memfd,id=ram,size={memory_mib}M", "-m", str(memory_mib)),
        *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio"),
        *("-kernel", str(kernel), "-initrd", str(files.initrd), "-append", " ".join(words)),
    ]


OURS: Final = "Rayvisor"
OURS_TRANSLATED: Final = "Rayvisor --no-direct"
QEMU_BZIMAGE: Final = "QEMU TCG microvm, bzImage"
QEMU_PVH: Final = "QEMU TCG microvm, PVH"


def contestants() -> tuple[str, ...]:
    """Those that can run here; says on standard error if QEMU is missing."""
    if shutil.which(QEMU):
        return OURS, QEMU_BZIMAGE, QEMU_PVH
    print(f"{QEMU} is not installed (apt install qemu-system-x86): no comparison", file=sys.stderr)
    return (OURS,)


def has_direct() -> bool:
    """Whether this Rayvisor knows direct execution; without it all code is translated."""
    return "direct" in {field.name for field in fields(MachineSpec)}


def command(who: str, files: BootFiles, memory_mib: int = MEMORY_MIB) -> list[str]:
    """The command line of a contestant."""
    if who == OURS:
        return _ours(files, memory_mib)
    if who == OURS_TRANSLATED:
        return _ours(files, memory_mib, "--no-direct")
    return _qemu(files.kernel if who == QEMU_BZIMAGE else files.vmlinux, files, memory_mib)


class Guest:
    """A contestant that runs, from the moment its process is started."""

    def __init__(self, who: str, files: BootFiles, *, memory_mib: int = MEMORY_MIB) -> None:
        self.who = who
        self._start([*command(who, files, memory_mib)])

    def _start(self, words: list[str]) -> None:
        self.started_s = time.perf_counter()
        self.process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        stdout = self.process.stdout
        assert stdout is not None
        self._out = stdout.fileno()
        os.set_blocking(self._out, False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._out, selectors.EVENT_READ)
        self._unread = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.process.kill()
        self.process.communicate()
        self._selector.close()

    def until(self, wanted: bytes, timeout_s: float = 120) -> bytes:
        """Console output up to the first `wanted`.

        Raises:
            GuestError: it did not come in time, or the process ended.
        """
        deadline_s = time.perf_counter() + timeout_s
        parts, seen = [self._unread], self._unread
        while wanted not in seen:
            if not self._selector.select(max(0.0, deadline_s - time.perf_counter())):
                raise GuestError(f"{self.who}: no {wanted!r} in {timeout_s:g} s; {seen[-200:]!r}")
            data = os.read(self._out, 1 << 16)
            if not data:
                raise GuestError(f"{self.who}: ended before {wanted!r}; {seen[-200:]!r}")
            parts.append(data)
            seen = seen[-len(wanted) :] + data
        everything = b"".join(parts)
        end = everything.index(wanted) + len(wanted)
        self._unread = everything[end:]
        return everything[:end]

    def send(self, data: bytes) -> None:
        """Type at the console."""
        stdin = self.process.stdin
        assert stdin is not None
        stdin.write(data)
        stdin.flush()

    def shell(self, timeout_s: float = 120) -> None:
        """Wait for the shell's prompt."""
        self.until(PROMPT, timeout_s)

    def run(self, line: str, timeout_s: float = 300) -> str:
        """What a shell command prints; the shell must be at its prompt."""
        self.send(f'{line}; echo "END"OF\n'.encode())
        self.until(b"\n")
        output = self.until(b"ENDOF", timeout_s)
        self.until(PROMPT)
        return output[: -len(b"ENDOF")].decode().replace("\r", "")

    def elapsed_s(self) -> float:
        """Since the process was started."""
        return time.perf_counter() - self.started_s

    def cpu_s(self) -> float:
        """User and system time of the process so far, in steps of 10 ms."""
        return cpu_of(self.process.pid)


def cpu_of(pid: int) -> float:
    """User and system time of a process so far, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_A_SECOND
