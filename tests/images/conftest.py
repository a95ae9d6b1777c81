"""A small package archive on loopback, served to the real apt."""

from __future__ import annotations

import gzip
import hashlib
import subprocess
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

APPLETS = sorted(["[", "[[", "sh", "mount", "poweroff", *(f"tool{n:02}" for n in range(60))])


def fake_busybox(tag: str = "") -> bytes:
    """What the builder needs of the program: its table of names."""
    table = b"\0".join(name.encode() for name in APPLETS)
    return b"\x7fELF" + tag.encode() + bytes(64) + table + b"\0\0" + bytes(64)


class Archive:
    """A Debian archive with the packages of a recipe, and a brake on its downloads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.requests: list[str] = []
        self.requested = threading.Event()  # a package has been asked for
        self.released = threading.Event()  # packages may be sent
        self.released.set()
        self.version = "1.0-1"
        (folder / "pool").mkdir(parents=True)
        self.kernel = b"MZ kernel " + bytes(5000)
        self.busybox = fake_busybox()
        archive = self

        class Handler(SimpleHTTPRequestHandler):
            def do_GET(self) -> None:
                archive.requests.append(self.path)
                if self.path.endswith(".deb"):
                    archive.requested.set()
                    archive.released.wait(60)
                super().do_GET()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - inherited
                pass

        self._server = ThreadingHTTPServer(
            ("127.0.0.1", 0), partial(Handler, directory=str(folder))
        )
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def apt_config(self) -> str:
        return (
            f'Dir::Etc::sourcelist "{self.folder}/sources.list";\n'
            'Dir::Etc::sourceparts "-";\nAcquire::http::Proxy "DIRECT";\n'
        )

    def publish(self) -> None:
        """Write packages and index anew."""
        release = self.version.replace("-", ".")
        real = f"linux-image-{release}-cloud-amd64"
        stanzas = [
            self._package("linux-image-cloud-amd64", {}, depends=f"{real} (= {self.version})"),
            self._package(real, {f"boot/vmlinuz-{release}": self.kernel, "lib/later": bytes(9)}),
            self._package("busybox-static", {"bin/busybox": self.busybox}),
        ]
        index = "\n".join(stanzas).encode()
        (self.folder / "Packages").write_bytes(index)
        (self.folder / "Packages.gz").write_bytes(gzip.compress(index, mtime=0))
        (self.folder / "sources.list").write_text(f"deb [trusted=yes] {self.url} ./\n")

    def close(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _package(self, name: str, files: Mapping[str, bytes], depends: str = "") -> str:
        control = (
            f"Package: {name}\nVersion: {self.version}\nArchitecture: amd64\n"
            "Maintainer: Nobody <nobody@example.org>\nDescription: for a test\n"
        )
        control += f"Depends: {depends}\n" if depends else ""
        tree = self.folder / "trees" / f"{name}_{self.version}"
        (tree / "DEBIAN").mkdir(parents=True, exist_ok=True)
        (tree / "DEBIAN/control").write_text(control)
        for path, data in files.items():
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            (tree / path).write_bytes(data)
        package = self.folder / "pool" / f"{name}_{self.version}_amd64.deb"
        command = ["dpkg-deb", "--root-owner-group", "-Znone", "--build", str(tree), str(package)]
        subprocess.run(command, check=True, capture_output=True)
        data = package.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        return f"{control}Filename: ./pool/{package.name}\nSize: {len(data)}\nSHA256: {digest}\n"


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Archive]:
    """An archive that apt, started by this test or below it, uses in place of the machine's."""
    made = Archive(tmp_path / "archive")
    made.publish()
    config = tmp_path / "apt.conf"
    config.write_text(made.apt_config())
    monkeypatch.setenv("APT_CONFIG", str(config))
    yield made
    made.close()
