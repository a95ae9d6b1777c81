"""Reading one file out of a Debian package."""

from __future__ import annotations

import subprocess
import tarfile
from typing import TYPE_CHECKING

from rayvisor.vmm.errors import ImageError

if TYPE_CHECKING:
    from pathlib import Path


def read_member(package: Path, prefix: str) -> bytes:
    """The contents of the first regular file in a package whose path starts with `prefix`.

    Reading stops there: a kernel package holds hundreds of megabytes of modules behind the kernel.

    Args:
        package: a .deb file.
        prefix: path in the package, without a leading slash.

    Raises:
        ImageError: the package is damaged or holds no such file.
    """
    command = ["dpkg-deb", "--fsys-tarfile", str(package)]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                for member in archive:
                    path = member.name.removeprefix("./")
                    if member.isreg() and path.startswith(prefix):
                        source = archive.extractfile(member)
                        data = source.read() if source is not None else b""
                        if len(data) == member.size > 0:
                            return data
                        break
        except tarfile.TarError as error:
            raise ImageError(f"{package.name} is damaged ({error}): retry the build") from error
        finally:
            process.kill()
    raise ImageError(
        f"{package.name} holds no complete /{prefix}*: this version of the package is not known"
        " to work"
    )
