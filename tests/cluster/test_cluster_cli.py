"""The cluster's commands: tables for people, JSON for programs, one line for what went wrong."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rayvisor.runtime import local_ray
from rayvisor.runtime.cli.app import main
from rayvisor.runtime.cluster_file import ClusterFile

if TYPE_CHECKING:
    from collections.abc import Callable

    from rayvisor.runtime.api import VmSpec
    from rayvisor.runtime.cluster import Cluster

    MakeSpec = Callable[..., VmSpec]

pytestmark = pytest.mark.cluster

COMMAND = [sys.executable, "-m", "rayvisor"]


class Commands:
    """Runs commands in this process, which is connected already."""

    def __init__(self, capfd: pytest.CaptureFixture[str], kernel: Path) -> None:
        self._capfd = capfd
        self.kernel = kernel

    def __call__(self, *words: str) -> tuple[int, str, str]:
        """(exit status, standard output, standard error)."""
        self._capfd.readouterr()
        status = main(words)
        said = self._capfd.readouterr()
        return status, said.out, said.err

    def json(self, *words: str) -> Any:  # noqa: ANN401 - whatever the command prints
        status, out, err = self(*words, "--json")
        assert (status, err) == (0, "")
        return json.loads(out)

    def create(self, name: str) -> dict[str, Any]:
        kernel = str(self.kernel)
        made = self.json("create", name, "--kernel", kernel, "--format", "flat", "--memory", "4M")
        assert isinstance(made, dict)
        return made


@pytest.fixture
def run(cluster: Cluster, make_spec: MakeSpec, capfd: pytest.CaptureFixture[str]) -> Commands:
    kernel = make_spec("any").kernel
    assert kernel is not None
    assert cluster.vms() == []
    return Commands(capfd, kernel)


def test_the_life_of_a_vm(run: Commands) -> None:
    made = run.create("web")
    assert (made["name"], made["state"], made["memory_bytes"]) == ("web", "running", 4 << 20)
    (listed,) = run.json("ls")
    assert (listed["name"], listed["pid"]) == ("web", made["pid"])
    shown = run.json("show", "web")
    assert shown["report"]["power"] == "running"
    assert run.json("stop", "web")["reason"] == "powered off by `stop`"
    assert run.json("reset", "web")["state"] == "running"
    status, _, err = run("rm", "web")
    assert (status, err.count("\n")) == (1, 1)
    assert "`rayvisor stop web` first, or use --force" in err
    assert run.json("rm", "web", "--force") == {"removed": "web", "was": "running"}
    assert run.json("ls") == []


def test_tables_are_for_people(run: Commands) -> None:
    assert "No VMs" in run("ls")[1]
    run.create("web")
    assert "running" in run("ls")[1]
    table = run("hosts")[1]
    assert "1 of " in table
    assert "ready" in table
    details = run("show", "web")[1]
    assert "4 MiB" in details
    assert "io_out" in details
    assert "web is stopped: powered off by `stop`." in run("stop", "web")[1]
    assert "Removed web." in run("rm", "web")[1]


def test_a_crash_is_shown(run: Commands, cluster: Cluster) -> None:
    run.create("web")
    vm = cluster.vm("web")
    vm.console.read_until("ready\n")
    vm.console.send("T")
    assert vm.wait(20) is not None
    shown = run.json("show", "web")
    assert (shown["state"], shown["report"]["crash"]["reason"]) == ("crashed", "triple fault")
    assert "triple fault" in run("ls")[1]
    details = run("show", "web")[1]
    assert "Crash report" in details
    assert "int3" in details


def test_a_vm_without_a_process_is_shown(run: Commands) -> None:
    os.kill(run.create("web")["pid"], signal.SIGKILL)
    shown = run.json("show", "web")
    assert (shown["state"], shown["report"]) == ("failed", None)
    assert "failed" in run("show", "web")[1]
    status, out, err = run("console", "web")
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert f"no console: VM 'web' is failed: {shown['reason']}" in err


def test_the_console_of_a_guest_that_has_ended(run: Commands, cluster: Cluster) -> None:
    run.create("web")
    cluster.vm("web").console.read_until("ready\n")
    run("stop", "web")
    status, out, err = run("console", "web")
    assert (status, out) == (1, "")
    assert "is stopped: powered off by `stop`; --from-start shows its last output" in err
    status, out, err = run("console", "web", "--from-start")
    assert (status, out) == (0, "ready\n")
    assert "VM 'web' is stopped" in err
    assert run.json("console", "web")["output"] == "ready\n"


def test_a_pipe_types_and_sees_the_answer(run: Commands, cluster: Cluster) -> None:
    run.create("web")
    cluster.vm("web").console.read_until("ready\n")
    done = subprocess.run(
        [*COMMAND, "console", "web"], input=b"h", capture_output=True, check=True, timeout=60
    )
    assert done.stdout == b"ready\nh"
    assert b"left the console of web" in done.stderr
    assert cluster.status("web").state == "running"


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["show", "nobody"], 1, "no VM is called 'nobody'; `rayvisor ls` lists them"),
        (["create", "Bad Name"], 2, "'Bad Name' is no name for a VM"),
        (["create", "a", "--memory", "0"], 2, "memory of 0"),
        (["create", "a", "--cpus", "0"], 2, "cpus 0"),
        (["create", "a", "--kernel", "/no/such"], 2, "/no/such: no such file"),
        (["create", "a", "--image", "nope"], 2, "no image 'nope'"),
        (["up", "--object-store", "much"], 2, "'much' is not a size"),
        (["up", "--object-store", "1M"], 2, "object store of 1M is less than the 75M Ray needs"),
    ],
)
def test_what_cannot_be_is_one_line(
    run: Commands, words: list[str], status: int, said: str
) -> None:
    found, _, err = run(*words)
    assert found == status
    assert said in err
    assert err.removeprefix("Bringing the cluster up ...\n").count("\n") == 1
    assert run.json("ls") == []


@pytest.fixture
def elsewhere(tmp_path: Path) -> dict[str, str]:
    """The environment of somebody without a cluster."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    return {**kept, "XDG_STATE_HOME": str(tmp_path), "PYTHONUNBUFFERED": "1"}


