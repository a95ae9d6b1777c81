"""Getting the parts of an image out of Debian's archive."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rayvisor.runtime.images import package
from rayvisor.runtime.images.apt import Apt, Package
from rayvisor.runtime.images.manifest import PackageRecord
from rayvisor.runtime.units import format_bytes
from rayvisor.vmm.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from rayvisor.runtime.images.recipe import Recipe

    Progress = Callable[[str, float | None], None]
    """What is being done, and the fraction of it that is done where that is known."""

_REAL_KERNEL = re.compile(r"(linux-image-[a-z0-9.+~-]+) \(= ([^)]+)\)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Parts:
    """What an image is made from.

    Attributes:
        kernel: the bzImage, as in its package.
        busybox: the program, as in its package.
        packages: where they come from.
    """

    kernel: bytes
    busybox: bytes
    packages: tuple[PackageRecord, ...]


class Fetcher:
    """Looks up and downloads the packages of one recipe.

    Args:
        recipe: what to build.
        scratch: an empty folder of the caller's.
        progress: told what is being done.
        keep_fd: a descriptor that child processes hold open (a lock).

    Raises:
        ImageError: the machine has no apt.
    """

    def __init__(
        self, recipe: Recipe, scratch: Path, progress: Progress, *, keep_fd: int | None = None
    ) -> None:
        self._recipe = recipe
        self._progress = progress
        self._apt = Apt(scratch, recipe.architecture, keep_fd=keep_fd)
        self._found: tuple[Package, Package] | None = None

    def look_up(self) -> tuple[PackageRecord, ...]:
        """The current packages, from fresh indexes: the kernel's, then busybox's.

        Raises:
            ImageError: the archive has no such packages, or did not answer.
        """
        say = f"Reading Debian's package index ({self._recipe.architecture})"
        self._progress(say, None)
        problem = self._apt.update(lambda fraction: self._progress(say, fraction))
        if problem is not None:
            self._progress(f"Part of the index did not load, using the rest: {problem}", None)
        meta = self._apt.find(self._recipe.kernel_package)
        match = _REAL_KERNEL.search(meta.depends)
        if match is None:
            raise ImageError(
                f"package {meta.name} {meta.version} depends on {meta.depends!r}, which names no"
                " kernel: this version is not known to work"
            )
        self._found = (self._apt.find(match[1]), self._apt.find(self._recipe.busybox_package))
        return tuple(_record(found) for found in self._found)

    def fetch(self) -> Parts:
        """Download what `look_up` found and take the parts out.

        Raises:
            ImageError: a download failed or a package is not as expected.
        """
        if self._found is None:
            self.look_up()
        found = self._found
        assert found is not None  # noqa: S101 - for the type checker: look_up sets it or raises
        total = format_bytes(sum(one.size_bytes for one in found))
        say = f"Downloading {found[0].name} {found[0].version} and {found[1].name} ({total})"
        self._progress(say, 0.0)
        files = self._apt.download(found, lambda fraction: self._progress(say, fraction))
        self._progress("Unpacking the kernel and busybox", None)
        return Parts(
            kernel=package.read_member(files[0], "boot/vmlinuz-"),
            busybox=package.read_member(files[1], "bin/busybox"),
            packages=tuple(_record(one) for one in found),
        )


def _record(found: Package) -> PackageRecord:
    return PackageRecord(
        name=found.name,
        version=found.version,
        architecture=found.architecture,
        sha256=found.sha256,
    )
