"""The registers of a vCPU, as text and in JSON's terms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rayvisor.vmm.cpu_state import CR0_PE, GPR_NAMES, RFLAGS_VM
from rayvisor.vmm.debug.disasm import CS_LONG, code_bits
from rayvisor.vmm.debug.pagewalk import paging_mode

if TYPE_CHECKING:
    from rayvisor.vmm.cpu_state import CpuState, Segment

# The order a kernel's own dumps have, which is the order people read them in.
_ORDER = "rax rbx rcx rdx rsi rdi rbp rsp r8 r9 r10 r11 r12 r13 r14 r15".split()
_SEGMENTS = ("cs", "ss", "ds", "es", "fs", "gs", "tr", "ldtr")

RFLAGS_NAMES = {
    0: "CF", 2: "PF", 4: "AF", 6: "ZF", 7: "SF", 8: "TF", 9: "IF", 10: "DF", 11: "OF",
    14: "NT", 16: "RF", 17: "VM", 18: "AC", 19: "VIF", 20: "VIP", 21: "ID",
}  # fmt: skip
CR0_NAMES = {
    0: "PE", 1: "MP", 2: "EM", 3: "TS", 4: "ET", 5: "NE", 16: "WP", 18: "AM", 29: "NW",
    30: "CD", 31: "PG",
}  # fmt: skip
CR4_NAMES = {
    0: "VME", 1: "PVI", 2: "TSD", 3: "DE", 4: "PSE", 5: "PAE", 6: "MCE", 7: "PGE", 8: "PCE",
    9: "OSFXSR", 10: "OSXMMEXCPT", 11: "UMIP", 12: "LA57", 13: "VMXE", 14: "SMXE",
    16: "FSGSBASE", 17: "PCIDE", 18: "OSXSAVE", 20: "SMEP", 21: "SMAP", 22: "PKE",
}  # fmt: skip
EFER_NAMES = {0: "SCE", 8: "LME", 10: "LMA", 11: "NXE", 12: "SVME", 14: "FFXSR"}

EXCEPTIONS = {
    0: "#DE divide error", 1: "#DB debug", 2: "NMI", 3: "#BP breakpoint", 4: "#OF overflow",
    5: "#BR bound range", 6: "#UD invalid opcode", 7: "#NM no coprocessor",
    8: "#DF double fault", 10: "#TS invalid TSS", 11: "#NP segment not present",
    12: "#SS stack fault", 13: "#GP general protection", 14: "#PF page fault",
    16: "#MF x87 error", 17: "#AC alignment check", 18: "#MC machine check", 19: "#XM SIMD error",
    20: "#VE virtualization", 21: "#CP control protection",
}  # fmt: skip


def bit_names(value: int, names: dict[int, str]) -> str:
    """The names of the bits set in `value`, lowest first; unnamed bits are left out."""
    return " ".join(name for bit, name in names.items() if value >> bit & 1)


def privilege_level(cpu: CpuState) -> int:
    """The CPL (Intel SDM 3A 5.5): 0 in real mode, 3 in virtual-8086 mode."""
    if not cpu.cr0 & CR0_PE:
        return 0
    return 3 if cpu.rflags & RFLAGS_VM else cpu.cs.access >> 5 & 3


def cpu_mode(cpu: CpuState) -> str:
    """The mode in words, such as "64-bit mode, CPL 0, 4-level paging"."""
    if not cpu.cr0 & CR0_PE:
        kind = "real mode"
    elif cpu.rflags & RFLAGS_VM:
        kind = "virtual-8086 mode"
    else:
        kind = f"{code_bits(cpu)}-bit mode"
    return f"{kind}, CPL {privilege_level(cpu)}, {paging_mode(cpu)} paging".replace(
        "off paging", "paging off"
    )


def registers_as_dict(cpu: CpuState) -> dict[str, Any]:
    """Every register that a report names, as hexadecimal strings, with the mode in words."""
    out: dict[str, Any] = {"mode": cpu_mode(cpu), "rip": hex(cpu.rip), "rflags": hex(cpu.rflags)}
    out |= {name: hex(cpu.gpr[GPR_NAMES.index(name)]) for name in _ORDER}
    for name in _SEGMENTS:
        segment: Segment = getattr(cpu, name)
        out[name] = {
            "selector": hex(segment.selector),
            "base": hex(segment.base),
            "limit": hex(segment.limit),
            "access": hex(segment.access),
        }
    for name in ("gdtr", "idtr"):
        table = getattr(cpu, name)
        out[name] = {"base": hex(table.base), "limit": hex(table.limit)}
    for name in ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "dr6", "dr7", "star", "lstar"):
        out[name] = hex(getattr(cpu, name))
    out["dr"] = [hex(value) for value in cpu.dr]
    out |= {"halted": cpu.halted, "interrupt_shadow": cpu.interrupt_shadow}
    if cpu.pending_vector < 256:
        out["pending"] = {"vector": cpu.pending_vector, "error": hex(cpu.pending_error)}
    return out


def render_registers(cpu: CpuState) -> str:
    """The registers as a kernel's dump has them: 64-bit names only where software sees them."""
    wide = code_bits(cpu) == 64 or bool(cpu.cr0 & CR0_PE and cpu.efer >> 10 & 1)
    digits = 16 if wide else 8
    letter = "R" if wide else "E"
    iopl = cpu.rflags >> 12 & 3
    flags = bit_names(cpu.rflags, RFLAGS_NAMES) + (f" IOPL={iopl}" if iopl else "")
    lines = [
        f"{letter}IP {cpu.cs.selector:04x}:{cpu.rip:0{digits}x}  ({cpu_mode(cpu)})",
        f"{letter}FL {cpu.rflags:08x} ({flags}){_conditions(cpu)}",
    ]
    names = _ORDER if wide else _ORDER[:8]
    per_line = 3 if wide else 4
    cells = [
        f"{_register_name(name, letter)} {cpu.gpr[GPR_NAMES.index(name)]:0{digits}x}"
        for name in names
    ]
    lines += ["  ".join(cells[i : i + per_line]) for i in range(0, len(cells), per_line)]
    lines += [_segment_line(name, getattr(cpu, name), digits) for name in _SEGMENTS]
    lines += [
        f"GDT  base {cpu.gdtr.base:0{digits}x} limit {cpu.gdtr.limit:04x}",
        f"IDT  base {cpu.idtr.base:0{digits}x} limit {cpu.idtr.limit:04x}",
        f"CR0  {cpu.cr0:08x} ({bit_names(cpu.cr0, CR0_NAMES)})",
        f"CR2  {cpu.cr2:0{digits}x}  CR3 {cpu.cr3:0{digits}x}  CR8 {cpu.cr8:x}",
        f"CR4  {cpu.cr4:08x} ({bit_names(cpu.cr4, CR4_NAMES)})",
        f"EFER {cpu.efer:08x} ({bit_names(cpu.efer, EFER_NAMES)})",
    ]
    if cpu.dr7 & 0xFF:
        lines.append(
            "  ".join(f"DR{i} {v:0{digits}x}" for i, v in enumerate(cpu.dr))
            + f"  DR6 {cpu.dr6:08x}  DR7 {cpu.dr7:08x}"
        )
    return "\n".join(line.replace(" ()", "") for line in lines)


