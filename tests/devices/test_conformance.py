"""What holds for every chip, whatever it does."""

from __future__ import annotations

import functools
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayvisor.vmm.errors import CorruptStateError
from rayvisor.vmm.state import State, copied, pack, unpack
from tests.support.chips import RIGS, Rig

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Step = tuple[str, int, int]

BYTES = st.integers(0, 0xFF)
OFFSETS = st.integers(0, 31)
# From within a character or a CLK to hours, so that deadlines are met, missed and overtaken.
TIMES = st.one_of(
    st.integers(0, 5_000), st.integers(0, 10**8), st.integers(0, 3 * 10**9), st.just(10**13)
)
STEPS: st.SearchStrategy[list[Step]] = st.lists(
    st.one_of(
        st.tuples(st.just("write"), OFFSETS, BYTES),
        st.tuples(st.just("write"), OFFSETS, BYTES),
        st.tuples(st.just("read"), OFFSETS, st.just(0)),
        st.tuples(st.just("poke"), st.integers(0, 0x3F), st.just(0)),
        st.tuples(st.just("wait"), TIMES, st.just(0)),
    ),
    max_size=60,
)

every_chip = pytest.mark.parametrize("make", RIGS.values(), ids=RIGS)


@every_chip
def test_a_copy_of_a_state_is_the_same_and_another(make: Callable[[], Rig]) -> None:
    for device in make().devices:
        state = device.snapshot()
        copy = copied(state)
        assert copy == replace(state) == state
        assert copy is not state
        for field in fields(state):
            assert getattr(copied(state, **{field.name: None}), field.name) is None
            assert getattr(state, field.name) is not None


def play(rig: Rig, steps: list[Step]) -> list[object]:
    """Perform the steps; the values read. Time is cut short where interrupts come thick."""
    seen: list[object] = []
    for kind, a, b in steps:
        if kind == "write":
            rig.write(a % (rig.registers * len(rig.devices)), b)
        elif kind == "read":
            value = rig.read(a % (rig.registers * len(rig.devices)))
            assert type(value) is int
            assert 0 <= value <= 0xFF
            seen.append(value)
        elif kind == "poke":
            seen.append(rig.poke(a))
        else:
            wait(rig, a)
    return seen


def wait(rig: Rig, delta_ns: int) -> None:
    """Let time pass: to each of the next deadlines, then in one leap, as on a busy host."""
    end = rig.clock.now_ns() + delta_ns
    for _ in range(20):
        deadline = rig.clock.next_deadline_ns()
        if deadline is None or deadline > end:
            break
        rig.clock.advance(max(0, deadline - rig.clock.now_ns()))
    rig.clock._now_ns = end
    rig.clock.fire_due()


def travel(states: list[Any]) -> list[Any]:
    """The states after a way through msgpack."""
    plain = msgpack.unpackb(msgpack.packb([pack(s) for s in states]))
    return [unpack(type(s), p) for s, p in zip(states, plain, strict=True)]


def levels(rig: Rig) -> dict[str, bool]:
    """Wires that are high."""
    return {name: level for name, level in rig.log.levels.items() if level}


@every_chip
@given(before=STEPS, after=STEPS)
def test_taking_a_snapshot_changes_nothing(
    make: Callable[[int], Rig], before: list[Step], after: list[Step]
) -> None:
    watched, undisturbed = make(0), make(0)
    play(undisturbed, before)
    play(watched, before)
    first = watched.snapshot()
    assert watched.snapshot() == first
    kept = [pack(s) for s in first]
    assert play(watched, after) == play(undisturbed, after)
    assert watched.log.events == undisturbed.log.events
    assert watched.snapshot() == undisturbed.snapshot()
    assert [pack(s) for s in first] == kept, "a snapshot shares its registers with the chip"


@every_chip
@given(before=STEPS, other_past=STEPS, after=STEPS)
def test_a_restored_chip_goes_on_as_the_original(
    make: Callable[[int], Rig], before: list[Step], other_past: list[Step], after: list[Step]
) -> None:
    original, copy = make(0), make(7)
    play(original, before)
    play(copy, other_past)
    states = original.snapshot()
    kept = [pack(s) for s in states]
    copy.clock._now_ns = original.clock.now_ns()
    copy.restore(travel(states))
    assert copy.snapshot() == states
    assert levels(copy) == levels(original)
    seen_before, sent_before = len(original.log.events), len(copy.log.events)
    assert play(copy, after) == play(original, after)
    assert copy.log.events[sent_before:] == original.log.events[seen_before:]
    assert copy.snapshot() == original.snapshot()
    assert [pack(s) for s in states] == kept


@every_chip
@given(steps=STEPS)
def test_a_snapshot_survives_msgpack(make: Callable[[int], Rig], steps: list[Step]) -> None:
    rig = make(0)
    play(rig, steps)
    states = rig.snapshot()
    assert travel(states) == states


# What a reset leaves alone: wires that others drive, and what a battery keeps.
SURVIVES_RESET = {
    "i8259": {"lines"},
    "uart16550": {"msr"},
    "local-apic": {"lint0"},
    "mc146818": {"cmos", "reg_a", "reg_b", "epoch_s", "phase_ns", "weekday_shift"},
}


