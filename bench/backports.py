"""A QEMU that migrates correctly, brought into a folder of our own: nothing is installed.

Debian's QEMU 7.2 loses stores when it migrates under TCG. Where the machine's own is older than 10,
that of Debian's main archive or of its backports is fetched by apt, with its state in a private
folder (so without root), and unpacked into the cache. What it needs besides, and the machine has,
is used from there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from rayvisor.runtime.config import cache_dir

PACKAGE: Final = "qemu-system-x86"
KEYS: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
SOURCES: Final = Path("/etc/apt")


class BackportsError(Exception):
    """No such QEMU can be had here; says why."""


def qemu() -> Path:
    """The folder with QEMU 10 or later, unpacked; fetched when called for the first time.

    Raises:
        BackportsError: this is no Debian, or its archive cannot be reached.
    """
    home = cache_dir() / "bench" / PACKAGE
    if not home.is_dir():
        for tool in ("apt-get", "dpkg-deb"):
            if shutil.which(tool) is None:
                raise BackportsError(f"{tool} is not on this machine")
        print("fetching QEMU from Debian's backports (once, 60 MB) ...", file=sys.stderr)
        home.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home.parent) as scratch:
            made = _unpack(Path(scratch))
            made.rename(home)
    return home


def _unpack(scratch: Path) -> Path:
    root = scratch / "root"
    root.mkdir()
    for package in _download(scratch):
        _run("dpkg-deb", "--extract", str(package), str(root))
    return root


def _download(scratch: Path) -> list[Path]:
    for folder in ("state/lists/partial", "cache/archives/partial", "sources"):
        (scratch / folder).mkdir(parents=True)
    options = [
        f"-oDir::State={scratch}/state",
        "-oDir::State::status=/var/lib/dpkg/status",
        f"-oDir::Cache={scratch}/cache",
        f"-oDir::Etc::sourceparts={scratch}/sources",
        "-oDir::Etc::sourcelist=/dev/null",
        "-oDir::Log=/dev/null",
        "-oAPT::Sandbox::User=",
        "-oDebug::NoLocking=1",
    ]
    for path in (SOURCES / "sources.list", *(SOURCES / "sources.list.d").glob("*")):
        if path.is_file() and path.suffix in {".list", ".sources"}:
            shutil.copy(path, scratch / "sources")
    _run("apt-get", *options, "update")
    site, codename = _archive(options)
    suite = f"{codename}-backports"
    keys = f"[signed-by={KEYS}] " if KEYS.exists() else ""
    (scratch / "sources/backports.list").write_text(f"deb {keys}{site} {suite} main\n")
    _run("apt-get", *options, "update")
    wanted = ("install", "--download-only", "--yes", "--no-install-recommends", "-t", suite)
    _run("apt-get", *options, *wanted, PACKAGE)
    found = list((scratch / "cache/archives").glob("*.deb"))
    if not any(path.name.startswith(f"{PACKAGE}_") for path in found):
        raise BackportsError(f"apt has no {PACKAGE} that is newer than the machine's")
    return found


def _archive(options: list[str]) -> tuple[str, str]:
    """Where this machine's Debian comes from, and its name."""
    form = "$(ORIGIN) $(COMPONENT) $(CODENAME) $(SITE)"
    for line in _run("apt-get", *options, "indextargets", "--format", form).splitlines():
        match line.split():
            case ["Debian", "main", codename, site] if "-" not in codename:
                return site, codename
    raise BackportsError("none of this machine's apt sources is Debian's main archive")


def _run(*command: str) -> str:
    environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise BackportsError(f"{' '.join(command[:1])}: {''.join(last)}")
    return done.stdout
