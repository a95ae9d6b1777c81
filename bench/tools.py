"""Debian's busybox and tcc with what they need, in a folder of our own: nothing is installed.

The same files are run natively and in every guest. apt brings the packages, with its state in a
private folder (so without root); they are unpacked into the cache.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from rayvisor.runtime.config import cache_dir
from rayvisor.runtime.images.apt import Apt

IN_GUEST: Final = "/opt/tools"

# What is taken of each package: (pattern in it, without a leading usr/; folder here). A folder
# is taken whole; links are replaced by what they lead to.
_WANTED: Final[dict[str, tuple[tuple[str, str], ...]]] = {
    "busybox-static": (("bin/busybox", "bin"),),
    "tcc": (("bin/tcc", "bin"), ("lib/x86_64-linux-gnu/tcc", "lib")),
    "libc6": (
        ("lib/x86_64-linux-gnu/lib[cm].so.6", "lib"),
        ("lib/x86_64-linux-gnu/libdl.so.2", "lib"),
        ("lib/x86_64-linux-gnu/libpthread.so.0", "lib"),
        ("lib/x86_64-linux-gnu/ld-linux-x86-64.so.2", "lib"),
    ),
    "libc6-dev": (("include/*", "include"), ("lib/x86_64-linux-gnu/crt[1in].o", "lib")),
    "linux-libc-dev": (("include/*", "include"),),
}


def tools() -> tuple[Path, str]:
    """The folder with bin/, include/ and lib/, and the versions; fetched when first called.

    Raises:
        ImageError: there is no apt here, or the archive cannot be reached.
    """
    wanted = hashlib.sha256(repr(_WANTED).encode()).hexdigest()[:16]
    home = cache_dir() / "bench" / f"tools-{wanted}"
    if not (home / "versions").is_file():
        print("fetching busybox and tcc from Debian (once, 8 MB) ...", file=sys.stderr)
        home.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home.parent) as scratch:
            _make(Path(scratch))
            shutil.rmtree(home, ignore_errors=True)
            (Path(scratch) / "tools").rename(home)
    return home, (home / "versions").read_text().strip()


def files(home: Path) -> dict[str, bytes | Path]:
    """What to add to a guest's file system, by path there."""
    return {
        f"{IN_GUEST}/{path.relative_to(home)}": path for path in home.rglob("*") if path.is_file()
    }


def _make(scratch: Path) -> None:
    (scratch / "apt").mkdir()
    apt = Apt(scratch / "apt", "amd64")
    apt.update(lambda _fraction: None)
    packages = [apt.find(name) for name in _WANTED]
    made = scratch / "tools"
    for package, path in zip(packages, apt.download(packages, lambda _fraction: None), strict=True):
        root = scratch / package.name
        root.mkdir()
        subprocess.run(["dpkg-deb", "--extract", str(path), str(root)], check=True)
        for pattern, folder in _WANTED[package.name]:
            _take(root, pattern, made / folder)
    versions = (f"{package.name} {package.version}" for package in packages)
    (made / "versions").write_text(", ".join(versions) + "\n")


def _take(root: Path, pattern: str, target: Path) -> None:
    """Copy what matches. Debian is moving its files from / to /usr: both places count."""
    found = [path for prefix in ("", "usr/") for path in sorted(root.glob(prefix + pattern))]
    if not found:
        raise SystemExit(f"{root.name}: no {pattern} in it: this version is not known to work")
    target.mkdir(parents=True, exist_ok=True)
    for path in found:
        if path.is_dir():
            shutil.copytree(path, target / path.name, dirs_exist_ok=True)
        else:
            shutil.copy(path, target / path.name)
