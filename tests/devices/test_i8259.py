"""The 8259A and the PC's pair of them, against the datasheet."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayvisor.vmm.devices.i8259 import I8259, I8259State, PicPair
from rayvisor.vmm.errors import CorruptStateError

EOI, SPECIFIC_EOI, ROTATE_EOI, ROTATE_SPECIFIC, SET_PRIORITY = 0x20, 0x60, 0xA0, 0xE0, 0xC0
ROTATE_AEOI, NO_ROTATE_AEOI = 0x80, 0x00
READ_IRR, READ_ISR, POLL, SPECIAL_MASK, NO_SPECIAL_MASK = 0x0A, 0x0B, 0x0C, 0x68, 0x48


class Bench:
    """A single chip, initialized with base 0x20."""

    def __init__(self, icw1: int = 0x13, icw4: int = 0x01) -> None:
        self.levels: list[bool] = []
        self.chip = I8259(self.levels.append, elcr_mask=0xFF)
        self.chip.write(0, icw1)
        self.chip.write(1, 0x20)
        if icw1 & 1:
            self.chip.write(1, icw4)

    def raise_(self, *irs: int) -> None:
        for ir in irs:
            self.chip.set_line(ir, True)

    def pulse(self, ir: int) -> None:
        self.chip.set_line(ir, False)
        self.chip.set_line(ir, True)

    def command(self, ocw: int) -> None:
        self.chip.write(0, ocw)

    @property
    def irr(self) -> int:
        self.command(READ_IRR)
        return self.chip.read(0)

    @property
    def isr(self) -> int:
        self.command(READ_ISR)
        return self.chip.read(0)


class PcBench:
    """The pair as a PC's kernel initializes it: vectors 0x30 and 0x38."""

    def __init__(self, icw4: int = 0x01) -> None:
        self.levels: list[bool] = []
        self.pair = PicPair(self.levels.append)
        for chip, base, cascade in ((self.pair.master, 0x30, 4), (self.pair.slave, 0x38, 2)):
            chip.write(0, 0x11)
            chip.write(1, base)
            chip.write(1, cascade)
            chip.write(1, icw4)

    def eoi(self, irq: int) -> None:
        if irq >= 8:
            self.pair.slave.write(0, EOI)
        self.pair.master.write(0, EOI)


def test_a_request_raises_int_and_inta_gives_the_vector() -> None:
    bench = Bench()
    bench.raise_(3)
    assert bench.levels == [True]
    assert bench.chip.int_level
    assert bench.irr == 0x08
    ir = bench.chip.acknowledge()
    assert (ir, bench.chip.vector(ir)) == (3, 0x23)
    assert (bench.irr, bench.isr) == (0, 0x08)
    assert bench.levels == [True, False]


def test_int_is_driven_only_when_it_changes() -> None:
    bench = Bench()
    bench.raise_(3, 3, 4, 1)
    bench.chip.write(1, 0x10)
    assert bench.levels == [True]


def test_an_edge_counts_once() -> None:
    bench = Bench()
    bench.raise_(3)
    bench.chip.acknowledge()
    bench.command(EOI)
    assert not bench.chip.int_level
    bench.pulse(3)
    assert bench.chip.int_level


def test_a_request_that_goes_away_leaves_a_spurious_ir7() -> None:
    bench = Bench()
    bench.raise_(3)
    bench.chip.set_line(3, False)
    assert bench.levels == [True, False]
    assert bench.chip.acknowledge() == 7
    assert bench.isr == 0


def test_lower_levels_wait_for_eoi_and_higher_ones_do_not() -> None:
    bench = Bench()
    bench.raise_(4)
    bench.chip.acknowledge()
    bench.raise_(5)
    assert not bench.chip.int_level
    bench.raise_(2)
    assert bench.chip.acknowledge() == 2
    assert bench.isr == 0x14
    bench.command(EOI)
    assert bench.isr == 0x10
    assert not bench.chip.int_level
    bench.command(EOI)
    assert bench.chip.acknowledge() == 5


