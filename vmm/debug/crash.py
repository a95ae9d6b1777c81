"""What there is to see when a guest has died."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rayvisor.vmm.cpu_state import GPR_NAMES
from rayvisor.vmm.debug.census import recent_as_dicts, render_recent
from rayvisor.vmm.debug.disasm import Instruction, code_bits, disassemble_around, linear_rip
from rayvisor.vmm.debug.pagewalk import PageWalk, PagingMode, paging_mode, read_linear, walk
from rayvisor.vmm.debug.registers import registers_as_dict, render_registers

if TYPE_CHECKING:
    from rayvisor.vmm.cpu_state import CpuState
    from rayvisor.vmm.debug.pagewalk import RamReader
    from rayvisor.vmm.exits import ExitCensus

STACK_WORDS = 16
SHOWN_EXITS = 16
PAGE_FAULT = 14
STORY_EXITS = 8
"""How many exits back a page fault counts as part of the story."""


@dataclass(frozen=True, slots=True)
class CrashReport:
    """A dead guest: why, registers, code, stack, last exits, page tables.

    Attributes:
        reason: What the machine says, such as "triple fault".
        cpu: The vCPU as it stopped.
        code: Instructions around RIP; empty if RIP is not in mapped memory.
        stack_pointer: The linear address of the top of the stack.
        stack: Words from there up, as wide as the mode's; fewer where memory ends.
        walks: (what, walk) of the addresses that matter here.
        exits: Counts by kind.
        recent: The last exits, oldest first, as `recent_as_dicts` has them.
    """

    reason: str
    cpu: CpuState
    code: tuple[Instruction, ...]
    stack_pointer: int
    stack: tuple[int, ...]
    walks: tuple[tuple[str, PageWalk], ...]
    exits: dict[str, int]
    recent: tuple[dict[str, Any], ...]

    @classmethod
    def build(cls, cpu: CpuState, read: RamReader, census: ExitCensus, reason: str) -> CrashReport:
        """Look at the guest. Never raises for what is found there."""
        word_bytes = code_bits(cpu) // 8
        stack_pointer = _stack_pointer(cpu)
        stack = read_linear(cpu, read, stack_pointer, STACK_WORDS * word_bytes)
        return cls(
            reason=reason,
            cpu=cpu,
            code=tuple(disassemble_around(cpu, read)),
            stack_pointer=stack_pointer,
            stack=tuple(
                int.from_bytes(stack[i : i + word_bytes], "little")
                for i in range(0, len(stack) - word_bytes + 1, word_bytes)
            ),
            walks=tuple(_walks(cpu, read, census, reason)),
            exits=dict(census.counts),
            recent=tuple(recent_as_dicts(census)),
        )

    def as_dict(self) -> dict[str, Any]:
        """The report in JSON's terms: numbers of the guest as hexadecimal strings.

        "text" is the whole of it as `render` gives it.
        """
        return {
            "reason": self.reason,
            "registers": registers_as_dict(self.cpu),
            "code": [i.as_dict() for i in self.code],
            "stack_pointer": hex(self.stack_pointer),
            "stack": [hex(word) for word in self.stack],
            "page_walks": [{"of": what, **found.as_dict()} for what, found in self.walks],
            "exits": self.exits,
            "recent_exits": list(self.recent),
            "text": self.render(),
        }

    def render(self) -> str:
        """The report as text."""
        parts = [f"guest stopped: {self.reason}", render_registers(self.cpu)]
        parts.append("Code:\n" + (self._render_code() or "  RIP is not in mapped memory"))
        parts.append("Stack:\n" + (self._render_stack() or "  RSP is not in mapped memory"))
        for what, found in self.walks:
            parts.append(f"Page walk of {what}: {found.render()}")
        if self.recent:
            last = list(self.recent[-SHOWN_EXITS:])
            parts.append("Last exits, oldest first:\n" + render_recent(last))
        return "\n\n".join(parts) + "\n"

    def _render_code(self) -> str:
        rip = linear_rip(self.cpu)
        return "\n".join(
            f"{'=>' if i.address == rip else '  '} {i.address:x}: {i.raw.hex(' '):<30} {i.text}"
            for i in self.code
        )

    def _render_stack(self) -> str:
        bits = code_bits(self.cpu)
        per_line = 4 if bits == 64 else 8
        step_bytes = per_line * bits // 8
        return "\n".join(
            f"  {self.stack_pointer + i // per_line * step_bytes:x}: "
            + " ".join(f"{word:0{bits // 4}x}" for word in self.stack[i : i + per_line])
            for i in range(0, len(self.stack), per_line)
        )


def _stack_pointer(cpu: CpuState) -> int:
    """The linear address that SS:RSP means (Intel SDM 3A 6.2.3: SS.B selects SP or ESP)."""
    pointer = cpu.gpr[GPR_NAMES.index("rsp")]
    if code_bits(cpu) == 64:
        return pointer
    pointer &= 0xFFFF_FFFF if cpu.ss.access >> 14 & 1 else 0xFFFF
    return cpu.ss.base + pointer & 0xFFFF_FFFF


def _walks(
    cpu: CpuState, read: RamReader, census: ExitCensus, reason: str
) -> list[tuple[str, PageWalk]]:
    """The walks that tell something; none where there are no page tables."""
    if paging_mode(cpu) is PagingMode.OFF:
        return []
    found = []
    story = [exit_[:2] for exit_ in census.recent[-STORY_EXITS:]]
    if cpu.pending_vector == PAGE_FAULT or ("exception", PAGE_FAULT) in story:
        found.append(("CR2", walk(cpu, read, cpu.cr2)))
    found.append(("RIP", walk(cpu, read, linear_rip(cpu))))
    stack = walk(cpu, read, _stack_pointer(cpu))
    if stack.fault:
        found.append(("RSP", stack))
    if "triple" in reason:
        # Whether the CPU could have read its interrupt table is the next thing one asks.
        found.append(("the IDT", walk(cpu, read, cpu.idtr.base)))
    return found
