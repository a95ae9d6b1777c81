"""The destination against a source that lies, stumbles or is of another version."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayvisor.migration import frames
from rayvisor.migration.arrival import Arrival
from rayvisor.migration.config import Codec
from rayvisor.migration.host import tsc_hz
from rayvisor.migration.phases import DestinationPhase
from tests.migration.fakes import MIN_PAGES, SCHEMA, FakeDestination, Record
from tests.migration.test_frames import SAMPLES

HELLO = frames.Hello(
    frames.PROTOCOL_VERSION, (), "vm", MIN_PAGES * 4096, 4096, SCHEMA, 1, tsc_hz(), ""
)
STATE = frames.MachineState({}, running=True, stopped_for_ns=0)


def pages(
    runs: str, zeros: str = "", raw_bytes: int = 4096, data: bytes | None = None
) -> frames.Pages:
    body = bytes(raw_bytes) if data is None else data
    return frames.Pages(
        bytes.fromhex(runs),
        bytes.fromhex(zeros),
        Codec.RAW,
        delta=False,
        raw_bytes=raw_bytes,
        data=body,
    )


class Side:
    """A destination that is fed frames by hand."""

    def __init__(self) -> None:
        self.destination, self.record = FakeDestination(), Record()
        self.arrival = Arrival(self.destination, self.record)
        self._seq = self._received = 0

    def feed(self, *sent: frames.Frame) -> list[frames.Frame]:
        replies = []
        for frame in sent:
            for reply in self.arrival.feed(frames.encode(self._seq, frame)):
                replies.append(frames.decode(reply, self._received))
                self._received += 1
            self._seq += 1
        return replies

    def refused(self, *sent: frames.Frame) -> str:
        """Why; the machine is given back and never runs."""
        last = self.feed(*sent)[-1]
        assert isinstance(last, frames.Abort)
        assert self.arrival.phase is DestinationPhase.DISCARDED
        assert self.destination.discarded
        assert not self.destination.running
        assert self.record.owner == "source"
        return last.reason


def test_the_order_that_is_right() -> None:
    side = Side()
    replies = side.feed(
        HELLO, pages("0300000001000000"), frames.RoundEnd(0), STATE, frames.Commit()
    )
    assert [r.KIND for r in replies] == ["welcome", "ack", "running"]
    assert side.destination.running
    assert side.feed(frames.Done(b"x")) == []
    assert side.destination.typed == b"x"


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        ([frames.Commit()], "claiming does not follow waiting"),
        ([pages("0000000001000000")], "waiting: only in receiving"),
        ([HELLO, HELLO], "does not follow"),
        ([HELLO, frames.Commit()], "does not follow"),
        ([HELLO, frames.Done(b"")], "only in running"),
        ([HELLO, STATE, pages("0000000001000000")], "ready: only in receiving"),
        ([HELLO, STATE, STATE], "ready: only in receiving"),
        ([HELLO, frames.Running(1, 1, 1)], "a source does not send this"),
        ([replace(HELLO, version=frames.PROTOCOL_VERSION + 1)], "install the same Rayvisor"),
        ([replace(HELLO, memory_bytes=1 << 21)], "memory"),
        ([replace(HELLO, page_bytes=1 << 16)], "page size"),
        ([replace(HELLO, machine="machine/2")], "machine/2"),
        ([replace(HELLO, tsc_hz=2 * tsc_hz())], "the same frequency"),
        ([HELLO, pages("0001000001000000")], "outside RAM"),
        ([HELLO, pages("", "ff00000002000000", 0)], "beyond the 256 pages"),
        ([HELLO, pages("0000000002000000")], "of other data"),
        ([HELLO, pages("0000000001000000", data=b"short")], "the block has 5"),
        ([HELLO, pages("", "", 0, b"more")], "without pages"),
        ([HELLO, frames.ConsoleOutput(5, b"late")], "a piece is missing"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_refused(sent: list[frames.Frame], reason: str) -> None:
    assert reason in Side().refused(*sent)


def test_a_machine_that_refuses_its_state() -> None:
    side = Side()
    side.destination.refuse_state = True
    assert side.refused(HELLO, STATE) == "fake: out of range"


def test_after_the_end_nothing_is_taken() -> None:
    side = Side()
    side.refused(HELLO, HELLO)
    assert [r.KIND for r in side.feed(STATE, frames.Commit())] == ["abort", "abort"]
    assert not side.destination.running


def test_a_vm_that_runs_here_is_not_taken_away_by_noise() -> None:
    side = Side()
    side.feed(HELLO, STATE, frames.Commit())
    assert side.feed(frames.Abort("no!"), HELLO) == []
    assert side.arrival.feed(b"garbage") == []
    assert side.destination.running
    side.arrival.disconnected()
    assert side.destination.running
    assert side.arrival.phase is DestinationPhase.DONE


def test_a_source_that_goes_away_before_commit() -> None:
    side = Side()
    side.feed(HELLO, STATE)
    side.arrival.disconnected()
    assert side.destination.discarded
    assert side.feed(frames.Commit())[0].KIND == "abort"
    assert side.record.owner == "source"


samples = st.lists(st.sampled_from([HELLO, STATE, *SAMPLES.values()]), max_size=12)


@given(samples)
def test_any_order_of_frames_runs_the_vm_at_most_once_and_only_if_it_owns_it(
    sent: list[frames.Frame],
) -> None:
    side = Side()
    side.feed(*sent)
    assert side.destination.running is (side.record.owner == "destination")
    assert side.destination.running is side.destination.adopted


@given(st.lists(st.binary(max_size=100), max_size=5))
def test_hostile_bytes_end_the_attempt(sent: list[bytes]) -> None:
    side = Side()
    for data in sent:
        for reply in side.arrival.feed(data):
            assert isinstance(frames.decode(reply, side._received), frames.Abort)
            side._received += 1
    assert not side.destination.running
