"""A frozen VM executes nothing, whatever else is asked of it."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from rayvisor.vmm.errors import MachineStateError
from rayvisor.vmm.machine import PowerState
from tests.support.flat import missing_tools, protected
from tests.support.machines import flat_vm

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rayvisor.vmm.vm import Vm

pytestmark = pytest.mark.skipif(bool(missing_tools()), reason="needs binutils")

TALKER = "again: mov dx, 0x3F8\nmov al, 'a'\nout dx, al\nmov ecx, 10000\nx: loop x\njmp again"


@contextmanager
def talker() -> Iterator[Vm]:
    with flat_vm(protected(TALKER)) as vm:
        vm.start()
        yield vm


def talks(vm: Vm) -> bool:
    before = vm.console.end_offset
    time.sleep(0.2)
    return vm.console.end_offset > before


def test_it_stands_still_and_goes_on() -> None:
    with talker() as vm:
        assert talks(vm)
        vm.freeze()
        vm.freeze()
        assert (vm.power, vm.frozen, talks(vm)) == (PowerState.PAUSED, True, False)
        vm.thaw()
        vm.thaw()
        assert (vm.power, vm.frozen, talks(vm)) == (PowerState.RUNNING, False, True)


def test_resuming_does_not_break_the_ice() -> None:
    with talker() as vm:
        vm.pause()
        vm.freeze()
        vm.resume()
        assert not talks(vm)
        vm.thaw()
        assert talks(vm)


def test_what_was_paused_stays_paused() -> None:
    with talker() as vm:
        vm.pause()
        vm.freeze()
        vm.thaw()
        assert (vm.power, talks(vm)) == (PowerState.PAUSED, False)
        vm.resume()
        vm.freeze()
        vm.pause()
        vm.thaw()
        assert (vm.power, talks(vm)) == (PowerState.PAUSED, False)


def test_it_can_be_stopped_and_not_started() -> None:
    with talker() as vm:
        vm.freeze()
        with pytest.raises(MachineStateError, match="until its host is part of the cluster"):
            vm.reset()
        vm.stop()
        assert vm.power is PowerState.OFF
        with pytest.raises(MachineStateError, match="until its host is part of the cluster"):
            vm.start()
        vm.thaw()
        assert vm.power is PowerState.OFF
        vm.start()
        assert talks(vm)
