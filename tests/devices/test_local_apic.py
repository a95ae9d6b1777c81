"""The local APIC, against the Intel SDM (3A chapter 11) and a model of its priorities."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayvisor.vmm.clock import ManualClock
from rayvisor.vmm.devices import local_apic as apic
from rayvisor.vmm.devices.local_apic import LocalApic
from rayvisor.vmm.errors import CorruptStateError
from tests.support.chips import ManualTsc

if TYPE_CHECKING:
    from collections.abc import Callable

FROM_PIC = 0x30
SELF, ALL, OTHERS = 0x4_0000, 0x8_0000, 0xC_0000
DISABLED = 0xFF


class Bench:
    """A local APIC as a firmware leaves it, and what it does to its processor."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.intr = False
        self.nmis = 0
        self.chip = LocalApic(
            self.clock, ManualTsc(self.clock), self._drive, nmi=self._nmi, inta=lambda: FROM_PIC
        )

    def _drive(self, level: bool) -> None:
        assert level is not self.intr, "told of a level that it had"
        self.intr = level

    def _nmi(self) -> None:
        self.nmis += 1

    def send(self, vector: int, how: int = SELF) -> None:
        self.chip.write(apic.ICR_LOW, how | vector)

    def lvt(self, entry: int, value: int) -> None:
        self.chip.write(apic.LVT + 16 * entry, value)

    def take(self) -> int:
        assert self.intr
        return self.chip.acknowledge()

    def end(self) -> None:
        self.chip.write(apic.EOI, 0)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_the_8259a_comes_through_as_firmware_leaves_it(bench: Bench) -> None:
    bench.chip.lint0(True)
    assert bench.take() == FROM_PIC
    bench.chip.lint0(False)
    assert not bench.intr
    assert bench.chip.read(apic.ISR + 0x10) == 0, "ExtINT is not in service here"


def test_a_masked_lint0_holds_the_8259a_back(bench: Bench) -> None:
    bench.lvt(apic.LVT_LINT0, 0x1_0700)
    bench.chip.lint0(True)
    assert not bench.intr
    bench.lvt(apic.LVT_LINT0, 0x700)
    assert bench.intr


def test_lint0_as_a_fixed_interrupt_is_an_edge(bench: Bench) -> None:
    bench.lvt(apic.LVT_LINT0, 0x31)
    bench.chip.lint0(True)
    assert bench.take() == 0x31
    bench.end()
    assert not bench.intr
    bench.chip.lint0(False)
    bench.chip.lint0(True)
    assert bench.take() == 0x31


def test_lint0_as_nmi(bench: Bench) -> None:
    bench.lvt(apic.LVT_LINT0, 0x400)
    bench.chip.lint0(True)
    bench.chip.lint0(True)
    assert (bench.nmis, bench.intr) == (1, False)


def test_one_class_waits_for_its_end_and_a_higher_one_does_not(bench: Bench) -> None:
    bench.send(0x41)
    assert bench.take() == 0x41
    bench.send(0x4F)
    assert not bench.intr
    bench.send(0x51)
    assert bench.take() == 0x51
    assert bench.chip.read(apic.PPR) == 0x50
    bench.end()
    assert not bench.intr
    bench.end()
    assert bench.take() == 0x4F


def test_the_task_priority_by_either_name(bench: Bench) -> None:
    bench.chip.write_cr8(5)
    assert bench.chip.read(apic.TPR) == 0x50
    bench.send(0x5F)
    assert not bench.intr
    bench.chip.write(apic.TPR, 0x4A)
    assert bench.intr
    assert bench.chip.read_cr8() == 4
    assert bench.chip.read(apic.PPR) == 0x4A


def test_intr_that_was_withdrawn_is_spurious(bench: Bench) -> None:
    bench.lvt(apic.LVT_LINT0, 0x1_0000)
    bench.chip.write(apic.SVR, 0x1EF)
    assert bench.chip.acknowledge() == 0xEF
    assert bench.chip.read(apic.ISR + 0x70) == 0


@pytest.mark.parametrize(
    ("high", "low", "arrives"),
    [
        (0, SELF, True),
        (0, ALL, True),
        (0, OTHERS, False),
        (0, 0, True),
        (1, 0, False),
        (0xFF, 0, True),
        (0x02, 0x800, True),
        (0x04, 0x800, False),
        (0xFF, 0x800, True),
        (0, SELF | 0x100, True),
        (0, SELF | 0x200, False),
        (0, SELF | 0x500, False),
        (0, SELF | 0x600, False),
    ],
)
def test_a_message_to_itself(bench: Bench, high: int, low: int, arrives: bool) -> None:
    bench.chip.write(apic.LDR, 0x02 << 24)
    bench.chip.write(apic.ICR_HIGH, high << 24)
    bench.send(0x40, low)
    assert bench.intr is arrives


def test_a_message_to_a_cluster(bench: Bench) -> None:
    bench.chip.write(apic.DFR, 0x0FFF_FFFF)
    bench.chip.write(apic.LDR, 0x31 << 24)
    for to in (0x21, 0x32):
        bench.chip.write(apic.ICR_HIGH, to << 24)
        bench.send(0x40, 0x800)
        assert not bench.intr
    bench.chip.write(apic.ICR_HIGH, 0x33 << 24)
    bench.send(0x40, 0x800)
    assert bench.intr


