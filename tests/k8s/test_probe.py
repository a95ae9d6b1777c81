"""The probes, against a small HTTP server in the agent's place and a made-up /proc."""

from __future__ import annotations

import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest

from rayvisor.actors.host import HostActor
from rayvisor.runtime import probe
from rayvisor.vmm.errors import ClusterError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Agent(BaseHTTPRequestHandler):
    """Answers as Ray's agent does; `status` is what it says."""

    status = 200
    hold = threading.Event()

    def do_GET(self) -> None:
        self.hold.wait(10)
        self.send_response(self.status if self.path == probe.HEALTH_PATH else 404)
        self.end_headers()

    def log_message(self, *_arguments: object) -> None:
        """Keep standard error quiet."""


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    Agent.status = 200
    Agent.hold.set()
    with ThreadingHTTPServer(("127.0.0.1", 0), Agent) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv(probe.PORT_VARIABLE, str(server.server_port))
        yield server
        Agent.hold.set()
        server.shutdown()


def process(proc: Path, pid: int, command: bytes) -> None:
    (proc / str(pid)).mkdir()
    (proc / str(pid) / "cmdline").write_bytes(command)


@pytest.mark.usefixtures("agent")
def test_live_while_the_agent_says_so() -> None:
    assert probe.main(["live"]) == 0


@pytest.mark.usefixtures("agent")
def test_not_live_when_the_agent_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    Agent.status = 503
    assert probe.main(["live"]) == 1
    assert capsys.readouterr().err == (
        "rayvisor: Ray on this node is not healthy: its agent says 503\n"
    )


def test_not_live_when_the_agent_hangs(agent: ThreadingHTTPServer) -> None:
    Agent.hold.clear()
    with pytest.raises(ClusterError, match="does not answer"):
        probe.check_live(agent.server_port, timeout_s=0.05)


def test_not_live_when_nobody_listens(
    agent: ThreadingHTTPServer, capsys: pytest.CaptureFixture[str]
) -> None:
    agent.server_close()
    assert probe.main(["live"]) == 1
    assert "does not answer on port" in capsys.readouterr().err


@pytest.mark.usefixtures("agent")
def test_proxies_of_the_environment_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert probe.main(["live"]) == 0


@pytest.mark.parametrize("title", [b"ray::HostActor", b"ray::HostActor.capacity\0\0"])
def test_ready_with_a_host_actor(tmp_path: Path, title: bytes) -> None:
    process(tmp_path, 7, b"/bin/bash\0")
    process(tmp_path, 8, title)
    probe.check_host(tmp_path)


def test_not_ready_without(tmp_path: Path) -> None:
    process(tmp_path, 7, b"ray::VmActor")
    process(tmp_path, 8, b"")
    (tmp_path / "9").mkdir()
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "cmdline").write_bytes(b"ray::HostActor")
    with pytest.raises(ClusterError, match="no host actor"):
        probe.check_host(tmp_path)


def test_title_is_that_of_the_class() -> None:
    assert f"ray::{HostActor.__name__}".encode() == probe.HOST_TITLE


@pytest.mark.parametrize("port", ["0", "65536", "-1", "http"])
def test_a_port_that_is_none(monkeypatch: pytest.MonkeyPatch, port: str) -> None:
    monkeypatch.setenv(probe.PORT_VARIABLE, port)
    with pytest.raises(ConfigError, match="is no port"):
        probe.agent_port()
    assert probe.main(["live"]) == 1


def test_join_gives_up_with_the_reason(agent: ThreadingHTTPServer) -> None:
    Agent.status = 503
    with pytest.raises(ClusterError, match=r"not joined after 0 s: .* 503"):
        probe.join(agent.server_port, patience_s=0.0)


def test_probes_import_neither_ray_nor_the_engine() -> None:
    code = "import sys, rayvisor.runtime.probe; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert {"ray", "unicorn", "pydantic", "rich"}.isdisjoint(done.stdout.split())
