"""Facts about the machine that this process runs on, as far as a migration depends on them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Final

from rayvisor.vmm.core.library import host_tsc_hz

TSC_TOLERANCE: Final = 1e-3
"""Two measurements of one TSC differ by a few parts in a million; two models of CPU by percents.
A guest cannot be told that its TSC counts at another rate now, and the engine does not scale."""


@cache
def boot_id() -> str:
    """Names the running kernel: processes that see the same share CLOCK_MONOTONIC."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:64]
    except OSError:
        return ""


def tsc_hz() -> int:
    """Ticks a second of this host's TSC."""
    return host_tsc_hz()


def tsc_close_enough(there_hz: int, here_hz: int) -> bool:
    """Whether a guest that counts on one TSC keeps time on the other."""
    return abs(there_hz - here_hz) <= TSC_TOLERANCE * here_hz
