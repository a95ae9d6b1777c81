"""A guest that has nothing to do is left alone: its kernel's clock reaches far."""

from __future__ import annotations

from typing import Final

import pytest

from rayvisor.runtime.images import KINDS, ImageStore
from tests.support.machines import debian_vm, expect

pytestmark = [pytest.mark.guest, pytest.mark.network]

PROMPT: Final = ":~# "
SLEEP_S: Final = 4
WAKES_A_SECOND: Final = 15
"""Linux ticks 250 times a second while it works; with the 8254 alone it would wake 37 times."""

TIMERS: Final = "grep -E 'Clock Event Device|hres_active|nohz_mode' /proc/timer_list"


@pytest.mark.parametrize("kind", KINDS)
def test_debian_sleeps_on_its_local_apic(kind: str) -> None:
    with debian_vm(ImageStore().build(kind)) as vm:
        console = expect(vm)
        console.read_until(PROMPT, timeout_s=60)
        timers = console.run(TIMERS).output
        assert "Clock Event Device: lapic-deadline" in timers
        assert ".hres_active    : 1" in timers
        # Debian's kernel for i386 ticks whether there is something to do or not.
        if ".nohz_mode      : 2" not in timers:
            assert kind == "debian-i386"
            return
        console.run("sleep 2")
        before = vm.machine.vcpu.exit_counts()["hlt"]
        console.run(f"sleep {SLEEP_S}")
        assert vm.machine.vcpu.exit_counts()["hlt"] - before < SLEEP_S * WAKES_A_SECOND
