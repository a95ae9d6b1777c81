"""An idle machine gives memory back to its host."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rayvisor.vmm.core.vcpu import Vcpu
    from rayvisor.vmm.devices.base import Clock

PERIOD_NS: Final = 2_000_000_000
IDLE_FRACTION: Final = 0.05
WORTH_BYTES: Final = 4 << 20


class IdleTrim:
    """Drops translated code when the guest has slept through nearly all of a period.

    What a guest needs while it idles is translated again in milliseconds; what its boot needed
    is tens of megabytes that it never runs again.
    """

    def __init__(self, clock: Clock, vcpu: Vcpu) -> None:
        """Watch `vcpu`, once started."""
        self._clock = clock
        self._vcpu = vcpu
        self._alarm = clock.alarm(self._look)
        self._cpu_s = 0.0

    def start(self) -> None:
        """Begin a period. The machine's thread, each time it begins to run."""
        self._cpu_s = time.thread_time()
        self._alarm.arm(self._clock.now_ns() + PERIOD_NS)

    def _look(self) -> None:
        used_s = time.thread_time() - self._cpu_s
        idle = used_s * 1_000_000_000 < IDLE_FRACTION * PERIOD_NS
        if idle and self._vcpu.code_bytes() > WORTH_BYTES:
            self._vcpu.trim()
        self.start()
