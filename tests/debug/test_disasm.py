"""The mode, the boundaries before RIP, and code that ends or is none."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayvisor.vmm.cpu_state import CR0_PE, EFER_LMA, RFLAGS_VM, CpuState, Segment
from rayvisor.vmm.debug.disasm import (
    BAD,
    code_bits,
    disassemble,
    disassemble_around,
    disassemble_at,
    linear_rip,
)

if TYPE_CHECKING:
    from rayvisor.vmm.debug.pagewalk import RamReader

FLAT32 = Segment(8, 0, 0xFFFFFFFF, 0xC09B)
LONG = Segment(16, 0, 0xFFFFFFFF, 0xA09B)

# What a compiler emits for a small function, with an instruction boundary before each piece.
FUNCTION = [
    bytes.fromhex(piece)
    for piece in (
        "55", "4889e5", "4157", "4156", "4883ec18", "48897dd0", "488b05f1e2d300", "31d2",
        "4885c0", "742a", "0fb64801", "668950f8", "c745dc00000000", "e81c000000", "488d7dd0",
        "be40000000", "48c1e203", "f00fb117", "0f94c0", "84c0", "75e4", "65488b042500000000",
    )
]  # fmt: skip


def memory(at: int, code: bytes) -> RamReader:
    def read(gpa: int, count: int) -> bytes:
        if gpa < 0 or gpa + count > 1 << 20:
            raise ValueError(gpa)
        return (bytes(at) + code + bytes(1 << 20))[gpa : gpa + count]

    return read


@pytest.mark.parametrize(
    ("cpu", "bits"),
    [
        (CpuState(), 16),
        (CpuState(cr0=CR0_PE), 16),
        (CpuState(cr0=CR0_PE, cs=FLAT32), 32),
        (CpuState(cr0=CR0_PE, cs=FLAT32, rflags=RFLAGS_VM), 16),
        (CpuState(cr0=CR0_PE, cs=FLAT32, efer=EFER_LMA), 32),
        (CpuState(cr0=CR0_PE, cs=LONG, efer=EFER_LMA), 64),
        (CpuState(cr0=CR0_PE, cs=LONG), 16),
    ],
)
def test_the_mode_decides_the_width(cpu: CpuState, bits: int) -> None:
    assert code_bits(cpu) == bits


def test_rip_is_linear_with_the_base_below_64_bits() -> None:
    cs = Segment(0xF000, 0xFFFF0000, 0xFFFF, 0x9B)
    assert linear_rip(CpuState(rip=0xFFF0, cs=cs)) == 0xFFFFFFF0
    assert linear_rip(CpuState(rip=0x10005, cs=cs)) == 5
    based = Segment(16, 0x1000, 0, 0xA09B)
    assert linear_rip(CpuState(rip=7, cr0=CR0_PE, cs=based, efer=EFER_LMA)) == 7


def test_the_same_bytes_read_differently_in_each_width() -> None:
    code = bytes.fromhex("b8010000 00")
    assert [i.text for i in disassemble(code, 0, 32, 9)] == ["mov eax, 1"]
    assert disassemble(code, 0, 16, 9)[0].text == "mov ax, 1"
    assert [i.text for i in disassemble(bytes.fromhex("40"), 0, 32, 1)] == ["inc eax"]


def test_what_is_no_instruction_takes_one_byte() -> None:
    out = disassemble(bytes.fromhex("06 90 06"), 0x100, 64, 9)
    assert [(i.address, i.text) for i in out] == [(0x100, BAD), (0x101, "nop"), (0x102, BAD)]


@pytest.mark.parametrize("cut", range(6, len(FUNCTION)))
def test_the_boundaries_before_rip_are_found(cut: int) -> None:
    start = 0x4000
    rip = start + sum(len(piece) for piece in FUNCTION[:cut])
    cpu = CpuState(rip=rip, cr0=CR0_PE, cs=LONG, efer=EFER_LMA)
    found = disassemble_around(cpu, memory(start, b"".join(FUNCTION)), before=4)
    before = [i for i in found if i.address < rip]
    assert [i.raw for i in before] == FUNCTION[cut - 4 : cut]
    assert next(i for i in found if i.address == rip).raw == FUNCTION[cut]


def test_code_at_the_start_of_memory_has_little_before_it() -> None:
    cpu = CpuState(rip=1, cr0=CR0_PE, cs=FLAT32)
    found = disassemble_around(cpu, memory(0, b"\xfa\xf4"))
    assert [(i.address, i.text) for i in found[:2]] == [(0, "cli"), (1, "hlt")]
    assert disassemble_around(CpuState(cr0=CR0_PE, cs=FLAT32), memory(0, b"\xf4"))[0].text == "hlt"


def test_no_memory_no_code() -> None:
    cpu = CpuState(rip=0x200000, cr0=CR0_PE, cs=FLAT32)
    assert disassemble_around(cpu, memory(0, b"")) == []
    assert disassemble_at(cpu, memory(0, b""), None, 4) == []


def test_at_an_address_the_count_is_kept() -> None:
    cpu = CpuState(cr0=CR0_PE, cs=FLAT32)
    out = disassemble_at(cpu, memory(0x1000, b"\x90" * 64), 0x1000, 5)
    assert [i.address for i in out] == list(range(0x1000, 0x1005))
    assert out[0].as_dict() == {"address": "0x1000", "bytes": "90", "text": "nop"}


@given(st.binary(max_size=200), st.sampled_from([16, 32, 64]), st.integers(0, (1 << 64) - 1))
def test_every_byte_is_accounted_for(code: bytes, bits: int, address: int) -> None:
    out = disassemble(code, address, bits, 1000)
    assert b"".join(i.raw for i in out) == code
    assert all(i.raw for i in out)


@given(st.binary(min_size=256, max_size=256), st.integers(0, 255))
def test_around_any_byte_of_garbage_the_code_is_contiguous(code: bytes, offset: int) -> None:
    cpu = CpuState(rip=0x800 + offset, cr0=CR0_PE, cs=FLAT32)
    found = disassemble_around(cpu, memory(0x800, code))
    assert any(i.address == cpu.rip for i in found)
    for one, following in pairwise(found):
        assert one.address + len(one.raw) == following.address
