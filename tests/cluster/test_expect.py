"""A console read by a program: nothing is lost, nothing is found twice."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayvisor.runtime.expect import ConsoleTimeoutError, ExpectConsole
from rayvisor.vmm.errors import MachineStateError

if TYPE_CHECKING:
    from collections.abc import Sequence


class Script:
    """A console that says these pieces one after the other, then nothing."""

    def __init__(self, pieces: Sequence[bytes], *, ends: bool = True) -> None:
        self._pieces = [piece for piece in pieces if piece]
        self._offset = 0
        self._ends = ends
        self.typed = b""

    def read(self, offset: int, _timeout_s: float) -> tuple[int, bytes]:
        assert offset == self._offset
        data = self._pieces.pop(0) if self._pieces else b""
        self._offset += len(data)
        return offset, data

    def send(self, data: bytes) -> None:
        self.typed += data

    def alive(self) -> bool:
        return not self._ends or bool(self._pieces)

    def console(self) -> ExpectConsole:
        return ExpectConsole(self.read, self.send, self.alive)


@given(st.data())
def test_pieces_do_not_matter(data: st.DataObject) -> None:
    whole = b"boot\r\nlogin: bob\r\n# done\r\n"
    cuts = sorted(data.draw(st.sets(st.integers(0, len(whole)))))
    edges = zip([0, *cuts], [*cuts, len(whole)], strict=True)
    console = Script([whole[a:b] for a, b in edges]).console()
    assert console.read_until("login: ") == "boot\nlogin: "
    assert console.read_until(re.compile(r"\w+\r?\n")) == "bob\n"
    assert console.read_until("e\r\n") == "# done\n"


def test_a_string_is_no_expression() -> None:
    assert Script([b"a.b*c"]).console().read_until(".b*") == "a.b*"


def test_what_does_not_come_is_told_with_what_came() -> None:
    console = Script([b"panic"], ends=False).console()
    with pytest.raises(ConsoleTimeoutError, match="'login' did not come within 0 s; last: ''"):
        console.read_until("login", timeout_s=0)
    with pytest.raises(ConsoleTimeoutError, match="last: 'panic'"):
        console.read_until("login", timeout_s=0.05)
    assert console.read_until("nic") == "panic"


def test_an_end_is_told() -> None:
    with pytest.raises(MachineStateError, match="the guest ended before 'login' came"):
        Script([b"bye"]).console().read_until("login")


def test_a_match_in_the_last_output_is_found() -> None:
    assert Script([b"login"]).console().read_until("login") == "login"


def test_output_dropped_before_it_was_read_is_counted() -> None:
    console = ExpectConsole(lambda offset, _s: (max(offset, 10), b"# "), print, lambda: True)
    assert console.read_until("# ") == "# "
    assert console.lost_bytes == 10


class Shell(Script):
    """A terminal that echoes what is typed, and a shell that answers with `output`."""

    def __init__(self, output: bytes, status: int) -> None:
        super().__init__([], ends=False)
        self._output = output
        self._status = status

    def send(self, data: bytes) -> None:
        super().send(data)
        mark = re.match(rb"echo (\w+)''b; ", data)
        assert mark is not None
        said = b"%sb\r\n%s%se%d\r\n# " % (mark[1], self._output, mark[1], self._status)
        self._pieces += [data.replace(b"\n", b"\r\n> "), said]


@pytest.mark.parametrize("output", [b"", b"one\r\ntwo\r\n", b"no line end", b"# echo b; e0\r\n"])
@pytest.mark.parametrize("status", [0, 1, 127])
def test_a_command_gives_its_output_and_status(output: bytes, status: int) -> None:
    shell = Shell(output, status)
    result = shell.console().run("if true\nthen ls 'a b'; fi")
    assert result.output == output.decode().replace("\r\n", "\n")
    assert result.status == status
    assert b"eval 'if true\nthen ls" in shell.typed
