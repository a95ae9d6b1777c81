"""What a VM boots: an image by its name, or files that the command line names."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from rayvisor.runtime.cli.output import Step, step
from rayvisor.vmm.errors import ConfigError, ImageError
from rayvisor.vmm.spec import BootSource

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rayvisor.runtime.images import Image, ImageStore

DEFAULT_IMAGE = "debian"
LINUX_MAGIC = (0x202, b"HdrS")  # Documentation/arch/x86/boot.rst, "header"


def from_image(name: str, append: str, *, quiet: bool = False) -> BootSource:
    """The boot source of the image `name`, built first if it can be and is not there yet.

    Raises:
        ImageError: no such image, or it cannot be built.
    """
    from rayvisor.runtime.images import ImageStore

    image = ensure_image(ImageStore(), name, quiet=quiet)
    return image.boot_source(_join(terminal_size(), append))


def ensure_image(store: ImageStore, name: str, *, quiet: bool = False) -> Image:
    """The image `name`, verified; built with progress if it can be and is not there.

    One that is damaged, or that another version of Rayvisor made, is built again; one that is
    whole is used as it is where nothing can be built, such as in a read-only folder.

    Raises:
        ImageError: no such image, or it cannot be built.
    """
    from rayvisor.runtime.images import KINDS

    if name not in KINDS:
        return store.get(name)
    is_there = any(image.name == name for image in store.ls())
    with ExitStack() as stack:
        shown: list[Step] = []

        def progress(detail: str, fraction: float | None) -> None:
            if not shown:  # an image that is whole takes no time worth a line
                text = f"Building the image {name} (once; later starts use it)"
                shown.append(stack.enter_context(step(text, quiet=quiet)))
            shown[0](detail, fraction)

        try:
            return store.build(name, progress)
        except ImageError:
            if not is_there:
                raise
    return store.get(name)


def from_files(
    kernel: Path, initrd: Path | None, append: str, modules: Sequence[str], kind: str
) -> BootSource:
    """The boot source that files make.

    A Linux kernel is told what the board lacks before what `append` says, so that the bare
    command line boots; other formats get `append` alone. A module is "FILE" or "FILE ARGUMENTS"
    as in a boot loader's menu.

    Raises:
        ConfigError: a file cannot be read.
    """
    content = _read(kernel, "kernel")
    offset, magic = LINUX_MAGIC
    is_linux = kind == "linux" or (kind == "auto" and content[offset : offset + 4] == magic)
    return BootSource(
        kernel=content,
        initrd=b"" if initrd is None else _read(initrd, "initrd"),
        cmdline=_join(_board_arguments() if is_linux else "", append),
        modules=tuple((text, _read(Path(text.split(" ", 1)[0]), "module")) for text in modules),
        format=kind,
    )


def _board_arguments() -> str:
    from rayvisor.runtime.images.cmdline import default_command_line

    return default_command_line()


def terminal_size() -> str:
    """The kernel argument that tells the guest how large this terminal is, if it is one."""
    from rayvisor.runtime.images.cmdline import terminal_argument

    if not sys.stdout.isatty():
        return ""
    size = os.get_terminal_size(sys.stdout.fileno())
    return terminal_argument(size.columns, size.lines) if size.columns and size.lines else ""


def _join(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{what} {path}: {error.strerror}") from error
