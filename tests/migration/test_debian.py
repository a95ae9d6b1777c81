"""A Debian guest computes and prints while it is moved back and forth."""

from __future__ import annotations

import hashlib
import re
import time

import pytest

from rayvisor.migration.config import MigrationConfig
from rayvisor.runtime.images import ImageStore
from rayvisor.vmm.machine import PowerState
from rayvisor.vmm.spec import MachineSpec
from rayvisor.vmm.vm import Vm
from tests.migration.moving import MIB, Journey

pytestmark = [pytest.mark.guest, pytest.mark.network]

MOVES = 12
# Every line is a checksum of what passed through pipes, forked processes and a file in memory.
WORK = (
    "i=0; while :; do i=$((i+1)); seq 1 20000 > /tmp/f$((i%4)); "
    "echo $i $(cat /tmp/f$((i%4)) | sha256sum | cut -c1-64) $(cut -d' ' -f1 /proc/uptime); done"
)
PROMPT = b":~# "


def test_ten_moves_and_more_change_nothing_that_a_guest_computes() -> None:
    boot = ImageStore().build("debian").boot_source("")
    vm = Vm(MachineSpec(256 * MIB, boot, name="debian"))
    vm.start()
    moved = Journey(vm)
    try:
        moved.read_until(PROMPT)
        moved.vm.console.send(WORK.encode() + b"\n")
        began_s = time.monotonic()
        reports = []
        for move in range(MOVES):
            moved.read_until(b"\n%d " % (move + 1))
            reports.append(moved.move(MigrationConfig(downtime_s=0.02)))
        wanted = len(re.findall(rb"\n\d+ [0-9a-f]{64} ", moved.read())) + 3
        moved.read_until(b"\n%d " % wanted)
        moved.vm.console.send(b"\x03")
        passed_s = time.monotonic() - began_s
        output = moved.read_until(b"^C").decode()
        moved.vm.console.send(b"dmesg | grep -ciE 'unstable|stall|lockup|bug:'; echo en''d\n")
        tail = moved.read_until(b"\nend").decode()[len(output) :]
        assert moved.vm.power is PowerState.RUNNING
    finally:
        moved.vm.close()
    lines = re.findall(r"^(\d+) ([0-9a-f]{64}) ([\d.]+)\r?$", output, re.MULTILINE)
    numbers = "".join(f"{i}\n" for i in range(1, 20001)).encode()
    assert [int(i) for i, _, _ in lines] == list(range(1, len(lines) + 1))
    assert {digest for _, digest, _ in lines} == {hashlib.sha256(numbers).hexdigest()}
    uptimes = [float(uptime) for _, _, uptime in lines]
    assert uptimes == sorted(uptimes)
    assert uptimes[-1] - uptimes[0] <= passed_s
    assert re.search(r"^0\r?$", tail, re.MULTILINE), tail
    assert all(r.outcome == "moved" for r in reports)
