"""What a `VmSpec` boots, read into memory where the request is made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rayvisor.vmm.errors import ConfigError

if TYPE_CHECKING:
    from rayvisor.runtime.api import VmSpec
    from rayvisor.vmm.spec import BootSource


def source_of(spec: VmSpec) -> BootSource:
    """The boot source of an image, or of the files that the spec names.

    Raises:
        ImageError: no such image, or it is damaged.
        ConfigError: a file cannot be read, or the spec mixes an image with files.
    """
    if spec.kernel is not None:
        from rayvisor.runtime.cli.bootsource import from_files

        return from_files(spec.kernel, spec.initrd, spec.append, [], spec.format)
    if spec.initrd is not None:
        raise ConfigError("an initrd goes with a kernel: an image brings its own")
    if spec.format != "auto":
        raise ConfigError("a format goes with a kernel: an image is a Linux one")
    from rayvisor.runtime.images import ImageStore

    return ImageStore().get(spec.image).boot_source(spec.append)
