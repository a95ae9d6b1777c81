"""What made the guest leave the translator: how often, from where, and lately."""

from __future__ import annotations

from dataclasses import dataclass, field

RECENT_EXITS = 64

ExitSite = tuple[str, int, int, int]
"""An instruction that exits: (kind, detail, rip, count)."""

RecentExit = tuple[str, int, int]
"""One of the last exits: (kind, detail, rip)."""


@dataclass(frozen=True, slots=True)
class ExitCensus:
    """Exits since power-on.

    The detail of an exit is the port, exception or interrupt vector, CPUID leaf or guest
    physical address, as its kind has it; its rip is the linear address of the instruction.

    Attributes:
        counts: exits by kind: "io_in", "io_out", "mmio", "cpuid", "hlt", "syscall",
            "sysenter", "exception", "interrupt", "stop" and whatever else the core names.
        sites: the instructions they came from, in no particular order. The core keeps a
            bounded number, so their counts may add up to less than `counts`.
        recent: the last exits, at most `RECENT_EXITS`, oldest first.
    """

    counts: dict[str, int] = field(default_factory=dict)
    sites: list[ExitSite] = field(default_factory=list)
    recent: list[RecentExit] = field(default_factory=list)

    @property
    def total(self) -> int:
        """All exits."""
        return sum(self.counts.values())
