"""A guest's console on this process's terminal.

`attach` knows no VM: it moves bytes between two callables and the standard streams. On a
terminal the keyboard is in raw mode meanwhile, and is put back whatever happens: at a return,
an exception, SIGTERM or SIGHUP by this process, at its sudden death by a guard process.
Without a terminal the standard input is fed to the guest as it is, and ctrl-C ends.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import termios
import threading
import time
import tty
from enum import StrEnum
from typing import TYPE_CHECKING, NoReturn

from rayvisor.vmm.errors import RayvisorError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

ESCAPE = b"\x1d"  # ctrl-]
READ_BYTES = 4096
JOIN_S = 10.0
READY_POLL_S = 0.05
READY_LOOKS = 2
READY_PATIENCE_S = 10.0
LEAVE_SCREEN = b"\x1b[0m\x1b[?25h\r\n"  # plain letters, cursor shown, a line of its own
GUARD_SCRIPT = 'read -r line || exec stty "$1" <&1'


class AttachEnd(StrEnum):
    """Why `attach` returned."""

    DETACHED = "detached"
    """The escape key was typed."""
    ENDED = "ended"
    """The guest is no longer alive, and all of its output has been written."""
    EOF = "eof"
    """The standard input ended, and that was to be the end."""


def is_interactive(fd: int = 0) -> bool:
    """Whether `fd` is a terminal that this process may read from now."""
    try:
        return os.isatty(fd) and os.tcgetpgrp(fd) == os.getpgrp()
    except OSError:
        return False


def attach(
    read: Callable[[int, float], tuple[int, bytes]],
    send: Callable[[bytes], None],
    *,
    start_offset: int,
    alive: Callable[[], bool],
    escape: bytes = ESCAPE,
    eof_ends: bool = False,
    ready: Callable[[], bool] = lambda: True,
    hang_up: Callable[[], None] = lambda: None,
    poll_s: float = 0.2,
    output_fd: int = 1,
) -> AttachEnd:
    """Join the standard streams to a console until it ends or the user leaves.

    `read` and `alive` are called on a thread of their own, `send` on the caller's.

    Args:
        read: `read(offset, timeout_s)` gives (offset of the first byte, bytes), waiting up to
            the timeout for output at `offset` or later, as `rayvisor.vmm.console.Console.read`.
        send: Takes what is typed.
        start_offset: Where to begin in the console's output.
        alive: Whether more output may come; asked after a `read` that gave nothing.
        escape: The byte that leaves, when typed on a terminal.
        eof_ends: Leave at the end of the standard input instead of running on without.
        ready: Whether the guest listens yet. Without a terminal the input waits for that, at most
            `READY_PATIENCE_S`: a serial port that is being set up drops what came before.
        hang_up: Called before the end: a `read` that waits may return.
        poll_s: The timeout that `read` is given, in seconds; bounds how late the end is seen.
        output_fd: Where the output goes.

    Raises:
        KeyboardInterrupt: ctrl-C without a terminal.
        BrokenPipeError: nobody reads the output any more.
        RayvisorError: what `read`, `send` or `alive` raised.
    """
    pump = _OutputPump(read, alive, hang_up, start_offset, poll_s, output_fd)
    interactive = is_interactive(0)
    signals = _Signals()
    with signals.caught(), _raw(0) if interactive else contextlib.nullcontext():
        try:
            with _uninterrupted():
                pump.start()
            if not interactive:
                escape = b""
                _await_ready(pump, signals, ready)
            end = _feed(pump, signals, send, escape, eof_ends=eof_ends)
        finally:
            pump.stop()
            if interactive and os.isatty(output_fd):
                with contextlib.suppress(OSError):
                    os.write(output_fd, LEAVE_SCREEN)
    if pump.error is not None and end is AttachEnd.ENDED:
        raise pump.error
    return end


class _OutputPump(threading.Thread):
    """Writes a console's output to a file descriptor; `done_fd` becomes readable at its end."""

    def __init__(
        self,
        read: Callable[[int, float], tuple[int, bytes]],
        alive: Callable[[], bool],
        hang_up: Callable[[], None],
        start_offset: int,
        poll_s: float,
        output_fd: int,
    ) -> None:
        super().__init__(name="console-output", daemon=True)
        self._read = read
        self.alive = alive
        self._hang_up = hang_up
        self._offset = start_offset
        self._poll_s = poll_s
        self._output_fd = output_fd
        self._stopping = threading.Event()
        self.error: BaseException | None = None
        self.done_fd, self._done_write_fd = os.pipe()

    def run(self) -> None:
        try:
            self._pump()
        except BaseException as error:  # noqa: BLE001 - raised again by attach, on its own thread
            self.error = error
        finally:
            os.close(self._done_write_fd)

    def _pump(self) -> None:
        ended = False
        while not self._stopping.is_set():
            offset, data = self._read(self._offset, 0 if ended else self._poll_s)
            self._offset = offset + len(data)
            if data:
                _write_all(self._output_fd, data)
            elif ended:
                return
            else:
                # Once more after the end: its last words may have come in between.
                ended = not self.alive()

    def stop(self) -> None:
        """No output after this. Harmless before `start`."""
        self._stopping.set()
        self._hang_up()
        if self.ident is not None:
            self.join(JOIN_S)
        else:
            os.close(self._done_write_fd)
        os.close(self.done_fd)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            select.select([], [fd], [])


