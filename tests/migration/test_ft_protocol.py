"""The invariants of fault tolerance, in every world that can be reached."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from rayvisor.migration import ft_protocol as ft
from rayvisor.migration.errors import IllegalPhaseError
from rayvisor.migration.ft_protocol import (
    Primary,
    PrimaryPhase,
    Secondary,
    SecondaryPhase,
    Verdict,
)
from tests.migration.ft_model import Bounds, Model, Proc, World, beginning, explore, story

if TYPE_CHECKING:
    from collections.abc import Iterator

# Each looks at what others leave out; together they stay a matter of seconds.
SCOPES = {
    "two crashes": (2, Bounds(writes=3, cuts=2, crashes=2, breaks=1, switches=0, pairs=1)),
    "breaks": (2, Bounds(writes=3, cuts=3, crashes=0, breaks=3, switches=0, pairs=1)),
    "switch-over": (2, Bounds(writes=3, cuts=2, crashes=1, breaks=1, switches=1, pairs=1)),
    "removal": (2, Bounds(writes=2, cuts=2, crashes=1, breaks=1, switches=1, pairs=1, removals=1)),
    "protected again": (3, Bounds(writes=3, cuts=1, crashes=1, breaks=1, switches=0, pairs=2)),
}
LARGE_SCOPES = {
    "one pair": (2, Bounds(writes=4, cuts=3, crashes=2, breaks=2, switches=1, pairs=1)),
    "two pairs": (3, Bounds(writes=2, cuts=2, crashes=1, breaks=1, switches=0, pairs=2)),
    "two crashes, two pairs": (
        3,
        Bounds(writes=2, cuts=1, crashes=2, breaks=1, switches=1, pairs=2),
    ),
}


def released(proc: Proc) -> tuple[str, ...]:
    return proc.history[: proc.released]


def at_most_one_releases(world: World) -> bool:
    return sum(proc.alive and proc.authority for proc in world.procs) <= 1


def nothing_released_is_unknown_to_the_survivor(world: World) -> bool:
    """Who has authority knows, byte for byte, all that anybody ever released."""
    return all(
        survivor.history[: other.released] == released(other)
        for survivor in world.procs
        if survivor.alive and survivor.authority
        for other in world.procs
    )


def what_clients_saw_never_forks(world: World) -> bool:
    """Whatever two processes have released, one is the beginning of the other."""
    shown = sorted((released(proc) for proc in world.procs), key=len)
    return all(long[: len(short)] == short for short, long in pairwise(shown))


class Settling:
    """The world once failures have stopped and nothing is under way any more."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._known: dict[World, World] = {}

    def of(self, world: World) -> World:
        passed = []
        while world not in self._known:
            passed.append(world)
            follows = self._next(world)
            if follows is None:
                self._known[world] = world
            else:
                world = follows
        end = self._known[world]
        self._known.update(dict.fromkeys(passed, end))
        return end

    def _next(self, world: World) -> World | None:
        for step in self._model.steps(world):
            idle = step.name.endswith(("writes", "cuts")) or "is protected by" in step.name
            if not step.failure and not idle and step.world != world:
                return step.world
        return None


def somebody_goes_on(world: World) -> bool:
    """After failures have stopped: a guest runs, or whoever had the right to run it has crashed."""
    if world.removed or any(proc.alive and not proc.still for proc in world.procs):
        return True
    if world.pairs and world.pairs[-1].cell is not None:
        pair = world.pairs[-1]
        winner = pair.primary if pair.cell is Verdict.PRIMARY else pair.secondary
        return not world.procs[winner].alive
    # Nobody was protected when the owner crashed, or both of a pair have crashed.
    return not any(p.alive and isinstance(p.role, Primary | Secondary) for p in world.procs)


SAFETY = (
    at_most_one_releases,
    nothing_released_is_unknown_to_the_survivor,
    what_clients_saw_never_forks,
)


def violations(model: Model, procs: int) -> Iterator[tuple[str, str]]:
    """(invariant, how it came to be broken)."""
    seen = explore(model, beginning(procs))
    assert len(seen) > 500
    settling = Settling(model)
    for world in seen:
        for invariant in SAFETY:
            if not invariant(world):
                yield invariant.__name__, story(seen, world)
        if not somebody_goes_on(settling.of(world)):
            yield "progress", story(seen, world)


@pytest.mark.parametrize("scope", SCOPES)
def test_the_invariants_hold_in_every_world(scope: str) -> None:
    procs, bounds = SCOPES[scope]
    assert next(violations(Model(bounds), procs), None) is None


