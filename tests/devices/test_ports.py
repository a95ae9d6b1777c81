"""The single ports of the board, and how A20 is joined."""

from __future__ import annotations

from rayvisor.vmm.clock import ManualClock
from rayvisor.vmm.devices.debugexit import DebugExit
from rayvisor.vmm.devices.i8254 import I8254
from rayvisor.vmm.devices.port61 import Port61
from rayvisor.vmm.devices.port80 import Port80
from rayvisor.vmm.devices.port92 import Port92
from rayvisor.vmm.devices.wiring import WiredOr


def test_port_61_gates_counter_2_and_shows_its_output() -> None:
    clock = ManualClock()
    timer = I8254(clock, (None, None, None))
    port = Port61(
        clock, set_gate2=lambda level: timer.set_gate(2, level), out2=lambda: timer.out(2)
    )
    timer.write(3, 0xB0)
    timer.write(2, 0x34)
    timer.write(2, 0x12)
    clock.advance(10**9)
    assert port.read(0) & 0x21 == 0
    port.write(0, 0x01)
    clock.advance(3_900_000)
    assert port.read(0) & 0x21 == 0x01
    clock.advance(10_000)
    assert port.read(0) & 0x21 == 0x21


def test_port_61_keeps_its_low_bits() -> None:
    port = Port61(ManualClock(), set_gate2=lambda _: None, out2=lambda: False)
    port.write(0, 0xFE)
    assert port.read(0) == 0x0E
    port.reset()
    assert port.read(0) == 0


def test_port_61_shows_the_refresh_every_15_us() -> None:
    clock = ManualClock()
    port = Port61(clock, set_gate2=lambda _: None, out2=lambda: False)
    seen: list[int] = []
    for _ in range(301_710):
        if len(seen) < 2 or port.read(0) & 0x10 != seen[-1]:
            seen.append(port.read(0) & 0x10)
        clock.advance(100)
    assert 1999 <= len(seen) <= 2003


def test_port_80_remembers_the_last_code() -> None:
    port = Port80()
    port.write(0, 0x55)
    assert (port.code, port.read(0)) == (0x55, 0x55)


def test_port_92_drives_a20_and_resets_on_a_rise() -> None:
    a20: list[bool] = []
    resets: list[int] = []
    port = Port92(a20=a20.append, reset=lambda: resets.append(1))
    port.write(0, 0x02)
    port.write(0, 0x02)
    port.write(0, 0x00)
    assert a20 == [True, False]
    port.write(0, 0x03)
    port.write(0, 0x03)
    assert len(resets) == 1
    assert port.read(0) == 0x03
    port.write(0, 0x02)
    port.write(0, 0x03)
    assert len(resets) == 2


def test_the_debug_exit_leaves_with_its_first_byte() -> None:
    left: list[int] = []
    port = DebugExit(left.append)
    port.write(0, 0x2A)
    port.write(1, 0x55)
    assert left == [0x2A]
    assert port.read(0) == 0xFF


def test_a20_is_high_while_anybody_says_so() -> None:
    levels: list[bool] = []
    gate = WiredOr(levels.append)
    keyboard, fast = gate.input(high=True), gate.input()
    fast(False)
    fast(True)
    keyboard(False)
    fast(False)
    keyboard(True)
    assert levels == [True, True, True, False, True]
