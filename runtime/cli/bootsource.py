"""What a VM boots: an image by its name, or files that the command line names."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rayvisor.runtime.cli.output import step
from rayvisor.vmm.errors import ConfigError
from rayvisor.vmm.spec import BootSource

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rayvisor.runtime.images import ImageStore

DEFAULT_IMAGE = "debian"
LINUX_MAGIC = (0x202, b"HdrS")  # Documentation/arch/x86/boot.rst, "header"


def from_image(name: str, append: str, *, quiet: bool = False) -> BootSource:
    """The boot source of the image `name`, built first if it can be and is not there yet.

    Raises:
        ImageError: no such image, or it cannot be built.
    """
    from rayvisor.runtime.images import ImageStore

    store = ImageStore()
    ensure_image(store, name, quiet=quiet)
    return store.get(name).boot_source(_join(_terminal_size(), append))


def ensure_image(store: ImageStore, name: str, *, quiet: bool = False) -> None:
    """Build the image `name` with progress if it is one that can be built and is not there."""
    from rayvisor.runtime.images import KINDS

    if name not in KINDS or any(image.name == name for image in store.ls()):
        return
    with step(f"Building the image {name} (once; later starts use it)", quiet=quiet) as progress:
        store.build(name, progress)


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


def _terminal_size() -> str:
    """What tells the guest how large this terminal is, if it is one."""
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
