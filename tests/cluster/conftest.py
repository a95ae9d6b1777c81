"""One local Ray for the whole session, in folders of its own, and small guests to run on it."""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from rayvisor.runtime import cluster_file
from rayvisor.runtime.api import VmSpec
from rayvisor.runtime.cluster import Cluster
from tests.support import flat

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ECHO = """
poll:
    mov dx, 0x3FD
    in al, dx
    test al, 1
    jz poll
    mov dx, 0x3F8
    in al, dx
    cmp al, 'Q'
    je quit
    cmp al, 'X'
    je exit
    cmp al, 'T'
    je crash
    out dx, al
    jmp poll
quit:
    cli
    hlt
exit:
    mov al, 7
    out 0xF4, al
    jmp .
crash:
    lidt [no_idt]
    int3
"""
"""Says "ready", then echoes what is typed; Q halts, X exits with 7, T triple faults."""


def _ready() -> str:
    return "".join(f"mov dx, 0x3F8\nmov al, {ord(c)}\nout dx, al\n" for c in "ready\n")


@dataclass
class MemoryStore:
    """A KeyValueStore in a dict."""

    values: dict[str, bytes] = field(default_factory=dict)

    def get(self, key: str) -> bytes | None:
        return self.values.get(key)

    def put(self, key: str, value: bytes) -> None:
        self.values[key] = value

    def put_new(self, key: str, value: bytes) -> bytes:
        return self.values.setdefault(key, value)

    def delete(self, key: str) -> None:
        self.values.pop(key, None)

    def keys(self, prefix: str) -> list[str]:
        return sorted(key for key in self.values if key.startswith(prefix))

    def items(self, prefix: str) -> dict[str, bytes]:
        return {key: self.values[key] for key in self.keys(prefix)}


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture(scope="session")
def echo_guest() -> bytes:
    """A flat guest that says "ready" and echoes; see ECHO."""
    return flat.protected(_ready() + ECHO)


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A state folder of our own, so that a cluster of the user's is not touched."""
    folder = tmp_path_factory.mktemp("state")
    before = dict(os.environ)
    os.environ["XDG_STATE_HOME"] = str(folder)
    for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN"):
        os.environ.pop(name, None)
    yield folder
    os.environ.clear()
    os.environ.update(before)


CONNECTED: list[Cluster] = []
"""The cluster of one host, while it is up."""


@pytest.fixture(scope="session")
def cluster(home: Path) -> Iterator[Cluster]:
    """A cluster that is up."""
    with Cluster.up(object_store="100M") as made:
        assert made.started
        assert home in cluster_file.folder().parents
        CONNECTED.append(made)
        yield made
        CONNECTED.remove(made)


@contextmanager
def another_cluster(home: Path, folder: Path, hosts: int) -> Iterator[Cluster]:
    """Another cluster, with its state in `folder`; this process leaves the first one meanwhile."""
    for other in CONNECTED:
        other.close()
    before = dict(os.environ)
    os.environ["XDG_STATE_HOME"] = str(folder)
    with Cluster.up(hosts=hosts, object_store="100M") as made:
        assert home not in cluster_file.folder().parents
        yield made
    os.environ.clear()
    os.environ.update(before)
    if CONNECTED:
        Cluster.connect()


@pytest.fixture(scope="module")
def two_hosts(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster of two hosts."""
    with another_cluster(home, tmp_path_factory.mktemp("two"), 2) as made:
        yield made


@pytest.fixture(scope="module")
def three_hosts(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster of three hosts; the first one has Ray's control service."""
    with another_cluster(home, tmp_path_factory.mktemp("three"), 3) as made:
        yield made


@pytest.fixture
def make_spec(
    cluster: Cluster, echo_guest: bytes, tmp_path: Path
) -> Iterator[Callable[..., VmSpec]]:
    """A spec of the echo guest; what is created from it is removed after the test."""
    kernel = tmp_path / "echo.bin"
    kernel.write_bytes(echo_guest)
    before = {vm.name for vm in cluster.vms()}

    def make(name: str, **values: object) -> VmSpec:
        plain = {"kernel": kernel, "format": "flat", "memory": "4M", **values}
        return VmSpec(name=name, **plain)

    yield make
    for vm in cluster.vms():
        if vm.name not in before:
            cluster.remove(vm.name, force=True)
