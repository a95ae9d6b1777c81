"""A console on real standard streams: pseudo-terminals, pipes, files and nothing at all."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

# The tests themselves may run in the background or under nohup, where these are ignored.
SIGNALS = ["env", "--default-signal=INT,HUP"]
CHILD = str(Path(__file__).with_name("terminal_child.py"))
ROOT = str(Path(__file__).resolve().parents[2])
PATIENCE_S = 30.0


class Terminal:
    """The user's side of a pseudo-terminal with a process in its foreground."""

    def __init__(self, log: Path, *arguments: str, script: str | None = None) -> None:
        self.log = log
        command = [sys.executable, CHILD, str(log), *arguments]
        if script is not None:
            command = ["sh", "-c", script]
        self.master, self.slave = pty.openpty()
        self.before = termios.tcgetattr(self.slave)
        # Without a parent that leads a session, setsid executes the command in its own process.
        self.process = subprocess.Popen(
            [*SIGNALS, "setsid", "--ctty", *command],
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            cwd=ROOT,
        )

    def read_until(self, wanted: bytes) -> bytes:
        seen = b""
        while wanted not in seen:
            assert select.select([self.master], [], [], PATIENCE_S)[0], seen
            seen += os.read(self.master, 4096)
        return seen

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def modes(self) -> list[object]:
        return termios.tcgetattr(self.slave)

    def is_raw(self) -> bool:
        return not termios.tcgetattr(self.slave)[3] & (termios.ICANON | termios.ECHO | termios.ISIG)

    def wait_until_restored(self) -> bool:
        deadline_s = time.monotonic() + PATIENCE_S
        while self.modes() != self.before and time.monotonic() < deadline_s:
            time.sleep(0.01)
        return self.modes() == self.before

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)


@contextmanager
def terminal(log: Path, *arguments: str, script: str | None = None) -> Iterator[Terminal]:
    one = Terminal(log, *arguments, script=script)
    try:
        yield one
    finally:
        one.close()


def test_keys_go_in_raw_and_ctrl_bracket_leaves(tmp_path: Path) -> None:
    with terminal(tmp_path / "log") as tty:
        tty.read_until(b"guest ready\r\n")
        assert tty.is_raw()
        tty.type(b"\x03\x1a\r")
        tty.read_until(b"<\x03\x1a\r>")
        tty.type(b"last\x1dnever")
        tty.read_until(b"\x1b[0m")
        assert tty.process.wait(PATIENCE_S) == 0
        assert tty.modes() == tty.before
        assert tty.log.read_text() == "end detached"


def test_what_was_typed_before_the_escape_arrives(tmp_path: Path) -> None:
    with terminal(tmp_path / "log") as tty:
        tty.read_until(b"ready")
        tty.type(b"abc\x1d")
        assert tty.process.wait(PATIENCE_S) == 0


def test_the_guests_end_is_the_end_and_nothing_is_lost(tmp_path: Path) -> None:
    with terminal(tmp_path / "log") as tty:
        tty.read_until(b"ready")
        tty.type(b"q")
        tty.read_until(b"<q>bye")
        assert tty.process.wait(PATIENCE_S) == 0
        assert tty.modes() == tty.before
        assert tty.log.read_text() == "end ended"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_signals_put_the_terminal_back(tmp_path: Path, number: signal.Signals) -> None:
    with terminal(tmp_path / "log") as tty:
        tty.read_until(b"ready")
        tty.process.send_signal(number)
        status = tty.process.wait(PATIENCE_S)
        assert tty.modes() == tty.before
        assert status in {128 + number, -number}


def test_ctrl_c_at_the_very_beginning_is_ctrl_c(tmp_path: Path) -> None:
    with terminal(tmp_path / "log", "interrupt") as tty:
        assert tty.process.wait(PATIENCE_S) in {128 + signal.SIGINT, -signal.SIGINT}
        assert tty.modes() == tty.before
        assert tty.log.read_text() == "KeyboardInterrupt "


def test_a_sudden_death_puts_the_terminal_back(tmp_path: Path) -> None:
    with terminal(tmp_path / "log") as tty:
        tty.read_until(b"ready")
        assert tty.is_raw()
        tty.process.kill()
        tty.process.wait(PATIENCE_S)
        assert tty.wait_until_restored()


