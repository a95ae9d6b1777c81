"""Page walks against tables that an independent builder wrote, and against garbage."""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayvisor.vmm.cpu_state import CR0_PE, CR0_PG, CR4_LA57, CR4_PAE, EFER_LMA, EFER_LME, CpuState
from rayvisor.vmm.debug.pagewalk import PagingMode, paging_mode, read_linear, walk

RAM_BYTES = 4 << 20
PSE, NXE = 1 << 4, 1 << 11
PG = CR0_PE | CR0_PG

# mode -> (CR4, EFER, entry bytes, index widths from the top, linear bits)
SHAPES = {
    PagingMode.LEGACY: (PSE, 0, 4, (10, 10), 32),
    PagingMode.PAE: (CR4_PAE, NXE, 8, (2, 9, 9), 32),
    PagingMode.LEVEL4: (CR4_PAE, EFER_LME | EFER_LMA | NXE, 8, (9, 9, 9, 9), 48),
    PagingMode.LEVEL5: (CR4_PAE | CR4_LA57, EFER_LME | EFER_LMA | NXE, 8, (9, 9, 9, 9, 9), 57),
}
LARGE_SIZES = {
    PagingMode.LEGACY: {4096, 4 << 20},
    PagingMode.PAE: {4096, 2 << 20},
    PagingMode.LEVEL4: {4096, 2 << 20, 1 << 30},
    PagingMode.LEVEL5: {4096, 2 << 20, 1 << 30},
}


@dataclass
class Tables:
    """Page tables in a little RAM of their own, one path at a time."""

    mode: PagingMode
    ram: bytearray = field(default_factory=lambda: bytearray(RAM_BYTES))
    next_table: int = 0x2000
    root: int = 0x1000

    def read(self, gpa: int, count: int) -> bytes:
        if not 0 <= gpa <= RAM_BYTES - count:
            raise ValueError(f"{gpa:#x} is no RAM")
        return bytes(self.ram[gpa : gpa + count])

    def cpu(self) -> CpuState:
        cr4, efer, *_ = SHAPES[self.mode]
        return CpuState(cr0=PG, cr3=self.root, cr4=cr4, efer=efer)

    def map(self, linear: int, gpa: int, page_bytes: int, flags: int = 0b111, nx: int = 0) -> int:
        """Map one page; gives the address of the entry that maps it."""
        _, _, entry_bytes, widths, _ = SHAPES[self.mode]
        table, shift = self.root, 12 + sum(widths)
        for width in widths:
            shift -= width
            where = table + (linear >> shift) % (1 << width) * entry_bytes
            if 1 << shift == page_bytes:
                large = 0x80 if page_bytes > 4096 else 0
                value = gpa | flags | large | nx << 63
                if self.mode is PagingMode.LEGACY and large:
                    value = gpa & 0xFFC00000 | gpa >> 32 << 13 | flags | large
                self.put(where, value)
                return where
            if not self.get(where) & 1:
                is_pdpte = self.mode is PagingMode.PAE and table == self.root
                self.put(where, self.next_table | (0b001 if is_pdpte else 0b111))
                self.next_table += 4096
            table = self.get(where) & ~0xFFF
        raise AssertionError(page_bytes)

    def put(self, gpa: int, value: int) -> None:
        if self.mode is PagingMode.LEGACY:
            struct.pack_into("<I", self.ram, gpa, value)
        else:
            struct.pack_into("<Q", self.ram, gpa, value)

    def get(self, gpa: int) -> int:
        size = "<I" if self.mode is PagingMode.LEGACY else "<Q"
        return int(struct.unpack_from(size, self.ram, gpa)[0])


def canonical(mode: PagingMode, value: int) -> int:
    bits = SHAPES[mode][4]
    value %= 1 << bits
    if bits > 32 and value >> (bits - 1):
        value |= (1 << 64) - (1 << bits)
    return value


@st.composite
def mappings(draw: st.DrawFn) -> tuple[PagingMode, list[tuple[int, int, int, int, int]]]:
    mode = draw(st.sampled_from(sorted(SHAPES)))
    physical_bits = 32 if mode is PagingMode.LEGACY else 40
    pages = []
    for _ in range(draw(st.integers(1, 5))):
        size = draw(st.sampled_from(sorted(LARGE_SIZES[mode])))
        top = 40 if size == 4 << 20 else physical_bits
        gpa = draw(st.integers(0, (1 << top) - 1)) & -size
        linear = canonical(mode, draw(st.integers(0, (1 << 64) - 1))) & -size
        rights = draw(st.integers(0, 3)) << 1
        nx = 0 if mode is PagingMode.LEGACY else draw(st.integers(0, 1))
        pages.append((linear & (1 << 64) - 1, gpa, size, rights, nx))
    return mode, pages


