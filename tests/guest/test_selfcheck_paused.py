"""Pausing anywhere, and all state taken out and put back, changes nothing in the guest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rayvisor.vmm.errors import MachineStateError
from rayvisor.vmm.machine import PowerState

if TYPE_CHECKING:
    from tests.guest.conftest import Selfcheck

pytestmark = [pytest.mark.guest, pytest.mark.network]

TIMER_VECTOR = 0xEC
"""Where Linux puts the interrupt of the local APIC's timer."""


def test_survives_pauses_and_a_busy_clock(selfcheck: Selfcheck) -> None:
    with selfcheck.started(tick_us=1000) as vm:
        pauses = 0
        while vm.wait(0.001) is None:
            try:
                vm.pause()
            except MachineStateError:
                break  # it ended just now
            if vm.power is PowerState.PAUSED:
                vm.machine.vcpu.load(vm.machine.cpu_state())
                vm.resume()
                pauses += 1
        selfcheck.check(vm)
        assert pauses > 100
        ticks = sum(
            count
            for kind, vector, _, count in vm.exits().sites
            if (kind, vector) == ("interrupt", TIMER_VECTOR)
        )
        assert ticks > 1000
