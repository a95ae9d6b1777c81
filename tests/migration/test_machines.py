"""Real machines with small guests that notice everything."""

from __future__ import annotations

import re
import struct
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from rayvisor.migration import demand
from rayvisor.migration.arrival import Arrival
from rayvisor.migration.config import Codec, MigrationConfig
from rayvisor.migration.errors import MigrationFailedError, TransportError
from rayvisor.migration.memory_transport import MemoryTransport
from rayvisor.migration.precopy import Migration
from rayvisor.migration.vm_destination import VmDestination
from rayvisor.migration.vm_source import VmSource
from rayvisor.vmm.errors import ConfigError
from rayvisor.vmm.machine import PowerState
from rayvisor.vmm.vm import Vm
from tests.migration.fakes import Record
from tests.migration.moving import MIB, Journey, flat_journey
from tests.support.flat import long_mode, missing_tools

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(bool(missing_tools()), reason="needs binutils")

# Writes words of a linear congruential generator to random places of 2048 pages from 2 MiB on, and
# the same at the same place of the mirror from 10 MiB on, complemented, for ever. Each time it
# looks whether the two that were there before belonged together: if not, exit 1.
_MIRROR = """
    mov r8, 1
    mov r9, 6364136223846793005
    mov r10, 1442695040888963407
    mov r15, 0
again:
    imul r8, r9
    add r8, r10
    mov rdi, r8
    shr rdi, 40
    and rdi, 0x7FFFF8
    mov rax, [rdi + 0x200000]
    mov rbx, [rdi + 0xA00000]
    mov rcx, rax
    or rcx, rbx
    jz unwritten
    not rbx
    cmp rax, rbx
    jne torn
unwritten:
    mov [rdi + 0x200000], r8
    mov rax, r8
    not rax
    mov [rdi + 0xA00000], rax
    inc r15
    mov [0x9000], r15
    {more}
    jmp again
torn:
    exit 1
"""

# The 8254 at 1000 Hz. Each tick: the TSC must not have gone back; the largest step is kept.
_CLOCK = """
    gate64 0x20, tick
    pic_init 0xFFFE
    pit_start 2, 1193
    rdtsc
    shl rdx, 32
    or rax, rdx
    mov [0x9010], rax
    sti
wait:
    hlt
    jmp wait
tick:
    rdtsc
    shl rdx, 32
    or rax, rdx
    mov rbx, rax
    sub rbx, [0x9010]
    jb backwards
    mov [0x9010], rax
    cmp rbx, [0x9018]
    jbe not_larger
    mov [0x9018], rbx
not_larger:
    inc qword ptr [0x9000]
    eoi
    iretq
backwards:
    exit 2
"""

# Numbers its console output, so that a lost or repeated byte shows.
_COUNTER = """
    xor r14, r14
count:
    mov rax, r14
    print_hex
    print "\\n"
    inc r14
    jmp count
"""

# Sends back what it is sent.
_ECHO = """
echo:
    mov dx, COM1 + 5
    in al, dx
    test al, 1
    jz echo
    mov dx, COM1
    in al, dx
    putc
    jmp echo
"""


@contextmanager
def journey(body: str, memory_bytes: int = 32 * MIB) -> Iterator[Journey]:
    yield from flat_journey(long_mode(body), memory_bytes)


def number(moved: Journey, gpa: int) -> int:
    """A 64-bit variable of the guest."""
    return int(struct.unpack("<Q", moved.vm.machine.ram.read(gpa, 8))[0])


def lives(moved: Journey, gpa: int = 0x9000) -> None:
    """The counter at `gpa` goes on."""
    before, deadline = number(moved, gpa), time.monotonic() + 20
    while number(moved, gpa) == before:
        assert moved.vm.power is PowerState.RUNNING, moved.vm.machine.exit_status
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.parametrize("codec", list(Codec))
def test_no_store_is_lost(codec: Codec) -> None:
    config = MigrationConfig(round_codec=codec, stop_codec=codec, downtime_s=0.05)
    with journey(_MIRROR.format(more="")) as moved:
        for _ in range(6):
            lives(moved)
            report = moved.move(config)
            assert report.outcome == "moved"
        lives(moved)
        assert moved.vm.power is PowerState.RUNNING


def test_pages_sent_as_differences_arrive_whole() -> None:
    config = MigrationConfig(downtime_s=0.0005, delta_cache_bytes=4 * MIB)
    with journey(_MIRROR.format(more="pause\n" * 40)) as moved:
        deltas = 0
        for _ in range(6):
            lives(moved)
            report = moved.move(config)
            deltas += sum(r.delta_pages for r in report.rounds)
        lives(moved)
        assert deltas


def test_a_vcpu_that_is_slowed_down_runs_on_and_can_be_stopped_while_it_sleeps() -> None:
    with journey(_MIRROR.format(more="")) as moved:
        lives(moved)
        clock = moved.vm.machine.clock
        alarms = len(clock._slots)
        source = VmSource(moved.vm)
        for share in (0.5, 0.99, 0.2):
            source.throttle(share)
            lives(moved)
        stopped_ns = source.pause()
        assert stopped_ns <= time.monotonic_ns()
        before = number(moved, 0x9000)
        source.resume()
        source.throttle(0)
        lives(moved)
        assert number(moved, 0x9000) > before
        assert len(clock._slots) == alarms


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_share_that_makes_no_sense_is_refused(share: float) -> None:
    with journey(_MIRROR.format(more="")) as moved, pytest.raises(ConfigError, match=r"0 to 0\.99"):
        VmSource(moved.vm).throttle(share)


