"""Guests that hang, with a watchdog or a heartbeat, and what is done about each."""

from __future__ import annotations

import time

import pytest

from rayvisor.vmm.machine import PowerState
from rayvisor.vmm.spec import BootSource, HangAction, MachineSpec
from rayvisor.vmm.vm import Vm
from tests.support.flat import missing_tools, protected
from tests.support.machines import MIB, text_of

pytestmark = pytest.mark.skipif(bool(missing_tools()), reason="needs binutils")

START = "mov dx, 0x443\nmov al, 0x{value:X}\nout dx, al\n"
SAY = "mov dx, 0x3F8\nmov al, '{letter}'\nout dx, al\n"
HANG = "jmp ."
PATIENCE_S = 30.0


def vm_of(guest: str, on_hang: HangAction, heartbeat_s: float = 0.0) -> Vm:
    boot = BootSource(protected(guest), format="flat")
    return Vm(MachineSpec(4 * MIB, boot, name="flat", on_hang=on_hang, heartbeat_s=heartbeat_s))


def wait_for(vm: Vm, text: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while text not in text_of(vm):
        assert time.monotonic() < deadline, text_of(vm)
        time.sleep(0.01)


def test_a_hung_guest_starts_over() -> None:
    vm = vm_of(SAY.format(letter="a") + START.format(value=0xF) + HANG, HangAction.RESET)
    try:
        vm.start()
        wait_for(vm, "aaa")
        assert vm.power is PowerState.RUNNING
        assert vm.machine.hangs >= 2
        assert vm.machine.resets >= 2
    finally:
        vm.close()


def test_a_hung_guest_is_ended() -> None:
    told: list[str] = []
    vm = vm_of(START.format(value=0xF) + HANG, HangAction.STOP)
    vm.machine.on_hang = told.append
    try:
        vm.start()
        assert vm.wait(PATIENCE_S) is PowerState.CRASHED
        assert vm.machine.crash_reason == "the guest hung: its watchdog expired"
        assert told == ["its watchdog expired"]
        assert vm.machine.resets == 0
    finally:
        vm.close()


def test_a_hang_may_be_left_alone() -> None:
    guest = (
        START.format(value=0xF) + "mov ecx, 30000000\nspin: loop spin\n" + SAY.format(letter="z")
    )
    vm = vm_of(guest + HANG, HangAction.IGNORE)
    try:
        vm.start()
        wait_for(vm, "z")
        assert (vm.machine.hangs, vm.machine.resets) == (1, 0)
    finally:
        vm.close()


def test_a_stopped_watchdog_does_not_bite() -> None:
    stop = "mov dx, 0x441\nout dx, al\n"
    guest = START.format(value=0xE) + stop + SAY.format(letter="k") + HANG
    vm = vm_of(guest, HangAction.STOP)
    try:
        vm.start()
        wait_for(vm, "k")
        assert vm.wait(3.0) is None
        assert vm.machine.hangs == 0
    finally:
        vm.close()


def test_silence_is_a_hang() -> None:
    vm = vm_of(SAY.format(letter="a") + HANG, HangAction.STOP, heartbeat_s=0.3)
    try:
        vm.start()
        assert vm.wait(PATIENCE_S) is PowerState.CRASHED
        assert vm.machine.crash_reason == "the guest hung: its console said nothing for 0.3 s"
    finally:
        vm.close()


def test_a_heartbeat_can_be_wanted_later_and_no_longer() -> None:
    vm = vm_of(SAY.format(letter="a") + HANG, HangAction.RESET, heartbeat_s=0.3)
    machine = vm.machine
    try:
        vm.start()
        wait_for(vm, "aa")
        vm.call(lambda: machine.set_heartbeat(0.0))
        hangs = machine.hangs
        assert vm.wait(1.0) is None
        assert machine.hangs == hangs
        machine.hang_action = HangAction.STOP
        vm.call(lambda: machine.set_heartbeat(0.2))
        assert vm.wait(PATIENCE_S) is PowerState.CRASHED
        assert machine.crash_reason == "the guest hung: its console said nothing for 0.2 s"
    finally:
        vm.close()


def test_a_guest_that_talks_lives() -> None:
    talk = "again:\n" + SAY.format(letter="a") + "mov ecx, 2000000\nspin: loop spin\njmp again"
    vm = vm_of(talk, HangAction.STOP, heartbeat_s=1.0)
    try:
        vm.start()
        assert vm.wait(3.0) is None
        assert vm.machine.hangs == 0
    finally:
        vm.close()


def test_time_that_a_guest_is_paused_is_no_hang() -> None:
    vm = vm_of(SAY.format(letter="a") + START.format(value=0xE) + HANG, HangAction.STOP)
    try:
        vm.start()
        wait_for(vm, "a")
        vm.pause()
        time.sleep(2.5)
        vm.resume()
        assert vm.wait(0.5) is None
        assert vm.wait(PATIENCE_S) is PowerState.CRASHED
    finally:
        vm.close()
