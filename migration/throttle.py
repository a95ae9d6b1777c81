"""Slowing a vCPU down: its machine's thread sleeps for a share of each slice of time."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final

from rayvisor.vmm.errors import ConfigError

if TYPE_CHECKING:
    from rayvisor.vmm.vm import Vm

SLICE_NS: Final = 10_000_000
LARGEST_SHARE: Final = 0.99


class Throttle:
    """Keeps one VM's vCPU from running for a share of its time.

    Machine time goes on meanwhile, as it does for a guest whose host is busy: the guest does less,
    and its timers are late by at most a slice.
    """

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self._clock = vm.machine.clock
        self._alarm = vm.call(lambda: self._clock.alarm(self._sleep))
        self._share = 0.0
        self._wake = threading.Event()
        self._asleep_since_ns: int | None = None

    def set(self, share: float) -> None:
        """Take `share` (0..0.99) of the vCPU's time away from now on.

        Raises:
            ConfigError: it is not in that range.
        """
        if not 0 <= share <= LARGEST_SHARE + 1e-9:
            raise ConfigError(f"a throttle of {share}: give 0 to {LARGEST_SHARE}")
        started = share > 0 and self._share == 0
        self._share = share
        if started:
            self._wake.clear()
            self._vm.call(lambda: self._alarm.arm(self._clock.now_ns()))
        elif share == 0:
            self.end()

    def end(self) -> int | None:
        """Wake the vCPU for good.

        Returns:
            If it was asleep: since when, in nanoseconds of CLOCK_MONOTONIC.
        """
        self._share = 0.0
        since_ns = self._asleep_since_ns
        self._wake.set()
        return since_ns

    def close(self) -> None:
        """Take the alarm away from the machine."""
        self.end()
        self._vm.call(lambda: self._clock.forget(self._alarm))

    def _sleep(self) -> None:
        share = self._share
        if share == 0:
            return
        self._asleep_since_ns = time.monotonic_ns()
        self._wake.wait(share * SLICE_NS / 1e9)
        self._asleep_since_ns = None
        self._alarm.arm(self._clock.now_ns() + round((1 - share) * SLICE_NS))
