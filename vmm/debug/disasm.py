"""Disassembly of guest code in the mode that the CPU is in."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from rayvisor.vmm.cpu_state import CR0_PE, EFER_LMA, RFLAGS_VM
from rayvisor.vmm.debug.pagewalk import read_linear

if TYPE_CHECKING:
    from rayvisor.vmm.cpu_state import CpuState
    from rayvisor.vmm.debug.pagewalk import RamReader

MAX_INSTRUCTION_BYTES = 15
MAX_COUNT = 4096
CS_LONG, CS_DEFAULT = 1 << 13, 1 << 14
BAD = "(bad)"


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction, or one byte that is none (`text` is then "(bad)")."""

    address: int
    raw: bytes
    text: str

    def as_dict(self) -> dict[str, Any]:
        """The instruction in JSON's terms."""
        return {"address": hex(self.address), "bytes": self.raw.hex(), "text": self.text}


def code_bits(cpu: CpuState) -> int:
    """16, 32 or 64: how the CPU decodes now (Intel SDM 3A 2.2, 3.4.5, 9.1.4)."""
    if cpu.efer & EFER_LMA and cpu.cs.access & CS_LONG:
        return 64
    if not cpu.cr0 & CR0_PE or cpu.rflags & RFLAGS_VM:
        # Real mode keeps the D bit that protected mode loaded ("unreal" code uses that).
        return 32 if cpu.cs.access & CS_DEFAULT and not cpu.rflags & RFLAGS_VM else 16
    return 32 if cpu.cs.access & CS_DEFAULT else 16


def linear_rip(cpu: CpuState) -> int:
    """The linear address of the next instruction."""
    if code_bits(cpu) == 64:
        return cpu.rip
    return cpu.cs.base + cpu.rip & 0xFFFF_FFFF


def disassemble(code: bytes, address: int, bits: int, count: int) -> list[Instruction]:
    """At most `count` instructions of `code`, which lies at linear `address`."""
    out: list[Instruction] = []
    offset = 0
    while offset < len(code) and len(out) < count:
        instruction = _decode(code, offset, address + offset, bits)
        out.append(instruction)
        offset += len(instruction.raw)
    return out


def disassemble_at(
    cpu: CpuState, read: RamReader, address: int | None, count: int
) -> list[Instruction]:
    """At most `count` instructions at linear `address` (None: at RIP); fewer where memory ends."""
    start = linear_rip(cpu) if address is None else address
    count = min(count, MAX_COUNT)
    code = read_linear(cpu, read, start, count * MAX_INSTRUCTION_BYTES)
    return disassemble(code, start, code_bits(cpu), count)


def disassemble_around(
    cpu: CpuState, read: RamReader, *, before: int = 6, after: int = 8
) -> list[Instruction]:
    """Instructions before RIP, the one at RIP, and those after it."""
    rip, bits = linear_rip(cpu), code_bits(cpu)
    code = read_linear(cpu, read, rip, (after + 1) * MAX_INSTRUCTION_BYTES)
    return [
        *_disassemble_before(_code_before(cpu, read, rip), rip, bits, before),
        *disassemble(code, rip, bits, after + 1),
    ]


def _code_before(cpu: CpuState, read: RamReader, rip: int) -> bytes:
    """The code before `rip`: 96 bytes, or what its own page has where the one before is gone."""
    for wanted in (96, rip % 4096):
        count = min(wanted, rip, 96)
        code = read_linear(cpu, read, rip - count, count)
        if count and len(code) == count:
            return code
    return b""


def _disassemble_before(code: bytes, end: int, bits: int, count: int) -> list[Instruction]:
    """The last `count` instructions of `code`, which ends at `end`.

    x86 code cannot be read backwards. Decoding from every byte, wrong starts soon fall in step
    with the right one, so the boundary that most starts pass through is the likely one.
    """
    base = end - len(code)
    decoded = [_decode(code, offset, base + offset, bits) for offset in range(len(code))]
    follows = [offset + len(decoded[offset].raw) for offset in range(len(code))]
    passes = [1] * (len(code) + 1)
    for offset, following in enumerate(follows):
        # A chain through a byte that is no instruction, or cut short by RIP, is no evidence.
        if decoded[offset].text == BAD:
            passes[offset] = 0
        elif following <= len(code):
            passes[following] += passes[offset]
    out: list[Instruction] = []
    boundary = len(code)
    while len(out) < count:
        starts = [o for o in range(boundary) if follows[o] == boundary and passes[o]]
        if not starts:
            break
        boundary = max(starts, key=lambda o: passes[o])
        out.insert(0, decoded[boundary])
    return out


def _decode(code: bytes, offset: int, address: int, bits: int) -> Instruction:
    window = code[offset : offset + MAX_INSTRUCTION_BYTES]
    decoder = _decoder(bits, threading.get_ident())
    for _, size, mnemonic, operands in decoder.disasm_lite(window, address, 1):
        return Instruction(address, window[:size], f"{mnemonic} {operands}".rstrip())
    return Instruction(address, window[:1], BAD)


@lru_cache(maxsize=16)
def _decoder(bits: int, _thread: int) -> Any:  # noqa: ANN401 - capstone has no types
    """A decoder of this thread's own: capstone's handles are not to be shared."""
    import capstone

    modes = {16: capstone.CS_MODE_16, 32: capstone.CS_MODE_32, 64: capstone.CS_MODE_64}
    return capstone.Cs(capstone.CS_ARCH_X86, modes[bits])
