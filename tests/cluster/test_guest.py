"""One VM in its process: how it ends is told once, and a reset starts it again."""

from __future__ import annotations

import queue
from typing import TYPE_CHECKING

import pytest

from rayvisor.actors.guest import Guest
from rayvisor.actors.records import LastWords, VmState
from rayvisor.vmm.errors import MachineStateError
from rayvisor.vmm.spec import BootSource, MachineSpec
from rayvisor.vmm.vm import Vm

if TYPE_CHECKING:
    from collections.abc import Iterator

TOKEN = 5


class Watched:
    """A running guest, and what it asked to be remembered and forgotten."""

    def __init__(self, kernel: bytes) -> None:
        self.vm = Vm(MachineSpec(4 << 20, BootSource(kernel, format="flat")))
        self.words: queue.Queue[LastWords] = queue.Queue()
        self.forgotten = 0
        self.guest = Guest(self.vm, TOKEN, remember=self.words.put, forget=self._forget)
        self.guest.start()
        self.until(b"ready\n")

    def _forget(self) -> None:
        self.forgotten += 1

    def until(self, wanted: bytes, offset: int = 0) -> None:
        """Wait for `wanted` in the console's output from `offset` on."""
        found = b""
        for _ in range(200):
            chunk = self.guest.read_console(offset + len(found), 100, 0.1)
            found += chunk.data
            if wanted in found:
                return
        pytest.fail(f"{wanted!r} did not come, only {found!r}")


@pytest.fixture
def watched(echo_guest: bytes) -> Iterator[Watched]:
    it = Watched(echo_guest)
    yield it
    it.vm.close()


@pytest.mark.parametrize(
    ("key", "state", "reason", "status"),
    [
        (b"Q", VmState.HALTED, "the guest powered off or halted", None),
        (b"X", VmState.EXITED, "debug exit with status 7", 7),
        (b"T", VmState.CRASHED, "triple fault", None),
    ],
)
def test_an_end_is_told_once(
    watched: Watched, key: bytes, state: VmState, reason: str, status: int | None
) -> None:
    watched.guest.send_console(key)
    words = watched.words.get(timeout=20)
    assert (words.state, words.reason, words.exit_status) == (state, reason, status)
    now = watched.guest.status()
    assert (now.state, now.reason, now.exit_status) == (state, reason, status)
    assert now.token == TOKEN
    assert watched.guest.stop().state is state
    assert watched.words.empty()


def test_stop_is_an_end_from_outside(watched: Watched) -> None:
    status = watched.guest.stop()
    assert (status.state, status.reason) == (VmState.STOPPED, "powered off by `stop`")
    assert watched.words.get_nowait().state is VmState.STOPPED
    assert watched.guest.status().uptime_s == watched.guest.status().uptime_s
    assert watched.guest.stop().state is VmState.STOPPED


def test_a_reset_reboots_what_runs(watched: Watched) -> None:
    _, end = watched.guest.console_offsets()
    assert watched.guest.reset().state is VmState.RUNNING
    watched.until(b"ready\n", end)
    assert (watched.forgotten, watched.words.empty()) == (0, True)


def test_a_reset_starts_what_has_ended(watched: Watched) -> None:
    watched.guest.send_console(b"X")
    assert watched.words.get(timeout=20).exit_status == 7
    _, end = watched.guest.console_offsets()
    status = watched.guest.reset()
    assert (status.state, status.exit_status, watched.forgotten) == (VmState.RUNNING, None, 1)
    watched.until(b"ready\n", end)
    watched.guest.send_console(b"Q")
    assert watched.words.get(timeout=20).state is VmState.HALTED


def test_the_last_output_comes_before_the_end(watched: Watched) -> None:
    _, end = watched.guest.console_offsets()
    watched.guest.send_console(b"bye")
    watched.until(b"bye", end)
    watched.guest.stop()
    last = watched.guest.read_console(end, 100, 5.0)
    assert (last.offset, last.data, last.live) == (end, b"bye", False)
    assert watched.guest.read_console(end + 3, 100, 5.0).data == b""
    with pytest.raises(MachineStateError, match="the guest is stopped"):
        watched.guest.send_console(b"X")


def test_waiting(watched: Watched) -> None:
    assert watched.guest.wait(0.01) is None
    watched.guest.send_console(b"Q")
    ended = watched.guest.wait(20)
    assert ended is not None
    assert ended.state is VmState.HALTED


def test_debugging_tools_see_a_running_guest(watched: Watched) -> None:
    sites = watched.guest.exit_sites(1)
    assert sites["counts"]["io_in"] > 0
    assert len(sites["sites"]) == 1
    assert watched.guest.exits().counts["io_in"] >= sites["counts"]["io_in"]
    (first,) = watched.guest.disassemble(0x7C00, 1)
    assert (first.address, first.raw) == (0x7C00, b"\xfa")
    assert watched.guest.report()["power"] == "running"
