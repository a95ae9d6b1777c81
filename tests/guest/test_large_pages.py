"""Memory that a guest's kernel clears by 2 MiB is backed by large pages of the host."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from rayvisor.runtime.images import ImageStore
from rayvisor.vmm.memory import LARGE_PAGE_BYTES, GuestRam
from tests.support.machines import MIB, debian_vm, expect

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.guest, pytest.mark.network]

MADV_COLLAPSE: Final = 25
STOCK_BYTES: Final = 5 * LARGE_PAGE_BYTES
"""Room for those that are kept ready, wherever it begins."""
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


def _stock_kib() -> int:
    """Large pages of this process that are not guest RAM, nor the engine's."""
    total, bytes_long = 0, 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if "-" in words[0]:
            first, end = (int(word, 16) for word in words[0].split("-"))
            bytes_long = end - first
        elif words[0] == "AnonHugePages:" and bytes_long == STOCK_BYTES:
            total += int(words[1])
    return total


def _comes_true(what: Callable[[], bool]) -> bool:
    for _ in range(300):
        if what():
            return True
        time.sleep(0.1)
    return False


def test_a_programs_large_array_is_backed_by_large_pages() -> None:
    if not _host_has_large_pages():
        pytest.skip("this host makes no large pages of a memory file")
    with debian_vm(ImageStore().build("debian"), memory_bytes=THP_FROM_BYTES) as vm:
        console = expect(vm)
        console.read_until(":~# ")
        before_kib = _large_kib()
        vm.console.send(b"dd if=/dev/zero of=/dev/null bs=64M count=1; echo 'do'ne\n")
        console.read_until("done\r\n")
        assert _comes_true(lambda: _large_kib() - before_kib >= 48 << 10)
        assert _comes_true(lambda: _stock_kib() == 0)


def test_a_machine_that_does_little_is_given_few() -> None:
    with debian_vm(ImageStore().build("debian")) as vm:
        expect(vm).read_until(":~# ")
        backed_bytes = os.fstat(vm.machine.ram.fd).st_blocks * 512
    assert backed_bytes < 128 * MIB
