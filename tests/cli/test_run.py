"""`rayvisor run` as a process, with small guests that end in every way there is."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import termios
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rayvisor.runtime.images import BANNER_PREFIX
from tests.support.flat import assemble

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[2]
RUN = [sys.executable, "-m", "rayvisor", "run"]
PATIENCE_S = 100.0

HELLO = 'real_start\nprint "hello\\r\\n"\n'
HALT = HELLO + "cli\nhlt\n"
SPIN = HELLO + "spin: jmp spin\n"
DEBUG_EXIT = HELLO + "mov al, 7\nout 0xF4, al\nhang: jmp hang\n"
TRIPLE_FAULT = HELLO + "enter_protected\nlidt [no_idt]\nmov ebx, 0x1234\nfault: ud2\ntables\n"
# Polls the serial port; echoes what it reads; halts after a q.
ECHO = (
    HELLO + "mov dx, 0x3FC\nmov al, 3\nout dx, al\n"
    "wait_key: mov dx, 0x3FD\nin al, dx\ntest al, 1\njz wait_key\n"
    "mov dx, 0x3F8\nin al, dx\nmov bl, al\nputc\ncmp bl, 0x71\njne wait_key\ncli\nhlt\n"
)


@pytest.fixture
def flat(tmp_path: Path) -> Callable[[str], list[str]]:
    """The command that runs an assembled guest."""

    def command(source: str, *options: str) -> list[str]:
        path = tmp_path / "guest.bin"
        path.write_bytes(assemble(source))
        return [*RUN, "--kernel", str(path), "--format", "flat", "--memory", "16M", *options]

    return command


def run(command: list[str], typed: bytes | None = None) -> tuple[int, bytes, str]:
    done = subprocess.run(
        command, cwd=ROOT, input=typed, capture_output=True, timeout=PATIENCE_S, check=False
    )
    return done.returncode, done.stdout, done.stderr.decode()


def test_halted_is_0_and_the_console_is_bytes(flat: Callable[..., list[str]]) -> None:
    assert run(flat(HALT)) == (0, b"hello\r\n", "")


def test_the_debug_exit_byte_is_the_status(flat: Callable[..., list[str]]) -> None:
    assert run(flat(DEBUG_EXIT)) == (7, b"hello\r\n", "")


def test_a_crash_is_1_with_a_report(flat: Callable[..., list[str]]) -> None:
    status, out, err = run(flat(TRIPLE_FAULT))
    assert (status, out) == (1, b"hello\r\n")
    assert err.startswith("guest stopped: triple fault\n")
    assert "EBX 00001234" in err
    at_rip = next(line for line in err.splitlines() if line.startswith("=>"))
    assert at_rip.endswith("ud2")
    assert "#UD invalid opcode" in err
    assert err.endswith("rayvisor: the guest crashed: triple fault\n")
    assert "Traceback" not in err


def test_the_timeout_is_124(flat: Callable[..., list[str]]) -> None:
    status, out, err = run(flat(SPIN, "--timeout", "1"))
    assert (status, out) == (124, b"hello\r\n")
    assert (
        err == "rayvisor: the guest was still running after 1 s and has been stopped (--timeout)\n"
    )


def test_the_report_file(flat: Callable[..., list[str]], tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    assert run(flat(TRIPLE_FAULT, "--report", str(path)))[0] == 1
    report = json.loads(path.read_text())
    assert (report["power"], report["exit_status"]) == ("crashed", None)
    assert report["crash"]["reason"] == "triple fault"
    assert report["registers"]["rbx"] == "0x1234"
    assert report["memory_bytes"] == 16 << 20
    assert report["exits"]["io_out"] > 0
    assert report["cpu_s"] > 0
    assert report["wall_s"] > 0
    missing = tmp_path / "no" / "report.json"
    status, out, err = run(flat(HALT, "--report", str(missing)))
    assert (status, out) == (2, b"")
    assert err == f"rayvisor: report {missing}: there is no folder {missing.parent}\n"


def test_a_report_is_written_at_the_timeout_too(
    flat: Callable[..., list[str]], tmp_path: Path
) -> None:
    path = tmp_path / "report.json"
    assert run(flat(SPIN, "--timeout", "0.5", "--report", str(path)))[0] == 124
    report = json.loads(path.read_text())
    assert report["power"] == "off"
    assert report["wall_s"] >= 0.5


def test_json_has_the_report_on_stdout_and_the_console_on_stderr(
    flat: Callable[..., list[str]],
) -> None:
    status, out, err = run(flat(DEBUG_EXIT, "--json"))
    assert status == 7
    assert json.loads(out)["exit_status"] == 7
    assert err == "hello\r\n"
    status, out, err = run(flat(TRIPLE_FAULT, "--json"))
    assert status == 1
    assert json.loads(out)["crash"]["reason"] == "triple fault"


def test_a_pipe_reaches_the_guest(flat: Callable[..., list[str]]) -> None:
    text = b"abc" * 100 + b"q"
    assert run(flat(ECHO, "--timeout", "60"), text) == (0, b"hello\r\n" + text, "")


def test_a_closed_input_lets_the_guest_run_on(flat: Callable[..., list[str]]) -> None:
    shell = ["sh", "-c", 'exec "$@" <&-', "sh"]
    assert run([*shell, *flat(SPIN, "--timeout", "1")])[:2] == (124, b"hello\r\n")
    assert run([*shell, *flat(HALT)])[:2] == (0, b"hello\r\n")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_stop_it_cleanly(
    flat: Callable[..., list[str]], tmp_path: Path, number: signal.Signals, status: int
) -> None:
    report = tmp_path / "report.json"
    # The tests themselves may run in the background, where ctrl-C is ignored.
    command = ["env", "--default-signal=INT", *flat(SPIN, "--report", str(report))]
    process = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        assert process.stdout
        assert process.stdout.read(7) == b"hello\r\n"
        process.send_signal(number)
        out, err = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, out, err) == (status, b"", b"")
    assert json.loads(report.read_text())["power"] == "off"


def test_on_a_terminal_ctrl_bracket_leaves(flat: Callable[..., list[str]]) -> None:
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    process = subprocess.Popen(
        ["setsid", "--ctty", *flat(ECHO)], cwd=ROOT, stdin=slave, stdout=slave, stderr=slave
    )
    try:
        seen = b""
        while b"hello" not in seen:
            seen += os.read(master, 1000)
        assert b"ctrl-] leaves and stops the VM" in seen
        os.write(master, b"\x03x")
        while b"\x03x" not in seen:
            seen += os.read(master, 1000)
        os.write(master, b"\x1d")
        while b"left the console; the VM has been stopped" not in seen:
            seen += os.read(master, 1000)
        assert process.wait(PATIENCE_S) == 0
        assert termios.tcgetattr(slave) == before
    finally:
        process.kill()
        process.wait()
        os.close(master)
        os.close(slave)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--cpus", "0"], "--cpus 0: this engine gives a VM exactly one vCPU; leave --cpus out"),
        (["--cpus", "2"], "--cpus 2: this engine gives a VM exactly one vCPU; start more VMs"),
        (["--memory", "0"], "memory of 0 is no memory"),
        (["--memory", "-1"], "memory of -1 is no memory"),
        (["--memory", "1048576T"], "this host has available: ask for less"),
        (["--timeout", "0"], "--timeout 0: give a positive number of seconds"),
        (["--timeout", "nan"], "--timeout nan: give a positive number of seconds"),
        (["--initrd", "x"], "--initrd goes with --kernel: an image brings its own"),
        (["--module", "x"], "--module goes with --kernel: an image brings its own"),
        (["--format", "elf"], "--format goes with --kernel: an image brings its own"),
        (["--kernel", "/no/such"], "kernel /no/such: No such file or directory"),
        (["debian", "--kernel", "/x"], "both the image 'debian' and --kernel /x: give one"),
        (["no-such-image"], "no image 'no-such-image'"),
    ],
)
def test_bad_requests_are_one_line_and_2(options: list[str], message: str) -> None:
    status, out, err = run([*RUN, *options])
    assert (status, out) == (2, b"")
    assert err.startswith("rayvisor: ")
    assert message in err
    assert err.count("\n") == 1


def test_a_file_that_is_no_kernel(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("just text\n" * 100)
    status, out, err = run([*RUN, "--kernel", str(path)])
    assert (status, out) == (2, b"")
    assert err.count("\n") == 1


def test_an_initrd_larger_than_ram(flat: Callable[..., list[str]], tmp_path: Path) -> None:
    initrd = tmp_path / "initrd"
    initrd.write_bytes(bytes(17 << 20))
    status, _, err = run(flat(HALT, "--initrd", str(initrd)))
    assert status == 2
    assert err.count("\n") == 1


@pytest.mark.guest
@pytest.mark.network
def test_debian_from_a_pipe() -> None:
    typed = b"uname -s; echo $((6 * 7)); debug-exit 3\n"
    status, out, err = run([*RUN, "--timeout", "90"], typed)
    text = out.decode()
    assert BANNER_PREFIX in text
    assert "Linux\r\n42\r\n" in text
    assert status == 3, err


@pytest.mark.guest
@pytest.mark.network
def test_debian_takes_appended_arguments() -> None:
    process = subprocess.Popen(
        [*RUN, "debian", "--append", "loglevel=7 rayvisor.mark=42", "--timeout", "90"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin
    watchdog = threading.Timer(PATIENCE_S, process.kill)
    watchdog.start()
    try:
        out, _ = process.communicate(b"cat /proc/cmdline; exit\n")
    finally:
        watchdog.cancel()
    assert b"rayvisor.mark=42\r\n" in out
    assert b"Linux version" in out
    assert process.returncode == 0
