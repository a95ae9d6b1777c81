"""What looks at the cluster again and again, on a thread of its own."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_log = logging.getLogger(__name__)


def keep_looking(name: str, look: Callable[[], None], every_s: float) -> None:
    """Call `look` now and then every so many seconds, for ever; what it raises is logged."""

    def run() -> None:
        while True:
            try:
                look()
            except Exception:  # noqa: BLE001 - Ray's, while it is not whole: the next look may see
                _log.exception("%s cannot look now", name)
            time.sleep(every_s)

    threading.Thread(target=run, name=name, daemon=True).start()
