"""The vCPU at a kernel's first instruction, and the tables it stands on."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from rayvisor.vmm.boot import entry
from rayvisor.vmm.boot.plan import MemoryPlan
from rayvisor.vmm.state import check

if TYPE_CHECKING:
    from collections.abc import Callable

    from rayvisor.vmm.cpu_state import CpuState, Segment
    from rayvisor.vmm.memory import GuestRam

GIB = 1 << 30
DATA_NAMES = ("ds", "es", "fs", "gs", "ss")


def hidden_part(ram: GuestRam, cpu: CpuState, segment: Segment) -> tuple[int, int, int]:
    """(base, limit, access) as the descriptor in guest memory gives them (SDM 3A 3.4.5)."""
    assert segment.selector + 7 <= cpu.gdtr.limit
    (raw,) = struct.unpack("<Q", ram.read(cpu.gdtr.base + segment.selector, 8))
    base = (raw >> 16 & 0xFF_FFFF) | (raw >> 56) << 24
    limit = (raw & 0xFFFF) | (raw >> 48 & 0xF) << 16
    access = raw >> 40 & 0xF0FF
    if access & 1 << 15:
        limit = limit << 12 | 0xFFF
    return base, limit, access


def walk(ram: GuestRam, cr3: int, address: int) -> int | None:
    """The physical address of a linear one, by 4-level tables with 2 MiB pages (SDM 3A 4.5)."""
    table = cr3
    for shift in (39, 30, 21):
        slot = int.from_bytes(ram.read(table + (address >> shift & 511) * 8, 8), "little")
        if slot & 3 != 3:
            return None
        table = slot & 0x000F_FFFF_FFFF_F000
        if shift == 21:
            assert slot & 0x80
            return table | address & 0x1F_FFFF
    return None


@pytest.mark.parametrize("mode", [entry.protected_mode, entry.long_mode])
def test_segments_agree_with_the_gdt(ram: GuestRam, mode: Callable[..., CpuState]) -> None:
    cpu = check(mode(MemoryPlan(ram), rip=0x10_0000, registers={"rsi": 0x1234, "rbx": 7}))
    assert cpu.cs.selector == 0x10
    assert [getattr(cpu, name).selector for name in DATA_NAMES] == [0x18] * 5
    for name in ("cs", *DATA_NAMES):
        segment = getattr(cpu, name)
        wanted = (segment.base, segment.limit, segment.access)
        assert hidden_part(ram, cpu, segment) == wanted == (0, 0xFFFF_FFFF, segment.access)
    assert cpu.gpr[6] == 0x1234
    assert cpu.gpr[3] == 7
    assert sum(cpu.gpr) == 0x1234 + 7
    assert cpu.rflags == 2


def test_long_mode_is_64_bit_code_with_paging(ram: GuestRam) -> None:
    cpu = entry.long_mode(MemoryPlan(ram), rip=0x100_0000, registers={})
    assert cpu.cr0 == 0x8005_0033
    assert cpu.cr4 == 0x20
    assert cpu.efer == 0x500
    assert cpu.cs.access == 0xA09B  # L set, D clear


def test_the_first_4_gib_are_mapped_one_to_one(ram: GuestRam) -> None:
    cpu = entry.long_mode(MemoryPlan(ram), rip=0x100_0000, registers={})
    for address in (0, 0x7C00, 0x1F_FFFF, 0x20_0000, 0x100_0000, GIB, 3 * GIB - 1, 4 * GIB - 1):
        assert walk(ram, cpu.cr3, address) == address
    for address in (4 * GIB, 1 << 39, 1 << 47, (1 << 48) - 1):
        assert walk(ram, cpu.cr3, address) is None


def test_protected_mode_has_no_paging(ram: GuestRam) -> None:
    cpu = entry.protected_mode(MemoryPlan(ram), rip=0x10_0000, registers={})
    assert (cpu.cr0, cpu.cr3, cpu.cr4, cpu.efer) == (0x11, 0, 0, 0)
    assert cpu.cs.access == 0xC09B  # D set, L clear


def test_real_mode_has_64_kib_segments() -> None:
    cpu = check(entry.real_mode(code_base=0x1_2340, ip=0x56, registers={"rdx": 0x80}))
    assert (cpu.cs.selector, cpu.cs.base, cpu.cs.limit, cpu.rip) == (0x1234, 0x1_2340, 0xFFFF, 0x56)
    for name in DATA_NAMES:
        segment = getattr(cpu, name)
        assert (segment.selector, segment.base, segment.limit) == (0, 0, 0xFFFF)
    assert cpu.cr0 & 0x8000_0001 == 0
    assert (cpu.idtr.base, cpu.idtr.limit) == (0, 0x3FF)
    assert cpu.gpr[2] == 0x80
