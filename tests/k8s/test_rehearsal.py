"""The container's life without a container: its first process, a real Ray, probes, the end."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rayvisor.runtime import probe
from tests.k8s.conftest import K8S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(300)]

PATIENCE_S = 200


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def wait_until(what: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < deadline_s
        time.sleep(0.2)


def titles(session: int) -> list[bytes]:
    """What the processes of a session are called."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has gone meanwhile
            # proc(5): pid (comm) state ppid pgrp session
            state, _, _, of = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(of) == session and state not in "ZX":
                found.append((entry / "cmdline").read_bytes())
    return found


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A pod's, but for the loopback address."""
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("RAY", "XDG_STATE", "KUBE"))}
    return {
        **keep,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_ADDRESS": f"127.0.0.1:{free_port()}",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        probe.PORT_VARIABLE: str(free_port()),
    }


@pytest.fixture
def node(environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """The first process of a head's container; whatever is left of it is killed."""
    # Below /tmp, since the path of a socket may have 107 bytes.
    folder = Path("/tmp") / f"rayvisor-{secrets.token_hex(4)}"  # noqa: S108 - a name of our own
    environment["KUBERAY_GEN_RAY_START_CMD"] = (
        "ray start --head --block --include-dashboard=false --node-ip-address=127.0.0.1"
        f" --port={environment['RAY_ADDRESS'].partition(':')[2]}"
        f" --dashboard-agent-listen-port={environment[probe.PORT_VARIABLE]}"
        f" --temp-dir={folder} --object-store-memory=100000000 --num-cpus=0 "
        ' --resources="{\\"rayvisor_memory\\": 1}" '
    )
    with (folder.parent / f"{folder.name}.log").open("wb") as log:
        process = subprocess.Popen(
            [K8S / "entrypoint"],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    yield process
    for pid in (int(e.name) for e in Path("/proc").glob("[0-9]*")):
        with contextlib.suppress(OSError):
            if os.getsid(pid) == process.pid:
                os.kill(pid, signal.SIGKILL)
    process.wait(30)
    subprocess.run(["rm", "-rf", folder, log.name], check=True)


def ask(environment: dict[str, str], question: str) -> int:
    command = [sys.executable, "-m", probe.__name__, question]
    return subprocess.run(command, env=environment, check=False, timeout=60).returncode


def test_a_container_becomes_a_host_and_ends_when_told(
    environment: dict[str, str], node: subprocess.Popen[bytes]
) -> None:
    assert ask(environment, "live") == 1  # Ray needs seconds to start
    wait_until(lambda: any(t.startswith(probe.HOST_TITLE) for t in titles(node.pid)))
    assert node.poll() is None
    assert ask(environment, "live") == 0
    assert ask(environment, "ready") == 0

    node.send_signal(signal.SIGTERM)
    node.wait(PATIENCE_S)
    wait_until(lambda: not titles(node.pid))
    assert ask(environment, "ready") == 1
