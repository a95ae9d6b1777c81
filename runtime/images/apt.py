"""Debian packages without root: apt with its state in a folder of our own.

The machine's sources and keys are read and nothing of apt's is written outside the folder, so an
ordinary user can run this. apt checks signatures and digests.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rayvisor.vmm.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

# Lists cannot be set by -o without keeping what the machine's configuration put in them. Hooks are
# cleared because they act on the machine's own package cache.
_CONFIG: Final = """\
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear APT::Architectures;
APT::Architectures { "%(architecture)s"; };
APT::Architecture "%(architecture)s";
APT::Sandbox::User "";
Acquire::Languages "none";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled "false";
Acquire::Retries "3";
Acquire::http::Timeout "30";
Acquire::https::Timeout "30";
"""

_TAIL_LINES: Final = 40


@dataclass(frozen=True, slots=True)
class Package:
    """One version of one package, as the archive's index has it."""

    name: str
    version: str
    architecture: str
    sha256: str
    size_bytes: int
    depends: str


class Apt:
    """apt with a private state folder.

    Args:
        folder: an empty folder of the caller's, with an absolute path.
        architecture: Debian's name of the packages' architecture; need not be the machine's.
        keep_fd: a descriptor that apt's processes hold open (a lock), or None.

    Raises:
        ImageError: apt or dpkg is not installed.
    """

    def __init__(self, folder: Path, architecture: str, *, keep_fd: int | None = None) -> None:
        for tool in ("apt-get", "apt-cache", "dpkg-deb"):
            if shutil.which(tool) is None:
                raise ImageError(
                    f"{tool} is not on this machine: build the image on Debian or a relative of it"
                    " and copy the cache folder, or run your own --kernel and --initrd"
                )
        self._folder = folder
        self._architecture = architecture
        self._keep_fds = () if keep_fd is None else (keep_fd,)
        (folder / "state/lists/partial").mkdir(parents=True)
        (folder / "cache/archives/partial").mkdir(parents=True)
        (folder / "packages").mkdir()
        (folder / "status").touch()
        (folder / "apt.conf").write_text(_CONFIG % {"architecture": architecture}, encoding="utf-8")

    def update(self, progress: Callable[[float], None]) -> str | None:
        """Fetch the archives' indexes.

        Args:
            progress: called with the fraction done.

        Returns:
            None, or what went wrong with some archive: `find` still works on the others.
        """
        status, errors = self._get(["update"], progress)
        return _reason(errors) if status != 0 else None

    def find(self, name: str) -> Package:
        """The version of a package that apt would install.

        Raises:
            ImageError: the machine's sources have no such package.
        """
        command = [*self._command("apt-cache"), "--no-all-versions", "show", name]
        result = subprocess.run(
            command, env=_environment(), capture_output=True, text=True, check=False
        )
        for stanza in result.stdout.split("\n\n"):
            fields = _fields(stanza)
            if fields.get("Package") == name:
                try:
                    return Package(
                        name=name,
                        version=fields["Version"],
                        architecture=fields["Architecture"],
                        sha256=fields["SHA256"],
                        size_bytes=int(fields["Size"]),
                        depends=fields.get("Depends", ""),
                    )
                except (KeyError, ValueError) as error:
                    raise ImageError(
                        f"package {name}: the archive's index gives no usable {error}:"
                        " try another mirror in /etc/apt"
                    ) from error
        raise ImageError(
            f"package {name} ({self._architecture}) is in none of this machine's apt sources:"
            " add Debian's main archive to /etc/apt/sources.list.d, or check the network"
        )

    def download(
        self, packages: Sequence[Package], progress: Callable[[float], None]
    ) -> list[Path]:
        """Fetch packages, checked by apt against the signed index.

        Args:
            packages: what to fetch, from `find`.
            progress: called with the fraction done.

        Raises:
            ImageError: a package could not be fetched whole.
        """
        wanted = [f"{package.name}={package.version}" for package in packages]
        status, errors = self._get(["download", *wanted], progress)
        if status != 0:
            raise ImageError(f"apt-get download: {_reason(errors)}: check the network and retry")
        found = []
        for package in packages:
            # apt writes the colon of an epoch as %3a.
            version = package.version.replace(":", "%3a")
            path = (
                self._folder / "packages" / (f"{package.name}_{version}_{package.architecture}.deb")
            )
            if not path.is_file():
                raise ImageError(f"apt-get download left no {path.name}: retry the build")
            found.append(path)
        return found

    def _command(self, tool: str) -> list[str]:
        return [
            tool,
            f"--config-file={self._folder}/apt.conf",
            f"-oDir::State={self._folder}/state",
            f"-oDir::State::status={self._folder}/status",
            f"-oDir::Cache={self._folder}/cache",
            "-oDir::Log=/dev/null",
        ]

    def _get(
        self, arguments: Sequence[str], progress: Callable[[float], None]
    ) -> tuple[int, list[str]]:
        """Run apt-get; give its exit status and the last lines it wrote to standard error."""
        reader, writer = os.pipe2(os.O_CLOEXEC)
        log = self._folder / "errors"
        with os.fdopen(reader, encoding="utf-8", errors="replace") as lines:
            try:
                with log.open("wb") as errors:
                    process = subprocess.Popen(
                        [*self._command("apt-get"), f"-oAPT::Status-Fd={writer}", *arguments],
                        cwd=self._folder / "packages",
                        env=_environment(),
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.DEVNULL,
                        stderr=errors,
                        pass_fds=(writer, *self._keep_fds),
                        # ctrl-C is for the caller, who stops the group.
                        start_new_session=True,
                    )
            finally:
                os.close(writer)
            try:
                for fraction in _fractions(lines):
                    progress(fraction)
                status = process.wait()
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                raise
        return status, log.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL_LINES:]


def _environment() -> dict[str, str]:
    return {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}


def _fields(stanza: str) -> dict[str, str]:
    """The one-line fields of a control stanza (Debian Policy 5.1)."""
    fields = {}
    for line in stanza.splitlines():
        name, colon, value = line.partition(":")
        if colon and not line.startswith((" ", "\t")):
            fields[name] = value.strip()
    return fields


def _fractions(lines: Iterator[str]) -> Iterator[float]:
    """The progress in apt's status lines: "dlstatus:<item>:<percent>:<text>"."""
    for line in lines:
        fields = line.split(":", 3)
        if len(fields) == 4 and fields[0] == "dlstatus":
            try:
                percent = float(fields[2])
            except ValueError:
                continue
            yield min(max(percent / 100, 0.0), 1.0)


def _reason(errors: Sequence[str]) -> str:
    """The first error of apt's output, without its prefix."""
    for line in errors:
        if line.startswith("E: "):
            return " ".join(line[3:].split()).rstrip(".")
    return "it gave no reason"
