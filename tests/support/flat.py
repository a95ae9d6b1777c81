"""Small flat guests, assembled when a test runs.

Sources are GNU assembler in Intel syntax without register prefixes. The macros of
`flat_macros.s` are there to name: mode switches, gates, the PIC and the PIT, COM1 output
and the debug exit.
"""

from __future__ import annotations

import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

_MACROS = Path(__file__).with_name("flat_macros.s")
_BOOT_ORG = 0x7C00


class AssemblyError(Exception):
    """The assembler or the linker refused the source; the message is what it said."""


def missing_tools() -> list[str]:
    """The binutils programs that are needed and not installed."""
    return [tool for tool in ("as", "ld") if shutil.which(tool) is None]


def _run(command: list[str], folder: str) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise AssemblyError(f"{command[0]}: {done.stderr.strip()}")


@functools.lru_cache(maxsize=256)
def assemble(source: str, *, bits: int = 16, org: int = _BOOT_ORG) -> bytes:
    """The flat image of `source`, to be loaded and entered at physical address `org`.

    `bits` (16, 32 or 64) is the mode at the first instruction; `.code16`, `.code32`
    and `.code64` change it further down. The entry is the first byte.

    Raises:
        AssemblyError: the source does not assemble or link.
        ValueError: `bits` is not one of the three.
    """
    if bits not in (16, 32, 64):
        raise ValueError(f"bits: 16, 32 or 64 wanted, found {bits}")
    text = (
        f'.intel_syntax noprefix\n.include "{_MACROS}"\n.text\n.code{bits}\n'
        f".globl _start\n_start:\n{source}\n"
    )
    script = f"SECTIONS {{ . = {org:#x}; .image : {{ *(.text) *(.rodata*) *(.data) *(.bss) }} }}\n"
    with tempfile.TemporaryDirectory(prefix="rayvisor-flat-") as folder:
        root = Path(folder)
        (root / "guest.s").write_text(text)
        (root / "guest.ld").write_text(script)
        # One 64-bit object for all modes: it alone can hold every relocation.
        _run(["as", "--64", "-mrelax-relocations=no", "-o", "guest.o", "guest.s"], folder)
        link = "ld -m elf_x86_64 -T guest.ld --oformat binary -o guest.bin guest.o"
        _run(link.split(), folder)
        return (root / "guest.bin").read_bytes()


def boot_sector(source: str) -> bytes:
    """`source` as a 512-byte boot sector with its signature, for anything that has a BIOS.

    Raises:
        AssemblyError: it does not assemble, or is longer than 510 bytes.
    """
    code = assemble(source)
    if len(code) > 510:
        raise AssemblyError(f"boot sector: {len(code)} bytes of code, 510 fit")
    return code.ljust(510, b"\0") + b"\x55\xaa"


def real(body: str) -> bytes:
    """A guest whose `body` runs in 16-bit real mode."""
    return assemble(f"real_start\n{body}\ntables\n")


def protected(body: str) -> bytes:
    """A guest whose `body` runs in flat 32-bit protected mode, ring 0, paging off."""
    return assemble(f"real_start\nenter_protected\n{body}\ntables\n")


def long_mode(body: str) -> bytes:
    """A guest whose `body` runs in 64-bit mode, ring 0, the first 4 GiB identity mapped."""
    return assemble(f"real_start\nenter_long\n{body}\ntables\n")
