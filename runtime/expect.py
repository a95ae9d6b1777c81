"""Talking to a guest's console from a program: wait for text, type, run a command."""

from __future__ import annotations

import re
import secrets
import shlex
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rayvisor.vmm.errors import MachineStateError, RayvisorError

if TYPE_CHECKING:
    from collections.abc import Callable

MATCH_BYTES: Final = 4096
"""The longest match that is found for certain: so far back is looked again with each arrival."""

POLL_S: Final = 1.0


class ConsoleTimeoutError(RayvisorError):
    """The console did not say it in time."""


@dataclass(frozen=True, slots=True)
class CommandResult:
    """What a command in the guest printed and its exit status."""

    output: str
    status: int


class ExpectConsole:
    r"""A console read from one place on, by a program.

    Args:
        read: `read(offset, timeout_s)` gives (offset of the first byte, bytes), waiting up to the
            timeout for some.
        send: Types bytes.
        alive: Whether more output may come.
        offset: Where to begin.

    Attributes:
        lost_bytes: Output that was dropped from the VM's scrollback before it was read here.

    Example:
        >>> console.read_until("# ")            # doctest: +SKIP
        >>> console.run("uname -s").output      # doctest: +SKIP
        'Linux\n'
    """

    def __init__(
        self,
        read: Callable[[int, float], tuple[int, bytes]],
        send: Callable[[bytes], None],
        alive: Callable[[], bool],
        offset: int = 0,
    ) -> None:
        self._read = read
        self._send = send
        self._alive = alive
        self._offset = offset
        self._pending = bytearray()
        self.lost_bytes = 0

    @property
    def position(self) -> int:
        """Offset of the first byte that no call has given yet: where somebody else goes on."""
        return self._offset - len(self._pending)

    def send(self, text: str | bytes) -> None:
        """Type `text`; a line ends in a newline, as typed by the Enter key."""
        self._send(text.encode() if isinstance(text, str) else text)

    def read_until(self, pattern: str | re.Pattern[str], timeout_s: float = 30.0) -> str:
        r"""Output up to and including the first match; the next call goes on behind it.

        Args:
            pattern: A string to be found as it is, or a compiled regular expression.
            timeout_s: How long to wait for it, in seconds.

        Returns:
            The text, with the console's line ends (\r\n) as \n.

        Raises:
            ConsoleTimeoutError: it did not come in time; nothing is lost for the next call.
            MachineStateError: the guest ended without it.
        """
        text = re.escape(pattern) if isinstance(pattern, str) else pattern.pattern
        flags = 0 if isinstance(pattern, str) else pattern.flags & ~re.UNICODE
        wanted = re.compile(text.encode(), flags)
        deadline_s = time.monotonic() + timeout_s
        searched, ended = 0, False
        while True:
            found = wanted.search(self._pending, max(0, searched - MATCH_BYTES))
            if found is not None:
                taken = bytes(self._pending[: found.end()])
                del self._pending[: found.end()]
                return _text(taken)
            searched = len(self._pending)
            left_s = deadline_s - time.monotonic()
            if ended:
                raise MachineStateError(
                    f"the guest ended before {_shown(pattern)} came; last: {self._tail()}"
                )
            if left_s <= 0:
                raise ConsoleTimeoutError(
                    f"{_shown(pattern)} did not come within {timeout_s:g} s; last: {self._tail()}"
                )
            first, data = self._read(self._offset, min(left_s, POLL_S))
            self.lost_bytes += first - self._offset
            self._offset = first + len(data)
            self._pending += data
            ended = not data and not self._alive()

    def run(self, command: str, timeout_s: float = 60.0) -> CommandResult:
        """Run a command in the guest's shell, which must be at its prompt.

        What else is printed on the console meanwhile, such as kernel messages, is in its output.

        Raises:
            ConsoleTimeoutError: it has not ended in time.
            MachineStateError: the guest ended.
        """
        mark = f"rv{secrets.token_hex(4)}"
        # The quotes keep the echo of what is typed from looking like what is printed; by eval,
        # all of it is typed, and echoed, before the first byte of output.
        self.send(f"echo {mark}''b; eval {shlex.quote(command)}; echo {mark}''e$?\n")
        self.read_until(re.compile(rf"{mark}b\r?\n"), timeout_s)
        text = self.read_until(re.compile(rf"{mark}e\d+\r?\n"), timeout_s)
        output, _, status = text.rpartition(f"{mark}e")
        return CommandResult(output, int(status))

    def _tail(self) -> str:
        return repr(_text(bytes(self._pending[-120:])))


def _text(data: bytes) -> str:
    return data.decode(errors="replace").replace("\r\n", "\n")


def _shown(pattern: str | re.Pattern[str]) -> str:
    return repr(pattern if isinstance(pattern, str) else pattern.pattern)