def test_an_error_while_reading_puts_the_terminal_back(tmp_path: Path) -> None:
    with terminal(tmp_path / "log", "bad-read") as tty:
        tty.read_until(b"ready")
        tty.type(b"x")
        assert tty.process.wait(PATIENCE_S) == 1
        assert tty.modes() == tty.before
        assert tty.log.read_text() == "ClusterError lost the guest"


def test_a_terminal_that_hangs_up_ends_it(tmp_path: Path) -> None:
    tty = Terminal(tmp_path / "log")
    try:
        tty.read_until(b"ready")
        os.close(tty.slave)
        os.close(tty.master)
        assert tty.process.wait(PATIENCE_S) in {128 + signal.SIGHUP, -signal.SIGHUP}
    finally:
        tty.process.kill()


def test_in_the_background_the_terminal_is_left_alone(tmp_path: Path) -> None:
    log = tmp_path / "log"
    # With job control the shell puts it into a process group of its own, not the foreground.
    script = f"set -m; {sys.executable} {CHILD} {log} & read go; kill $!; wait $!; echo done $?"
    with terminal(log, script=script) as tty:
        tty.read_until(b"guest ready")
        assert not tty.is_raw()
        tty.type(b"go\n")
        tty.read_until(b"done 143")
        assert tty.process.wait(PATIENCE_S) == 0


@contextmanager
def child(log: Path, *arguments: str, stdin: int) -> Iterator[subprocess.Popen[bytes]]:
    command = [*SIGNALS, sys.executable, CHILD, str(log), *arguments]
    process = subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE, cwd=ROOT)
    with process:
        try:
            yield process
            process.wait(PATIENCE_S)
        finally:
            process.kill()


def test_a_signal_that_is_ignored_stays_so(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with terminal(log, script=f"trap '' HUP; exec {sys.executable} {CHILD} {log}") as tty:
        tty.read_until(b"ready")
        tty.process.send_signal(signal.SIGHUP)
        tty.type(b"x")
        tty.read_until(b"<x>")
        tty.type(b"\x1d")
        assert tty.process.wait(PATIENCE_S) == 0


def test_a_pipe_is_fed_and_its_end_is_not_the_end(tmp_path: Path) -> None:
    with child(tmp_path / "log", stdin=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(b"one\x1d\n")
        process.stdin.close()
        seen = b""
        while b"<one\x1d\n>" not in seen:
            seen += os.read(process.stdout.fileno(), 100)
        assert seen == b"guest ready\r\n<one\x1d\n>"
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        process.wait(PATIENCE_S)
    assert (tmp_path / "log").read_text() == "KeyboardInterrupt "


def test_a_file_is_fed(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_bytes(b"commands q")
    with script.open("rb") as file, child(tmp_path / "log", stdin=file.fileno()) as process:
        assert process.communicate(timeout=PATIENCE_S)[0] == b"guest ready\r\n<commands q>bye"
    assert (tmp_path / "log").read_text() == "end ended"


def test_input_waits_until_the_guest_listens(tmp_path: Path) -> None:
    with child(tmp_path / "log", "late", stdin=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(b"q")
        process.stdin.flush()
        assert process.communicate(timeout=PATIENCE_S)[0] == b"guest ready\r\nlistening<q>bye"


def test_the_end_of_the_input_can_be_the_end(tmp_path: Path) -> None:
    with child(tmp_path / "log", "eof-ends", stdin=subprocess.DEVNULL) as process:
        process.wait(PATIENCE_S)
    assert (tmp_path / "log").read_text() == "end eof"


def test_sigterm_without_a_terminal_leaves_in_order(tmp_path: Path) -> None:
    with child(tmp_path / "log", stdin=subprocess.DEVNULL) as process:
        assert process.stdout
        assert process.stdout.read(5) == b"guest"
        process.terminate()
        assert process.wait(PATIENCE_S) == 128 + signal.SIGTERM


def test_a_reader_that_goes_away_ends_it(tmp_path: Path) -> None:
    with child(tmp_path / "log", stdin=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        process.stdout.read(5)
        process.stdout.close()
        process.stdin.write(b"more")
        process.stdin.flush()
        process.wait(PATIENCE_S)
    assert (tmp_path / "log").read_text().startswith("BrokenPipeError")
