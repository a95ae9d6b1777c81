"""The loop: whatever a guest writes, and when, the destination gets the RAM it had at the end."""

from __future__ import annotations

import os
import pickle
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayvisor.migration import pages
from rayvisor.migration import rounds as rounds_module
from rayvisor.migration.arrival import Arrival
from rayvisor.migration.background import NICER
from rayvisor.migration.config import Codec, MigrationConfig
from rayvisor.migration.convergence import Convergence, Decision, Step
from rayvisor.migration.errors import MigrationFailedError
from rayvisor.migration.precopy import Migration
from tests.migration.fakes import BreakingTransport, FakeDestination, FakeSource, Record

if TYPE_CHECKING:
    from rayvisor.migration.report import MigrationReport, Progress

PAGES = 256


class Pair:
    """A source, and a destination with everything around it."""

    def __init__(self, config: MigrationConfig | None = None) -> None:
        self.source, self.destination = FakeSource(PAGES), FakeDestination(PAGES)
        self.record = Record(lambda: self.destination.alive)
        self.arrival = Arrival(self.destination, self.record)
        self.transport = BreakingTransport(self.arrival)
        self.told: list[Progress] = []
        self.migration = Migration(
            self.source,
            self.transport,
            self.record,
            token=1,
            config=config or MigrationConfig(),
            route=("alpha", "beta"),
            on_progress=self.told.append,
        )

    def fails(self, match: str) -> MigrationReport:
        with pytest.raises(MigrationFailedError, match=match) as failure:
            self.migration.run()
        assert self.source.running
        assert not self.destination.running
        assert not self.source.log_on
        assert self.source.shares[-1:] in ([], [0])
        self.transport.close()
        assert self.destination.discarded
        return failure.value.report


writes = st.lists(
    st.tuples(
        st.integers(0, PAGES - 1),
        st.one_of(
            st.binary(min_size=1, max_size=16),
            st.just(bytes(4096)),
            st.integers(1, 255).map(lambda i: bytes([i]) * 4096),
        ),
    ),
    max_size=30,
)


@settings(max_examples=150)
@given(
    before=writes,
    rounds=st.lists(writes, max_size=6),
    during=st.lists(writes, max_size=12),
    chunk=st.integers(1, 64),
    cache=st.sampled_from([0, 5, 10_000]),
    codec=st.sampled_from(list(Codec)),
)
def test_ram_arrives_as_it_was_at_the_end(
    before: list[tuple[int, bytes]],
    rounds: list[list[tuple[int, bytes]]],
    during: list[list[tuple[int, bytes]]],
    chunk: int,
    cache: int,
    codec: Codec,
) -> None:
    """Pages are written before, between harvests, and while frames are under way."""
    config = MigrationConfig(
        downtime_s=1e-9,
        max_rounds=12,
        chunk_bytes=chunk * 4096,
        stop_chunk_bytes=chunk * 4096,
        delta_cache_bytes=cache * 4096,
        round_codec=codec,
        stop_codec=codec,
    )
    pair = Pair(config)
    source = pair.source

    def write(batch: list[tuple[int, bytes]]) -> None:
        for page, content in batch:
            source.write(page, content)

    write(before)
    left, under_way = iter(rounds), iter(during)
    # Enough to make one more round necessary, for as long as there are rounds.
    filler = [(page, b"\x01") for page in range(70)]

    def activity() -> None:
        batch = next(left, None)
        if batch is not None:
            write(filler + batch)

    source.before_harvest = activity
    send = pair.transport.send

    def sending(*frames: bytes) -> None:
        write(next(under_way, []))
        send(*frames)

    pair.transport.send = sending  # type: ignore[method-assign]
    report = pair.migration.run()
    assert pair.destination.memory == source.memory
    assert pair.destination.running
    assert not source.running
    assert source.released
    assert report.outcome == "moved"
    assert len(report.rounds) >= 2 + bool(rounds)


def eager(monkeypatch: pytest.MonkeyPatch, *, fits: bool) -> list[int]:
    """Have every round that is not small enough be followed by a sample, which `fits` or not."""
    left_pages: list[int] = []

    def after_sample(
        self: Convergence, sent_pages: int, seconds: float, left: int, still_s: float
    ) -> Decision:
        assert min(sent_pages, seconds, still_s) > 0
        left_pages.append(left)
        self._samples += 1
        return Decision(Step.STOP if fits else Step.ROUND, self.throttle)

    monkeypatch.setattr(Convergence, "after_sample", after_sample)
    monkeypatch.setattr(Convergence, "_worth_a_try", lambda self, _: self._samples < 3)
    monkeypatch.setattr(Convergence, "sample_pages", 16)
    return left_pages