def test_specific_eoi_ends_the_level_it_names() -> None:
    bench = Bench()
    bench.raise_(4)
    bench.chip.acknowledge()
    bench.raise_(2)
    bench.chip.acknowledge()
    bench.command(SPECIFIC_EOI | 4)
    assert bench.isr == 0x04


def test_the_mask_holds_a_request_back_but_not_off() -> None:
    bench = Bench()
    bench.chip.write(1, 0x08)
    bench.raise_(3)
    assert not bench.chip.int_level
    assert bench.irr == 0x08
    assert bench.chip.read(1) == 0x08
    bench.chip.write(1, 0)
    assert bench.chip.int_level


@pytest.mark.parametrize("by_elcr", [False, True])
def test_a_level_requests_for_as_long_as_it_lasts(*, by_elcr: bool) -> None:
    bench = Bench(icw1=0x13 if by_elcr else 0x1B)
    if by_elcr:
        bench.chip.write(2, 0x20)
        assert bench.chip.read(2) == 0x20
    bench.raise_(5)
    assert bench.chip.acknowledge() == 5
    assert bench.irr == 0x20
    bench.command(EOI)
    assert bench.chip.int_level
    bench.chip.acknowledge()
    bench.chip.set_line(5, False)
    bench.command(EOI)
    assert not bench.chip.int_level


def test_a_line_that_becomes_level_triggered_asks_if_it_is_high() -> None:
    bench = Bench()
    bench.raise_(5)
    bench.chip.acknowledge()
    bench.raise_(3, 6)
    bench.command(EOI)
    assert bench.irr == 0x48
    bench.chip.write(2, 0x20)
    assert bench.irr == 0x68


def test_the_elcr_keeps_what_is_always_edge() -> None:
    pair = PicPair(lambda _: None)
    pair.master.write(2, 0xFF)
    pair.slave.write(2, 0xFF)
    assert (pair.master.read(2), pair.slave.read(2)) == (0xF8, 0xDE)


def test_automatic_eoi_leaves_nothing_in_service() -> None:
    bench = Bench(icw4=0x03)
    bench.raise_(3, 4)
    assert bench.chip.acknowledge() == 3
    assert bench.isr == 0
    assert bench.levels == [True, False, True]
    assert bench.chip.acknowledge() == 4


def test_rotation_on_non_specific_eoi_makes_the_served_level_the_lowest() -> None:
    bench = Bench()
    bench.raise_(4)
    bench.chip.acknowledge()
    bench.command(ROTATE_EOI)
    bench.pulse(4)
    bench.raise_(6)
    assert bench.chip.acknowledge() == 6


def test_rotation_on_specific_eoi() -> None:
    bench = Bench()
    bench.raise_(4)
    bench.chip.acknowledge()
    bench.command(ROTATE_SPECIFIC | 4)
    assert bench.isr == 0
    bench.raise_(3, 5)
    assert bench.chip.acknowledge() == 5


def test_set_priority_turns_the_order() -> None:
    bench = Bench()
    bench.command(SET_PRIORITY | 2)
    bench.raise_(0, 1, 2, 3, 7)
    served = []
    while bench.chip.int_level:
        served.append(bench.chip.acknowledge())
        bench.command(EOI)
    assert served == [3, 7, 0, 1, 2]


def test_rotation_in_automatic_eoi_mode() -> None:
    bench = Bench(icw4=0x03)
    bench.command(ROTATE_AEOI)
    bench.raise_(1, 2)
    assert bench.chip.acknowledge() == 1
    bench.pulse(1)
    assert bench.chip.acknowledge() == 2
    bench.command(NO_ROTATE_AEOI)
    bench.command(SET_PRIORITY | 7)
    assert bench.chip.acknowledge() == 1
    bench.pulse(1)
    bench.pulse(2)
    assert bench.chip.acknowledge() == 1


