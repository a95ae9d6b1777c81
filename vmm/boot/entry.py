"""The vCPU as a firmware or boot loader leaves it: real, protected or long mode.

Segments have their hidden parts set, so the tables in guest memory are only read when the
guest loads a segment register itself. Sources: Intel SDM 3A 4.5 (paging), 3.4.5
(descriptors), 9.1.1 (state after RESET), 9.8 (modes).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from rayvisor.vmm.cpu_state import (
    CR0_PE,
    CR0_PG,
    CR4_PAE,
    EFER_LMA,
    EFER_LME,
    GPR_NAMES,
    CpuState,
    DescriptorTable,
    Segment,
)
from rayvisor.vmm.memory import PAGE_BYTES

if TYPE_CHECKING:
    from rayvisor.vmm.boot.plan import MemoryPlan

CODE_SELECTOR: Final = 0x10
DATA_SELECTOR: Final = 0x18

_CR0_MP, _CR0_ET, _CR0_NE, _CR0_WP, _CR0_AM = 1 << 1, 1 << 4, 1 << 5, 1 << 16, 1 << 18
_CR0_NW, _CR0_CD = 1 << 29, 1 << 30

# Access rights: present, ring 0, accessed. Real mode's segments are 16-bit and not granular.
_REAL_CODE, _REAL_DATA = 0x009B, 0x0093
_CODE_32, _CODE_64, _DATA_32 = 0xC09B, 0xA09B, 0xC093
_LDT, _BUSY_TSS = 0x0082, 0x008B

_IDENTITY_GIB: Final = 4
_ENTRY_BYTES: Final = 8
_LARGE_PAGE_BYTES: Final = 2 << 20
_PTE_TABLE: Final = 0x03  # present, writable
_PTE_LARGE: Final = 0x83  # and a 2 MiB page

_DR6_RESET, _DR7_RESET = 0xFFFF_0FF0, 0x400
_FAST_STRINGS: Final = 1  # IA32_MISC_ENABLE as it powers up; Linux gives up REP MOVS without it


def _cpu(registers: dict[str, int]) -> CpuState:
    return CpuState(
        gpr=tuple(registers.get(name, 0) for name in GPR_NAMES),
        ldtr=Segment(limit=0xFFFF, access=_LDT),
        tr=Segment(limit=0xFFFF, access=_BUSY_TSS),
        dr6=_DR6_RESET,
        dr7=_DR7_RESET,
        misc_enable=_FAST_STRINGS,
    )


def _set_data_segments(cpu: CpuState, selector: int, limit: int, access: int) -> None:
    for name in ("ds", "es", "fs", "gs", "ss"):
        setattr(cpu, name, Segment(selector=selector, limit=limit, access=access))


def real_mode(*, code_base: int, ip: int, registers: dict[str, int] | None = None) -> CpuState:
    """16-bit real mode at `code_base`:`ip`, data and stack segments 0, interrupts off.

    Args:
        code_base: Linear address of the code segment, a multiple of 16 below 1 MiB.
        ip: Offset into it.
        registers: Initial values by the names in GPR_NAMES; others are 0.
    """
    cpu = _cpu(registers or {})
    cpu.rip = ip
    cpu.cr0 = _CR0_ET
    cpu.cs = Segment(selector=code_base >> 4, base=code_base, limit=0xFFFF, access=_REAL_CODE)
    _set_data_segments(cpu, 0, 0xFFFF, _REAL_DATA)
    cpu.gdtr = DescriptorTable(limit=0xFFFF)
    cpu.idtr = DescriptorTable(limit=0x3FF)
    return cpu


def reset_vector(code_base: int) -> CpuState:
    """As RESET leaves a CPU, at FFF0h in the code segment at `code_base`.

    A PC's reset vector lies just below 4 GiB (CS base FFFF0000h). No ROM is mapped there, so
    the segment's base is that of the ROM's copy below 1 MiB.
    """
    cpu = real_mode(code_base=code_base, ip=0xFFF0)
    cpu.cr0 = _CR0_CD | _CR0_NW | _CR0_ET
    return cpu


def protected_mode(plan: MemoryPlan, *, rip: int, registers: dict[str, int]) -> CpuState:
    """Flat 32-bit protected mode at `rip`: paging off, interrupts off, A20 on, no IDT.

    Raises:
        LoaderError: no conventional memory is left for the GDT.
    """
    cpu = _cpu(registers)
    cpu.rip = rip
    cpu.cr0 = CR0_PE | _CR0_ET
    cpu.cs = Segment(selector=CODE_SELECTOR, limit=0xFFFF_FFFF, access=_CODE_32)
    _set_data_segments(cpu, DATA_SELECTOR, 0xFFFF_FFFF, _DATA_32)
    cpu.gdtr = _write_gdt(plan, _CODE_32)
    return cpu


def long_mode(plan: MemoryPlan, *, rip: int, registers: dict[str, int]) -> CpuState:
    """64-bit mode at `rip`: the first 4 GiB mapped one to one, interrupts off, no IDT.

    Raises:
        LoaderError: no conventional memory is left for the GDT and the page tables.
    """
    cpu = _cpu(registers)
    cpu.rip = rip
    cpu.cr0 = CR0_PE | _CR0_MP | _CR0_ET | _CR0_NE | _CR0_WP | _CR0_AM | CR0_PG
    cpu.cr3 = _write_identity_map(plan)
    cpu.cr4 = CR4_PAE
    cpu.efer = EFER_LME | EFER_LMA
    cpu.cs = Segment(selector=CODE_SELECTOR, limit=0xFFFF_FFFF, access=_CODE_64)
    _set_data_segments(cpu, DATA_SELECTOR, 0xFFFF_FFFF, _DATA_32)
    cpu.gdtr = _write_gdt(plan, _CODE_64)
    return cpu


def _descriptor(access: int) -> int:
    """A descriptor of base 0 and limit FFFFFh: Intel SDM 3A figure 3-8."""
    return 0x000F_0000_0000_FFFF | access << 40


def _write_gdt(plan: MemoryPlan, code: int) -> DescriptorTable:
    table = struct.pack("<4Q", 0, 0, _descriptor(code), _descriptor(_DATA_32))
    base = plan.low(len(table), "the GDT", align=_ENTRY_BYTES)
    plan.ram.write(base, table)
    return DescriptorTable(base=base, limit=len(table) - 1)


def _write_identity_map(plan: MemoryPlan) -> int:
    """Map 0..4 GiB by 2 MiB pages, which every 64-bit CPU has; returns the PML4's address."""
    pml4 = plan.low((2 + _IDENTITY_GIB) * PAGE_BYTES, "the page tables")
    pdpt, directories = pml4 + PAGE_BYTES, pml4 + 2 * PAGE_BYTES
    tables = bytearray((2 + _IDENTITY_GIB) * PAGE_BYTES)
    struct.pack_into("<Q", tables, 0, pdpt | _PTE_TABLE)
    for gib in range(_IDENTITY_GIB):
        entry = (directories + gib * PAGE_BYTES) | _PTE_TABLE
        struct.pack_into("<Q", tables, PAGE_BYTES + gib * _ENTRY_BYTES, entry)
    count = _IDENTITY_GIB * PAGE_BYTES // _ENTRY_BYTES
    pages = (page * _LARGE_PAGE_BYTES | _PTE_LARGE for page in range(count))
    struct.pack_into(f"<{count}Q", tables, 2 * PAGE_BYTES, *pages)
    plan.ram.write(pml4, memoryview(tables))
    return pml4
