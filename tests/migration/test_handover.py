"""Whatever dies, at whichever frame: exactly one copy runs, and the VM is never lost."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from rayvisor.migration import frames
from rayvisor.migration.arrival import Arrival
from rayvisor.migration.config import MigrationConfig
from rayvisor.migration.errors import MigrationFailedError, UndecidedError
from rayvisor.migration.phases import DestinationPhase, SourcePhase
from rayvisor.migration.precopy import Migration
from rayvisor.vmm.errors import MigrationError
from tests.migration.fakes import BreakingTransport, FakeDestination, FakeSource, Record, cut

if TYPE_CHECKING:
    from collections.abc import Callable

CONFIG = MigrationConfig(
    stop_timeout_s=0.5, reply_timeout_s=0.5, settle_timeout_s=0.3, frames_in_flight=1
)


@dataclass(slots=True)
class World:
    """Both sides and the record, before anything has happened."""

    source: FakeSource
    destination: FakeDestination
    record: Record
    arrival: Arrival

    def running(self) -> list[str]:
        source, destination = self.source, self.destination
        found = ["source"] if source.running and source.alive else []
        return found + (["destination"] if destination.running and destination.alive else [])

    def migration(self, transport: BreakingTransport) -> Migration:
        return Migration(self.source, transport, self.record, token=1, config=CONFIG)


def world() -> World:
    source, destination = FakeSource(), FakeDestination()
    source.console = b"login: "
    for page in range(3, 200):
        source.write(page, bytes([page]) * 100)
    writes = iter(range(3))
    source.before_harvest = lambda: source.write(7, bytes([next(writes, 0)]))
    record = Record(lambda: destination.alive)
    return World(source, destination, record, Arrival(destination, record, pause_s=lambda _: None))


def undisturbed() -> list[str]:
    """The kinds of the frames that a migration of `world` sends."""
    w = world()
    transport = BreakingTransport(w.arrival)
    w.migration(transport).run()
    return [frames.decode(f, i).KIND for i, f in enumerate(transport.frames)]


KINDS = undisturbed()
STEPS = [pytest.param(i, id=f"{i}-{kind}") for i, kind in enumerate(KINDS)]
COMMIT, DONE = KINDS.index("commit"), KINDS.index("done")


def test_the_script_has_every_kind_of_frame() -> None:
    assert set(KINDS) >= {"hello", "pages", "round", "console", "state", "commit", "done"}
    assert KINDS[-2:] == ["commit", "done"]


def migrate(w: World, transport: BreakingTransport) -> str:
    """The outcome."""
    migration = w.migration(transport)
    try:
        outcome = migration.run().outcome
    except MigrationFailedError as error:
        outcome = error.report.outcome
        assert migration.phase is SourcePhase.KEPT
        assert not w.source.log_on
        assert w.source.shares[-1] == 0
    transport.close()
    return outcome


def then_cut(step: Callable[[], None]) -> Callable[[], None]:
    def both() -> None:
        step()
        cut()

    return both


@pytest.mark.parametrize("at", STEPS)
def test_the_line_is_cut_before_a_frame(at: int) -> None:
    w = world()
    outcome = migrate(w, BreakingTransport(w.arrival, at, before=cut))
    assert w.running() == ["source" if at <= COMMIT else "destination"]
    assert outcome == ("failed" if at <= COMMIT else "moved")
    assert w.record.owner == w.running()[0]


@pytest.mark.parametrize("at", STEPS)
def test_the_line_is_cut_after_a_frame(at: int) -> None:
    w = world()
    outcome = migrate(w, BreakingTransport(w.arrival, at, after=cut))
    assert w.running() == ["source" if at < COMMIT else "destination"]
    assert outcome == ("failed" if at < COMMIT else "moved")
    assert w.record.owner == w.running()[0]


@pytest.mark.parametrize("at", STEPS[:DONE])
@pytest.mark.parametrize("when", ["before", "after"])
def test_the_destination_is_killed_at_a_frame(at: int, when: str) -> None:
    w = world()
    kill = then_cut(w.destination.die)
    transport = BreakingTransport(
        w.arrival,
        at,
        **{when: kill},  # type: ignore[arg-type]
    )
    assert migrate(w, transport) == "failed"
    assert w.running() == ["source"]
    assert w.record.owner == "source"


@pytest.mark.parametrize("at", STEPS)
def test_a_frame_is_damaged_on_the_way(at: int) -> None:
    w = world()

    def damage(frame: bytes) -> bytes:
        return frame[:-1] + bytes([frame[-1] ^ 0x10])

    outcome = migrate(w, BreakingTransport(w.arrival, at, change=damage))
    assert w.running() == ["source" if at <= COMMIT else "destination"]
    assert outcome == ("failed" if at <= COMMIT else "moved")


@pytest.mark.parametrize("at", STEPS)
def test_a_frame_is_lost(at: int) -> None:
    w = world()
    lost = []

    def swallow(frame: bytes) -> bytes:
        lost.append(frame)
        return b""

    migrate(w, BreakingTransport(w.arrival, at, change=swallow))
    assert lost
    assert w.running() == ["source" if at <= COMMIT else "destination"]


@pytest.mark.parametrize("at", STEPS)
def test_the_source_is_killed_at_a_frame(at: int) -> None:
    """The destination alone must come to the right end: it runs if and only if it got COMMIT."""
    w = world()
    transport = BreakingTransport(w.arrival, at, after=cut)
    # A killed source does nothing more: in particular it does not ask for the VM back.
    w.record.take_back = lambda *_, **__: pytest.fail("dead")  # type: ignore[method-assign]
    w.source.resume = lambda: None  # type: ignore[method-assign]
    w.source.alive = False
    with contextlib.suppress(MigrationError, pytest.fail.Exception):
        w.migration(transport).run()
    transport.close()
    if at >= COMMIT:
        assert w.running() == ["destination"]
        assert w.arrival.phase is DestinationPhase.DONE
    else:
        assert w.running() == []
        assert w.destination.discarded
        assert w.record.owner == "source"


def test_a_late_commit_fails_once_the_source_has_taken_the_vm_back() -> None:
    """The destination is so slow to claim that the source has gone on."""
    w = world()

    def slow() -> None:
        deadline = time.monotonic() + 10
        while not w.source.running and time.monotonic() < deadline:
            time.sleep(0.01)

    outcome = migrate(w, BreakingTransport(w.arrival, COMMIT, before=slow))
    assert outcome == "failed"
    assert w.running() == ["source"]
    assert w.arrival.phase is DestinationPhase.DISCARDED


def test_a_lost_answer_of_the_record_is_asked_for_again() -> None:
    w = world()
    commit, answers = w.record.commit, []

    def lossy(vm: str, token: int) -> int:
        answers.append(commit(vm, token))
        if len(answers) < 3:
            raise ConnectionError("the answer is lost")
        return answers[-1]

    w.record.commit = lossy  # type: ignore[method-assign]
    assert migrate(w, BreakingTransport(w.arrival)) == "moved"
    assert answers == [2, 2, 2]
    assert w.running() == ["destination"]


def test_a_silent_record_leaves_the_vm_paused_until_it_speaks() -> None:
    w = world()

    def silence() -> None:
        w.record.silent = True
        cut()

    transport = BreakingTransport(w.arrival, COMMIT, before=silence)
    migration = w.migration(transport)
    with pytest.raises(UndecidedError, match="paused at here"):
        migration.run()
    assert w.running() == []
    w.record.silent = False
    with pytest.raises(MigrationFailedError, match="stays at here"):
        migration.settle()
    assert w.running() == ["source"]


def test_a_destination_whose_claim_is_never_answered_must_end() -> None:
    w = world()
    w.arrival = Arrival(w.destination, w.record, claim_timeout_s=0.05)

    def silent(vm: str, token: int) -> int:
        raise ConnectionError(f"no answer about {vm} and {token}")

    w.record.commit = silent  # type: ignore[method-assign]
    assert migrate(w, BreakingTransport(w.arrival)) == "failed"
    assert w.arrival.must_end
    assert w.running() == ["source"]


def test_a_destination_that_owns_the_vm_and_cannot_run_it_must_end() -> None:
    w = world()
    w.destination.refuse_to_run = True
    assert migrate(w, BreakingTransport(w.arrival)) == "failed"
    assert w.arrival.must_end
    assert w.running() == ["source"]
    assert w.record.owner == "source"


def test_what_such_a_destination_says_last_may_be_lost() -> None:
    """The record then gives the VM back because the destination's process has ended."""
    w = world()
    w.destination.refuse_to_run = True
    kill = then_cut(w.destination.die)
    assert migrate(w, BreakingTransport(w.arrival, COMMIT, after=kill)) == "failed"
    assert w.running() == ["source"]
    assert w.record.owner == "source"


def test_a_paused_vm_stays_paused_wherever_it_ends_up() -> None:
    for at in (None, 3):
        w = world()
        w.source.running = w.source._ran = False
        migrate(w, BreakingTransport(w.arrival, at, before=cut))
        assert w.running() == []
        assert w.destination.adopted is (at is None)
        assert w.source.released is (at is None)
