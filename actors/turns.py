"""Whose turn it is: of several guests that are started again the most urgent one runs first.

Restarts are under way side by side, for a process takes long to start. Only the last step, the
guest's first instruction, is taken in order: a guest waits while a more urgent one is before it.
The more urgent never wait for the less urgent, so that nobody waits in a circle.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

TURN_S: Final = 10.0
"""How long one that does not get on may hold up those that are less urgent."""

NOBODY: Final = -1


class Turns:
    """Thread-safe.

    Args:
        patience_s: the longest wait.
        clock_s: never runs backwards.
    """

    def __init__(
        self, patience_s: float = TURN_S, clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._patience_s = patience_s
        self._clock_s = clock_s
        self._changed = threading.Condition()
        self._under_way: dict[str, int] = {}
        self._expected = NOBODY

    def expect(self, priority: int) -> None:
        """Of the VMs that are down and not yet under way this is the most urgent; or `NOBODY`."""
        with self._changed:
            self._expected = priority
            self._changed.notify_all()

    def join(self, name: str, priority: int) -> None:
        """A restart is under way."""
        with self._changed:
            self._under_way[name] = priority

    def wait(self, name: str) -> bool:
        """Wait until nobody who is more urgent is before this one; False when it took too long."""
        deadline_s = self._clock_s() + self._patience_s
        with self._changed:
            priority = self._under_way[name]
            while max(self._expected, *self._under_way.values()) > priority:
                left_s = deadline_s - self._clock_s()
                if left_s <= 0:
                    return False
                self._changed.wait(left_s)
        return True

    def leave(self, name: str) -> None:
        """It runs, or will not. Any number of times."""
        with self._changed:
            self._under_way.pop(name, None)
            self._changed.notify_all()
