"""The translator loses nothing: one binary, natively and in a guest, prints the same."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from rayvisor.vmm.vm import Vm
    from tests.guest.conftest import Selfcheck

pytestmark = [pytest.mark.guest, pytest.mark.network]


def test_native_output_is_deterministic(selfcheck: Selfcheck) -> None:
    assert selfcheck.run_natively() == selfcheck.expected
    assert selfcheck.expected.endswith("selfcheck done\n")


def test_guest_prints_what_the_host_prints(selfcheck: Selfcheck) -> None:
    with selfcheck.started() as vm:
        selfcheck.check(vm)


def _storm(vm: Vm, over: threading.Event) -> None:
    """Stops from outside, a thousand a second, at whatever the guest is doing."""
    while not over.wait(0.001):
        vm.machine.vcpu.kick()


def test_survives_a_storm_of_asynchronous_stops(selfcheck: Selfcheck) -> None:
    over = threading.Event()
    with selfcheck.started(tick_us=1000) as vm:
        thread = threading.Thread(target=_storm, args=(vm, over))
        thread.start()
        try:
            selfcheck.check(vm)
        finally:
            over.set()
            thread.join()
        assert vm.exits().counts["stop"] > 1000