@given(mappings(), st.integers(0, (1 << 30) - 1))
def test_a_mapped_address_is_found_with_its_rights(
    drawn: tuple[PagingMode, list[tuple[int, int, int, int, int]]], inside: int
) -> None:
    mode, pages = drawn
    # Pages that share 1 GiB could overlap with one another; one mapping each is the rule here.
    linear, gpa, size, rights, nx = pages[0]
    tables = Tables(mode)
    span = 1 << (39 if mode is not PagingMode.LEGACY else 22)
    taken: set[int] = set()
    for page in pages:
        if mode is PagingMode.PAE and taken:
            break
        if page[0] // span not in taken:
            tables.map(page[0], page[1], page[2], 1 | page[3], page[4])
            taken.add(page[0] // span)
    offset = inside % size
    found = walk(tables.cpu(), tables.read, linear + offset)
    assert found.fault == ""
    assert found.gpa == gpa + offset
    assert found.page_bytes == size
    assert (found.writable, found.user) == (bool(rights & 2), bool(rights & 4))
    assert found.executable == (not nx)
    assert found.entries[0].gpa // 4096 == tables.root // 4096
    assert found.entries[-1].maps_page


@given(st.sampled_from(sorted(SHAPES)), st.integers(0, 4), st.integers(0, (1 << 64) - 1))
def test_the_walk_names_the_level_that_is_not_present(
    mode: PagingMode, depth: int, linear: int
) -> None:
    tables = Tables(mode)
    linear = canonical(mode, linear)
    tables.map(linear & -4096, 0x5000, 4096)
    entries = walk(tables.cpu(), tables.read, linear).entries
    cut = entries[min(depth, len(entries) - 1)]
    tables.put(cut.gpa, cut.value & ~1)
    found = walk(tables.cpu(), tables.read, linear)
    assert found.gpa is None
    assert found.fault == f"{cut.level} entry not present"
    assert found.entries[:-1] == entries[: len(found.entries) - 1]
    assert found.entries[-1].gpa == cut.gpa


@given(
    st.sampled_from(sorted(PagingMode)),
    st.integers(0, (1 << 64) - 1),
    st.integers(0, (1 << 64) - 1),
    st.integers(0, 1 << 32),
)
def test_hostile_tables_give_a_walk(mode: PagingMode, cr3: int, linear: int, seed: int) -> None:
    noise = random.Random(seed)  # noqa: S311 - reproducible noise

    def read(gpa: int, count: int) -> bytes:
        if noise.random() < 0.1:
            raise ValueError(gpa)
        raw = bytearray(noise.randbytes(count))
        raw[0] |= noise.random() < 0.9
        return bytes(raw)

    shape = SHAPES.get(mode)
    cpu = CpuState(cr3=cr3, cr0=PG if shape else 0)
    if shape:
        cpu.cr4, cpu.efer = shape[0], shape[1]
    found = walk(cpu, read, linear)
    assert (found.gpa is None) == bool(found.fault)
    assert found.render()
    assert found.as_dict()["fault"] == found.fault
    assert len(read_linear(cpu, read, linear, 20000)) <= 20000


def test_a_table_that_points_at_itself_ends() -> None:
    tables = Tables(PagingMode.LEVEL4)
    tables.put(0x1000 + 511 * 8, 0x1000 | 3)
    top = 0xFFFFFFFFFFFFF000
    found = walk(tables.cpu(), tables.read, top)
    assert found.gpa == 0x1000
    assert [e.gpa for e in found.entries] == [0x1FF8] * 4


def test_modes_follow_the_control_registers() -> None:
    assert paging_mode(CpuState(cr0=CR0_PE, cr4=CR4_PAE)) is PagingMode.OFF
    for mode in SHAPES:
        assert paging_mode(Tables(mode).cpu()) is mode


def test_paging_off_is_the_identity_in_32_bits() -> None:
    found = walk(CpuState(), lambda *_: b"", 0x1_0000_1234)
    assert (found.gpa, found.entries) == (0x1234, ())
    assert found.render() == "00001234  paging is off"


def test_not_canonical() -> None:
    tables = Tables(PagingMode.LEVEL4)
    assert "not a canonical address" in walk(tables.cpu(), tables.read, 1 << 47).fault
    wide = Tables(PagingMode.LEVEL5)
    assert walk(wide.cpu(), wide.read, 1 << 47).fault == "PML5 entry not present"
    assert "not a canonical address" in walk(wide.cpu(), wide.read, 1 << 56).fault


def test_a_table_outside_ram() -> None:
    tables = Tables(PagingMode.LEVEL4)
    tables.put(0x1000, 0x7F00_0000 | 3)
    found = walk(tables.cpu(), tables.read, 0x1234)
    assert found.fault == "PDPT table at 0x7f000000 is outside RAM"
    assert len(found.entries) == 1


@pytest.mark.parametrize(
    ("mode", "size", "bit"),
    [
        (PagingMode.LEGACY, 4 << 20, 21),
        (PagingMode.PAE, 4096, 62),
        (PagingMode.PAE, 2 << 20, 13),
        (PagingMode.LEVEL4, 4096, 41),
        (PagingMode.LEVEL4, 2 << 20, 20),
        (PagingMode.LEVEL5, 1 << 30, 29),
    ],
)
def test_reserved_bits_stop_the_walk(mode: PagingMode, size: int, bit: int) -> None:
    tables = Tables(mode)
    where = tables.map(0, 0, size)
    assert walk(tables.cpu(), tables.read, 0).fault == ""
    tables.put(where, tables.get(where) | 1 << bit)
    assert f"reserved bits {1 << bit:#x} set" in walk(tables.cpu(), tables.read, 0).fault


def test_no_execute_is_reserved_until_efer_enables_it() -> None:
    tables = Tables(PagingMode.LEVEL4)
    tables.map(0, 0x3000, 4096, nx=1)
    cpu = tables.cpu()
    assert not walk(cpu, tables.read, 0).executable
    cpu.efer &= ~NXE
    assert walk(cpu, tables.read, 0).fault == "PT entry has reserved bits 0x8000000000000000 set"


def test_large_pages_need_pse_in_32_bit_mode() -> None:
    tables = Tables(PagingMode.LEGACY)
    tables.put(0x1000, 0x3000 | 0x83)
    tables.put(0x3000 + 4, 0x7000 | 1)
    cpu = tables.cpu()
    assert walk(cpu, tables.read, 0x1004).page_bytes == 4 << 20
    cpu.cr4 = 0
    assert walk(cpu, tables.read, 0x1004).gpa == 0x7004


def test_rights_are_those_of_every_level_together() -> None:
    tables = Tables(PagingMode.LEVEL4)
    tables.map(0x40_0000, 0x5000, 4096)
    first = walk(tables.cpu(), tables.read, 0x40_0000).entries[0]
    tables.put(first.gpa, first.value & ~0b110)
    assert walk(tables.cpu(), tables.read, 0x40_0000).rights == "supervisor, read-only, executable"


def test_rendering() -> None:
    tables = Tables(PagingMode.PAE)
    tables.map(0x20_1000, 0x9000, 4096, 0b011, nx=1)
    assert walk(tables.cpu(), tables.read, 0x20_1ABC).render() == (
        "00201abc  PAE paging, CR3 1000\n"
        "  PDPT [  0] at 0x1000: 0x2001 P\n"
        "  PD   [  1] at 0x2008: 0x3007 P W U\n"
        "  PT   [  1] at 0x3008: 0x8000000000009003 P W NX\n"
        "  -> 0x9abc in a 4 KiB page, supervisor, writable, no execute"
    )


def test_linear_reads_cross_pages_and_stop_at_holes() -> None:
    tables = Tables(PagingMode.LEVEL4)
    tables.map(0x10000, 0x20_0000, 4096)
    tables.map(0x11000, 0x10_0000, 4096)
    tables.ram[0x20_0FFE:0x20_1000] = b"ab"
    tables.ram[0x10_0000:0x10_0002] = b"cd"
    assert read_linear(tables.cpu(), tables.read, 0x10FFE, 4) == b"abcd"
    assert len(read_linear(tables.cpu(), tables.read, 0x11F00, 4096)) == 0x100
    assert read_linear(tables.cpu(), tables.read, 0x12000, 4) == b""