def test_special_mask_mode_lets_lower_levels_through() -> None:
    bench = Bench()
    bench.raise_(2)
    bench.chip.acknowledge()
    bench.raise_(5)
    bench.chip.write(1, 0x04)
    assert not bench.chip.int_level
    bench.command(SPECIAL_MASK)
    assert bench.chip.acknowledge() == 5
    bench.command(EOI)
    assert bench.isr == 0x04, "non-specific EOI passes over a masked level"
    bench.command(NO_SPECIAL_MASK)
    bench.pulse(5)
    assert not bench.chip.int_level


def test_poll_is_an_acknowledge_by_read() -> None:
    bench = Bench()
    bench.command(POLL)
    assert bench.chip.read(0) == 0
    bench.raise_(5)
    bench.command(POLL)
    assert bench.chip.read(0) == 0x85
    assert bench.isr == 0x20
    assert not bench.chip.int_level


def test_the_choice_of_irr_or_isr_is_remembered() -> None:
    bench = Bench()
    bench.raise_(1)
    bench.chip.acknowledge()
    bench.raise_(6)
    bench.command(READ_ISR)
    assert [bench.chip.read(0), bench.chip.read(0)] == [0x02, 0x02]
    bench.command(READ_IRR)
    assert [bench.chip.read(0), bench.chip.read(0)] == [0x40, 0x40]


def test_icw1_starts_over() -> None:
    bench = Bench()
    bench.raise_(1)
    bench.chip.acknowledge()
    bench.raise_(4)
    bench.chip.write(1, 0xFF)
    bench.command(SET_PRIORITY | 3)
    bench.command(SPECIAL_MASK)
    bench.command(READ_ISR)
    bench.chip.write(0, 0x13)
    state = bench.chip.snapshot()
    assert (state.irr, state.isr, state.imr, state.lowest_ir) == (0, 0, 0, 7)
    assert not state.special_mask
    assert not state.read_isr
    assert state.lines == 0x12, "the lines stay high and ask again only after a fall"
    bench.raise_(6)
    assert not bench.chip.int_level, "no INT before the last ICW"
    bench.chip.write(1, 0x48)
    bench.chip.write(1, 0x01)
    assert bench.chip.vector(bench.chip.acknowledge()) == 0x4E


@pytest.mark.parametrize(
    ("icw1", "words"), [(0x12, 1), (0x13, 2), (0x10, 2), (0x11, 3)], ids=lambda v: f"{v:#x}"
)
def test_as_many_icws_as_icw1_announces(icw1: int, words: int) -> None:
    chip = I8259(lambda _: None)
    chip.write(0, icw1)
    for _ in range(words):
        assert chip.snapshot().next_icw
        chip.write(1, 0)
    assert chip.snapshot().next_icw == 0
    chip.write(1, 0xA5)
    assert chip.read(1) == 0xA5


def test_irq_lines_reach_both_chips() -> None:
    for irq in (n for n in range(16) if n != 2):
        bench = PcBench()
        bench.pair.line(irq)(True)
        assert bench.levels == [True]
        assert bench.pair.acknowledge() == 0x30 + irq
        assert bench.levels == [True, False]


@pytest.mark.parametrize("irq", [-1, 2, 16])
def test_there_is_no_such_wire(irq: int) -> None:
    with pytest.raises(ValueError, match="is not a wire"):
        PicPair(lambda _: None).line(irq)


def test_the_slave_ranks_between_irq_1_and_irq_3() -> None:
    bench = PcBench()
    for irq in (3, 8, 1, 15):
        bench.pair.line(irq)(True)
    order = []
    while bench.levels[-1]:
        vector = bench.pair.acknowledge()
        order.append(vector - 0x30)
        bench.eoi(vector - 0x30)
    assert order == [1, 8, 15, 3]


def test_spurious_irq7_and_irq15() -> None:
    bench = PcBench()
    assert bench.pair.acknowledge() == 0x37
    assert bench.pair.master.snapshot().isr == 0
    bench.pair.line(10)(True)
    # Seen by the master, then gone: the master waits for the slave's vector all the same.
    state = bench.pair.master.snapshot()
    bench.pair.line(10)(False)
    bench.pair.master.restore(state)
    assert bench.pair.acknowledge() == 0x3F
    assert bench.pair.slave.snapshot().isr == 0
    assert bench.pair.master.snapshot().isr == 0x04, "the master needs its EOI"