def test_nmi_to_itself(bench: Bench) -> None:
    bench.send(2, SELF | 0x400)
    assert (bench.nmis, bench.intr) == (1, False)


def test_errors_are_seen_after_a_write_and_interrupt_once(bench: Bench) -> None:
    bench.lvt(apic.LVT_ERROR, 0x90)
    bench.send(3)
    assert bench.take() == 0x90
    bench.end()
    bench.send(3)
    assert not bench.intr
    assert bench.chip.read(apic.ESR) == 0
    bench.chip.write(apic.ESR, 0)
    assert bench.chip.read(apic.ESR) == apic.SEND_ILLEGAL_VECTOR
    assert bench.chip.read(0x500) == 0
    assert bench.intr
    bench.chip.write(apic.ESR, 0)
    assert bench.chip.read(apic.ESR) == apic.ILLEGAL_REGISTER


def test_an_error_entry_with_an_illegal_vector_is_an_error(bench: Bench) -> None:
    bench.lvt(apic.LVT_ERROR, 0x05)
    bench.chip.write(0x3F0, 1)
    bench.chip.write(apic.ESR, 0)
    assert bench.chip.read(apic.ESR) == apic.ILLEGAL_REGISTER | apic.RECEIVE_ILLEGAL_VECTOR
    assert not bench.intr


def test_software_disable_masks_and_takes_nothing_new(bench: Bench) -> None:
    bench.send(0x61)
    bench.chip.write(apic.SVR, DISABLED)
    assert bench.take() == 0x61, "what was pending is held"
    bench.end()
    bench.send(0x71)
    bench.chip.lint0(True)
    assert not bench.intr
    bench.lvt(apic.LVT_LINT0, 0x700)
    assert bench.chip.read(apic.LVT + 0x30) == 0x1_0700, "stays masked"
    bench.chip.write(apic.SVR, 0x1FF)
    bench.lvt(apic.LVT_LINT0, 0x700)
    assert bench.take() == FROM_PIC


def test_switched_off_it_is_not_there(bench: Bench) -> None:
    bench.send(0x61)
    assert bench.chip.read_base() == 0xFEE0_0900
    assert bench.chip.write_base(0xFEE0_0100)
    assert bench.chip.read_base() == 0xFEE0_0100
    assert not bench.intr
    assert bench.chip.read(apic.VERSION) == 0xFFFF_FFFF
    bench.chip.write(apic.TPR, 0xFF)
    bench.chip.lint0(True)
    assert bench.take() == FROM_PIC
    assert bench.chip.write_base(0xFEE0_0900)
    assert (bench.chip.read(apic.TPR), bench.chip.read(apic.SVR)) == (0, 0xFF)
    assert not bench.intr, "after a reset of its own, LINT0 is masked"


@pytest.mark.parametrize("value", [0xFEE0_0D00, 0xFEE0_0901, 1 << 40 | 0xFEE0_0900])
def test_a_base_with_reserved_bits_is_refused(bench: Bench, value: int) -> None:
    assert not bench.chip.write_base(value)
    assert bench.chip.read_base() == 0xFEE0_0900


def test_registers_that_are_told(bench: Bench) -> None:
    assert bench.chip.read(apic.VERSION) == 0x5_0014
    assert bench.chip.read(apic.DFR) == 0xFFFF_FFFF
    bench.chip.write(apic.ID, 0x0300_0000)
    assert bench.chip.read(apic.ID) == 0x0300_0000
    bench.chip.write(apic.VERSION, 0)
    assert bench.chip.read(apic.VERSION) == 0x5_0014
    bench.send(0xE3)
    assert bench.chip.read(apic.IRR + 0x70) == 8
    assert bench.take() == 0xE3
    assert (bench.chip.read(apic.IRR + 0x70), bench.chip.read(apic.ISR + 0x70)) == (0, 8)


class Model:
    """Vectors waiting and in service, as sets: what the SDM's 11.8 says in words."""

    def __init__(self) -> None:
        self.waiting: set[int] = set()
        self.serving: set[int] = set()
        self.tpr = 0
        self.pic = False
        self.through = True
        self.on = True

    @property
    def next(self) -> int | None:
        classes = {self.tpr >> 4, *(v >> 4 for v in self.serving)}
        ready = [v for v in self.waiting if v >> 4 > max(classes)]
        return max(ready) if ready else None

    @property
    def intr(self) -> bool:
        return self.next is not None or (self.pic and self.through)

    def take(self) -> int:
        vector = self.next
        if vector is None:
            return FROM_PIC
        self.waiting.discard(vector)
        self.serving.add(vector)
        return vector


VECTORS = st.integers(16, 255)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("send"), VECTORS),
        st.tuples(st.just("send"), VECTORS),
        st.tuples(st.just("tpr"), st.integers(0, 255)),
        st.tuples(st.just("pic"), st.integers(0, 1)),
        st.tuples(st.just("through"), st.integers(0, 1)),
        st.tuples(st.just("take"), st.just(0)),
        st.tuples(st.just("end"), st.just(0)),
    ),
    max_size=80,
)


