"""`disasm`, `exits` and `demo` as processes, on a Ray of their own."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rayvisor.runtime.cli.inspect import parse_address
from rayvisor.vmm.errors import ConfigError
from tests.support.flat import assemble

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).resolve().parents[2]
RAYVISOR = [sys.executable, "-m", "rayvisor"]
PATIENCE_S = 110.0


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A state folder of our own; whatever cluster is left in it is ended."""
    state = str(tmp_path_factory.mktemp("state"))
    dropped = {"RAY_ADDRESS", "RAY_AUTH_TOKEN", "XDG_STATE_HOME"}
    mine = {k: v for k, v in os.environ.items() if k not in dropped} | {"XDG_STATE_HOME": state}
    yield mine
    subprocess.run([*RAYVISOR, "down"], cwd=ROOT, env=mine, check=True, timeout=PATIENCE_S)


@pytest.fixture(scope="module")
def rayvisor(environment: dict[str, str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*RAYVISOR, *words],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )

    return run


@pytest.mark.parametrize(
    ("text", "address"),
    [("0xffffffff81000000", 0xFFFFFFFF81000000), ("4096", 4096), ("rip", None), ("EIP", None)],
)
def test_addresses(text: str, address: int | None) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["", "main", "-1", "0x1ffffffffffffffff", "1.5"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ConfigError, match="address"):
        parse_address(text)


@pytest.mark.cluster
def test_without_a_cluster_it_is_one_line(
    rayvisor: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    for words in (["disasm", "x"], ["exits", "x"]):
        done = rayvisor(*words)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == "rayvisor: no cluster: run `rayvisor up`\n"


@pytest.mark.cluster
@pytest.mark.guest
@pytest.mark.network
def test_the_demo_without_a_terminal(
    rayvisor: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = rayvisor("demo")
    assert done.returncode == 0, done.stderr
    assert "rayvisor:~# uname -a\nLinux rayvisor " in done.stdout
    assert "333833500" in done.stdout
    assert "commands ran as they should" in done.stdout
    assert "Starting two Ray hosts on this machine: done" in done.stderr
    assert re.search(r"Moved 4 times, the guest wrote \d+ lines, all right", done.stdout)
    assert done.stderr.count("moved from host-1 to host-2; downtime ") == 2
    assert rayvisor("ls").stderr == "rayvisor: no cluster: run `rayvisor up`\n"


@pytest.fixture(scope="module")
def cluster(rayvisor: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """A cluster for the tests from here on; `environment` ends it."""
    done = rayvisor("up")
    assert done.returncode == 0, done.stderr


@pytest.mark.cluster
@pytest.mark.usefixtures("cluster")
def test_disasm_and_exits_of_a_running_vm(
    rayvisor: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    kernel = tmp_path / "guest.bin"
    kernel.write_bytes(assemble("real_start\nagain: mov al, 0x42\nout 0x80, al\njmp again\n"))
    made = rayvisor("create", "busy", "--kernel", str(kernel), "--format", "flat", "--memory", "4M")
    assert made.returncode == 0, made.stderr
    try:
        listing = rayvisor("disasm", "busy", "0x7c00", "--count", "2")
        assert [line.split()[0] for line in listing.stdout.splitlines()] == ["7c00:", "7c01:"]
        assert listing.stdout.split()[2] == "cli"
        here = json.loads(rayvisor("disasm", "busy", "--count", "1", "--json").stdout)
        assert here[0]["text"] in {"mov al, 0x42", "out 0x80, al", "jmp 0x7c13", "jmp 0x7c15"}
        outside = rayvisor("disasm", "busy", "0x40000000")
        assert outside.returncode == 2
        assert outside.stderr.startswith("rayvisor: 0x40000000 is not in mapped memory of 'busy'")

        plain = json.loads(rayvisor("exits", "busy", "--json").stdout)
        busiest = plain["sites"][0]
        assert (busiest["kind"], busiest["detail"]) == ("io_out", 0x80)
        assert busiest["instruction"] == "out 0x80, al"
        assert plain["counts"]["io_out"] >= busiest["count"] > 100
        text = rayvisor("exits", "busy", "--top", "1").stdout
        assert "out 0x80, al" in text
        assert "port 0x80 (POST code)" in text

        unknown = rayvisor("exits", "nobody")
        assert unknown.returncode == 1
        assert "nobody" in unknown.stderr
        assert unknown.stderr.count("\n") == 1
    finally:
        assert rayvisor("rm", "--force", "busy").returncode == 0


@pytest.mark.cluster
@pytest.mark.guest
@pytest.mark.network
@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("how", ["escape", "exit", "SIGTERM"])
def test_the_demo_on_a_terminal(
    environment: dict[str, str],
    rayvisor: Callable[..., subprocess.CompletedProcess[str]],
    how: str,
) -> None:
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    process = subprocess.Popen(
        ["setsid", "--ctty", *RAYVISOR, "demo"],
        cwd=ROOT,
        env=environment,
        stdin=slave,
        stdout=slave,
        stderr=slave,
    )
    seen = b""

    def read_until(wanted: bytes) -> None:
        nonlocal seen
        while wanted not in seen:
            assert select.select([master], [], [], PATIENCE_S)[0], seen[-2000:]
            seen += os.read(master, 4096)

    try:
        read_until(b"the console is yours")
        os.write(master, b"echo $((6 * 7))x\r")
        read_until(b"42x\r\n")
        if how == "escape":
            os.write(master, b"\x1d")
            read_until(b"left the console")
        elif how == "exit":
            os.write(master, b"exit\r")
            read_until(b"the guest is halted")
        else:
            process.send_signal(signal.SIGTERM)
        read_until(b"Removing the VM demo (")
        assert process.wait(PATIENCE_S) == (143 if how == "SIGTERM" else 0)
        assert termios.tcgetattr(slave) == before
        # What it found it leaves: the cluster is still up.
        assert json.loads(rayvisor("ls", "--json").stdout) == []
    finally:
        process.kill()
        process.wait()
        os.close(master)
        os.close(slave)
