"""The initial file system: busybox under all its names, an init, a handful of folders."""

from __future__ import annotations

import re
from typing import Final

from rayvisor.runtime.images import cpio, debug_exit, guest_init
from rayvisor.vmm.errors import ImageError

_APPLET = re.compile(rb"[a-z0-9\[][a-z0-9._\[-]*", re.ASCII)
_TABLE_START: Final = b"\0[\0[[\0"
_MIN_APPLETS: Final = 50

_FOLDERS: Final = (
    "bin",
    "dev",
    "etc",
    "lib",
    "mnt",
    "proc",
    "run",
    "sys",
    "usr",
    "var",
    "var/log",
)


def applets(busybox: bytes) -> list[str]:
    """The commands a busybox program knows, read from its table of names.

    The table is one run of NUL-terminated names in alphabetical order. Reading it, instead of
    running the program, works for a guest of another architecture.

    Raises:
        ImageError: there is no such table.
    """
    start = busybox.find(_TABLE_START)
    names: list[str] = []
    position = start + 1
    while start >= 0:
        end = busybox.find(b"\0", position)
        name = busybox[position:end]
        if end < 0 or not _APPLET.fullmatch(name) or (names and name.decode() <= names[-1]):
            break
        names.append(name.decode())
        position = end + 1
    if len(names) < _MIN_APPLETS or "sh" not in names:
        raise ImageError(
            f"busybox: no table of commands in its {len(busybox)} bytes:"
            " this version of busybox-static is not known to work"
        )
    return names


def build(busybox: bytes, *, bits: int) -> bytes:
    """Pack the initial file system, the same bytes for the same busybox.

    It is not compressed: unpacking it costs the guest more than copying it costs the host.

    Args:
        busybox: the statically linked program, from Debian's package.
        bits: 64 or 32, as the guest's programs are.

    Raises:
        ImageError: `busybox` has no table of commands.
    """
    entries = [cpio.directory(path) for path in _FOLDERS]
    entries += [
        cpio.directory("root", 0o700),
        cpio.directory("tmp", 0o1777),
        cpio.directory("var/tmp", 0o1777),
        # Everything is in /bin; the other usual places lead there.
        cpio.symlink("sbin", "bin"),
        cpio.symlink("usr/bin", "../bin"),
        cpio.symlink("usr/sbin", "../bin"),
        # The kernel opens it for init, before anything is mounted.
        cpio.character_device("dev/console", 5, 1),
        cpio.character_device("dev/null", 1, 3, 0o666),
        cpio.file("init", guest_init.INIT.encode(), 0o755),
        cpio.file("etc/profile", guest_init.PROFILE.encode()),
        cpio.file("etc/passwd", guest_init.USERS.encode()),
        cpio.file("etc/group", guest_init.GROUPS.encode()),
        cpio.file("etc/hosts", guest_init.HOSTS.encode()),
        cpio.file("bin/busybox", busybox, 0o755),
        cpio.file("bin/debug-exit", debug_exit.program(bits=bits), 0o755),
    ]
    own = {entry.path for entry in entries}
    entries += [
        cpio.symlink(f"bin/{name}", "busybox")
        for name in applets(busybox)
        if f"bin/{name}" not in own
    ]
    return cpio.pack(entries)
