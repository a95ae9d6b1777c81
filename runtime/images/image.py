"""An image as its users see it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rayvisor.runtime.images.cpio import append_files
from rayvisor.runtime.images.objects import map_object
from rayvisor.vmm.spec import BootSource

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from pathlib import Path

    from rayvisor.runtime.images.manifest import PackageRecord


@dataclass(frozen=True, slots=True)
class Image:
    """A kernel, an initial file system and what the kernel is told.

    Attributes:
        name: its name in the store.
        kernel: file with the kernel.
        initrd: file with the initial file system.
        cmdline: kernel arguments.
        digest: SHA-256 over kernel, initrd and cmdline: equal digests boot the same.
        size_bytes: what the image takes on disk, objects shared with others included.
        created: when it was built.
        packages: the Debian packages it was made from.
        kernel_sha256: digest of the kernel.
        initrd_sha256: digest of the initrd.
    """

    name: str
    kernel: Path
    initrd: Path
    cmdline: str
    digest: str
    size_bytes: int
    created: datetime
    packages: tuple[PackageRecord, ...]
    kernel_sha256: str
    initrd_sha256: str

    def boot_source(
        self, append: str = "", *, files: Mapping[str, bytes | Path] | None = None
    ) -> BootSource:
        """What a machine boots from, mapped from its files and verified.

        Args:
            append: kernel arguments behind the image's own; the later one wins.
            files: files to add to the guest's file system, by absolute path.

        Raises:
            ImageError: a file of the image is gone or damaged, or `files` cannot be packed.
        """
        what = f"image {self.name}"
        way_out = f"`rayvisor image build {self.name}` repairs it"
        kernel = map_object(self.kernel, self.kernel_sha256, what=what, way_out=way_out)
        mapped = map_object(self.initrd, self.initrd_sha256, what=what, way_out=way_out)
        initrd = append_files(mapped[:], files) if files else mapped
        cmdline = f"{self.cmdline} {append}".strip() if append else self.cmdline
        return BootSource(kernel=kernel, initrd=initrd, cmdline=cmdline)
