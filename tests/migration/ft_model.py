"""Every order of events of the fault tolerance protocol, over the classes that the product runs.

A world is a few processes, the pairs among them and what is under way between them. Guests are
lists of outputs: each output has a name of its own, so that two runs of the same epoch differ.
`explore` visits every world that can be reached, breadth first, with bounds on how often the guest
writes, on checkpoints, on crashes and on breaks; a frozen process is one that nothing happens to.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from rayvisor.migration import ft_protocol as ft
from rayvisor.migration.ft_protocol import (
    Primary,
    PrimaryPhase,
    Secondary,
    SecondaryPhase,
    Verdict,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

History = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much may happen in one run."""

    writes: int = 4
    cuts: int = 2
    crashes: int = 1
    breaks: int = 1
    switches: int = 1
    pairs: int = 2
    removals: int = 0


class Proc(NamedTuple):
    """One process. It has authority when its output goes out as it is written."""

    alive: bool = True
    role: Primary | Secondary | None = None
    pair: int = -1
    history: History = ()
    released: int = 0
    authority: bool = False
    still: bool = True
    """The guest does not run here."""
    cuts: tuple[int, ...] = ()
    """Length of the history at each cut of this pair."""


class Pair(NamedTuple):
    """One pair: its cell, what was written towards it, and its stream."""

    primary: int
    secondary: int
    cell: Verdict | None = None
    asked: frozenset[Verdict] = frozenset()
    down: tuple[tuple[int, History, bool], ...] = ()
    up: tuple[int, ...] = ()
    connected: bool = True


class World(NamedTuple):
    """Everything."""

    procs: tuple[Proc, ...]
    pairs: tuple[Pair, ...]
    writes: int = 0
    crashes: int = 0
    breaks: int = 0
    switches: int = 0
    removed: bool = False


class Step(NamedTuple):
    """An action, and the world after it. A failure need not happen; all else must some day."""

    name: str
    world: World
    failure: bool = False


def beginning(procs: int) -> World:
    """The first process has the VM, unprotected."""
    owner = Proc(authority=True, still=False)
    return World((owner, *(Proc() for _ in range(procs - 1))), ())


def _with_proc(world: World, number: int, proc: Proc) -> World:
    procs = list(world.procs)
    procs[number] = proc
    return world._replace(procs=tuple(procs))


def _with_pair(world: World, number: int, pair: Pair) -> World:
    pairs = list(world.pairs)
    pairs[number] = pair
    return world._replace(pairs=tuple(pairs))


def _tell(world: World, number: int, event: ft.Event, arrived: History = ()) -> World:
    """Give an event to a process and perform what it answers. `arrived`: an epoch's content."""
    proc = world.procs[number]
    assert proc.role is not None
    role, instructions = proc.role.on(event)
    world = _with_proc(world, number, proc._replace(role=role))
    for instruction in instructions:
        world = _perform(world, number, instruction, arrived)
    return world


def _perform(world: World, number: int, do: ft.Instruction, arrived: History) -> World:
    proc = world.procs[number]
    pair = world.pairs[proc.pair]
    match do:
        case ft.Hold():
            return _with_proc(world, number, proc._replace(authority=False))
        case ft.Send(epoch, last):
            proc = proc._replace(cuts=(*proc.cuts, len(proc.history)), still=last)
            if pair.connected:
                sent = (*pair.down, (epoch, proc.history, last))
                world = _with_pair(world, proc.pair, pair._replace(down=sent))
            return _with_proc(world, number, proc)
        case ft.Release(epoch):
            return _with_proc(
                world, number, proc._replace(released=max(proc.released, proc.cuts[epoch - 1]))
            )
        case ft.Decide(verdict):
            asked = pair.asked | {verdict}
            return _with_pair(world, proc.pair, pair._replace(asked=asked))
        case ft.GoAlone():
            free = proc._replace(
                released=len(proc.history), authority=True, still=False, role=None, cuts=()
            )
            return _with_proc(world, number, free)
        case ft.Apply(epoch):
            if pair.connected:
                world = _with_pair(world, proc.pair, pair._replace(up=(*pair.up, epoch)))
            return _with_proc(world, number, proc._replace(history=arrived))
        case ft.Run():
            free = proc._replace(
                released=len(proc.history), authority=True, still=False, role=None, cuts=()
            )
            return _with_proc(world, number, free)
        case ft.Fence() | ft.Discard():
            return _with_proc(
                world, number, proc._replace(alive=False, authority=False, still=True)
            )
    raise AssertionError(do)


