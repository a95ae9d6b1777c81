"""The dirty log, whichever world writes: RAM is compared whole with what it was before."""

from __future__ import annotations

import itertools
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import pytest

from rayvisor.migration import pages
from rayvisor.runtime.images import ImageStore
from tests.support import programs
from tests.support.machines import debian_vm, expect, require_direct

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rayvisor.vmm.vm import Vm

pytestmark = [pytest.mark.guest, pytest.mark.network]

PROGRAM: Final = "/usr/bin/scribble"
PAGE: Final = 4096
MEMORY: Final = 96 << 20
TURNS: Final = 30
SPARSE_PAGES: Final = 256
"""What `scribble sparse` writes: every 16th of its 4096."""
OTHERS: Final = 200
"""Pages that the kernel and its timers may write in a moment."""


@contextmanager
def scribbling(how: str, *, direct: bool = True) -> Iterator[Vm]:
    """A guest that writes, with its dirty log on."""
    if missing := programs.missing_tools():
        pytest.skip(f"needs {', '.join(missing)}")
    files = {PROGRAM: programs.build_program("scribble")}
    with debian_vm(
        ImageStore().build("debian"), files=files, memory_bytes=MEMORY, direct=direct
    ) as vm:
        if direct:
            require_direct(vm)
        console = expect(vm)
        console.read_until(":~# ")
        vm.console.send(f"scribble {how}\n".encode())
        console.read_until("ready", timeout_s=60)
        time.sleep(0.3)
        vm.call(vm.machine.vcpu.start_dirty_log)
        yield vm


def differing(before: bytes, now: bytes, unlogged: list[tuple[int, int]]) -> list[int]:
    """Pages of these runs that are not what they were."""
    found = []
    for first, count in unlogged:
        start, end = first * PAGE, (first + count) * PAGE
        if before[start:end] != now[start:end]:
            found += [
                page
                for page in range(first, first + count)
                if before[page * PAGE : (page + 1) * PAGE] != now[page * PAGE : (page + 1) * PAGE]
            ]
    return found


@pytest.mark.parametrize("most_open", [0, MEMORY // PAGE], ids=["closed", "left open"])
@pytest.mark.parametrize("worlds", ["native", "translated", "at random"])
def test_every_page_that_was_written_is_in_it(worlds: str, most_open: int) -> None:
    with scribbling("mixed", direct=worlds != "translated") as vm:
        vcpu, ram = vm.machine.vcpu, vm.machine.ram.buffer

        turns = itertools.count()

        def look() -> tuple[bytes, bytes]:
            # What was left open is closed now and then, too, and may have been written until then.
            return vcpu.harvest_dirty(most_open if next(turns) % 8 else 0), ram.tobytes()

        if worlds == "at random":
            vm.call(lambda: vcpu.choose_at_random(on=True))
        _, before = vm.call(look)
        logged = 0
        for turn in range(TURNS):
            time.sleep(0.002 * (1 + turn % 10))
            dirty, now = vm.call(look)
            runs = pages.runs_of(dirty)
            assert not differing(before, now, pages.gaps(runs, MEMORY // PAGE))
            logged += pages.count(dirty)
            before = now
        assert logged > 500
        assert (vcpu.direct_counts().native_s > 0) == (worlds != "translated")


def test_a_page_that_was_not_written_is_seldom_in_it() -> None:
    """Who writes one page after the other has the next ones taken for written; others have not."""
    with scribbling("sparse") as vm:
        vcpu = vm.machine.vcpu
        counts = []
        for _ in range(10):
            time.sleep(0.02)
            counts.append(pages.count(vm.call(vcpu.harvest_dirty)))
        assert sorted(counts)[len(counts) // 2] <= SPARSE_PAGES + OTHERS, counts
        assert max(counts) >= SPARSE_PAGES, counts


def test_a_few_pages_that_are_left_open_do_not_trap_again() -> None:
    with scribbling("sparse") as vm:
        vcpu = vm.machine.vcpu

        def traps(most_open: int) -> int:
            for _ in range(3):  # to open what it writes
                vm.call(lambda: vcpu.harvest_dirty(most_open))
                time.sleep(0.02)
            before = vcpu.direct_counts().traps
            for _ in range(10):
                vm.call(lambda: vcpu.harvest_dirty(most_open))
                time.sleep(0.02)
            return vcpu.direct_counts().traps - before

        closed = traps(0)
        assert traps(MEMORY // PAGE) < closed / 4