@pytest.mark.parametrize("fits", [True, False])
def test_a_sample_is_part_of_the_move(monkeypatch: pytest.MonkeyPatch, fits: bool) -> None:
    left = eager(monkeypatch, fits=fits)
    pair = Pair(MigrationConfig(downtime_s=1e-9, max_rounds=12))
    rounds = iter(range(1, 6))

    def activity() -> None:
        for page in range(100 if (value := next(rounds, 0)) else 0):
            pair.source.write(page, bytes([value]) * 4096)

    pair.source.before_harvest = activity
    states = []
    resume = pair.source.resume

    def resuming() -> None:
        states.append("runs on")
        resume()

    pair.source.resume = resuming  # type: ignore[method-assign]
    report = pair.migration.run()
    assert pair.destination.memory == pair.source.memory
    assert len(left) == (1 if fits else 3)
    assert states == ([] if fits else ["runs on"] * 3)
    assert report.outcome == "moved"
    assert not pair.arrival.urgent or pair.destination.running


def test_a_move_that_fails_at_a_sample_leaves_the_guest_running(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    eager(monkeypatch, fits=True)
    pair = Pair(MigrationConfig(downtime_s=1e-9))

    def activity() -> None:
        for page in range(100):
            pair.source.write(page, b"!")

    pair.source.before_harvest = activity
    pause = pair.source.pause

    def pausing() -> int:
        pair.migration.cancel()
        return pause()

    pair.source.pause = pausing  # type: ignore[method-assign]
    assert pair.fails("cancelled").downtime_s > 0


def test_a_protected_guest_is_never_paused_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    left = eager(monkeypatch, fits=True)
    pair = Pair(MigrationConfig(downtime_s=1e-9))
    rounds = iter(range(1, 6))

    def activity() -> None:
        for page in range(100 if next(rounds, 0) else 0):
            pair.source.write(page, b"!")

    pair.source.before_harvest = activity
    pair.migration.seed()
    assert left == []
    assert pair.source.running


def test_on_an_overloaded_host_a_move_stops_giving_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Amid a round: what had been sent is not sent again, and nothing is left out."""
    asked: list[int] = []

    def starved(_: float) -> bool:
        asked.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        return len(asked) == 5

    monkeypatch.setattr(rounds_module, "starved", starved)
    pair = Pair(MigrationConfig(chunk_bytes=4096, round_codec=Codec.RAW))
    for page in range(20):
        pair.source.write(page, bytes([page + 1]) * 4096)
    nice: list[int] = []
    pick = pages.Picker.pick

    def picking(*where: Any, keep: bool) -> pages.Picked:  # noqa: ANN401 - as the method
        nice.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        return pick(*where, keep=keep)

    monkeypatch.setattr(pages.Picker, "pick", picking)
    report = pair.migration.run()
    assert pair.destination.memory == pair.source.memory
    assert (report.outcome, report.pages_sent) == ("moved", 20)
    usual = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    assert nice[:4] == [min(19, usual + NICER)] * 4
    assert set(nice[4:]) == {usual}
    assert len(asked) == 5


def test_what_gives_way_is_not_what_runs_the_guest() -> None:
    """Rounds are packed at a lower priority, and the guest is stopped and resumed at the usual."""
    pair = Pair()
    nice: dict[str, int] = {}

    def priority() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    harvest, pause, adopt = pair.source.harvest, pair.source.pause, pair.destination.adopt

    def harvesting() -> bytes:
        nice.setdefault("rounds", priority())
        return harvest()

    def pausing() -> int:
        nice["pause"] = priority()
        return pause()

    def adopting(gained_ns: int, *, running: bool) -> int:
        nice["adopt"] = priority()
        return adopt(gained_ns, running=running)

    pair.source.harvest, pair.source.pause = harvesting, pausing  # type: ignore[method-assign]
    pair.destination.adopt = adopting  # type: ignore[method-assign]
    pair.migration.run()
    usual = priority()
    assert nice == {"rounds": min(19, usual + NICER), "pause": usual, "adopt": usual}


def test_everything_that_travels_arrives() -> None:
    pair = Pair()
    pair.source.console = b"x" * (3 << 20)
    pair.source.late_input = b"typed late"
    pair.source.state = {"cpu": {"rip": 2**64 - 1}, "list": [1, b"\x00", None]}
    report = pair.migration.run()
    assert pair.destination.console == pair.source.console
    assert pair.destination.typed == b"typed late"
    assert pair.destination.state == pair.source.state
    assert 0 < pair.destination.gained_ns <= report.downtime_s * 1e9
    assert report.token == pair.record.token == 2
    assert list(report.phases) == [
        "greeting_s",
        "precopy_s",
        "stopped_s",
        "handover_s",
        "moved_s",
    ]


def test_a_cancelled_migration_leaves_the_vm_running() -> None:
    pair = Pair(MigrationConfig(bandwidth_bytes_per_s=1.0))
    timer = threading.Timer(0.1, pair.migration.cancel)
    timer.start()
    report = pair.fails("stays at alpha: cancelled")
    assert report.outcome == "cancelled"


def test_it_may_be_cancelled_while_the_guest_stands_still() -> None:
    pair = Pair()
    pause = pair.source.pause

    def pausing() -> int:
        pair.migration.cancel()
        return pause()

    pair.source.pause = pausing  # type: ignore[method-assign]
    report = pair.fails("cancelled")
    assert report.downtime_s > 0


def test_a_timeout() -> None:
    pair = Pair(MigrationConfig(bandwidth_bytes_per_s=1.0, timeout_s=0.1))
    assert pair.fails("not done after").outcome == "failed"


def test_a_guest_that_writes_too_much_when_slowing_down_is_not_allowed() -> None:
    pair = Pair(MigrationConfig(downtime_s=1e-9, auto_converge=False, max_rounds=5))

    def rewrite() -> None:
        for page in range(100):
            pair.source.write(page, b"!")

    pair.source.before_harvest = rewrite
    assert len(pair.fails("after 5 rounds the guest still writes").rounds) == 5


def test_a_carrier_that_takes_nothing_while_the_guest_stands_still() -> None:
    pair = Pair(MigrationConfig(stop_timeout_s=0.1))
    send, stuck = pair.transport.send, threading.Event()

    def sending(*frames: bytes) -> None:
        if not pair.source.running:
            stuck.wait(5)
        send(*frames)

    pair.transport.send = sending  # type: ignore[method-assign]
    with pytest.raises(MigrationFailedError, match="took nothing"):
        pair.migration.run()
    assert pair.source.running
    stuck.set()


def test_a_destination_that_never_answers() -> None:
    pair = Pair(MigrationConfig(reply_timeout_s=0.1))

    def nothing(timeout_s: float) -> None:
        time.sleep(timeout_s)

    pair.transport.receive = nothing  # type: ignore[method-assign]
    with pytest.raises(MigrationFailedError, match="did not answer"):
        pair.migration.run()
    assert pair.source.running


def test_a_guest_that_ends_while_it_is_moved() -> None:
    pair = Pair()

    def ended() -> int:
        raise RuntimeError("the guest has ended: it is halted")

    pair.source.pause = ended  # type: ignore[method-assign]
    with pytest.raises(MigrationFailedError, match="it is halted"):
        pair.migration.run()


def test_the_bandwidth_cap_holds_while_the_guest_runs() -> None:
    """By the clock of the cap: sending takes at least as long as the bytes are worth."""
    pair = Pair(MigrationConfig(bandwidth_bytes_per_s=2e6, round_codec=Codec.RAW))
    for page in range(100):
        pair.source.write(page, bytes([page + 1]) * 4096)
    report = pair.migration.run()
    first = report.rounds[0]
    assert first.seconds >= 100 * 4096 / 2e6 * 0.99


def test_progress_is_told_from_beginning_to_end() -> None:
    pair = Pair()
    pair.source.write(3, b"x")
    pair.migration.run()
    phases = [p.phase for p in pair.told]
    assert phases == sorted(
        phases, key=["greeting", "precopy", "stopped", "handover", "moved"].index
    )
    assert {"greeting", "precopy", "stopped", "moved"} <= set(phases)
    assert pair.told[-1].remaining_pages == 0
    assert all(p.remaining_pages >= 0 for p in pair.told)


def test_a_failure_travels_between_processes() -> None:
    pair = Pair(MigrationConfig(timeout_s=1e-9))
    with pytest.raises(MigrationFailedError) as failure:
        pair.migration.run()
    copy = pickle.loads(pickle.dumps(failure.value))  # noqa: S301 - our own
    assert str(copy) == str(failure.value)
    assert copy.report == failure.value.report
