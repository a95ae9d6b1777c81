"""Work that gives way to the guest: what a migration does while its VM runs.

A vCPU's thread and those that pack and send its pages want the same cores. The guest goes first:
such work is done on a thread of its own at a lower priority. (Linux has one for each thread, and
lets nobody without privilege raise it again: hence the thread, which ends with the work.)
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TypeVar

    T = TypeVar("T")

NICER: Final = 15
"""A thirtieth of the time of a core that a thread of the usual priority wants, too."""
PATIENCE_S: Final = 0.3
STARVED_SHARE: Final = 0.3
LEAST_PRIORITY: Final = 19


def give_way() -> None:
    """Lower the priority of the calling thread, for good."""
    thread = threading.get_native_id()
    now = os.getpriority(os.PRIO_PROCESS, thread)
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, thread, min(LEAST_PRIORITY, now + NICER))
        # Such threads do not take a core from another when they wake, and so seldom have one taken
        # while they hold the interpreter lock, which a vCPU may be waiting for.
        os.sched_setscheduler(thread, os.SCHED_BATCH, os.sched_param(0))


def starved(since_s: float) -> bool:
    """Whether the calling thread, at work since `since_s`, gives way to more than a guest.

    So it is on a host that is overloaded, which is when its VMs should get away from it.
    """
    return _too_little(time.monotonic() - since_s, time.thread_time())


class Workload:
    """What a thread that waits for work, and then does it, gets of a core for that."""

    def __init__(self) -> None:
        self._elapsed_s = 0.0
        self._got_s = 0.0

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """Inside, the calling thread works."""
        began_s, had_s = time.monotonic(), time.thread_time()
        try:
            yield
        finally:
            self._elapsed_s += time.monotonic() - began_s
            self._got_s += time.thread_time() - had_s

    @property
    def starved(self) -> bool:
        """See `starved`."""
        return _too_little(self._elapsed_s, self._got_s)


def _too_little(elapsed_s: float, got_s: float) -> bool:
    return elapsed_s > PATIENCE_S and got_s < STARVED_SHARE * elapsed_s


def in_background(work: Callable[[], T], name: str) -> T:
    """What `work` gives or raises, done by a thread `name` that gives way to others."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        give_way()
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001 - raised again where it was asked for
            errors.append(error)

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
