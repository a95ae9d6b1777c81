"""Pages that the guest writes again before they have been sent even once.

In the first round, which sends all of RAM, the dirty log is looked at now and then: a page that is
dirty already will be sent in the second round in any case, and sending it now would be in vain.
Later rounds do not skip: a page that is always dirty has to go some time.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from rayvisor.migration import pages

if TYPE_CHECKING:
    from collections.abc import Callable

    from rayvisor.migration.roles import Source

FIRST_LOOK_S: Final = 0.03
GROWTH: Final = 3.0
"""Each look costs the guest a slow first write to each page it uses: looks get rarer."""


class HotPages:
    """Collects the dirty log of a round, in one or more looks."""

    def __init__(
        self, source: Source, page_count: int, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._source = source
        self._now_s = now_s
        self._none = bytes(pages.bitmap_bytes(page_count))
        self._dirty = self._none
        self._wait_s = FIRST_LOOK_S
        self._next_s = now_s() + FIRST_LOOK_S

    def look(self) -> bytes | None:
        """Pages written since the last `take`, if it is time to look again."""
        if self._now_s() < self._next_s:
            return None
        self._dirty = pages.union(self._dirty, self._source.harvest())
        self._wait_s *= GROWTH
        self._next_s = self._now_s() + self._wait_s
        return self._dirty

    def take(self) -> bytes:
        """Pages written since the last `take`, all of them; what is collected begins afresh."""
        taken, self._dirty = pages.union(self._dirty, self._source.harvest()), self._none
        return taken
