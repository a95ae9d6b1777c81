"""Files named by their digest, written once and never changed.

A file appears under its name complete and on disk, or not at all: it is written elsewhere in the
same file system, synced, and renamed.
"""

from __future__ import annotations

import hashlib
import os
from mmap import ACCESS_READ, mmap
from typing import TYPE_CHECKING

from rayvisor.runtime.images.manifest import ObjectRecord
from rayvisor.vmm.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet
    from pathlib import Path


def write_atomically(path: Path, data: bytes, scratch: Path) -> None:
    """Make `path` hold `data`, at once and durably.

    Args:
        path: the file; its folder is made.
        data: the whole contents.
        scratch: a folder of the caller's own in the same file system.

    Raises:
        OSError: no space, no permission.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = scratch / path.name
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fchmod(file.fileno(), 0o444)
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Put the names in a folder on disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def map_object(path: Path, expected: str, *, what: str, way_out: str) -> mmap:
    """The contents of a file whose digest is known, mapped so that they cost no memory.

    Args:
        path: the file.
        expected: its SHA-256 in hexadecimal.
        what: how the error calls it.
        way_out: what the error tells to do.

    Raises:
        ImageError: the file is gone, unreadable, or not what it was.
    """
    try:
        with path.open("rb") as file:
            data = mmap(file.fileno(), 0, access=ACCESS_READ)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is empty"
        raise ImageError(f"{what}: cannot read {path}: {reason}: {way_out}") from error
    found = hashlib.sha256(data).hexdigest()
    if found != expected:
        raise ImageError(
            f"{what}: {path} is damaged (SHA-256 is {found[:12]}…, not {expected[:12]}…): {way_out}"
        )
    return data


class ObjectStore:
    """Objects in a folder, two levels deep.

    Args:
        folder: where they are; made when something is put in.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, digest: str) -> Path:
        """Where the object of that digest is or would be."""
        return self._folder / digest[:2] / digest

    def put(self, data: bytes, scratch: Path) -> ObjectRecord:
        """Store an object, replacing a damaged one of its name.

        Raises:
            OSError: no space, no permission.
        """
        digest = hashlib.sha256(data).hexdigest()
        path = self.path(digest)
        if not (path.is_file() and path.read_bytes() == data):
            write_atomically(path, data, scratch)
        return ObjectRecord(sha256=digest, size_bytes=len(data))

    def read(self, record: ObjectRecord, *, what: str, way_out: str) -> bytes:
        """An object, verified.

        Raises:
            ImageError: as `map_object`.
        """
        return map_object(self.path(record.sha256), record.sha256, what=what, way_out=way_out)[:]

    def remove_all_but(self, wanted: AbstractSet[str]) -> int:
        """Remove the objects whose digest is not in `wanted`; give the bytes that were freed.

        Raises:
            OSError: no permission.
        """
        freed_bytes = 0
        for path in sorted(self._folder.glob("??/*")):
            if path.name not in wanted:
                freed_bytes += path.stat().st_size
                path.unlink()
        for folder in self._folder.glob("??"):
            if not any(folder.iterdir()):
                folder.rmdir()
        return freed_bytes
