"""The architectural state of one vCPU, versioned, as it travels in snapshots and streams."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rayvisor.vmm.state import blob, flag, nested, ranged, uint, uints

GPR_NAMES = (
    "rax rcx rdx rbx rsp rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15"
).split()  # fmt: skip
SEGMENT_NAMES = ("es", "cs", "ss", "ds", "fs", "gs")

CR0_PE, CR0_PG = 1 << 0, 1 << 31
CR4_PAE, CR4_LA57 = 1 << 5, 1 << 12
EFER_LME, EFER_LMA = 1 << 8, 1 << 10
RFLAGS_FIXED, RFLAGS_IF, RFLAGS_VM = 1 << 1, 1 << 9, 1 << 17


@dataclass(slots=True)
class Segment:
    """A segment register with its hidden part.

    `access` is in the VMCS format (Intel SDM 3C 25.4.1): type 0..3, S 4, DPL 5..6, P 7,
    AVL 12, L 13, D/B 14, G 15. `limit` is in bytes, whatever G says.
    """

    SCHEMA: ClassVar[tuple[str, int]] = ("x86-segment", 1)
    selector: int = uint(16)
    base: int = uint(64)
    limit: int = uint(32)
    access: int = uint(16)


@dataclass(slots=True)
class DescriptorTable:
    """GDTR or IDTR."""

    SCHEMA: ClassVar[tuple[str, int]] = ("x86-table", 1)
    base: int = uint(64)
    limit: int = uint(16)


@dataclass(slots=True)
class CpuState:
    """Everything software can see of one x86-64 vCPU (Intel SDM 3A 2 and 10.2).

    `gpr` is in encoding order (GPR_NAMES). `st` are the eight x87 registers R0..R7 in
    physical order, 10 bytes each; `ftw` is the abridged tag word of FXSAVE (1 = in use).
    `xmm` are sixteen registers of 16 bytes. `pending_vector` is 256 for none.
    `tsc` is the counter's value at the time of the snapshot.
    """

    SCHEMA: ClassVar[tuple[str, int]] = ("x86-cpu", 1)
    gpr: tuple[int, ...] = uints(64, 16)
    rip: int = uint(64)
    rflags: int = uint(64, RFLAGS_FIXED)
    es: Segment = nested(Segment)
    cs: Segment = nested(Segment)
    ss: Segment = nested(Segment)
    ds: Segment = nested(Segment)
    fs: Segment = nested(Segment)
    gs: Segment = nested(Segment)
    ldtr: Segment = nested(Segment)
    tr: Segment = nested(Segment)
    gdtr: DescriptorTable = nested(DescriptorTable)
    idtr: DescriptorTable = nested(DescriptorTable)
    cr0: int = uint(64)
    cr2: int = uint(64)
    cr3: int = uint(64)
    cr4: int = uint(64)
    cr8: int = uint(4)
    efer: int = uint(64)
    dr: tuple[int, ...] = uints(64, 4)
    dr6: int = uint(64)
    dr7: int = uint(64)
    star: int = uint(64)
    lstar: int = uint(64)
    cstar: int = uint(64)
    fmask: int = uint(64)
    kernel_gs_base: int = uint(64)
    sysenter_cs: int = uint(32)
    sysenter_esp: int = uint(64)
    sysenter_eip: int = uint(64)
    pat: int = uint(64, 0x0007040600070406)
    tsc_aux: int = uint(64)
    misc_enable: int = uint(64)
    tsc: int = uint(64)
    fcw: int = uint(16, 0x37F)
    fsw: int = uint(16)
    ftw: int = uint(8)
    fop: int = uint(16)
    fip: int = uint(64)
    fdp: int = uint(64)
    st: bytes = blob(80, bytes(80))
    mxcsr: int = uint(32, 0x1F80)
    xmm: bytes = blob(256, bytes(256))
    interrupt_shadow: bool = flag()
    nmi_blocked: bool = flag()
    halted: bool = flag()
    pending_vector: int = ranged(0, 256, 256)
    pending_error: int = uint(32)
    pending_soft: bool = flag()
