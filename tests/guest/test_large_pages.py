"""Memory that a guest's kernel clears by 2 MiB is backed by large pages of the host."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import pytest

from rayvisor.runtime.images import ImageStore
from rayvisor.vmm.memory import LARGE_PAGE_BYTES, GuestRam
from tests.support.machines import MIB, debian_vm, expect

pytestmark = [pytest.mark.guest, pytest.mark.network]

MADV_COLLAPSE: Final = 25
THP_FROM_BYTES: Final = 640 * MIB
"""Linux gives programs large pages of its own accord in a machine of more than 512 MiB."""


def _host_has_large_pages() -> bool:
    ram = GuestRam(2 * LARGE_PAGE_BYTES)
    try:
        ram.write(0x10_0000, b"\1")
        ram._mapping.madvise(MADV_COLLAPSE, ram._at, LARGE_PAGE_BYTES)
    except OSError:
        return False
    finally:
        ram.close()
    return True


def _large_kib() -> int:
    """Of guest RAM, mapped by large pages in this process."""
    total, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if "-" in words[0]:
            ours = "guest-ram" in line
        elif ours and words[0] == "ShmemPmdMapped:":
            total += int(words[1])
    return total


def test_a_programs_large_array_is_backed_by_large_pages() -> None:
    if not _host_has_large_pages():
        pytest.skip("this host makes no large pages of a memory file")
    with debian_vm(ImageStore().build("debian"), memory_bytes=THP_FROM_BYTES) as vm:
        console = expect(vm)
        console.read_until(":~# ")
        before_kib = _large_kib()
        vm.console.send(b"dd if=/dev/zero of=/dev/null bs=64M count=1; echo 'do'ne\n")
        console.read_until("done\r\n")
        assert _large_kib() - before_kib >= 48 << 10


def test_a_machine_that_does_little_is_given_few() -> None:
    with debian_vm(ImageStore().build("debian")) as vm:
        expect(vm).read_until(":~# ")
        backed_bytes = os.fstat(vm.machine.ram.fd).st_blocks * 512
    assert backed_bytes < 128 * MIB
