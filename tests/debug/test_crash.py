"""Crash reports, letter by letter, for the three widths; and for guests in any state at all."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayvisor.vmm.cpu_state import CpuState, DescriptorTable, Segment
from rayvisor.vmm.debug.crash import CrashReport
from rayvisor.vmm.exits import ExitCensus

if TYPE_CHECKING:
    from collections.abc import Callable

    from rayvisor.vmm.debug.pagewalk import RamReader

RAM_BYTES = 0x10_0000

# push rbp; mov rbp, rsp; mov rax, [rdi]; xor ecx, ecx; out 0xf4, al; hlt; jmp -3; ret
CODE64 = bytes.fromhex("55 4889e5 488b07 31c9 e6f4 f4 ebfd c3")


def reader(pieces: dict[int, bytes]) -> RamReader:
    ram = bytearray(RAM_BYTES)
    for gpa, data in pieces.items():
        ram[gpa : gpa + len(data)] = data

    def read(gpa: int, count: int) -> bytes:
        if not 0 <= gpa <= RAM_BYTES - count:
            raise ValueError(gpa)
        return bytes(ram[gpa : gpa + count])

    return read


def words(*values: int, size: int = 8) -> bytes:
    return b"".join(v.to_bytes(size, "little") for v in values)


def gprs(**named: int) -> tuple[int, ...]:
    names = "rax rcx rdx rbx rsp rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15".split()
    return tuple(named.get(name, 0) for name in names)


def long_mode_guest() -> CrashReport:
    """A kernel at -2 GiB that followed a null pointer and had no handler."""
    read = reader(
        {
            0x1000 + 511 * 8: words(0x2063),
            0x2000 + 510 * 8: words(0x3063),
            0x3000: words(0x4063),
            0x4000 + 8: words(0x8000_0000_0000_5163, 0x6161),
            0x6100: bytes(0x10) + CODE64,
            0x5FD0: words(0xFFFFFFFF80002120, 0xDEADBEEF, 1, 2, 3, 4),
        }
    )
    cpu = CpuState(
        gpr=gprs(rsp=0xFFFFFFFF80001FD0, rbp=0xFFFFFFFF80001FD0, rdi=0x10, r15=0xF),
        rip=0xFFFFFFFF80002114,
        rflags=0x10046,
        cs=Segment(0x10, 0, 0xFFFFFFFF, 0xA09B),
        ss=Segment(0x18, 0, 0xFFFFFFFF, 0xC093),
        tr=Segment(0x40, 0xFFFFFFFF80000000, 0x67, 0x8B),
        gdtr=DescriptorTable(0xFFFFFFFF80001000, 0x7F),
        idtr=DescriptorTable(0, 0),
        cr0=0x80050033,
        cr2=0x10,
        cr3=0x1000,
        cr4=0xA0,
        efer=0xD01,
    )
    census = ExitCensus(
        {"io_out": 3, "exception": 2},
        [],
        [
            ("io_out", 0x3F8, 0xFFFFFFFF80002100),
            ("io_out", 0x3F8, 0xFFFFFFFF80002100),
            ("exception", 14, 0xFFFFFFFF80002114),
            ("exception", 8, 0xFFFFFFFF80002114),
        ],
    )
    return CrashReport.build(cpu, read, census, "triple fault")


def real_mode_guest() -> CrashReport:
    """A boot sector that halted with interrupts off."""
    read = reader({0x7C00: bytes.fromhex("fa b80010 8ed8 e480 f4 ebfd"), 0x7BF0: words(0x7C1, 2)})
    cpu = CpuState(
        gpr=gprs(rax=0x1000, rsp=0x7BF0),
        rip=0x7C09,
        rflags=0x2,
        cs=Segment(0, 0, 0xFFFF, 0x9B),
        ss=Segment(0, 0, 0xFFFF, 0x93),
        ds=Segment(0x1000, 0x10000, 0xFFFF, 0x93),
        cr0=0x10,
        halted=True,
    )
    return CrashReport.build(cpu, read, ExitCensus(), "halted with interrupts off")


def protected_guest() -> CrashReport:
    """32-bit paging, a jump to nowhere."""
    read = reader({0x1000: words(0x3003, size=4), 0x3000: words(0x5003, 0, size=4)})
    cpu = CpuState(
        gpr=gprs(rsp=0x0FF8, rax=1),
        rip=0xC0DE0000,
        rflags=0x3202,
        cs=Segment(0x1B, 0, 0xFFFFFFFF, 0xC0FB),
        ss=Segment(0x23, 0, 0xFFFFFFFF, 0xC0F3),
        cr0=0x80000011,
        cr2=0xC0DE0000,
        cr3=0x1000,
        cr4=0x10,
        pending_vector=14,
        pending_error=0x14,
    )
    return CrashReport.build(
        cpu, read, ExitCensus({"hlt": 1}, [], [("hlt", 0, 0x20)]), "triple fault"
    )


GOLDEN = Path(__file__).with_name("golden")


@pytest.mark.parametrize("guest", [long_mode_guest, real_mode_guest, protected_guest])
def test_reports_read_as_they_always_did(guest: Callable[[], CrashReport]) -> None:
    assert guest().render() == (GOLDEN / f"{guest.__name__}.txt").read_text(encoding="utf-8")


def test_the_dictionary_is_json_and_holds_the_text() -> None:
    report = long_mode_guest()
    plain = json.loads(json.dumps(report.as_dict()))
    assert plain == report.as_dict()
    assert plain["reason"] == "triple fault"
    assert plain["registers"]["rip"] == "0xffffffff80002114"
    assert plain["registers"]["cs"]["selector"] == "0x10"
    at_rip = {"address": "0xffffffff80002114", "bytes": "488b07"}
    assert any(i.items() >= at_rip.items() for i in plain["code"])
    assert [w["of"] for w in plain["page_walks"]] == ["CR2", "RIP", "the IDT"]
    assert plain["page_walks"][0]["fault"] == "PML4 entry not present"
    assert plain["recent_exits"][-1]["what"] == "#DF double fault"
    assert plain["exits"] == {"io_out": 3, "exception": 2}
    assert plain["text"] == report.render()


def test_an_old_page_fault_is_no_part_of_the_story() -> None:
    report = long_mode_guest()
    exceptions = [("exception", vector, 0) for vector in (14, *[3] * 8)]
    later = CrashReport.build(
        report.cpu, reader({}), ExitCensus({}, [], exceptions), "triple fault"
    )
    assert "CR2" not in [what for what, _ in later.walks]


def test_a_lost_stack_is_walked() -> None:
    cpu = replace(long_mode_guest().cpu, gpr=gprs(rsp=0x1234_5000))
    report = CrashReport.build(cpu, reader({}), ExitCensus(), "x")
    assert [what for what, _ in report.walks] == ["RIP", "RSP"]
    assert "RSP is not in mapped memory" in report.render()


@given(st.data())
def test_any_state_gives_a_report(data: st.DataObject) -> None:
    u64, u16 = st.integers(0, (1 << 64) - 1), st.integers(0, 0xFFFF)
    segments = st.builds(Segment, u16, u64, st.integers(0, (1 << 32) - 1), u16)
    cpu = CpuState(
        gpr=tuple(data.draw(st.lists(u64, min_size=16, max_size=16))),
        pending_vector=data.draw(st.integers(0, 256)),
    )
    for name in "rip rflags cr0 cr2 cr3 cr4 efer dr7".split():
        setattr(cpu, name, data.draw(u64))
    for name in "cs ss ds tr".split():
        setattr(cpu, name, data.draw(segments))
    content = data.draw(st.binary(min_size=1, max_size=64))
    ram = (content * (RAM_BYTES // len(content) + 1))[:RAM_BYTES]

    def read(gpa: int, count: int) -> bytes:
        if gpa < 0 or gpa + count > RAM_BYTES:
            raise ValueError(gpa)
        return ram[gpa : gpa + count]

    kinds = st.sampled_from(["exception", "io_in", "mmio", "cpuid", "hlt", "?"])
    exits = data.draw(st.lists(st.tuples(kinds, u64, u64), max_size=64))
    report = CrashReport.build(cpu, read, ExitCensus({}, [], exits), "triple fault")
    assert json.dumps(report.as_dict())
    assert report.render().startswith("guest stopped: triple fault\n")
