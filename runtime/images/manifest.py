"""What is written down about an image, beside the objects it consists of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from rayvisor.vmm.errors import ImageError

if TYPE_CHECKING:
    from pathlib import Path

NAME_PATTERN: Final = r"[a-z0-9][a-z0-9._-]{0,62}"
"""Names of images: safe as file names everywhere."""

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ObjectRecord(_Record):
    """One object of the store.

    Attributes:
        sha256: its digest, which is also its name.
        size_bytes: its length.
    """

    sha256: Digest
    size_bytes: Annotated[int, Field(gt=0)]


class PackageRecord(_Record):
    """A Debian package that went into an image.

    Attributes:
        name: name of the package.
        version: Debian's version.
        architecture: Debian's architecture.
        sha256: digest of the .deb file, from the signed index.
    """

    name: str
    version: str
    architecture: str
    sha256: Digest


class Manifest(_Record):
    """An image.

    Attributes:
        format: version of this record. A reader refuses what it does not know.
        name: the image's name.
        created: when it was built.
        cmdline: kernel arguments to start with.
        kernel: the bzImage as Debian ships it.
        busybox: the program in the initrd, kept so that a new init needs no download.
        initrd: the initial file system.
        packages: where kernel and busybox come from.
    """

    format: Literal[1] = 1
    name: Annotated[str, StringConstraints(pattern=f"^{NAME_PATTERN}$")]
    created: AwareDatetime
    cmdline: Annotated[str, StringConstraints(max_length=2047, pattern=r"^[ -~]*$")]
    kernel: ObjectRecord
    busybox: ObjectRecord
    initrd: ObjectRecord
    packages: tuple[PackageRecord, ...]

    def objects(self) -> tuple[ObjectRecord, ...]:
        """Every object the image needs."""
        return (self.kernel, self.busybox, self.initrd)


def read_manifest(path: Path) -> Manifest | None:
    """The manifest at `path`, or None if there is no such file.

    Raises:
        ImageError: it cannot be read or is damaged.
    """
    way_out = f"`rayvisor image rm {path.stem}`, then build it again"
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ImageError(f"image {path.stem}: cannot read {path}: {error.strerror}") from error
    try:
        manifest = Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        found = f"{where}: {first['msg']}" if where else first["msg"]
        raise ImageError(
            f"image {path.stem}: its manifest is damaged ({found}): {way_out}"
        ) from error
    if manifest.name != path.stem:
        raise ImageError(f"image {path.stem}: its manifest is that of {manifest.name!r}: {way_out}")
    return manifest
