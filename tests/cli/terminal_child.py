"""A process that attaches its standard streams to an echoing guest. Its words go to a file.

Usage: terminal_child.py LOG [eof-ends] [bad-read] [late] [interrupt]. The guest answers <x> to x,
and ends at q; with "late" it listens only when it has been asked three times; with "interrupt"
ctrl-C comes while the thread of its output is being started.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

from rayvisor.runtime.terminal import attach
from rayvisor.vmm.errors import ClusterError

ENOUGH = 3


class Guest:
    """Echoes."""

    def __init__(self) -> None:
        self.output = b"guest ready\r\n"
        self.alive = True
        self.asked = 0
        self.said_more = threading.Condition()

    def send(self, data: bytes) -> None:
        with self.said_more:
            self.output += b"<" + data + b">"
            if b"q" in data:
                self.output += b"bye"
                self.alive = False
            self.said_more.notify()

    def ready(self) -> bool:
        if "late" not in sys.argv:
            return True
        with self.said_more:
            self.asked += 1
            if self.asked == ENOUGH:
                self.output += b"listening"
            return self.asked >= ENOUGH

    def read(self, offset: int, timeout_s: float) -> tuple[int, bytes]:
        with self.said_more:
            if offset >= len(self.output):
                self.said_more.wait(timeout_s)
            if "bad-read" in sys.argv and b"<" in self.output:
                raise ClusterError("lost the guest")
            return offset, self.output[offset:]


def interrupt_starts() -> None:
    """Let ctrl-C come in the middle of `Thread.start`."""
    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        wait = thread._started.wait  # type: ignore[attr-defined]

        def signalled(timeout: float | None = None) -> bool:
            os.kill(os.getpid(), signal.SIGINT)
            return bool(wait(timeout))

        thread._started.wait = signalled  # type: ignore[attr-defined]
        start(thread)

    threading.Thread.start = interrupted  # type: ignore[method-assign, assignment]


def main() -> None:
    if "interrupt" in sys.argv:
        interrupt_starts()
    guest = Guest()
    log = Path(sys.argv[1])
    try:
        end = attach(
            guest.read,
            guest.send,
            start_offset=0,
            alive=lambda: guest.alive,
            eof_ends="eof-ends" in sys.argv,
            ready=guest.ready,
        )
        log.write_text(f"end {end}")
    except BaseException as error:
        log.write_text(f"{type(error).__name__} {error}")
        raise


main()