def test_code_that_was_translated_here_is_the_same_there() -> None:
    """The guest writes its own code: what was translated from a page must follow its bytes."""
    patch = """
    inc dword ptr [patched + 1]
patched:
    mov eax, 0
    cmp eax, [patched + 1]
    jne torn
    """
    with journey(_MIRROR.format(more=patch)) as moved:
        for _ in range(5):
            lives(moved)
            moved.move()
        lives(moved)


def test_the_clock_never_goes_back_nor_jumps_further_than_the_downtime() -> None:
    with journey(_CLOCK) as moved:
        lives(moved)
        for _ in range(10):
            machine = moved.vm.machine
            before_ns, asked_ns = machine.clock.now_ns(), time.monotonic_ns()
            moved.move()
            passed_ns = time.monotonic_ns() - asked_ns
            guest_ns = moved.vm.machine.clock.now_ns() - before_ns
            assert 0 < guest_ns <= passed_ns
            lives(moved)
        assert moved.vm.power is PowerState.RUNNING
        ticks, clock_ns = number(moved, 0x9000), moved.vm.machine.clock.now_ns()
        assert ticks <= clock_ns / 1e6 + 1


def test_the_console_loses_and_repeats_no_byte() -> None:
    with journey(_COUNTER) as moved:
        for _ in range(8):
            moved.read_until(b"\n")
            moved.move()
        moved.vm.stop()
        lines = moved.read().decode().splitlines()
    assert len(lines) > 100
    assert all(re.fullmatch(r"[0-9A-F]{8}", line) for line in lines[:-1])
    assert [int(line, 16) for line in lines[:-1]] == list(range(len(lines) - 1))


def test_what_is_typed_during_a_move_arrives_once_and_in_order() -> None:
    typed = [f"<{i:05}>".encode() for i in range(400)]
    with journey(_ECHO) as moved:
        moved.vm.console.send(b"begin ")
        moved.read_until(b"begin ")
        for i, word in enumerate(typed):
            moved.vm.console.send(word)
            if i % 50 == 10:
                moved.move()
        output = moved.read_until(typed[-1])
    assert output == b"begin " + b"".join(typed)


def test_a_paused_vm_moves_and_stays_paused() -> None:
    with journey(_MIRROR.format(more="")) as moved:
        lives(moved)
        moved.vm.pause()
        before = number(moved, 0x9000)
        moved.move()
        assert moved.vm.power is PowerState.PAUSED
        assert number(moved, 0x9000) == before
        moved.vm.resume()
        lives(moved)


class ResettingSource(VmSource):
    """Somebody presses the reset button between two rounds, and the guest starts over."""

    pressed = False

    def harvest(self) -> bytes:
        if not self.pressed:
            self.pressed = True
            resets = self._vm.machine.resets
            self._vm.reset()
            while self._vm.machine.resets == resets:
                time.sleep(0.001)
        return super().harvest()


def test_a_guest_that_resets_while_it_moves() -> None:
    """The loader writes RAM, too."""
    with journey(_MIRROR.format(more="")) as moved:
        lives(moved)
        moved.move(MigrationConfig(downtime_s=0.5), source=ResettingSource(moved.vm))
        lives(moved)


@pytest.mark.skipif(not demand.available(), reason="needs userfaultfd")
def test_a_guest_runs_on_while_its_pages_follow() -> None:
    """It verifies each word that it wrote before the move, wherever that is by now."""
    config = MigrationConfig(downtime_s=1e-6, post_copy=True)
    with journey(_MIRROR.format(more="")) as moved:
        for _ in range(4):
            lives(moved)
            report = moved.move(config, whole=False)
            assert "postcopy_s" in report.phases
            assert moved.vm.machine.ram.before_use is None
            lives(moved)


@pytest.mark.skipif(not demand.available(), reason="needs userfaultfd")
def test_a_guest_whose_source_is_lost_ends_without_seeing_it() -> None:
    with journey(_MIRROR.format(more="")) as moved:
        lives(moved)
        new = Vm(moved.vm.machine.spec)
        arrival = Arrival(VmDestination(new), Record())
        fed: list[str] = []

        def feed(frame: bytes) -> list[bytes]:
            replies = arrival.feed(frame)
            fed.append(str(arrival.phase))
            if fed.count("filling") == 5:
                raise TransportError("the source is gone")
            return replies

        config = MigrationConfig(downtime_s=1e-6, post_copy=True)
        transport = MemoryTransport(feed, arrival.disconnected)
        migration = Migration(VmSource(moved.vm), transport, Record(), token=1, config=config)
        with pytest.raises(MigrationFailedError, match="is lost") as failure:
            migration.run()
        transport.close()
        assert failure.value.report.outcome == "lost"
        assert new.wait(20) is PowerState.CRASHED
        assert "post-copy" in str(new.machine.crash_reason)
        assert new.machine.exit_status is None
        new.close()


def test_the_report_adds_up() -> None:
    with journey(_MIRROR.format(more="")) as moved:
        lives(moved)
        report = moved.move()
        plain = report.as_dict()
    assert (
        list(plain)
        == (
            "vm source destination outcome total_s downtime_s phases rounds bytes_sent pages_sent "
            "zero_pages compression_ratio"
        ).split()
    )
    assert sum(r["pages"] for r in plain["rounds"]) == plain["pages_sent"]
    assert sum(r["zero_pages"] for r in plain["rounds"]) <= plain["zero_pages"]
    assert 0 < plain["downtime_s"] < plain["total_s"]
    assert not report.downtime_is_bound
    assert plain["pages_sent"] + plain["zero_pages"] >= 32 * MIB // 4096
