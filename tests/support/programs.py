"""Static guest programs, compiled with the host's compiler when a test or a benchmark runs.

A program is one file, programs/NAME.c, or all C files of programs/NAME/ and what SHARED adds. The
result is kept in the user's cache folder under the digest of everything that went into it. One
whose name ends in _32 is of 32 bits and brings its own start: it has no C library, so that gcc
needs none for it.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from rayvisor.runtime.config import cache_dir

PROGRAMS: Final = Path(__file__).resolve().parents[1] / "guest" / "programs"

# Position dependent: code of 32 bits inside needs addresses below 4 GiB. No red zone: inline
# assembly pushes flags. Baseline x86-64: every CPU, real or translated, has it.
FLAGS: Final = (
    "-std=gnu11 -O2 -march=x86-64 -mno-red-zone -fno-pie -no-pie -static -Wall -Wextra -Werror"
).split()
FLAGS_32: Final = (
    "-m32 -std=gnu11 -O2 -march=i686 -ffreestanding -nostdlib -fno-stack-protector"
    " -fno-pie -no-pie -static -Wall -Wextra -Werror"
).split()

SHARED: Final = {"attack": ("ring3/main.c", "ring3/storm.c", "ring3/support.c")}
"""What a program takes from another's folder."""


class CompileError(Exception):
    """The compiler refused a program; the message is what it said."""


def missing_tools() -> list[str]:
    """The programs that are needed and not installed."""
    return [tool for tool in ("gcc", "ld") if shutil.which(tool) is None]


def sources(name: str) -> list[Path]:
    """The C files of a program, in order.

    Raises:
        FileNotFoundError: there is no such program.
    """
    single = PROGRAMS / f"{name}.c"
    found = [single] if single.is_file() else sorted((PROGRAMS / name).glob("*.c"))
    if not found:
        raise FileNotFoundError(f"no guest program {name}: neither {single} nor {PROGRAMS / name}/")
    return [*found, *(PROGRAMS / path for path in SHARED.get(name, ()))]


def _digest(files: list[Path], flags: list[str]) -> str:
    version = subprocess.run(["gcc", "-v"], capture_output=True, check=True).stderr
    digest = hashlib.sha256(version + " ".join(flags).encode())
    for path in (*files, *sorted({h for f in files for h in f.parent.glob("*.h")})):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:32]


def build_program(name: str) -> Path:
    """The executable of `name`, compiled unless it is in the cache.

    Raises:
        CompileError: it does not compile.
        FileNotFoundError: there is no such program.
    """
    files = sources(name)
    folder = cache_dir() / "guest-programs"
    flags = FLAGS_32 if name.endswith("_32") else FLAGS
    target = folder / f"{name}-{_digest(files, flags)}"
    if target.is_file():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix="build-") as scratch:
        out = Path(scratch) / name
        libraries = [] if flags is FLAGS_32 else ["-lm"]
        command = ["gcc", *flags, "-o", str(out), *map(str, files), *libraries]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise CompileError(f"{name}: {done.stderr.strip()}")
        # Another process may be building the same: the last rename wins, with the same bytes.
        out.replace(target)
    return target


def build_into(folder: Path, *names: str) -> Path:
    """Links to several programs in one folder, for those that look for each other.

    Returns:
        The link to the first.

    Raises:
        CompileError: one does not compile.
        FileNotFoundError: there is no such program.
    """
    for name in names:
        (folder / name).symlink_to(build_program(name))
    return folder / names[0]
