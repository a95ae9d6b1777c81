"""Handing out guest memory."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayvisor.vmm.boot.plan import EBDA_START, MemoryPlan, size_text
from rayvisor.vmm.errors import LoaderError
from rayvisor.vmm.memory import GuestRam

MIB = 1 << 20


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1536, "1.5 KiB"), (300 * MIB, "300.0 MiB"),
     (3 << 30, "3.0 GiB")],
)  # fmt: skip
def test_sizes_are_readable(count: int, text: str) -> None:
    assert size_text(count) == text


@pytest.mark.parametrize("start", [0x9_F000, 0xA_0000, 0xC_0000, 63 * MIB + 1, 1 << 40, -4096])
def test_memory_that_is_not_the_systems_cannot_be_claimed(ram: GuestRam, start: int) -> None:
    plan = MemoryPlan(ram)
    with pytest.raises(LoaderError, match=r"it at .* not lie in the machine's RAM of 64.0 MiB"):
        plan.claim(start, MIB, "it")


def test_an_overlap_names_both(ram: GuestRam) -> None:
    plan = MemoryPlan(ram)
    plan.claim(0x20_0000, 0x1000, "one")
    plan.claim(0x20_2000, 0x1000, "two")
    plan.claim(0x20_1000, 0x1000, "three")
    for start, count in ((0x20_0FFF, 1), (0x1F_FFFF, 2), (0x1F_0000, MIB)):
        with pytest.raises(LoaderError, match=r"four at .* overlaps one at 0x200000"):
            plan.claim(start, count, "four")
    with pytest.raises(LoaderError, match="overlaps two"):
        plan.claim(0x20_2FFF, 0x10_0000, "four")


def test_lowest_and_highest_go_around_what_is_taken(ram: GuestRam) -> None:
    plan = MemoryPlan(ram)
    plan.claim(0x10_1000, 0x1000, "in the way")
    assert plan.lowest(0x1001, "a", MIB) == 0x10_2000
    assert plan.lowest(0x1000, "b", MIB) == 0x10_0000
    assert plan.highest(1, "c", 64 * MIB) == 64 * MIB - 4096
    assert plan.highest(4096, "d", 64 * MIB) == 64 * MIB - 8192
    assert plan.highest(4096, "e", 32 * MIB + 17) == 32 * MIB - 4096
    assert plan.low(16, "f") == 0x1000


def test_no_room_names_both_sizes(ram: GuestRam) -> None:
    plan = MemoryPlan(ram)
    message = "huge of 63.5 MiB does not fit into the machine's 64.0 MiB of RAM"
    with pytest.raises(LoaderError, match=message):
        plan.highest(63 * MIB + MIB // 2, "huge", 3 << 30)
    with pytest.raises(LoaderError, match="does not fit"):
        plan.low(EBDA_START, "huge")


requests = st.lists(
    st.tuples(
        st.sampled_from(["low", "lowest", "highest", "claim"]),
        st.integers(1, 0x3_0000),
        st.sampled_from([1, 8, 16, 4096]),
        st.integers(0, 4 * MIB),
    ),
    max_size=40,
)


@given(requests)
def test_nothing_is_given_away_twice(wanted: list[tuple[str, int, int, int]]) -> None:
    ram = GuestRam(3 * MIB)
    plan, given_away = MemoryPlan(ram), []
    for verb, count, align, address in wanted:
        try:
            if verb == "low":
                at = plan.low(count, "it", align)
            elif verb == "lowest":
                at = plan.lowest(count, "it", address, align=align)
            elif verb == "highest":
                at = plan.highest(count, "it", address, align)
            else:
                plan.claim(address, count, "it")
                at = address
        except LoaderError:
            continue
        assert verb == "claim" or at % align == 0
        assert any(a <= at and at + count <= a + n for a, n in ram.usable())
        given_away.append((at, at + count))
    given_away.sort()
    for (_, end), (start, _) in itertools.pairwise(given_away):
        assert end <= start
    free = sum(end - start for start, end in plan.free(0, 1 << 40))
    taken = sum(end - start for start, end in given_away)
    assert free + taken == sum(count for _, count in ram.usable())
    ram.close()
