"""Fault tolerance as two state machines without I/O: events in, instructions out.

A pair is a primary, which runs the guest, and a secondary, which has it as it was at the end of the
last complete epoch. The shells (`rayvisor.migration.ft_primary`, `ft_standby`) perform the
instructions; a model checker in the tests drives these same classes through every order of
crashes, delays, losses and repetitions.

The primary::

    SEEDING --first cut--> GUARDED --peer lost, disabled, ended--> DECIDING --primary--> ALONE
       |                      |                                     ^   |
       +--peer lost--> ALONE  +--switch over--> LEAVING --peer lost-+   +--else--> FENCED

The secondary::

    FILLING --first epoch--> STANDBY --peer lost, handed over--> CLAIMING --secondary--> RUNNING
       |                                                            |
       +--peer lost, primary--> DISCARDED <---- else ---------------+

Who goes on when the two lose sight of each other is written in one cell of the placement record
that can be written once: the pair's `Verdict`. Both sides try to write their own name and obey what
they find there; a secondary that has no epoch yet writes the other's. Three rules make that safe:

* From the instant of the first cut on, the primary releases output only up to the last cut that was
  acknowledged, until the cell says that it is the survivor. So an acknowledgement is the only
  permission to release, and whatever was released is known to the secondary: a primary that slept
  through its own replacement can do no harm when it wakes.
* The secondary acknowledges an epoch when it has all of it, and none any more once it has claimed.
* The secondary never runs before the cell names it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from rayvisor.migration.errors import IllegalPhaseError


class Verdict(StrEnum):
    """What the cell of a pair may say: who goes on with the VM."""

    PRIMARY = "primary"
    SECONDARY = "secondary"
    REMOVED = "removed"
    """Neither: the VM was removed."""


# --- Events ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Cut:
    """The guest stood still and a checkpoint of it was taken; with `last` it stays where it is."""

    last: bool = False


@dataclass(frozen=True, slots=True)
class Acked:
    """The secondary has the whole of an epoch."""

    epoch: int


@dataclass(frozen=True, slots=True)
class PeerLost:
    """The stream broke, or nothing has been heard for too long."""


@dataclass(frozen=True, slots=True)
class Dissolve:
    """The pair is to end with the primary going on: disabled, or the guest has ended."""


@dataclass(frozen=True, slots=True)
class Decided:
    """What the cell says."""

    verdict: Verdict


@dataclass(frozen=True, slots=True)
class EpochComplete:
    """All of an epoch has come; with `last` the primary stands still and hands over."""

    epoch: int
    last: bool = False


Event = Cut | Acked | PeerLost | Dissolve | Decided | EpochComplete


# --- Instructions ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hold:
    """Release no output that is written from this instant on."""


@dataclass(frozen=True, slots=True)
class Send:
    """Send the checkpoint that was just taken."""

    epoch: int
    last: bool = False


@dataclass(frozen=True, slots=True)
class Release:
    """Release the output up to the cut that ended this epoch."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Decide:
    """Write this verdict into the cell if it is empty, and bring what it says as `Decided`."""

    verdict: Verdict


@dataclass(frozen=True, slots=True)
class GoAlone:
    """Release everything, hold nothing any more, and let the guest run if it stands still."""


@dataclass(frozen=True, slots=True)
class Fence:
    """Stop the guest for good; what was held is never released."""