@pytest.mark.parametrize(
    "words",
    [["ls"], ["hosts"], ["show", "a"], ["console", "a"], ["create", "a"], ["stop", "a"]],
)
def test_without_a_cluster(elsewhere: dict[str, str], words: list[str]) -> None:
    done = subprocess.run(
        [*COMMAND, *words], env=elsewhere, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "rayvisor: no cluster: run `rayvisor up`\n"


def test_down_without_a_cluster_is_harmless(elsewhere: dict[str, str]) -> None:
    done = subprocess.run(
        [*COMMAND, "down", "--json"], env=elsewhere, capture_output=True, text=True, check=False
    )
    assert (done.returncode, json.loads(done.stdout)) == (0, {"was_up": False, "ended": 0})


def test_a_ray_that_is_not_there_cannot_be_joined(
    elsewhere: dict[str, str], tmp_path: Path
) -> None:
    done = subprocess.run(
        [*COMMAND, "up", "--address", "127.0.0.1:1"],
        env=elsewhere,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "rayvisor: no Ray answers at 127.0.0.1:1" in done.stderr
    assert not (tmp_path / "rayvisor" / "cluster" / "cluster.json").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_up_leaves_nothing(
    elsewhere: dict[str, str], tmp_path: Path, number: signal.Signals
) -> None:
    folder = tmp_path / "rayvisor" / "cluster"
    with subprocess.Popen(
        [*COMMAND, "up"],
        env=elsewhere,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # As a shell starts it: pytest may run with ctrl-C ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
    ) as up:
        file = folder / "cluster.json"
        while not file.exists():
            assert up.poll() is None
        starting = ClusterFile.model_validate_json(file.read_text())
        while len(local_ray.processes(starting)) < 2:
            assert up.poll() is None
        up.send_signal(number)
        assert up.wait(60) == 130
    assert starting.phase == "starting"
    assert local_ray.processes(starting) == []
    assert not Path(starting.temp_dir).exists()
    assert {path.name for path in folder.iterdir()} == {"lock", "start.log"}


class Terminal:
    """A command on a pseudo-terminal."""

    def __init__(self, words: list[str]) -> None:
        self.fd, child = pty.openpty()
        self.process = subprocess.Popen(
            [*COMMAND, *words],
            stdin=child,
            stdout=child,
            stderr=child,
            start_new_session=True,
            preexec_fn=_take_terminal,  # noqa: PLW1509 - the child has one thread yet
        )
        os.close(child)
        self.seen = b""

    def until(self, wanted: bytes, timeout_s: float = 60.0) -> None:
        deadline_s = time.monotonic() + timeout_s
        while wanted not in self.seen:
            left_s = deadline_s - time.monotonic()
            assert left_s > 0, f"{wanted!r} did not come, only {self.seen!r}"
            if select.select([self.fd], [], [], left_s)[0]:
                self.seen += os.read(self.fd, 4096)

    def type(self, data: bytes) -> None:
        self.seen = b""
        os.write(self.fd, data)


def _take_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_a_console_on_a_terminal(run: Commands) -> None:
    run.create("web")
    first, second = Terminal(["console", "web"]), Terminal(["console", "web"])
    for terminal in (first, second):
        terminal.until(b"ready")
    first.type(b"a")
    first.until(b"a")
    second.until(b"a")
    first.type(b"\x1d")
    assert first.process.wait(30) == 0
    first.until(b"left the console of web")
    second.type(b"Q")
    second.until(b"web is halted: the guest powered off or halted")
    assert second.process.wait(30) == 0
    for terminal in (first, second):
        os.close(terminal.fd)
