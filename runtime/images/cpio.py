"""A writer for the cpio archives that Linux unpacks as its initial file system.

Format: "newc" as Linux's Documentation/driver-api/early-userspace/buffer-format.rst has it: a
110-byte header of hexadecimal fields, the NUL-terminated name and the data, each padded to four
bytes. Writing an archive needs no root, device nodes included, because nothing touches a disk. The
same entries give the same bytes on every machine: names are sorted, times are zero.

Not modelled: hard links, owners other than root, the checksummed "crc" variant.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rayvisor.vmm.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_MAGIC = b"070701"
_TRAILER = "TRAILER!!!"
_FIELD_MAX = 0xFFFF_FFFF
_LINK_MAX_BYTES = 4095  # PATH_MAX less its NUL: Linux skips a longer link


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of an archive.

    Attributes:
        path: where the file goes, relative to the root, with neither a leading slash nor "..".
        mode: file type and permissions as in `st_mode`.
        data: contents of a file, or target of a symbolic link.
        device: major and minor number of a device node.
    """

    path: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def directory(path: str, permissions: int = 0o755) -> Entry:
    """A directory."""
    return Entry(path, stat.S_IFDIR | permissions)


def file(path: str, data: bytes, permissions: int = 0o644) -> Entry:
    """A regular file."""
    return Entry(path, stat.S_IFREG | permissions, data)


def symlink(path: str, target: str) -> Entry:
    """A symbolic link."""
    return Entry(path, stat.S_IFLNK | 0o777, target.encode())


def character_device(path: str, major: int, minor: int, permissions: int = 0o600) -> Entry:
    """A character device node."""
    return Entry(path, stat.S_IFCHR | permissions, device=(major, minor))


def pack(entries: Iterable[Entry]) -> bytes:
    """Write an archive, parents before what they hold.

    Raises:
        ImageError: a path is given twice, leaves the root, or does not fit the format.
    """
    ordered = sorted(entries, key=lambda entry: entry.path)
    out = bytearray()
    previous = ""
    for number, entry in enumerate(ordered, start=1):
        _check(entry)
        if entry.path == previous:
            raise ImageError(f"initramfs: /{entry.path} is given twice: keep one of them")
        previous = entry.path
        _put(out, entry, number)
    _put(out, Entry(_TRAILER, 0), 0)
    return bytes(out)


def append_files(initrd: bytes, files: Mapping[str, bytes | Path]) -> bytes:
    """Add files to an initrd, compressed or not, by a second archive behind it.

    Linux unpacks concatenated archives one after the other; a later file replaces an earlier one.
    Folders that a path needs are made. A `Path` keeps its execute permission; bytes that start
    as a program does (ELF or "#!") are made executable.

    Args:
        initrd: the initrd as it stands; may be empty.
        files: contents by absolute path in the guest.

    Raises:
        ImageError: a path is not absolute, leaves the root, or a file cannot be read.
    """
    entries: dict[str, Entry] = {}
    for guest_path, source in files.items():
        if not guest_path.startswith("/"):
            raise ImageError(
                f"initramfs: {guest_path!r} is not an absolute path: write /{guest_path}"
            )
        path = guest_path[1:]
        data, permissions = _contents(source)
        entries[path] = file(path, data, permissions)
    needed = {parent for path in entries for parent in _parents(path)}
    taken = needed & entries.keys()
    if taken:
        raise ImageError(
            f"initramfs: /{min(taken)} is given as a file and needed as a folder: rename one"
        )
    archive = pack([*entries.values(), *(directory(path) for path in needed)])
    # The kernel expects every archive at a multiple of four bytes and skips zeros between them.
    return initrd + bytes(-len(initrd) % 4) + archive


def _contents(source: bytes | Path) -> tuple[bytes, int]:
    if isinstance(source, Path):
        try:
            data = source.read_bytes()
            executable = bool(source.stat().st_mode & 0o111)
        except OSError as error:
            raise ImageError(f"initramfs: cannot read {source}: {error.strerror}") from error
    else:
        data = source
        executable = data.startswith((b"\x7fELF", b"#!"))
    return data, 0o755 if executable else 0o644


def _parents(path: str) -> list[str]:
    parts = path.split("/")[:-1]
    return ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]


def _check(entry: Entry) -> None:
    parts = entry.path.split("/")
    if "\0" in entry.path or any(part in {"", ".", ".."} for part in parts):
        raise ImageError(
            f"initramfs: {entry.path!r} is not a path below the root: name the file itself"
        )
    if entry.path == _TRAILER:
        raise ImageError(f"initramfs: /{_TRAILER} marks the end of an archive: rename the file")
    if len(entry.data) > _FIELD_MAX:
        raise ImageError(f"initramfs: /{entry.path} has 4 GiB or more: the format ends there")
    if stat.S_ISLNK(entry.mode) and not 0 < len(entry.data) <= _LINK_MAX_BYTES:
        raise ImageError(
            f"initramfs: link /{entry.path} needs a target of 1 to {_LINK_MAX_BYTES} bytes"
        )


def _put(out: bytearray, entry: Entry, inode: int) -> None:
    name = entry.path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    major, minor = entry.device
    fields = (
        inode,
        entry.mode,
        0,  # owner
        0,  # group
        links,
        0,  # modification time
        len(entry.data),
        0,  # device that holds the file
        0,
        major,
        minor,
        len(name),
        0,  # checksum, "crc" variant alone
    )
    out += _MAGIC + b"".join(b"%08X" % field for field in fields) + name
    out += bytes(-len(out) % 4)
    out += entry.data
    out += bytes(-len(out) % 4)
