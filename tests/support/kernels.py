"""Real kernels from Debian's packages, fetched once and kept in the user's cache folder."""

from __future__ import annotations

import fcntl
import os
import re
import tempfile
from pathlib import Path

from rayvisor.runtime.images.apt import Apt
from rayvisor.runtime.images.package import read_member

_DEPENDENCY = re.compile(r"(linux-image-\S+) \(=")


def cache_folder() -> Path:
    """Where the kernels are kept: $XDG_CACHE_HOME/rayvisor/test-kernels."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "rayvisor" / "test-kernels"


def fetch(package: str, architecture: str, member: str) -> bytes:
    """The first file whose path starts with `member` in a Debian package.

    Args:
        package: its name; of a metapackage, the kernel package it depends on is taken.
        architecture: Debian's name of it.
        member: a path without its leading slash, such as "boot/vmlinuz-".

    Raises:
        ImageError: the archive has no such package or did not answer.
    """
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / f"{package}_{architecture}_{member.replace('/', '_')}"
    with (folder / "lock").open("w") as lock:
        # Test workers that want the same package take turns.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if kept.is_file():
            return kept.read_bytes()
        with tempfile.TemporaryDirectory(dir=folder, prefix="download-") as scratch:
            content = _download(Path(scratch) / "apt", package, architecture, member)
            part = Path(scratch) / "content"
            part.write_bytes(content)
            part.replace(kept)
    return content


def _download(folder: Path, package: str, architecture: str, member: str) -> bytes:
    folder.mkdir()
    apt = Apt(folder, architecture)
    apt.update(lambda _: None)
    found = apt.find(package)
    real = _DEPENDENCY.search(found.depends)
    if real:
        found = apt.find(real[1])
    (path,) = apt.download([found], lambda _: None)
    return read_member(path, member)


def cloud_amd64() -> bytes:
    """Debian's cloud kernel, 64 bits, LZ4."""
    return fetch("linux-image-cloud-amd64", "amd64", "boot/vmlinuz-")


def i686() -> bytes:
    """Debian's 686 kernel, 32 bits, XZ."""
    return fetch("linux-image-686", "i386", "boot/vmlinuz-")
