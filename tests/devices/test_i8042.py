"""The keyboard controller and its keyboard."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayvisor.vmm.devices.i8042 import I8042
from rayvisor.vmm.errors import CorruptStateError

OBF, SYS, COMMAND, UNLOCKED, TIMEOUT = 0x01, 0x04, 0x08, 0x10, 0x40
ACK, AGAIN = 0xFA, 0xFE


class Bench:
    """A controller; `bytes_for` sends bytes to port 0x60 and gives what comes back."""

    def __init__(self) -> None:
        self.irqs: list[bool] = []
        self.a20: list[bool] = []
        self.resets = 0
        self.chip = I8042(self.irqs.append, a20=self.a20.append, reset=self._reset)

    def _reset(self) -> None:
        self.resets += 1

    def command(self, value: int, *data: int) -> None:
        self.chip.write(1, value)
        for byte in data:
            self.chip.write(0, byte)

    @property
    def status(self) -> int:
        return self.chip.read(1)

    def answer(self) -> list[int]:
        seen = []
        while self.status & OBF:
            seen.append(self.chip.read(0))
        return seen

    def ask(self, value: int, *data: int) -> list[int]:
        self.command(value, *data)
        return self.answer()

    def keyboard(self, *data: int) -> list[int]:
        for byte in data[:-1]:
            self.chip.write(0, byte)
            assert self.answer() == [ACK]
        self.chip.write(0, data[-1])
        return self.answer()


def test_the_status_tells_command_from_data() -> None:
    bench = Bench()
    assert bench.status == UNLOCKED
    bench.command(0xAE)
    assert bench.status == UNLOCKED | COMMAND
    bench.chip.write(0, 0xF4)
    assert bench.status == UNLOCKED | OBF


def test_self_test_passes_and_sets_the_system_flag() -> None:
    bench = Bench()
    assert bench.ask(0xAA) == [0x55]
    assert bench.status & SYS


def test_the_keyboard_interface_is_good() -> None:
    assert Bench().ask(0xAB) == [0x00]


def test_the_ports_of_the_controller_can_be_read() -> None:
    bench = Bench()
    assert bench.ask(0xC0) == [0xA0]
    assert bench.ask(0xE0) == [0x00]


def test_there_is_no_auxiliary_port() -> None:
    bench = Bench()
    assert bench.ask(0xA9) == [0x01], "its clock line is stuck"
    bench.command(0xA8)
    assert bench.ask(0x20)[0] & 0x20, "its clock cannot be enabled"
    bench.command(0xD3, 0x5A)
    assert not bench.status & 0x20, "the loop test does not come from it"
    assert bench.answer() == [0x5A]
    bench.command(0xD4, 0xF2)
    assert bench.status & (OBF | TIMEOUT) == OBF | TIMEOUT
    assert bench.answer() == [AGAIN]
    assert not bench.status & TIMEOUT
    bench.command(0xD4, 0xF2)
    bench.command(0xAB)
    assert not bench.status & TIMEOUT


def test_the_command_byte_and_the_ram_behind_it() -> None:
    bench = Bench()
    bench.command(0x60, 0x45)
    assert bench.ask(0x20) == [0x45 | 0x20]
    assert bench.status & SYS
    bench.command(0x7F, 0x5A)
    assert bench.ask(0x3F) == [0x5A]


def test_disabling_the_keyboard_holds_its_bytes_back() -> None:
    bench = Bench()
    bench.chip.write(0, 0xFF)
    bench.command(0xAD)
    assert bench.answer() == [ACK], "what was in the buffer already"
    bench.command(0xAE)
    assert bench.answer() == [0xAA]


def test_writing_to_the_keyboard_enables_it() -> None:
    bench = Bench()
    bench.command(0xAD)
    assert bench.keyboard(0xF4) == [ACK]
    assert not bench.ask(0x20)[0] & 0x10


def test_each_byte_of_the_keyboard_is_an_edge_on_irq_1() -> None:
    bench = Bench()
    bench.chip.write(0, 0xFF)
    assert bench.irqs == [True]
    bench.chip.read(0)
    assert bench.irqs == [True, False, True]
    bench.chip.read(0)
    assert bench.irqs == [True, False, True, False]


def test_the_command_byte_lets_irq_1_through() -> None:
    bench = Bench()
    bench.command(0x60, 0x20)
    bench.chip.write(0, 0xF4)
    assert bench.irqs == []
    assert bench.answer() == [ACK]


@pytest.mark.parametrize(
    ("sent", "answered"),
    [
        ((0xED, 0x07), [ACK]),
        ((0xEE,), [0xEE]),
        ((0xF0, 0x00), [ACK, 0x41]),
        ((0xF0, 0x04), [AGAIN]),
        ((0xF2,), [ACK, 0xAB, 0x41]),
        ((0xF3, 0x20), [ACK]),
        ((0xF4,), [ACK]),
        ((0xF5,), [ACK]),
        ((0xF6,), [ACK]),
        ((0xFF,), [ACK, 0xAA]),
        ((0xE1,), [AGAIN]),
    ],
)
def test_the_keyboard_answers(sent: tuple[int, ...], answered: list[int]) -> None:
    assert Bench().keyboard(*sent) == answered


def test_without_translation_the_keyboard_is_itself() -> None:
    bench = Bench()
    bench.command(0x60, 0x01)
    assert bench.keyboard(0xF2) == [ACK, 0xAB, 0x83]
    assert bench.keyboard(0xF0, 3) == [ACK]
    assert bench.keyboard(0xF0, 0) == [ACK, 3]
    assert bench.keyboard(0xF6) == [ACK]
    assert bench.keyboard(0xF0, 0) == [ACK, 2]


def test_resend_repeats_the_last_byte() -> None:
    bench = Bench()
    assert bench.keyboard(0xEE) == [0xEE]
    assert bench.keyboard(0xFE) == [0xEE]


def test_a_command_in_place_of_a_value_is_taken_as_one() -> None:
    assert Bench().keyboard(0xED, 0xF2) == [ACK, 0xAB, 0x41]


def test_a20_goes_through_the_output_port() -> None:
    bench = Bench()
    assert bench.ask(0xD0)[0] & 0x03 == 0x03
    bench.command(0xD1, 0xDD)
    bench.command(0xD1, 0xDF)
    bench.command(0xDD)
    bench.command(0xDD)
    assert bench.a20 == [False, True, False]
    assert bench.ask(0xD0)[0] & 0x03 == 0x01
    bench.command(0xDF)
    assert bench.a20[-1]
    assert bench.resets == 0


@pytest.mark.parametrize("command", [(0xFE,), (0xF0,), (0xD1, 0xDE)])
def test_the_cpu_can_be_reset(command: tuple[int, ...]) -> None:
    bench = Bench()
    bench.command(*command)
    assert bench.resets == 1


def test_pulsing_other_lines_resets_nothing() -> None:
    bench = Bench()
    bench.command(0xFF)
    bench.command(0xF1)
    assert bench.resets == 0


def test_reset_opens_a20_again() -> None:
    bench = Bench()
    bench.command(0xDD)
    bench.chip.reset()
    assert bench.a20 == [False, True]


@given(st.lists(st.tuples(st.sampled_from([0, 1]), st.integers(0, 0xFF)), max_size=40))
def test_the_controller_always_comes_to_rest(writes: list[tuple[int, int]]) -> None:
    bench = Bench()
    for offset, value in writes:
        bench.chip.write(offset, value)
    assert len(bench.answer()) <= 17
    assert (bench.irqs or [False])[-1] is False


@pytest.mark.parametrize(
    "change",
    [
        {"ram": b"\x20" * 31},
        {"ram": bytes(32)},
        {"queue": b"a"},
        {"awaits": 0x20},
        {"kb_awaits": 1},
    ],
)
def test_contradictions_are_refused(change: dict[str, object]) -> None:
    bench = Bench()
    before = bench.chip.snapshot()
    with pytest.raises(CorruptStateError):
        bench.chip.restore(replace(before, **change))  # type: ignore[arg-type]
    assert bench.chip.snapshot() == before
