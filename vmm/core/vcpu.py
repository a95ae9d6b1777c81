"""The vCPU as the machine sees it: the native core with states and censuses as dataclasses."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from rayvisor.vmm.core import _native
from rayvisor.vmm.core.library import load_engine
from rayvisor.vmm.cpu_state import SEGMENT_NAMES, CpuState, DescriptorTable, Segment
from rayvisor.vmm.exits import ExitCensus
from rayvisor.vmm.lateness import Lateness
from rayvisor.vmm.state import check

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

KINDS: Final = (
    "io_in",
    "io_out",
    "mmio",
    "cpuid",
    "hlt",
    "syscall",
    "sysenter",
    "exception",
    "interrupt",
    "stop",
)
"""Exit kinds in the order of census.h."""

_LEADING = struct.Struct("<18Q")
_SEGMENT = struct.Struct("<4Q")
_TABLE = struct.Struct("<2Q")
_SYSTEM = struct.Struct("<30Q")
_MXCSR = struct.Struct("<Q")
_TRAILING = struct.Struct("<6Q")
_SYSTEM_FIELDS: Final = (
    "cr0 cr2 cr3 cr4 cr8 efer dr0 dr1 dr2 dr3 dr6 dr7 star lstar cstar fmask kernel_gs_base "
    "sysenter_cs sysenter_esp sysenter_eip pat tsc_aux misc_enable tsc fcw fsw ftw fop fip fdp"
).split()
_TRAILING_FIELDS: Final = (
    "interrupt_shadow nmi_blocked halted pending_vector pending_error pending_soft"
).split()
_FLAGS: Final = frozenset({"interrupt_shadow", "nmi_blocked", "halted", "pending_soft"})


class VcpuExit(Enum):
    """Why a vCPU came back to its machine."""

    DEADLINE = _native.EXIT_DEADLINE
    KICK = _native.EXIT_KICK
    HALTED = _native.EXIT_HALTED
    TRIPLE_FAULT = _native.EXIT_TRIPLE_FAULT


def encode(state: CpuState) -> bytes:
    """The structure of cpu_state.h.

    Raises:
        CorruptStateError: a field is out of range.
    """
    check(state)
    segments = [getattr(state, name) for name in (*SEGMENT_NAMES, "ldtr", "tr")]
    system = {f"dr{i}": value for i, value in enumerate(state.dr)}
    parts = [
        _LEADING.pack(*state.gpr, state.rip, state.rflags),
        *(_SEGMENT.pack(s.selector, s.base, s.limit, s.access) for s in segments),
        _TABLE.pack(state.gdtr.base, state.gdtr.limit),
        _TABLE.pack(state.idtr.base, state.idtr.limit),
        _SYSTEM.pack(*(system[n] if n in system else getattr(state, n) for n in _SYSTEM_FIELDS)),
        state.st.ljust(80, b"\0"),
        _MXCSR.pack(state.mxcsr),
        state.xmm.ljust(256, b"\0"),
        _TRAILING.pack(*(int(getattr(state, name)) for name in _TRAILING_FIELDS)),
    ]
    return b"".join(parts)


def decode(data: bytes) -> CpuState:
    """The state in a structure that the core wrote."""
    offset = 0

    def take(layout: struct.Struct) -> tuple[Any, ...]:
        nonlocal offset
        values = layout.unpack_from(data, offset)
        offset += layout.size
        return values

    leading = take(_LEADING)
    segments = [Segment(*take(_SEGMENT)) for _ in range(8)]
    gdtr, idtr = DescriptorTable(*take(_TABLE)), DescriptorTable(*take(_TABLE))
    system: dict[str, Any] = dict(zip(_SYSTEM_FIELDS, take(_SYSTEM), strict=True))
    st, offset = data[offset : offset + 80], offset + 80
    (mxcsr,) = take(_MXCSR)
    xmm, offset = data[offset : offset + 256], offset + 256
    trailing = {
        name: bool(value) if name in _FLAGS else value
        for name, value in zip(_TRAILING_FIELDS, take(_TRAILING), strict=True)
    }
    dr = tuple(system.pop(f"dr{i}") for i in range(4))
    fields: dict[str, Any] = {
        **dict(zip((*SEGMENT_NAMES, "ldtr", "tr"), segments, strict=True)),
        **system,
        **trailing,
    }
    return CpuState(
        gpr=leading[:16],
        rip=leading[16],
        rflags=leading[17],
        gdtr=gdtr,
        idtr=idtr,
        dr=dr,
        st=st,
        mxcsr=mxcsr,
        xmm=xmm,
        **fields,
    )


@dataclass(frozen=True, slots=True)
class DirectCounts:
    """What direct execution did.

    Attributes:
        native_s: the guest's user code on the processor itself.
        switching_s: going there and back, and keeping its memory as the guest has it.
        stays: how often user code was run natively from its entry to its leave.
        traps: what stopped it, page faults that the guest never saw included.
    """

    native_s: float = 0.0
    switching_s: float = 0.0
    stays: int = 0
    traps: int = 0


class Vcpu:
    """One x86-64 vCPU over a machine's RAM, in its reset state. See _native.pyi for threads."""

    def __init__(self, ram: memoryview, regions: Sequence[tuple[int, int, int]]) -> None:
        """Make the vCPU over `ram`, whose (gpa, bytes, offset) `regions` the guest sees.

        Raises:
            EngineError: Unicorn is missing, is another build, or refuses.
        """
        load_engine()
        self._core = _native.Vcpu(ram, regions)
        self.kick = self._core.kick
        self.set_intr = self._core.set_intr
        self.raise_nmi = self._core.raise_nmi
        self.set_deadline = self._core.set_deadline
        self.set_a20 = self._core.set_a20
        self.set_acknowledge = self._core.set_acknowledge
        self.reset = self._core.reset
        self.run_tsc = self._core.run_tsc
        self.tsc = self._core.tsc
        self.map_page = self._core.map_page
        self.map_msr = self._core.map_msr
        self.map_priority = self._core.map_priority
        self.take_tick_back = self._core.take_tick_back
        self.host_wrote = self._core.host_wrote
        self.code_bytes = self._core.code_bytes
        self.trim = self._core.trim
        self.start_dirty_log = self._core.start_dirty_log
        self.stop_dirty_log = self._core.stop_dirty_log
        self.harvest_dirty = self._core.harvest_dirty
        self.engine_cpuid = self._core.engine_cpuid
        self.save_raw = self._core.save

    def run(self) -> VcpuExit:
        """Run the guest until the machine is needed.

        Raises:
            EngineError: the vCPU runs already or is closed, or the translator gave up.
        """
        return VcpuExit(self._core.run())

    def set_cpuid(self, entries: Iterable[tuple[int, int, int, int, int, int]]) -> None:
        """What CPUID answers: (leaf, subleaf, EAX, EBX, ECX, EDX)."""
        self._core.set_cpuid(b"".join(struct.pack("<6I", *entry) for entry in entries))

    def map_ports(
        self,
        first: int,
        count: int,
        read: Callable[[int], int] | None,
        write: Callable[[int, int], None] | None,
    ) -> None:
        """Wire `count` I/O ports from `first` to a chip's byte registers.

        Raises:
            ValueError: a port is taken.
        """
        self._core.map_ports(first, count, read, write)

    def coalesce_port(self, port: int, sink: Callable[[bytes], None] | None) -> None:
        """Hand byte writes to `port` over in bursts, or with None one by one again."""
        self._core.coalesce_port(port, sink)

    def save(self) -> CpuState:
        """The architectural state.

        Raises:
            EngineError: the vCPU is running or closed.
        """
        return decode(self._core.save())

    def load(self, state: CpuState) -> None:
        """Take over an architectural state from anywhere.

        Raises:
            CorruptStateError: no processor can be in it; nothing has changed.
            EngineError: the vCPU is running or closed.
        """
        self._core.load(encode(state))

    def census(self) -> ExitCensus:
        """Exits since power-on."""
        counts, unplaced, sites, recent = self._core.census()
        by_kind: dict[str, int] = dict(zip(KINDS, counts, strict=True))
        if unplaced:
            by_kind["unplaced"] = unplaced
        return ExitCensus(
            counts={kind: count for kind, count in by_kind.items() if count},
            sites=[(KINDS[kind], detail, rip, count) for kind, detail, rip, count in sites],
            recent=[(KINDS[kind], detail, rip) for kind, detail, rip in recent],
        )

    def exit_counts(self) -> dict[str, int]:
        """Exits by kind since power-on, every kind named. Any thread.

        Raises:
            EngineError: the vCPU is closed.
        """
        return dict(zip(KINDS, self._core.exit_counts(), strict=True))

    def interrupt_lateness(self) -> Lateness:
        """How long interrupts waited for the guest to take them. Any thread.

        Raises:
            EngineError: the vCPU is closed.
        """
        return Lateness(*self._core.interrupt_lateness())

    def tick_lateness(self) -> Lateness:
        """How long after its deadline a timer that was lent has expired. Any thread.

        Raises:
            EngineError: the vCPU is closed.
        """
        return Lateness(*self._core.tick_lateness())

    def lend_tick(self, vector: int, deadline: int, *, tsc_hz: int) -> None:
        """Do the local APIC's timer on its behalf, until `take_tick_back`. The machine's thread.

        Args:
            vector: of the interrupt.
            deadline: of the TSC, which makes `tsc_hz` ticks a second; 0 for none.
            tsc_hz: of the TSC.
        """
        self._core.lend_tick(vector, deadline, tsc_hz)

    def clear_census(self) -> None:
        """Count exits from zero."""
        self._core.clear_census()

    def start_direct(self, ram_fd: int, tsc_hz: int) -> str | None:
        """Execute the guest's user code on the processor itself where that is faster.

        Args:
            ram_fd: the memfd behind RAM, from offset 0.
            tsc_hz: ticks a second of the host's TSC.

        Returns:
            None, or why it cannot be had on this host: the guest is translated then.

        Raises:
            EngineError: the vCPU is running or closed.
        """
        return self._core.start_direct(ram_fd, tsc_hz)

    def choose_at_random(self, *, on: bool) -> None:
        """Let a coin choose the world of each stay in user code: a test of the switch."""
        self._core.choose_at_random(int(on))

    def direct_counts(self) -> DirectCounts:
        """What direct execution has done since power-on; zeros where it is off. Any thread.

        Raises:
            EngineError: the vCPU is closed.
        """
        counts = self._core.direct_counts()
        if counts is None:
            return DirectCounts()
        native_ns, switching_ns, stays, traps = counts
        return DirectCounts(native_ns / 1e9, switching_ns / 1e9, stays, traps)

    def close(self) -> None:
        """Give the engine and its code buffer back. Harmless twice."""
        self._core.close()


class VcpuTsc:
    """A vCPU's time stamp counter, as its local APIC sees it."""

    def __init__(self, vcpu: Vcpu, hz: int) -> None:
        """The counter of `vcpu`, which makes `hz` ticks a second."""
        self.hz = hz
        self.now = vcpu.tsc
