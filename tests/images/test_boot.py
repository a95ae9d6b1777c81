"""The images on somebody else's machine: what their init promises holds under QEMU.

A fault that shows here is the image's; one that shows only on our own machine is the machine's.
"""

from __future__ import annotations

import os
import selectors
import shutil
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from rayvisor.runtime.images import (
    BANNER_PREFIX,
    KINDS,
    Image,
    ImageStore,
    exec_argument,
    run_argument,
    terminal_argument,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

QEMU = shutil.which("qemu-system-x86_64")

pytestmark = [
    pytest.mark.guest,
    pytest.mark.network,
    pytest.mark.skipif(QEMU is None, reason="needs qemu-system-x86_64"),
]

GUEST_TIMEOUT_S = 40


@pytest.fixture(scope="module", params=KINDS)
def image(request: pytest.FixtureRequest) -> Image:
    """A real image, from the user's own cache: downloaded once."""
    return ImageStore().build(request.param)


class Guest:
    """A QEMU with the image in it, and what its console said."""

    def __init__(
        self, image: Image, folder: Path, append: str, files: Mapping[str, bytes] | None = None
    ) -> None:
        source = image.boot_source(append, files=files)
        (folder / "kernel").write_bytes(source.kernel)
        (folder / "initrd").write_bytes(source.initrd)
        self.output = ""
        self.process = subprocess.Popen(
            [
                *(str(QEMU), "-accel", "tcg", "-M", "pc", "-m", "256", "-no-reboot"),
                *("-display", "none", "-nodefaults", "-serial", "stdio"),
                *("-device", "isa-debug-exit,iobase=0xf4,iosize=1"),
                *("-kernel", str(folder / "kernel"), "-initrd", str(folder / "initrd")),
                *("-append", source.cmdline),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        self._selector = selectors.DefaultSelector()
        assert self.process.stdout is not None
        self._stdout = self.process.stdout
        self._selector.register(self._stdout, selectors.EVENT_READ)

    def wait_for(self, text: str) -> str:
        """The console's output up to and with `text`, which is then forgotten."""
        end = time.monotonic() + GUEST_TIMEOUT_S
        while text not in self.output and time.monotonic() < end:
            if self._selector.select(0.5):
                data = os.read(self._stdout.fileno(), 65536)
                if not data:
                    break
                self.output += data.decode(errors="replace").replace("\r", "")
        assert text in self.output, f"never said {text!r}: {self.output!r}"
        head, text, self.output = self.output.partition(text)
        return head + text

    def type(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text.encode())

    def session(self) -> str:
        """All output behind the banner, up to the guest's debug exit."""
        self.wait_for(BANNER_PREFIX)
        self.wait_for("\n")
        rest, _ = self.process.communicate(timeout=GUEST_TIMEOUT_S)
        return self.output + bytes(rest).decode().replace("\r", "")

    @property
    def debug_exit(self) -> int:
        """What the guest wrote to the debug-exit port: QEMU leaves with twice that plus one."""
        return self.process.wait(GUEST_TIMEOUT_S) >> 1

    def is_halted(self) -> bool:
        """Whether QEMU, a while later, has used no processor time: what a power off comes to."""

        def ticks() -> int:
            with open(f"/proc/{self.process.pid}/stat", encoding="ascii") as stat:  # noqa: PTH123
                fields = stat.read().rpartition(")")[2].split()
            return int(fields[11]) + int(fields[12])

        end = time.monotonic() + GUEST_TIMEOUT_S
        while time.monotonic() < end:
            before = ticks()
            time.sleep(1)
            if ticks() - before <= 1:
                return True
        return False

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        self._selector.close()


@pytest.fixture
def guests() -> Iterator[list[Guest]]:
    started: list[Guest] = []
    yield started
    for guest in started:
        guest.close()


def test_a_script_runs_and_its_status_comes_out(
    image: Image, tmp_path: Path, guests: list[Guest]
) -> None:
    script = "echo one; tty; stty size; hostname; exit 42"
    append = f"hostname=web1 {terminal_argument(132, 50)} {exec_argument(script)}"
    guest = Guest(image, tmp_path, append)
    guests.append(guest)
    assert guest.session().splitlines()[:4] == ["one", "/dev/ttyS0", "50 132", "web1"]
    assert guest.debug_exit == 42


def test_a_file_of_the_initrd_runs_and_long_output_is_whole(
    image: Image, tmp_path: Path, guests: list[Guest]
) -> None:
    program = b"#!/bin/sh\nseq 1 2000\nexit 7\n"
    guest = Guest(image, tmp_path, run_argument("/opt/program"), {"/opt/program": program})
    guests.append(guest)
    assert guest.session().splitlines() == [str(number) for number in range(1, 2001)]
    assert guest.debug_exit == 7


def test_a_script_that_succeeds_powers_off_in_silence(
    image: Image, tmp_path: Path, guests: list[Guest]
) -> None:
    guest = Guest(image, tmp_path, exec_argument("echo the end"))
    guests.append(guest)
    guest.wait_for("the end\n")
    assert guest.is_halted()
    assert guest.output == ""


def test_a_person_at_the_console(image: Image, tmp_path: Path, guests: list[Guest]) -> None:
    guest = Guest(image, tmp_path, "")
    guests.append(guest)
    boot = guest.wait_for(BANNER_PREFIX)
    assert "[    " not in boot, "the kernel is quiet before the banner"
    assert guest.wait_for("\n").startswith("Debian kernel ")
    guest.wait_for("rayvisor:~# ")
    guest.type("sh -c 'echo a$((1))b; sleep 1000'\r")
    guest.wait_for("a1b\n")  # from the job itself: it owns the terminal
    guest.type("\x03")
    guest.wait_for("rayvisor:~# ")
    guest.type("echo b$((2))c; cat\r")
    guest.wait_for("b2c\n")
    guest.type("x\r")
    guest.wait_for("x\nx\n")
    guest.type("\x1a")
    guest.wait_for("Stopped")
    guest.wait_for("rayvisor:~# ")
    guest.type("echo $TERM $((6 * 7))\r")
    guest.wait_for("vt220 42\n")
    guest.type("exit\r")
    guest.wait_for("exit\n")
    guest.type("exit\r")
    assert guest.is_halted()