@every_chip
@given(steps=STEPS)
def test_reset_is_reset(make: Callable[[int], Rig], steps: list[Step]) -> None:
    used, fresh = make(0), make(0)
    play(used, steps)
    used.reset()
    fresh.clock._now_ns = used.clock.now_ns()
    fresh.reset()
    for after_use, as_new in zip(used.snapshot(), fresh.snapshot(), strict=True):
        kept = SURVIVES_RESET.get(after_use.SCHEMA[0], set())
        adopted = replace(as_new, **{name: getattr(after_use, name) for name in kept})
        if "reg_b" in kept:
            assert not after_use.reg_b & 0x78, "an interrupt is still enabled"
            assert adopted == after_use
        else:
            assert adopted == after_use
        if "lint0" in kept:
            fresh.poke(int(after_use.lint0))  # a wire that goes through
    assert levels(used) == levels(fresh)
    again = used.snapshot()
    used.reset()
    assert used.snapshot() == again


ONE_FIELD: st.SearchStrategy[bool] = st.booleans()
JUNK: st.SearchStrategy[object] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.just(1 << 70),
    st.just(-(1 << 70)),
    st.floats(),
    st.text(max_size=3),
    st.binary(max_size=200),
    st.tuples(),
    st.lists(st.integers(), max_size=3),
)


@every_chip
@given(steps=STEPS, data=st.data())
def test_a_hostile_state_is_refused_and_changes_nothing(
    make: Callable[[int], Rig], steps: list[Step], data: st.DataObject
) -> None:
    rig = make(0)
    play(rig, steps)
    for device in rig.devices:
        good = device.snapshot()
        names: list[str] = [f.name for f in fields(good)]
        before, events = rig.snapshot(), list(rig.log.events)
        forged: object = data.draw(JUNK)
        if data.draw(ONE_FIELD) and names:
            forged = replace(good, **{data.draw(st.sampled_from(names)): data.draw(JUNK)})
        try:
            device.restore(forged)
        except CorruptStateError:
            assert rig.snapshot() == before
            assert rig.log.events == events
        else:
            # It was legal after all: then the chip must be able to live with it.
            assert device.snapshot() == forged
        play(rig, steps)
        assert rig.snapshot() == travel(rig.snapshot())


@every_chip
def test_another_chips_state_is_refused(make: Callable[[int], Rig]) -> None:
    rig = make(0)
    strangers = [s for other in RIGS.values() for s in other(0).snapshot()]
    for device in rig.devices:
        before = device.snapshot()
        for stranger in strangers:
            if type(stranger) is not type(before):
                with pytest.raises(CorruptStateError):
                    device.restore(stranger)
        assert device.snapshot() == before


def in_range(meta: Mapping[str, int], number: int) -> bool:
    return meta["low"] <= number <= meta["high"]


def any_state(data: st.DataObject, cls: type[Any]) -> State:
    """A state whose every field is in range and otherwise arbitrary."""
    values: dict[str, Any] = {}
    for f in fields(cls):
        meta = f.metadata
        count = meta.get("count", 1)
        if "cls" in meta:
            items = tuple(any_state(data, meta["cls"]) for _ in range(count))
            values[f.name] = items if "count" in meta else items[0]
        elif "flag" in meta:
            values[f.name] = data.draw(st.booleans())
        elif "max_bytes" in meta:
            size = data.draw(st.sampled_from([0, 1, meta["max_bytes"]]))
            values[f.name] = bytes([data.draw(BYTES)]) * size
        else:
            numbers = st.one_of(
                st.integers(meta["low"], meta["high"]),
                st.sampled_from((meta["low"], 0, 1, 0x55, meta["high"])).filter(
                    functools.partial(in_range, meta)
                ),
            )
            drawn = tuple(data.draw(numbers) for _ in range(count))
            values[f.name] = drawn if "count" in meta else drawn[0]
    made: State = cls(**values)
    return made


@every_chip
@given(data=st.data(), steps=STEPS)
def test_a_chip_lives_with_any_state_that_it_accepts(
    make: Callable[[int], Rig], data: st.DataObject, steps: list[Step]
) -> None:
    rig = make(0)
    for device in rig.devices:
        before = device.snapshot()
        state = any_state(data, type(before))
        try:
            device.restore(state)
        except CorruptStateError:
            assert device.snapshot() == before
        else:
            assert device.snapshot() == state
    deadline = rig.clock.next_deadline_ns()
    assert deadline is None or abs(deadline) < 1 << 63
    play(rig, steps)
    copy = make(rig.clock.now_ns())
    copy.restore(travel(rig.snapshot()))


@every_chip
def test_offsets_that_are_none_read_ones_and_swallow_writes(make: Callable[[int], Rig]) -> None:
    rig = make(0)
    for device in rig.devices:
        before = device.snapshot()
        for offset in (rig.registers, rig.registers + 7, 0xFF):
            device.write(offset, 0x5A)
            assert device.read(offset) == 0xFF
        assert device.snapshot() == before
