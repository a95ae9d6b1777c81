"""The page-table walk of a linear address, step by step (Intel SDM 3A 4.3 to 4.5).

Not modelled: protection keys, SMEP and SMAP, the paging-structure caches (the CPU may still use
an entry that memory no longer holds), and the PDPTE registers that PAE paging loads with CR3:
every entry is read from memory as it is now. 1 GiB pages are taken as supported.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from rayvisor.vmm.cpu_state import CR0_PG, CR4_LA57, CR4_PAE, EFER_LMA

if TYPE_CHECKING:
    from rayvisor.vmm.cpu_state import CpuState

RamReader = Callable[[int, int], bytes]
"""`read(gpa, count)` gives guest RAM; raises ValueError where there is none."""

PHYSICAL_BITS = 40
PAGE_BYTES = 4096
CR4_PSE = 1 << 4
EFER_NXE = 1 << 11
PRESENT, WRITE, USER, LARGE = 1 << 0, 1 << 1, 1 << 2, 1 << 7
NO_EXECUTE = 1 << 63
ENTRY_FLAGS = (
    (1 << 0, "P"),
    (1 << 1, "W"),
    (1 << 2, "U"),
    (1 << 3, "PWT"),
    (1 << 4, "PCD"),
    (1 << 5, "A"),
    (1 << 6, "D"),
    (1 << 8, "G"),
    (NO_EXECUTE, "NX"),
)


class PagingMode(StrEnum):
    """The four paging modes, and none."""

    OFF = "off"
    LEGACY = "32-bit"
    PAE = "PAE"
    LEVEL4 = "4-level"
    LEVEL5 = "5-level"


@dataclass(frozen=True, slots=True)
class _Level:
    """One level of a walk: its name, the lowest address bit it decodes, and how many."""

    name: str
    shift: int
    bits: int
    may_map: bool
    """Whether bit 7 makes an entry map a page here."""


_LEVEL5 = _Level("PML5", 48, 9, may_map=False)
_LEVEL4 = (
    _Level("PML4", 39, 9, may_map=False),
    _Level("PDPT", 30, 9, may_map=True),
    _Level("PD", 21, 9, may_map=True),
    _Level("PT", 12, 9, may_map=False),
)
_PAE = (_Level("PDPT", 30, 2, may_map=False), *_LEVEL4[2:])
_LEGACY = (_Level("PD", 22, 10, may_map=True), _Level("PT", 12, 10, may_map=False))


@dataclass(frozen=True, slots=True)
class Entry:
    """One paging-structure entry on the way."""

    level: str
    index: int
    gpa: int
    value: int
    maps_page: bool

    @property
    def flags(self) -> str:
        """Its set bits by name, such as "P W A D NX"."""
        names = [name for bit, name in ENTRY_FLAGS if self.value & bit]
        if self.maps_page and self.level != "PT":
            names.append("PS")
        return " ".join(names)


@dataclass(frozen=True, slots=True)
class PageWalk:
    """How a linear address is translated, or where and why that stops.

    Attributes:
        linear: The address walked, cut to the width of the mode.
        entries: The entries read, top first; the last one maps the page or stops the walk.
        gpa: The guest physical address, or None where the walk stops.
        page_bytes: Size of the page that maps it; 0 without paging or translation.
        fault: Why the walk stops; empty if it does not.
        writable, user, executable: What every level together allows.
    """

    linear: int
    mode: PagingMode
    cr3: int
    entries: tuple[Entry, ...]
    gpa: int | None
    page_bytes: int
    fault: str
    writable: bool
    user: bool
    executable: bool

    @property
    def rights(self) -> str:
        """The rights in words, such as "user, read-only, no execute"."""
        return ", ".join(
            (
                "user" if self.user else "supervisor",
                "writable" if self.writable else "read-only",
                "executable" if self.executable else "no execute",
            )
        )

    def as_dict(self) -> dict[str, Any]:
        """The walk in JSON's terms; addresses and entries as hexadecimal strings."""
        return {
            "linear": hex(self.linear),
            "mode": self.mode.value,
            "cr3": hex(self.cr3),
            "entries": [
                {
                    "level": e.level,
                    "index": e.index,
                    "gpa": hex(e.gpa),
                    "value": hex(e.value),
                    "flags": e.flags,
                }
                for e in self.entries
            ],
            "gpa": None if self.gpa is None else hex(self.gpa),
            "page_bytes": self.page_bytes,
            "rights": "" if self.gpa is None else self.rights,
            "fault": self.fault,
        }

    def render(self) -> str:
        """The walk as text, one line a level."""
        width = 16 if self.mode in {PagingMode.LEVEL4, PagingMode.LEVEL5} else 8
        lines = [f"{self.linear:0{width}x}  {self.mode} paging, CR3 {self.cr3:x}"]
        if self.mode is PagingMode.OFF:
            lines = [f"{self.linear:0{width}x}  paging is off"]
        lines += [
            f"  {e.level:<4} [{e.index:3}] at {e.gpa:#x}: {e.value:#x} {e.flags}".rstrip()
            for e in self.entries
        ]
        if self.gpa is None:
            lines.append(f"  -> {self.fault}")
        elif self.page_bytes:
            size = {4096: "4 KiB", 2 << 20: "2 MiB", 4 << 20: "4 MiB", 1 << 30: "1 GiB"}
            lines.append(f"  -> {self.gpa:#x} in a {size[self.page_bytes]} page, {self.rights}")
        return "\n".join(lines)