@dataclass(frozen=True, slots=True)
class Apply:
    """Take over the epoch's pages and output, then acknowledge it."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Run:
    """Bring the machine into the state of the last epoch that was applied, and run it."""


@dataclass(frozen=True, slots=True)
class Discard:
    """Give everything back: the VM goes on elsewhere."""


Instruction = Hold | Send | Release | Decide | GoAlone | Fence | Apply | Run | Discard
Instructions = tuple[Instruction, ...]
NOTHING: Final[Instructions] = ()


# --- The primary ----------------------------------------------------------------------------------


class PrimaryPhase(StrEnum):
    """Where the side that runs the guest stands."""

    SEEDING = "seeding"
    GUARDED = "guarded"
    LEAVING = "leaving"
    DECIDING = "deciding"
    ALONE = "alone"
    FENCED = "fenced"


@dataclass(frozen=True, slots=True)
class Primary:
    """The side that runs the guest. A value: `on` gives the next one.

    Attributes:
        cut: Checkpoints taken; the number of the last epoch.
        acked: The last epoch that the secondary is known to have.
    """

    phase: PrimaryPhase = PrimaryPhase.SEEDING
    cut: int = 0
    acked: int = 0

    @property
    def may_cut(self) -> bool:
        """Whether the next checkpoint may be taken: one epoch is under way at most."""
        return self.phase in {_P.SEEDING, _P.GUARDED} and self.cut == self.acked

    @property
    def over(self) -> bool:
        """Whether the pair has ended for this side."""
        return self.phase in {_P.ALONE, _P.FENCED}

    def on(self, event: Event) -> tuple[Primary, Instructions]:
        """What follows from an event.

        Raises:
            IllegalPhaseError: it cannot come now.
        """
        match event:
            case Cut(last):
                return self._on_cut(last=last)
            case Acked(epoch):
                return self._on_ack(epoch)
            case PeerLost() | Dissolve():
                return self._part()
            case Decided(verdict):
                return self._obey(verdict)
            case _:
                raise IllegalPhaseError(f"{event}: not for a primary")

    def _on_cut(self, *, last: bool) -> tuple[Primary, Instructions]:
        if not self.may_cut or (last and self.phase is not _P.GUARDED):
            raise IllegalPhaseError(f"cut: {self.phase} after {self.acked} of {self.cut}")
        epoch = self.cut + 1
        phase = _P.LEAVING if last else _P.GUARDED
        hold = (Hold(),) if self.phase is _P.SEEDING else NOTHING
        return replace(self, phase=phase, cut=epoch), (*hold, Send(epoch, last))

    def _on_ack(self, epoch: int) -> tuple[Primary, Instructions]:
        if self.over:
            return self, NOTHING
        if epoch != self.acked + 1 or epoch > self.cut:
            raise IllegalPhaseError(f"epoch {epoch} acknowledged after {self.acked} of {self.cut}")
        return replace(self, acked=epoch), (Release(epoch),)

    def _part(self) -> tuple[Primary, Instructions]:
        if self.phase is _P.SEEDING:
            return replace(self, phase=_P.ALONE), (GoAlone(),)
        if self.phase in {_P.GUARDED, _P.LEAVING}:
            return replace(self, phase=_P.DECIDING), (Decide(Verdict.PRIMARY),)
        return self, NOTHING

    def _obey(self, verdict: Verdict) -> tuple[Primary, Instructions]:
        if self.phase is not _P.DECIDING:
            return self, NOTHING  # said again
        if verdict is Verdict.PRIMARY:
            return replace(self, phase=_P.ALONE), (GoAlone(),)
        return replace(self, phase=_P.FENCED), (Fence(),)


_P = PrimaryPhase


# --- The secondary --------------------------------------------------------------------------------


class SecondaryPhase(StrEnum):
    """Where the side that stands by is."""

    FILLING = "filling"
    STANDBY = "standby"
    CLAIMING = "claiming"
    RUNNING = "running"
    DISCARDED = "discarded"


@dataclass(frozen=True, slots=True)
class Secondary:
    """The side that stands by. A value: `on` gives the next one.

    Attributes:
        epoch: The last epoch that was applied.
    """

    phase: SecondaryPhase = SecondaryPhase.FILLING
    epoch: int = 0

    @property
    def listens(self) -> bool:
        """Whether what the primary sends still counts."""
        return self.phase in {_S.FILLING, _S.STANDBY}

    def on(self, event: Event) -> tuple[Secondary, Instructions]:
        """What follows from an event.

        Raises:
            IllegalPhaseError: it cannot come now.
        """
        match event:
            case EpochComplete(epoch, last):
                return self._take(epoch, last=last)
            case PeerLost():
                return self._claim()
            case Decided(verdict):
                return self._obey(verdict)
            case _:
                raise IllegalPhaseError(f"{event}: not for a secondary")

    def _take(self, epoch: int, *, last: bool) -> tuple[Secondary, Instructions]:
        if not self.listens:
            return self, NOTHING
        if epoch != self.epoch + 1:
            raise IllegalPhaseError(f"epoch {epoch} after {self.epoch}")
        taken = replace(self, phase=_S.STANDBY, epoch=epoch)
        if not last:
            return taken, (Apply(epoch),)
        claiming, instructions = taken.on(PeerLost())
        return claiming, (Apply(epoch), *instructions)

    def _claim(self) -> tuple[Secondary, Instructions]:
        if self.phase is _S.FILLING:
            # Said, so that nobody waits for what this side might do.
            return replace(self, phase=_S.DISCARDED), (Decide(Verdict.PRIMARY), Discard())
        if self.phase is _S.STANDBY:
            return replace(self, phase=_S.CLAIMING), (Decide(Verdict.SECONDARY),)
        return self, NOTHING

    def _obey(self, verdict: Verdict) -> tuple[Secondary, Instructions]:
        if self.phase is not _S.CLAIMING:
            return self, NOTHING  # said again
        if verdict is Verdict.SECONDARY:
            return replace(self, phase=_S.RUNNING), (Run(),)
        return replace(self, phase=_S.DISCARDED), (Discard(),)


_S = SecondaryPhase