def _register_name(name: str, letter: str) -> str:
    upper = name.upper() if name[1].isdigit() else letter + name[1:].upper()
    return f"{upper:<3}"


def _conditions(cpu: CpuState) -> str:
    out = ", halted" if cpu.halted else ""
    out += ", interrupt shadow" if cpu.interrupt_shadow else ""
    out += ", NMI blocked" if cpu.nmi_blocked else ""
    if cpu.pending_vector < 256:
        name = EXCEPTIONS.get(cpu.pending_vector, f"vector {cpu.pending_vector:#x}")
        out += f", pending {name} (error {cpu.pending_error:#x}{_cause(cpu)})"
    return out


def _cause(cpu: CpuState) -> str:
    """A page fault's error code in words (Intel SDM 3A 4.7)."""
    if cpu.pending_vector != 14:
        return ""
    error = cpu.pending_error
    access = "fetch" if error & 0x10 else "write" if error & 2 else "read"
    who = "user" if error & 4 else "supervisor"
    why = "reserved bit" if error & 8 else "protection" if error & 1 else "not present"
    return f": {who} {access}, {why}"


def _segment_line(name: str, segment: Segment, digits: int) -> str:
    access = segment.access
    present = access >> 7 & 1
    if not access >> 4 & 1:
        kind = "system"
    elif access >> 3 & 1:
        bits = 64 if access & CS_LONG else 32 if access >> 14 & 1 else 16
        kind = f"{bits}-bit code"
    else:
        kind = "writable data" if access >> 1 & 1 else "read-only data"
    what = f"{kind}, DPL {access >> 5 & 3}" if present else "not present"
    return (
        f"{name.upper():<4} {segment.selector:04x}  base {segment.base:0{digits}x}"
        f"  limit {segment.limit:08x}  {what}"
    )
