"""Static guest programs, compiled with the host's compiler when a test or a benchmark runs.

A program is one file, programs/NAME.c, or all C files of programs/NAME/. The result is kept in
the user's cache folder under the digest of everything that went into it.
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
    return found


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
    target = folder / f"{name}-{_digest(files, FLAGS)}"
    if target.is_file():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix="build-") as scratch:
        out = Path(scratch) / name
        command = ["gcc", *FLAGS, "-o", str(out), *map(str, files), "-lm"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise CompileError(f"{name}: {done.stderr.strip()}")
        # Another process may be building the same: the last rename wins, with the same bytes.
        out.replace(target)
    return target
