"""The phases of a migration, for each side, and the order they must come in.

The source::

    IDLE --> GREETING --> PRECOPY --> STOPPED --> HANDOVER --> MOVED
                 |           |           |            |
                 +-----------+-----------+--> KEPT <--+
                                                      |
                                                      +--> POSTCOPY --> MOVED or LOST

The destination::

    WAITING --> RECEIVING --> READY --> CLAIMING --> RUNNING --> DONE
       |            |           |           |                     |
       +------------+-----------+-----------+--> DISCARDED        |
                                            |                     |
                                            +--> FILLING ---------+
                                                    +--> LOST

Until HANDOVER nothing but the source can run the VM: whatever goes wrong ends in KEPT, where the
guest runs on. Entering HANDOVER is sending COMMIT: from there on the placement record decides.
The destination (CLAIMING) asks it for the VM and runs only if it gets it. A source that hears
nothing asks for it back, and either gets it, with a token that makes a late claim fail (KEPT), or
is told that the destination has it (MOVED). It gets it back from a destination that has died, too:
a guest that ran there for an instant, unheard, goes on from where it stood still. So there are
never two, and, as neither side gives the VM up before the record has spoken, never none.

With post-copy the guest runs at the destination while pages are missing there (FILLING), and the
source stays until the last has gone (POSTCOPY). If one of them, or the line, is lost meanwhile, so
is the VM (LOST): see rayvisor.migration.postcopy.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, Generic, TypeVar

from rayvisor.migration.errors import IllegalPhaseError


class SourcePhase(StrEnum):
    """Where the side that has the VM stands."""

    IDLE = "idle"
    GREETING = "greeting"
    PRECOPY = "precopy"
    STOPPED = "stopped"
    HANDOVER = "handover"
    POSTCOPY = "postcopy"
    LOST = "lost"
    MOVED = "moved"
    KEPT = "kept"


class DestinationPhase(StrEnum):
    """Where the side that gets the VM stands."""

    WAITING = "waiting"
    RECEIVING = "receiving"
    READY = "ready"
    CLAIMING = "claiming"
    RUNNING = "running"
    FILLING = "filling"
    LOST = "lost"
    DONE = "done"
    DISCARDED = "discarded"


P = TypeVar("P", bound=StrEnum)


class Phases(Generic[P]):
    """A place in an order of phases. Knows no I/O."""

    def __init__(self, order: dict[P, frozenset[P]], first: P) -> None:
        self._order = order
        self._now = first

    @property
    def now(self) -> P:
        """The current phase."""
        return self._now

    def enter(self, phase: P) -> None:
        """Go on to `phase`.

        Raises:
            IllegalPhaseError: it does not follow the current one; nothing has changed.
        """
        if phase not in self._order[self._now]:
            raise IllegalPhaseError(f"{phase} does not follow {self._now}")
        self._now = phase

    def require(self, *allowed: P) -> None:
        """Raise IllegalPhaseError unless the current phase is one of these."""
        if self._now not in allowed:
            raise IllegalPhaseError(f"{self._now}: only in {' or '.join(allowed)}")


_S, _D = SourcePhase, DestinationPhase

_SOURCE: Final[dict[SourcePhase, frozenset[SourcePhase]]] = {
    _S.IDLE: frozenset({_S.GREETING, _S.KEPT}),
    _S.GREETING: frozenset({_S.PRECOPY, _S.KEPT}),
    _S.PRECOPY: frozenset({_S.STOPPED, _S.KEPT}),
    _S.STOPPED: frozenset({_S.HANDOVER, _S.KEPT}),
    _S.HANDOVER: frozenset({_S.MOVED, _S.POSTCOPY, _S.KEPT}),
    _S.POSTCOPY: frozenset({_S.MOVED, _S.LOST}),
    _S.LOST: frozenset(),
    _S.MOVED: frozenset(),
    _S.KEPT: frozenset(),
}

_DESTINATION: Final[dict[DestinationPhase, frozenset[DestinationPhase]]] = {
    _D.WAITING: frozenset({_D.RECEIVING, _D.DISCARDED}),
    _D.RECEIVING: frozenset({_D.READY, _D.DISCARDED}),
    _D.READY: frozenset({_D.CLAIMING, _D.DISCARDED}),
    _D.CLAIMING: frozenset({_D.RUNNING, _D.FILLING, _D.DISCARDED}),
    _D.FILLING: frozenset({_D.DONE, _D.LOST}),
    _D.LOST: frozenset(),
    _D.RUNNING: frozenset({_D.DONE}),
    _D.DONE: frozenset(),
    _D.DISCARDED: frozenset(),
}


def source_phases() -> Phases[SourcePhase]:
    """The source's phases, from the beginning."""
    return Phases(_SOURCE, SourcePhase.IDLE)


def destination_phases() -> Phases[DestinationPhase]:
    """The destination's phases, from the beginning."""
    return Phases(_DESTINATION, DestinationPhase.WAITING)