@given(steps=STEPS)
def test_priorities_are_those_of_the_model(steps: list[tuple[str, int]]) -> None:
    bench, model = Bench(), Model()

    def through(value: int) -> None:
        bench.lvt(apic.LVT_LINT0, 0x700 if value else 0x1_0700)
        model.through = bool(value)

    def pic(value: int) -> None:
        bench.chip.lint0(bool(value))
        model.pic = bool(value)

    def tpr(value: int) -> None:
        bench.chip.write(apic.TPR, value)
        model.tpr = value

    def send(value: int) -> None:
        bench.send(value)
        model.waiting.add(value)

    def end(_value: int) -> None:
        bench.end()
        if model.serving:
            model.serving.remove(max(model.serving))

    def take(_value: int) -> None:
        if model.intr:
            assert bench.take() == model.take()

    do: dict[str, Callable[[int], None]] = {
        "through": through,
        "pic": pic,
        "tpr": tpr,
        "send": send,
        "end": end,
        "take": take,
    }
    for kind, value in steps:
        do[kind](value)
        assert bench.intr is model.intr
    copy = Bench()
    copy.intr = not model.intr  # it is told its level anew
    copy.chip.restore(bench.chip.snapshot())
    assert copy.intr is model.intr


class Core:
    """Whom a chip lends its timer to."""

    def __init__(self) -> None:
        self.lent: list[tuple[int, int]] = []
        self.state: tuple[bool, bool, int] | None = None

    def lend(self, vector: int, deadline: int) -> None:
        self.lent.append((vector, deadline))
        self.state = (False, False, deadline)

    def take_back(self) -> tuple[bool, bool, int] | None:
        state, self.state = self.state, None
        return state


@pytest.fixture
def lending() -> tuple[Bench, Core]:
    """A chip whose timer waits for a deadline of the TSC with vector 0x41, and a core for it."""
    bench, core = Bench(), Core()
    bench.chip = LocalApic(
        bench.clock,
        ManualTsc(bench.clock),
        bench._drive,
        nmi=bench._nmi,
        inta=lambda: FROM_PIC,
        lend=core.lend,
        take_back=core.take_back,
    )
    bench.lvt(apic.LVT_TIMER, 0x4_0041)
    return bench, core


def test_a_tick_is_lent_and_what_has_become_of_it_is_seen(lending: tuple[Bench, Core]) -> None:
    bench, core = lending
    bench.chip.write_deadline(3000)
    assert core.lent == [(0x41, 3000)]
    bench.clock.advance(2000)
    assert not bench.intr, "the core's to do"
    core.state = (False, True, 9000)
    assert bench.chip.read(apic.ISR + 0x20) == 2
    assert bench.chip.read(apic.IRR + 0x20) == 0
    assert bench.chip.read_deadline() == 9000
    bench.end()
    assert core.lent[1:] == [(0x41, 9000)]
    core.state, bench.intr = (True, False, 0), True
    assert bench.chip.snapshot().irr[2] == 2
    assert bench.take() == 0x41
    assert not bench.intr


def test_a_deadline_that_was_lent_expires_here_once_it_is_back(
    lending: tuple[Bench, Core],
) -> None:
    bench, core = lending
    bench.chip.write_deadline(3000)
    assert bench.chip.snapshot().timer.deadline == 3000
    assert core.state is None
    bench.clock.advance(2000)
    assert bench.take() == 0x41


@pytest.mark.parametrize(
    "before",
    [
        lambda chip: chip.write(apic.ICR_LOW, SELF | 0x31),
        lambda chip: chip.write(apic.TPR, 0x40),
        lambda chip: chip.write(apic.LVT, 0x5_0041),
        lambda chip: chip.write(apic.LVT, 0x41),
        lambda chip: chip.write(apic.SVR, 0xFF),
        lambda chip: chip.lint0(True),
    ],
)
def test_nothing_is_lent_where_more_than_a_tick_can_happen(
    lending: tuple[Bench, Core], before: Callable[[LocalApic], None]
) -> None:
    bench, core = lending
    before(bench.chip)
    bench.chip.write_deadline(3000)
    assert not core.lent


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("irr", (1 << 15, *(0,) * 7), "a vector below 16"),
        ("lvt", (1 << 9, *(0x1_0000,) * 5), "bits that do not exist"),
        ("lvt", (0x2_0020, *(0x1_0000,) * 5), "timer.mode is not lvt's"),
        ("svr", 0xFF, "though off"),
        ("enabled", False, "though off"),
        ("icr_low", 1 << 12, "icr_low"),
    ],
)
def test_a_state_that_contradicts_itself_is_refused(
    bench: Bench, field: str, value: object, rule: str
) -> None:
    changed: dict[str, Any] = {field: value}
    with pytest.raises(CorruptStateError, match=rule):
        bench.chip.restore(replace(bench.chip.snapshot(), **changed))