def test_the_slave_asks_again_after_its_own_eoi() -> None:
    bench = PcBench()
    bench.pair.line(8)(True)
    bench.pair.line(9)(True)
    assert bench.pair.acknowledge() == 0x38
    bench.pair.slave.write(0, EOI)
    bench.pair.master.write(0, EOI)
    assert bench.levels[-1]
    assert bench.pair.acknowledge() == 0x39


def test_an_automatic_eoi_slave_loses_no_request() -> None:
    bench = PcBench(icw4=0x03)
    bench.pair.line(8)(True)
    bench.pair.line(9)(True)
    assert [bench.pair.acknowledge(), bench.pair.acknowledge()] == [0x38, 0x39]
    assert not bench.levels[-1]


def test_special_fully_nested_mode_lets_the_slave_interrupt_itself() -> None:
    for icw4, nested in ((0x01, False), (0x11, True)):
        bench = PcBench(icw4)
        bench.pair.line(12)(True)
        assert bench.pair.acknowledge() == 0x3C
        bench.pair.line(8)(True)
        assert bench.levels[-1] is nested
        bench.pair.line(3)(True)
        assert bench.levels[-1] is nested, "a lower level of the master still waits"


def test_a_vector_nobody_drives_reads_as_ones() -> None:
    bench = PcBench()
    bench.pair.slave.write(0, 0x11)
    for word in (0x38, 5, 1):
        bench.pair.slave.write(1, word)
    bench.pair.line(9)(True)
    assert bench.pair.acknowledge() == 0xFF


@pytest.mark.parametrize("slave_first", [False, True])
def test_the_order_of_restoring_the_pair_does_not_matter(*, slave_first: bool) -> None:
    bench, copy = PcBench(), PcBench()
    bench.pair.line(11)(True)
    copy.pair.line(3)(True)
    chips = [(copy.pair.master, bench.pair.master), (copy.pair.slave, bench.pair.slave)]
    for to, source in reversed(chips) if slave_first else chips:
        to.restore(source.snapshot())
    assert copy.levels[-1]
    assert copy.pair.acknowledge() == 0x3B
    assert not copy.levels[-1]


@pytest.mark.parametrize(
    "forged",
    [
        I8259State(icw2=0x21),
        I8259State(elcr=0x01),
        I8259State(irr=0x01),
        I8259State(lines=0x20, elcr=0x20),
        I8259State(next_icw=1),
    ],
)
def test_contradictions_are_refused(forged: I8259State) -> None:
    chip = I8259(lambda _: None, elcr_mask=0xF8)
    with pytest.raises(CorruptStateError):
        chip.restore(forged)
    assert chip.snapshot() == I8259State()


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("line"), st.integers(0, 7), st.booleans()),
            st.tuples(st.just("mask"), st.integers(0, 0xFF), st.booleans()),
            st.tuples(st.just("inta"), st.just(0), st.booleans()),
            st.tuples(st.just("eoi"), st.just(0), st.booleans()),
        )
    )
)
def test_int_means_that_the_best_request_beats_what_is_in_service(
    steps: list[tuple[str, int, bool]],
) -> None:
    bench = Bench()
    for kind, a, b in steps:
        if kind == "line":
            bench.chip.set_line(a, b)
        elif kind == "mask":
            bench.chip.write(1, a)
        elif kind == "inta":
            expected = bench.chip.int_level
            before = bench.isr
            ir = bench.chip.acknowledge()
            assert (bench.isr == before | 1 << ir) if expected else (ir, bench.isr) == (7, before)
        else:
            bench.command(EOI)
        s = bench.chip.snapshot()
        ready = [ir for ir in range(8) if s.irr & ~s.imr & 1 << ir]
        busy = [ir for ir in range(8) if s.isr & 1 << ir]
        assert bench.chip.int_level is bool(ready and (not busy or ready[0] < busy[0]))
        assert (bench.levels or [False])[-1] is bench.chip.int_level
