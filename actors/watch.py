"""How processes ended that are not our children: pidfds (pidfd_open(2), Linux 5.3).

The parent of a VM's process is Ray's raylet, which does not tell what ended it. Since Linux 6.15
a pidfd tells anybody who held it (ioctl PIDFD_GET_INFO, include/uapi/linux/pidfd.h); before
that the reason says what is known: that it is gone.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import struct
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_INFO_BYTES: Final = 64  # PIDFD_INFO_SIZE_VER0
_PIDFD_GET_INFO: Final = 3 << 30 | _INFO_BYTES << 16 | 0xFF << 8 | 11
_PIDFD_INFO_EXIT: Final = 1 << 3
_EXIT_CODE_AT: Final = 60
_REAP_TRIES, _REAP_PAUSE_S = 50, 0.01


def exit_code(pidfd: int) -> int | None:
    """The wait status of an ended process, as wait(2) has it; None where it cannot be known.

    It can be read once the parent has reaped the process, so this waits up to half a second.
    """
    for _ in range(_REAP_TRIES):
        info = bytearray(_INFO_BYTES)
        struct.pack_into("=Q", info, 0, _PIDFD_INFO_EXIT)
        # ESRCH until it is reaped; ENOTTY or EINVAL on a kernel that cannot say.
        with contextlib.suppress(ProcessLookupError):
            try:
                fcntl.ioctl(pidfd, _PIDFD_GET_INFO, info)
            except OSError as error:
                if isinstance(error, ProcessLookupError):
                    raise
                return None
            if struct.unpack_from("=Q", info, 0)[0] & _PIDFD_INFO_EXIT:
                return int(struct.unpack_from("=i", info, _EXIT_CODE_AT)[0])
        time.sleep(_REAP_PAUSE_S)
    return None


def describe_end(pid: int, code: int | None) -> str:
    """What ended process `pid`, in words, from its wait status."""
    if code is None:
        return f"the VM's process {pid} is gone: killed, or ended by the host"
    if not os.WIFSIGNALED(code):
        return f"the VM's process {pid} ended with exit status {os.waitstatus_to_exitcode(code)}"
    number = os.WTERMSIG(code)
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    if number == signal.SIGKILL:
        return (
            f"the VM's process {pid} was killed by SIGKILL:"
            " by hand, or by the host because memory ran out"
        )
    return f"the VM's process {pid} was killed by {name}"


@dataclass(slots=True)
class _Watched:
    pid: int
    ended: Callable[[str], None]
    gone: threading.Event = field(default_factory=threading.Event)


class ProcessWatch:
    """Calls back, on a thread of its own, when a watched process ends."""

    def __init__(self) -> None:
        self._poll = select.epoll()
        self._lock = threading.Lock()
        self._watched: dict[int, _Watched] = {}
        threading.Thread(target=self._run, name="process-watch", daemon=True).start()

    def add(self, pid: int, ended: Callable[[str], None]) -> None:
        """Call `ended` with the reason once process `pid` ends; at once when it is gone."""
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            ended(describe_end(pid, None))
            return
        with self._lock:
            self._watched[pidfd] = _Watched(pid, ended)
            self._poll.register(pidfd, select.EPOLLIN)

    def finish(self, pid: int, patience_s: float) -> None:
        """Return once process `pid` has ended; it is killed after `patience_s` seconds.

        Harmless for a process that is not watched: it has ended, or is none of ours.
        """
        with self._lock:
            found = [(fd, w) for fd, w in self._watched.items() if w.pid == pid]
        for pidfd, watched in found:
            if not watched.gone.wait(patience_s):
                with self._lock, contextlib.suppress(ProcessLookupError):
                    if pidfd in self._watched:
                        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                watched.gone.wait()

    def _run(self) -> None:
        while True:
            for pidfd, _ in self._poll.poll():
                with self._lock:
                    watched = self._watched[pidfd]
                    self._poll.unregister(pidfd)
                reason = describe_end(watched.pid, exit_code(pidfd))
                with self._lock:
                    del self._watched[pidfd]
                    os.close(pidfd)
                watched.gone.set()
                watched.ended(reason)
