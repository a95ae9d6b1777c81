"""A timer on a test bench, moved CLK by CLK."""

from __future__ import annotations

from rayvisor.vmm.clock import ManualClock
from rayvisor.vmm.devices.i8254 import I8254, ticks_at, time_of_tick_ns

LSB, MSB, BOTH = 0x10, 0x20, 0x30


class Bench:
    """A timer whose clock is moved in CLK ticks; a rise on OUT 0 is noted with its tick."""

    def __init__(self, *, gate: bool = True) -> None:
        self.clock = ManualClock()
        self.rises: list[int] = []
        self.level = False
        self.chip = I8254(self.clock, (self._out0, None, None), gates=(gate, True, False))

    def _out0(self, level: bool) -> None:
        if level and not self.level:
            self.rises.append(self.now)
        self.level = level

    @property
    def now(self) -> int:
        return ticks_at(self.clock.now_ns())

    def go_to(self, tick: int) -> None:
        self.clock.advance(time_of_tick_ns(tick) - self.clock.now_ns())

    def step(self, ticks: int = 1) -> None:
        self.go_to(self.now + ticks)

    def program(self, control: int, count: int, n: int = 0) -> None:
        self.chip.write(3, n << 6 | control)
        self.count(control, count, n)

    def count(self, control: int, count: int, n: int = 0) -> None:
        if control & LSB:
            self.chip.write(n, count & 0xFF)
        if control & MSB:
            self.chip.write(n, count >> 8)

    def latch(self, n: int = 0) -> int:
        self.chip.write(3, n << 6)
        return self.chip.read(n) | self.chip.read(n) << 8

    def status(self, n: int = 0) -> int:
        self.chip.write(3, 0xE0 | 2 << n)
        return self.chip.read(n)

    def wave(self, ticks: int, n: int = 0) -> str:
        """OUT at each of the next CLK ticks: / while high, _ while low."""
        seen = ""
        for _ in range(ticks):
            self.step()
            seen += "/" if self.chip.out(n) else "_"
        return seen

    def counts(self, ticks: int, n: int = 0) -> list[int]:
        seen = []
        for _ in range(ticks):
            self.step()
            seen.append(self.chip.read(n))
        return seen