def _await_ready(pump: _OutputPump, signals: _Signals, ready: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + READY_PATIENCE_S
    # Twice in a row: a driver that tests whether the port is one looks ready for some microseconds.
    looks = 0
    while time.monotonic() < deadline_s:
        looks = looks + 1 if ready() else 0
        if looks == READY_LOOKS:
            return
        woken, _, _ = select.select([pump.done_fd, signals.fd], [], [], READY_POLL_S)
        if signals.fd in woken:
            signals.check()
        if pump.done_fd in woken:
            return


def _feed(
    pump: _OutputPump,
    signals: _Signals,
    send: Callable[[bytes], None],
    escape: bytes,
    *,
    eof_ends: bool,
) -> AttachEnd:
    """Give the standard input to `send` until the pump ends or the user leaves."""
    waiting = [pump.done_fd, signals.fd]
    if escape or not os.isatty(0):  # a background job that reads its terminal is stopped
        waiting.append(0)
    while True:
        ready, _, _ = select.select(waiting, [], [])
        if signals.fd in ready:
            signals.check()
        if pump.done_fd in ready:
            return AttachEnd.ENDED
        try:
            data = os.read(0, READ_BYTES)
        except OSError:  # the terminal hung up
            data = b""
        if not data:
            if eof_ends:
                return AttachEnd.EOF
            waiting.remove(0)
            continue
        typed, found, _ = data.partition(escape) if escape else (data, b"", b"")
        if typed:
            _send(pump, send, typed)
        if found:
            return AttachEnd.DETACHED


def _send(pump: _OutputPump, send: Callable[[bytes], None], data: bytes) -> None:
    try:
        send(data)
    except RayvisorError:
        # What is typed while the guest ends is nobody's; its end is seen by the pump.
        if pump.alive():
            raise


@contextlib.contextmanager
def _raw(fd: int) -> Iterator[None]:
    """Raw mode on the terminal `fd`."""
    saved = termios.tcgetattr(fd)
    with _guard(fd):
        previous = None
        try:
            _set_raw(fd)
            if _on_main_thread():
                # A shell sets its own modes while this process is stopped.
                previous = signal.signal(signal.SIGCONT, lambda *_: _set_raw(fd))
            yield
        finally:
            if previous is not None:
                signal.signal(signal.SIGCONT, previous)
            with contextlib.suppress(termios.error):  # the terminal is gone
                termios.tcsetattr(fd, termios.TCSADRAIN, saved)


def _set_raw(fd: int) -> None:
    with contextlib.suppress(termios.error):  # the terminal hung up; reading it will tell
        tty.setraw(fd, termios.TCSADRAIN)


@contextlib.contextmanager
def _guard(fd: int) -> Iterator[None]:
    """A shell that puts the terminal back if this process dies without a chance to.

    It sleeps on a pipe and costs a few hundred kilobytes. In a session of its own it is out of
    reach of ctrl-C and hang-ups, and may set a terminal's modes from the background.
    """
    try:
        saved = subprocess.run(["stty", "-g"], stdin=fd, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        yield  # no stty on this machine: nothing left to do about a sudden death
        return
    read_fd, write_fd = os.pipe()
    # Its input is the pipe, so it finds the terminal at its output.
    guard = subprocess.Popen(
        ["sh", "-c", GUARD_SCRIPT, "sh", saved.stdout.strip()],
        stdin=read_fd,
        stdout=fd,
        start_new_session=True,
    )
    os.close(read_fd)
    try:
        yield
    finally:
        os.write(write_fd, b"\n")
        os.close(write_fd)
        guard.wait()


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Inside, ctrl-C waits: KeyboardInterrupt within `Thread.start` leaves its lock in disorder."""
    if not _on_main_thread() or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    noted = False

    def note(_number: int, _frame: FrameType | None) -> None:
        nonlocal noted
        noted = True

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if noted:
        raise KeyboardInterrupt


def _on_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


class _Signals:
    """SIGTERM and SIGHUP as something to wait for, so that they interrupt nothing half-done.

    `fd` is readable after any signal. The second one does interrupt, for whoever hangs in a call.
    """

    def __init__(self) -> None:
        self.number = 0
        self.fd, self._write_fd = os.pipe()
        os.set_blocking(self._write_fd, False)

    @contextlib.contextmanager
    def caught(self) -> Iterator[None]:
        """Catch them; off the main thread, where Python allows no handlers, do nothing."""
        previous = {}
        previous_fd = -1
        try:
            if _on_main_thread():
                # A signal just before select() would not end it: Python's handlers run after.
                previous_fd = signal.set_wakeup_fd(self._write_fd, warn_on_full_buffer=False)
                for number in (signal.SIGTERM, signal.SIGHUP):
                    if signal.getsignal(number) is signal.SIG_IGN:
                        continue  # as nohup wants it
                    previous[number] = signal.signal(number, self._note)
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            if _on_main_thread():
                signal.set_wakeup_fd(previous_fd)
            os.close(self.fd)
            os.close(self._write_fd)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.number:
            self.leave()
        self.number = number

    def check(self) -> None:
        """Leave if one came; call when `fd` is readable."""
        os.read(self.fd, READ_BYTES)
        if self.number:
            self.leave()

    def leave(self) -> NoReturn:
        """End the process with the status that a shell expects, everything put back on the way."""
        sys.exit(128 + self.number)
