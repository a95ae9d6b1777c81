"""The 16550A, against its datasheet."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayvisor.vmm.clock import ManualClock
from rayvisor.vmm.devices.uart16550 import BACKLOG_BYTES, Uart16550
from rayvisor.vmm.errors import CorruptStateError

DATA, IER, IIR, LCR, MCR, LSR, MSR, SCR = range(8)
FCR = IIR
RX, THRE, LINE, MODEM = 1, 2, 4, 8
NONE, IS_MODEM, IS_THRE, IS_RX, IS_LINE, IS_TIMEOUT = 0x01, 0x00, 0x02, 0x04, 0x06, 0x0C
DLAB, OUT2, LOOP = 0x80, 0x08, 0x10
FIFO, TRIGGER_1, TRIGGER_4, TRIGGER_8, TRIGGER_14 = 0xC0, 0x01, 0x41, 0x81, 0xC1
CHARACTER_NS = 10 * 10**9 // 115_200


class Bench:
    """A UART at 115200 8N1 with its interrupt let through."""

    def __init__(self, fcr: int = 0, ier: int = 0) -> None:
        self.clock = ManualClock()
        self.levels: list[bool] = []
        self.sent = bytearray()
        self.chip = Uart16550(self.clock, self.levels.append, self.sent.extend)
        for register, value in ((LCR, DLAB), (DATA, 1), (IER, 0), (LCR, 3)):
            self.chip.write(register, value)
        self.chip.write(FCR, fcr)
        self.chip.write(MCR, OUT2 | 3)
        self.chip.write(IER, ier)

    def __getitem__(self, register: int) -> int:
        return self.chip.read(register)

    def __setitem__(self, register: int, value: int) -> None:
        self.chip.write(register, value)

    def irq(self) -> bool:
        return (self.levels or [False])[-1]

    def read_all(self) -> bytes:
        """What a polling driver reads."""
        seen = bytearray()
        while self[LSR] & 1:
            seen.append(self[DATA])
        return bytes(seen)


def test_bytes_are_sent_at_once_in_order() -> None:
    bench = Bench()
    for byte in b"hello":
        assert bench[LSR] == 0x60
        bench[DATA] = byte
    assert bench.sent == b"hello"


@pytest.mark.parametrize("register", [IER, LCR, MCR, SCR])
def test_registers_hold_the_bits_that_exist(register: int) -> None:
    bench = Bench()
    bench[register] = 0xFF
    assert bench[register] == {IER: 0x0F, LCR: 0xFF, MCR: 0x1F, SCR: 0xFF}[register]
    bench[register] = 0
    assert bench[register] == 0


def test_dlab_shows_the_divisor() -> None:
    bench = Bench(ier=RX)
    bench[LCR] = DLAB | 3
    bench[DATA], bench[IER] = 0x34, 0x12
    assert (bench[DATA], bench[IER]) == (0x34, 0x12)
    assert bench.sent == b""
    bench[LCR] = 3
    assert bench[IER] == RX


def test_received_bytes_wait_their_turn() -> None:
    bench = Bench()
    assert bench.chip.feed(b"abc") == 3
    assert bench[LSR] == 0x61
    assert bench.read_all() == b"abc"
    assert bench[LSR] == 0x60
    assert bench[DATA] == 0


@pytest.mark.parametrize("fcr", [0, TRIGGER_1, TRIGGER_14])
def test_no_byte_is_lost_whatever_the_backlog(fcr: int) -> None:
    bench = Bench(fcr)
    data = bytes(i * 7 & 0xFF for i in range(5000))
    assert bench.chip.feed(data) == len(data)
    assert bench.read_all() == data


def test_the_backlog_is_bounded_and_says_so() -> None:
    bench = Bench()
    assert bench.chip.feed(bytes(BACKLOG_BYTES)) == BACKLOG_BYTES
    assert bench.chip.backlog_room == 1, "one is in RBR"
    assert bench.chip.feed(b"xyz") == 1
    assert bench.chip.backlog_room == 0
    bench[DATA]
    assert bench.chip.feed(b"xyz") == 1


@pytest.mark.parametrize(
    ("fcr", "level"), [(0, 1), (TRIGGER_1, 1), (TRIGGER_4, 4), (TRIGGER_8, 8), (TRIGGER_14, 14)]
)
def test_the_receiver_interrupts_at_its_trigger_level(fcr: int, level: int) -> None:
    bench = Bench(fcr, RX)
    bench.chip.feed(bytes(level - 1))
    assert not bench.irq()
    bench.chip.feed(b"x")
    assert bench.irq()
    assert bench[IIR] & 0xF == IS_RX
    bench[DATA]
    assert not bench.irq()


def test_iir_tells_whether_the_fifos_are_on() -> None:
    assert Bench()[IIR] == NONE
    assert Bench(TRIGGER_1)[IIR] == FIFO | NONE


def test_a_character_timeout_comes_after_four_characters() -> None:
    bench = Bench(TRIGGER_8, RX)
    bench.chip.feed(b"ab")
    bench.clock.advance(4 * CHARACTER_NS - 10)
    assert not bench.irq()
    bench.clock.advance(20)
    assert bench.irq()
    assert bench[IIR] == FIFO | IS_TIMEOUT
    assert bench[IIR] == FIFO | IS_TIMEOUT, "reading IIR does not clear it"
    bench[DATA]
    assert not bench.irq()
    bench.clock.advance(4 * CHARACTER_NS + 10)
    assert bench.irq(), "the character that is left times out anew"
    bench[DATA]
    assert not bench.irq()
    assert bench.clock.next_deadline_ns() is None


def test_each_character_starts_the_timeout_over() -> None:
    bench = Bench(TRIGGER_8, RX)
    for _ in range(6):
        bench.chip.feed(b"a")
        bench.clock.advance(3 * CHARACTER_NS)
        assert not bench.irq()
    bench.clock.advance(2 * CHARACTER_NS)
    assert bench.irq()


def test_the_timeout_follows_divisor_and_format() -> None:
    bench = Bench(TRIGGER_8, RX)
    for register, value in ((LCR, DLAB), (DATA, 12), (LCR, 0x0F)):
        bench[register] = value
    bench.chip.feed(b"a")
    # 8 data bits, parity, two stop bits, at 9600 baud
    assert bench.clock.next_deadline_ns() == 4 * 12 * 10**9 // 9600


def test_no_timeout_without_fifo_or_interrupt() -> None:
    for fcr, ier in ((0, RX), (TRIGGER_8, 0)):
        bench = Bench(fcr, ier)
        bench.chip.feed(b"a")
        assert bench.clock.next_deadline_ns() is None


def test_a_timeout_that_passed_unnoticed_shows_when_enabled() -> None:
    bench = Bench(TRIGGER_8)
    bench.chip.feed(b"a")
    bench.clock.advance(10**9)
    bench[IER] = RX
    bench.clock.advance(0)
    assert bench[IIR] == FIFO | IS_TIMEOUT


def test_thre_interrupts_when_enabled_and_after_each_byte() -> None:
    bench = Bench(ier=THRE)
    assert bench.irq()
    assert bench[IIR] == IS_THRE
    assert not bench.irq(), "reading IIR took it back"
    assert bench[IIR] == NONE
    bench[DATA] = 0x41
    assert bench.irq()
    bench[IER] = 0
    assert not bench.irq()
    bench[IER] = THRE
    assert bench.irq()


def test_writing_thr_while_the_interrupt_is_pending_makes_an_edge() -> None:
    bench = Bench(ier=THRE)
    del bench.levels[:]
    bench[DATA] = 0x41
    assert bench.levels == [False, True]


def test_reading_iir_clears_thre_only_if_it_is_the_source() -> None:
    bench = Bench(ier=THRE | RX)
    bench.chip.feed(b"a")
    assert bench[IIR] == IS_RX
    bench[DATA]
    assert bench[IIR] == IS_THRE
    assert bench[IIR] == NONE


def test_interrupts_are_identified_by_priority() -> None:
    bench = Bench(TRIGGER_1, RX | THRE | LINE | MODEM)
    bench[MCR] = LOOP | OUT2
    for _ in range(17):
        bench[DATA] = 0x55
    bench[MCR] = OUT2 | 3
    seen = []
    for clear in (LSR, None, None, MSR):
        seen.append(bench[IIR] & 0xF)
        if clear is None and seen[-1] == IS_RX:
            bench.read_all()
        elif clear is not None:
            bench[clear]
    assert seen == [IS_LINE, IS_RX, IS_THRE, IS_MODEM]
    assert bench[IIR] & 0xF == NONE
    assert not bench.irq()


def test_out2_gates_the_line() -> None:
    bench = Bench(ier=THRE)
    bench[MCR] = 3
    assert not bench.irq()
    assert bench[IIR] == IS_THRE, "pending all the same"
    bench[DATA] = 0x41
    bench[MCR] = OUT2
    assert bench.irq()


def test_loopback_receives_what_is_sent() -> None:
    bench = Bench(TRIGGER_1)
    bench[MCR] = LOOP
    for byte in b"ping":
        bench[DATA] = byte
    assert bench.sent == b""
    assert bench.read_all() == b"ping"


def test_loopback_shuts_out_the_line() -> None:
    bench = Bench(TRIGGER_1)
    bench[MCR] = LOOP
    bench.chip.feed(b"outside")
    assert bench[LSR] == 0x60
    bench[MCR] = OUT2
    assert bench.read_all() == b"outside"


@pytest.mark.parametrize(("fcr", "kept"), [(0, b"\x10"), (TRIGGER_1, bytes(range(16)))])
def test_overrun(fcr: int, kept: bytes) -> None:
    bench = Bench(fcr, LINE)
    bench[MCR] = LOOP
    for byte in range(17):
        bench[DATA] = byte
    assert bench[IIR] & 0xF == IS_LINE
    assert bench[LSR] == 0x63
    assert bench[LSR] == 0x61, "reading LSR clears it"
    assert bench.read_all() == kept


def test_loopback_cuts_characters_to_the_word_length() -> None:
    bench = Bench()
    bench[LCR] = 0
    bench[MCR] = LOOP
    bench[DATA] = 0xFF
    assert bench[DATA] == 0x1F


@pytest.mark.parametrize(
    ("mcr", "msr"), [(0x01, 0x20), (0x02, 0x10), (0x04, 0x40), (0x08, 0x80), (0x0A, 0x90)]
)
def test_loopback_turns_the_modem_outputs_into_inputs(mcr: int, msr: int) -> None:
    bench = Bench()
    bench[MCR] = LOOP | mcr
    assert bench[MSR] & 0xF0 == msr


def test_modem_changes_are_told_once() -> None:
    bench = Bench(ier=MODEM)
    assert bench[MSR] == 0xB0
    bench.chip.set_modem_lines(0x20)
    assert bench.irq()
    assert bench[IIR] == IS_MODEM
    assert bench[MSR] == 0x29
    assert not bench.irq()
    assert bench[MSR] == 0x20


def test_a_ring_is_told_at_its_end() -> None:
    bench = Bench()
    bench.chip.set_modem_lines(0xF0)
    assert bench[MSR] == 0xF0
    bench.chip.set_modem_lines(0xB0)
    assert bench[MSR] == 0xB4


def test_fcr_clears_the_receiver() -> None:
    bench = Bench(TRIGGER_14)
    bench.chip.feed(b"abc")
    bench[FCR] = TRIGGER_14 | 2
    assert bench[LSR] == 0x60
    bench.chip.feed(b"def")
    bench[FCR] = TRIGGER_1
    assert bench[LSR] == 0x61, "a new trigger level clears nothing"
    bench[FCR] = 0
    assert bench[LSR] == 0x60, "turning the FIFOs off does"


def test_fcr_moves_the_interrupt_line() -> None:
    bench = Bench(TRIGGER_4, RX)
    bench.chip.feed(b"abcd")
    assert bench.irq()
    bench[FCR] = TRIGGER_8
    assert not bench.irq()
    bench[FCR] = TRIGGER_1
    assert bench.irq()
    bench[FCR] = TRIGGER_1 | 2
    assert not bench.irq()
    assert bench.clock.next_deadline_ns() is None


def test_lsr_and_msr_ignore_writes() -> None:
    bench = Bench()
    bench[LSR] = bench[MSR] = 0xFF
    assert (bench[LSR], bench[MSR]) == (0x60, 0xB0)


def test_bursts_are_for_plain_characters_alone() -> None:
    bench = Bench()
    allowed = [bench.chip.coalescing_allowed]
    for register, value in ((LCR, DLAB), (LCR, 3), (MCR, LOOP), (MCR, OUT2)):
        bench[register] = value
        allowed.append(bench.chip.coalescing_allowed)
    assert allowed == [True, False, True, False, True]


@given(
    data=st.binary(max_size=40),
    fcr=st.sampled_from([0, TRIGGER_1, TRIGGER_14]),
    ier=st.integers(0, 0xF),
    mcr=st.integers(0, 0x1F),
    lcr=st.sampled_from([3, DLAB | 3]),
    acknowledge=st.booleans(),
)
def test_a_burst_is_the_same_as_its_bytes(
    data: bytes, fcr: int, ier: int, mcr: int, lcr: int, *, acknowledge: bool
) -> None:
    one, other = Bench(fcr, ier), Bench(fcr, ier)
    for bench in (one, other):
        bench[MCR], bench[LCR] = mcr, lcr
        if acknowledge:
            bench[IIR]
        del bench.levels[:]
    one.chip.write_burst(data)
    for byte in data:
        other[DATA] = byte
    assert one.chip.snapshot() == other.chip.snapshot()
    assert one.sent == other.sent
    # The edges in between fall together: an edge-triggered input holds one request at most.
    assert one.levels[-2:] == other.levels[-2:] or one.levels == other.levels[:1]
    assert any(one.levels) is any(other.levels)


@given(st.lists(st.one_of(st.binary(max_size=50), st.integers(0, 40)), max_size=20))
def test_bytes_arrive_in_order_however_they_are_fed_and_read(steps: list[bytes | int]) -> None:
    bench = Bench(TRIGGER_4, RX)
    fed, seen = bytearray(), bytearray()
    for step in steps:
        if isinstance(step, bytes):
            assert bench.chip.feed(step) == len(step)
            fed += step
        else:
            for _ in range(step):
                if bench[LSR] & 1:
                    seen.append(bench[DATA])
        bench.clock.advance(50_000)
        assert bench.irq() is (bench[IIR] & 0xF != NONE)
    assert seen + bench.read_all() == fed


@pytest.mark.parametrize(
    "change",
    [
        {"rx": b"ab", "fcr": 0},
        {"rx": b"", "timeout_pending": True},
        {"rx": b"", "backlog": b"a"},
        {"msr": 0x01},
    ],
)
def test_contradictions_are_refused(change: dict[str, object]) -> None:
    bench = Bench()
    before = bench.chip.snapshot()
    with pytest.raises(CorruptStateError):
        bench.chip.restore(replace(before, **change))  # type: ignore[arg-type]
    assert bench.chip.snapshot() == before
