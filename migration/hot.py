"""Pages that the guest writes again before they have been sent even once.

In the first round, which sends all of RAM, the dirty log is looked at now and then: a page that is
dirty already will be sent in the second round in any case, and sending it now would be in vain.
Later rounds do not skip: a page that is always dirty has to go some time.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import numpy as np

from rayvisor.migration import pages

if TYPE_CHECKING:
    from collections.abc import Callable

    from rayvisor.migration.pages import Bitmap
    from rayvisor.migration.roles import Source

FIRST_LOOK_S: Final = 0.02
GROWTH: Final = 2.0
"""Each look costs the guest a slow first write to each page it uses: looks get rarer."""


class HotPages:
    """Collects the dirty log of a round, in one or more looks."""

    def __init__(
        self, source: Source, page_count: int, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._source = source
        self._now_s = now_s
        self._dirty = np.zeros(page_count, dtype=np.bool_)
        self._wait_s = FIRST_LOOK_S
        self._next_s = now_s() + FIRST_LOOK_S

    def hot(self) -> Bitmap:
        """Pages written since the last `take`, as far as has been looked."""
        if self._now_s() >= self._next_s:
            self._look()
            self._wait_s *= GROWTH
            self._next_s = self._now_s() + self._wait_s
        return self._dirty

    def take(self) -> Bitmap:
        """Pages written since the last `take`, all of them; what is collected begins afresh."""
        self._look()
        taken, self._dirty = self._dirty, np.zeros_like(self._dirty)
        return taken

    def _look(self) -> None:
        self._dirty |= pages.bitmap_of(self._source.harvest(), len(self._dirty))