def paging_mode(cpu: CpuState) -> PagingMode:
    """The mode that CR0, CR4 and EFER select (SDM 3A table 4-1)."""
    if not cpu.cr0 & CR0_PG:
        return PagingMode.OFF
    if not cpu.cr4 & CR4_PAE:
        return PagingMode.LEGACY
    if not cpu.efer & EFER_LMA:
        return PagingMode.PAE
    return PagingMode.LEVEL5 if cpu.cr4 & CR4_LA57 else PagingMode.LEVEL4


def walk(
    cpu: CpuState, read: RamReader, linear: int, *, physical_bits: int = PHYSICAL_BITS
) -> PageWalk:
    """Translate `linear` as `cpu` would now, for a read by the supervisor. Never raises.

    Args:
        cpu: CR0, CR3, CR4 and EFER count.
        read: Guest RAM; an address without RAM stops the walk.
        linear: A linear address; bits above the mode's width are dropped, except that in
            4-level and 5-level mode they must be canonical.
        physical_bits: The CPU's MAXPHYADDR; address bits above it are reserved.
    """
    return _Walker(cpu, read, physical_bits).walk(linear)


class _Walker:
    def __init__(self, cpu: CpuState, read: RamReader, physical_bits: int) -> None:
        self._read = read
        self._cr3 = cpu.cr3
        self._mode = paging_mode(cpu)
        self._pse = bool(cpu.cr4 & CR4_PSE)
        self._nx = bool(cpu.efer & EFER_NXE)
        self._physical_bits = physical_bits
        self._entries: list[Entry] = []
        self._rights = PRESENT | WRITE | USER
        self._executable = True

    def walk(self, linear: int) -> PageWalk:
        levels: tuple[_Level, ...]
        match self._mode:
            case PagingMode.OFF:
                return self._end(linear & 0xFFFF_FFFF, linear & 0xFFFF_FFFF, 0)
            case PagingMode.LEGACY:
                return self._descend(linear & 0xFFFF_FFFF, _LEGACY, self._cr3 & 0xFFFF_F000)
            case PagingMode.PAE:
                return self._descend(linear & 0xFFFF_FFFF, _PAE, self._cr3 & 0xFFFF_FFE0)
            case PagingMode.LEVEL4:
                levels, width = _LEVEL4, 48
            case PagingMode.LEVEL5:
                levels, width = (_LEVEL5, *_LEVEL4), 57
        linear &= (1 << 64) - 1
        if linear >> (width - 1) not in {0, (1 << (65 - width)) - 1}:
            return self._stop(linear, f"not a canonical address (bits {width - 1} to 63 differ)")
        return self._descend(linear, levels, self._cr3 & self._address_mask)

    @property
    def _address_mask(self) -> int:
        return ((1 << self._physical_bits) - 1) & ~0xFFF

    def _descend(self, linear: int, levels: tuple[_Level, ...], table: int) -> PageWalk:
        for level in levels:
            entry = self._fetch(linear, level, table)
            if entry is None:
                return self._stop(linear, f"{level.name} table at {table:#x} is outside RAM")
            self._entries.append(entry)
            if not entry.value & PRESENT:
                return self._stop(linear, f"{level.name} entry not present")
            reserved = self._reserved(level, entry)
            if reserved:
                return self._stop(linear, f"{level.name} entry has reserved bits {reserved:#x} set")
            if not (self._mode is PagingMode.PAE and level.name == "PDPT"):
                self._rights &= entry.value
                self._executable &= not (self._nx and entry.value & NO_EXECUTE)
            table = entry.value & self._address_mask
            if entry.maps_page:
                page_bytes = 1 << level.shift
                if self._mode is PagingMode.LEGACY and level.name == "PD":
                    # PSE-36: bits 13 to 20 hold address bits 32 to 39.
                    table = (entry.value & 0xFFC0_0000) | (entry.value & 0x1F_E000) << 19
                base = table & ~(page_bytes - 1)
                return self._end(linear, base | linear & (page_bytes - 1), page_bytes)
        raise AssertionError("the last level always maps a page")

    def _fetch(self, linear: int, level: _Level, table: int) -> Entry | None:
        index = linear >> level.shift & (1 << level.bits) - 1
        entry_bytes = 4 if self._mode is PagingMode.LEGACY else 8
        gpa = table + index * entry_bytes
        try:
            raw = self._read(gpa, entry_bytes)
        except ValueError:
            return None
        if len(raw) != entry_bytes:
            return None
        value = int.from_bytes(raw, "little")
        large = level.may_map and bool(value & LARGE)
        if self._mode is PagingMode.LEGACY:
            large &= self._pse
        return Entry(level.name, index, gpa, value, maps_page=large or level.name == "PT")

    def _reserved(self, level: _Level, entry: Entry) -> int:
        """The reserved bits that are set (SDM 3A tables 4-4 to 4-20)."""
        if self._mode is PagingMode.LEGACY:
            if not entry.maps_page or level.name == "PT":
                return 0
            address_bits = min(self._physical_bits, 40) - 32
            above = 0xFF & ~((1 << max(address_bits, 0)) - 1)
            return entry.value & (1 << 21 | above << 13)
        # Bits 52 to 62 are the software's in 4-level mode, and reserved in PAE mode.
        top = 63 if self._mode is PagingMode.PAE else 52
        mask = (1 << top) - (1 << self._physical_bits)
        if self._mode is PagingMode.PAE and level.name == "PDPT":
            mask |= NO_EXECUTE | 0b1_1110_0110
        elif not self._nx:
            mask |= NO_EXECUTE
        if entry.maps_page and level.name != "PT":
            mask |= (1 << level.shift) - (1 << 13)
        elif not entry.maps_page and level.name in {"PML5", "PML4"}:
            mask |= LARGE
        return entry.value & mask

    def _end(self, linear: int, gpa: int, page_bytes: int) -> PageWalk:
        return self._make(linear, gpa, page_bytes, "")

    def _stop(self, linear: int, fault: str) -> PageWalk:
        return self._make(linear, None, 0, fault)

    def _make(self, linear: int, gpa: int | None, page_bytes: int, fault: str) -> PageWalk:
        return PageWalk(
            linear,
            self._mode,
            self._cr3,
            tuple(self._entries),
            gpa,
            page_bytes,
            fault,
            writable=bool(self._rights & WRITE),
            user=bool(self._rights & USER),
            executable=self._executable,
        )


def read_linear(cpu: CpuState, read: RamReader, linear: int, count: int) -> bytes:
    """Up to `count` bytes at `linear`: as many as are mapped and in RAM. Never raises."""
    out = b""
    while len(out) < count:
        address = linear + len(out)
        piece = min(count - len(out), PAGE_BYTES - address % PAGE_BYTES)
        gpa = walk(cpu, read, address).gpa
        if gpa is None:
            break
        try:
            out += read(gpa, piece)
        except ValueError:
            break
    return out