@dataclass
class Model:
    """The steps that may follow."""

    bounds: Bounds
    primary: Primary = field(default_factory=Primary)
    secondary: Secondary = field(default_factory=Secondary)

    def steps(self, world: World) -> Iterator[Step]:
        """Everything that may happen next."""
        for number, proc in enumerate(world.procs):
            if proc.alive:
                yield from self._of_proc(world, number, proc)
        for number, pair in enumerate(world.pairs):
            yield from self._of_pair(world, number, pair)

    def _of_proc(self, world: World, number: int, proc: Proc) -> Iterator[Step]:
        bounds = self.bounds
        if not proc.still and world.writes < bounds.writes:
            history = (*proc.history, f"{number}:{world.writes}")
            released = len(history) if proc.authority else proc.released
            wrote = proc._replace(history=history, released=released)
            yield Step(
                f"{number} writes",
                _with_proc(world._replace(writes=world.writes + 1), number, wrote),
            )
        if world.crashes < bounds.crashes:
            dead = proc._replace(alive=False, authority=False, still=True)
            after = _with_proc(world._replace(crashes=world.crashes + 1), number, dead)
            yield Step(f"{number} crashes", after, failure=True)
        role = proc.role
        if isinstance(role, Primary):
            yield from self._of_primary(world, number, role)
        elif isinstance(role, Secondary):
            yield from self._of_secondary(world, number, role)
        elif proc.authority and len(world.pairs) < bounds.pairs:
            for other, spare in enumerate(world.procs):
                if spare.alive and spare.role is None and not spare.authority:
                    after = self._protect(world, number, other)
                    yield Step(f"{number} is protected by {other}", after)

    def _protect(self, world: World, owner: int, spare: int) -> World:
        new = len(world.pairs)
        world = world._replace(pairs=(*world.pairs, Pair(owner, spare)))
        world = _with_proc(
            world, owner, world.procs[owner]._replace(role=self.primary, pair=new, cuts=())
        )
        return _with_proc(world, spare, Proc(role=self.secondary, pair=new))

    def _of_primary(self, world: World, number: int, role: Primary) -> Iterator[Step]:
        pair = world.pairs[world.procs[number].pair]
        if role.may_cut and role.cut < self.bounds.cuts:
            yield Step(f"{number} cuts", _tell(world, number, ft.Cut()))
        if (
            role.may_cut
            and role.phase is PrimaryPhase.GUARDED
            and world.switches < self.bounds.switches
        ):
            leaving = world._replace(switches=world.switches + 1)
            after = _tell(leaving, number, ft.Cut(last=True))
            yield Step(f"{number} hands over", after, failure=True)
        if role.phase in {PrimaryPhase.SEEDING, PrimaryPhase.GUARDED, PrimaryPhase.LEAVING}:
            silent = not pair.connected or not world.procs[pair.secondary].alive
            if silent or world.breaks < self.bounds.breaks:
                after = world if silent else world._replace(breaks=world.breaks + 1)
                yield Step(
                    f"{number} loses sight of its secondary",
                    _tell(after, number, ft.PeerLost()),
                    failure=not silent,
                )
        if role.phase is PrimaryPhase.DECIDING and pair.cell is not None:
            yield Step(f"{number} learns", _tell(world, number, ft.Decided(pair.cell)))

    def _of_secondary(self, world: World, number: int, role: Secondary) -> Iterator[Step]:
        pair = world.pairs[world.procs[number].pair]
        if role.listens:
            peer = world.procs[pair.primary]
            gone = not peer.alive or not isinstance(peer.role, Primary)
            silent = (not pair.connected or gone) and not pair.down
            if silent or world.breaks < self.bounds.breaks:
                after = world if silent else world._replace(breaks=world.breaks + 1)
                yield Step(
                    f"{number} loses sight of its primary",
                    _tell(after, number, ft.PeerLost()),
                    failure=not silent,
                )
        if role.phase is SecondaryPhase.CLAIMING and pair.cell is not None:
            yield Step(f"{number} learns", _tell(world, number, ft.Decided(pair.cell)))

    def _of_pair(self, world: World, number: int, pair: Pair) -> Iterator[Step]:
        if pair.down:
            (epoch, history, last), *rest = pair.down
            after = _with_pair(world, number, pair._replace(down=tuple(rest)))
            peer = world.procs[pair.secondary]
            if peer.alive and peer.pair == number and isinstance(peer.role, Secondary):
                event = ft.EpochComplete(epoch, last)
                after = _tell(after, pair.secondary, event, history)
            yield Step(f"epoch {epoch} arrives at {pair.secondary}", after)
        if pair.up:
            epoch, *acks = pair.up
            after = _with_pair(world, number, pair._replace(up=tuple(acks)))
            peer = world.procs[pair.primary]
            if peer.alive and peer.pair == number and isinstance(peer.role, Primary):
                after = _tell(after, pair.primary, ft.Acked(epoch))
            yield Step(f"ack {epoch} arrives at {pair.primary}", after)
        if pair.connected and world.breaks < self.bounds.breaks:
            cut = pair._replace(connected=False, down=(), up=())
            after = _with_pair(world._replace(breaks=world.breaks + 1), number, cut)
            yield Step(f"the stream of pair {number} breaks", after, failure=True)
        if pair.cell is None:
            for verdict in sorted(pair.asked):
                # Perhaps late, perhaps long after who asked has died.
                written = _with_pair(world, number, pair._replace(cell=verdict))
                yield Step(f"the cell of pair {number} is {verdict}", written)
            if self.bounds.removals and not world.removed:
                gone = _with_pair(world, number, pair._replace(cell=Verdict.REMOVED))
                yield Step("the VM is removed", gone._replace(removed=True), failure=True)


def explore(model: Model, start: World) -> dict[World, tuple[World | None, str]]:
    """Every world that can be reached, with how it was reached first."""
    seen: dict[World, tuple[World | None, str]] = {start: (None, "")}
    todo = deque([start])
    while todo:
        world = todo.popleft()
        for step in model.steps(world):
            if step.world not in seen:
                seen[step.world] = (world, step.name)
                todo.append(step.world)
    return seen


def story(seen: dict[World, tuple[World | None, str]], world: World) -> str:
    """How a world came about, for a person."""
    names: list[str] = []
    now: World | None = world
    while now is not None:
        now, name = seen[now]
        names.append(name)
    return " / ".join(reversed(names)) + f" -> {world}"