@pytest.mark.slow
@pytest.mark.parametrize("scope", LARGE_SCOPES)
def test_the_invariants_hold_in_many_more_worlds(scope: str) -> None:
    procs, bounds = LARGE_SCOPES[scope]
    assert next(violations(Model(bounds), procs), None) is None


class Hasty(Primary):
    """Goes on alone without asking."""

    def on(self, event: ft.Event) -> tuple[Primary, ft.Instructions]:
        if isinstance(event, ft.PeerLost) and self.phase is PrimaryPhase.GUARDED:
            return replace(self, phase=PrimaryPhase.ALONE), (ft.GoAlone(),)
        return super().on(event)


class Talkative(Primary):
    """Does not hold its output back."""

    def on(self, event: ft.Event) -> tuple[Primary, ft.Instructions]:
        role, instructions = super().on(event)
        return role, tuple(i for i in instructions if not isinstance(i, ft.Hold))


class Stubborn(Primary):
    """Releases what it held although the cell names the other."""

    def on(self, event: ft.Event) -> tuple[Primary, ft.Instructions]:
        if isinstance(event, ft.Decided):
            event = ft.Decided(Verdict.PRIMARY)
        return super().on(event)


class Deaf(Primary):
    """Never notices that its secondary is gone."""

    def on(self, event: ft.Event) -> tuple[Primary, ft.Instructions]:
        if isinstance(event, ft.PeerLost) and self.phase is PrimaryPhase.LEAVING:
            return self, ft.NOTHING
        return super().on(event)


class Usurper(Secondary):
    """Runs without asking."""

    def on(self, event: ft.Event) -> tuple[Secondary, ft.Instructions]:
        if isinstance(event, ft.PeerLost) and self.phase is SecondaryPhase.STANDBY:
            return replace(self, phase=SecondaryPhase.RUNNING), (ft.Run(),)
        return super().on(event)


class Premature(Secondary):
    """Claims before it has an epoch."""

    def on(self, event: ft.Event) -> tuple[Secondary, ft.Instructions]:
        if isinstance(event, ft.PeerLost) and self.phase is SecondaryPhase.FILLING:
            claiming = replace(self, phase=SecondaryPhase.CLAIMING)
            return claiming, (ft.Decide(Verdict.SECONDARY),)
        return super().on(event)


@pytest.mark.parametrize(
    ("primary", "secondary", "broken"),
    [
        (Hasty(), Secondary(), "at_most_one_releases"),
        (Talkative(), Secondary(), "at_most_one_releases"),
        (Stubborn(), Secondary(), "at_most_one_releases"),
        (Deaf(), Secondary(), "progress"),
        (Primary(), Usurper(), "at_most_one_releases"),
        (Primary(), Premature(), "nothing_released_is_unknown_to_the_survivor"),
    ],
)
def test_a_protocol_that_errs_is_caught(
    primary: Primary, secondary: Secondary, broken: str
) -> None:
    bounds = Bounds(writes=2, cuts=2, crashes=1, breaks=2, switches=1, pairs=1)
    found = {name for name, _ in violations(Model(bounds, primary, secondary), 2)}
    assert broken in found


@pytest.mark.parametrize(
    ("role", "event"),
    [
        (Primary(), ft.EpochComplete(1)),
        (Primary(), ft.Acked(1)),
        (Primary(), ft.Cut(last=True)),
        (Primary(PrimaryPhase.GUARDED, cut=2, acked=1), ft.Cut()),
        (Primary(PrimaryPhase.GUARDED, cut=2, acked=1), ft.Acked(1)),
        (Secondary(), ft.Cut()),
        (Secondary(SecondaryPhase.STANDBY, epoch=3), ft.EpochComplete(5)),
    ],
)
def test_what_cannot_come_is_refused(role: Primary | Secondary, event: ft.Event) -> None:
    with pytest.raises(IllegalPhaseError):
        role.on(event)


def test_what_is_said_twice_changes_nothing() -> None:
    for verdict in Verdict:
        for role in (Primary(PrimaryPhase.ALONE), Primary(PrimaryPhase.FENCED)):
            assert role.on(ft.Decided(verdict)) == (role, ())
        running = Secondary(SecondaryPhase.RUNNING, epoch=1)
        assert running.on(ft.Decided(verdict)) == (running, ())
        assert running.on(ft.EpochComplete(2)) == (running, ())


def test_a_secondary_without_an_epoch_says_that_it_will_not_go_on() -> None:
    secondary, told = Secondary().on(ft.PeerLost())
    assert told == (ft.Decide(Verdict.PRIMARY), ft.Discard())
    assert secondary.on(ft.Decided(Verdict.PRIMARY)) == (secondary, ft.NOTHING)
