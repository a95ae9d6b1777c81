"""The vCPU's architectural state goes in and comes out whole, and a hostile one is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rayvisor.vmm.core.vcpu import Vcpu, VcpuExit, decode, encode
from rayvisor.vmm.cpu_state import (
    CR0_PE,
    CR0_PG,
    CR4_PAE,
    EFER_LMA,
    EFER_LME,
    RFLAGS_FIXED,
    RFLAGS_VM,
    CpuState,
    DescriptorTable,
    Segment,
)
from rayvisor.vmm.errors import CorruptStateError, EngineError
from rayvisor.vmm.memory import GuestRam, file_offset

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1 << 20
u64 = st.integers(0, (1 << 64) - 1)
RFLAGS_BITS = 0x3F7FD7 & ~RFLAGS_VM
DR6_FIXED, DR7_FIXED = 0xFFFF0FF0, 0x400
ACCESS_BITS = 0xF0FF


@pytest.fixture(name="vcpu", scope="module")
def _vcpu() -> Iterator[Vcpu]:
    ram = GuestRam(2 * MIB)
    vcpu = Vcpu(ram.buffer, [(gpa, n, file_offset(gpa)) for gpa, n in ram.ranges()])
    yield vcpu
    vcpu.close()
    ram.close()


def segments(access: st.SearchStrategy[int]) -> st.SearchStrategy[Segment]:
    return st.builds(
        Segment,
        selector=st.integers(0, 0xFFFF),
        base=u64,
        limit=st.integers(0, 0xFFFFFFFF),
        access=access,
    )


tables = st.builds(DescriptorTable, base=u64, limit=st.integers(0, 0xFFFF))
any_access = st.integers(0, 0xFFFF).map(lambda a: a & ACCESS_BITS)
# Code that is not both 64-bit and 32-bit, and ring 0: what protected and long mode allow.
code_access = any_access.map(lambda a: a & ~0x4000)
ring0_access = any_access.map(lambda a: a & ~0x60)


@st.composite
def states(draw: st.DrawFn) -> CpuState:
    long_mode = draw(st.booleans())
    control = CR0_PE | CR0_PG if long_mode else draw(st.sampled_from([0, CR0_PE]))
    rflags = draw(u64.map(lambda x: x & RFLAGS_BITS | RFLAGS_FIXED))
    halted = draw(st.booleans())
    return CpuState(
        gpr=tuple(draw(st.lists(u64, min_size=16, max_size=16))),
        rip=draw(u64),
        rflags=rflags,
        es=draw(segments(any_access)),
        cs=draw(segments(code_access)),
        ss=draw(segments(ring0_access)),
        ds=draw(segments(any_access)),
        fs=draw(segments(any_access)),
        gs=draw(segments(any_access)),
        ldtr=draw(segments(any_access)),
        tr=draw(segments(any_access)),
        gdtr=draw(tables),
        idtr=draw(tables),
        cr0=control | 0x10,
        cr2=draw(u64),
        cr3=draw(st.integers(0, (1 << 40) - 1)),
        cr4=CR4_PAE if long_mode else 0,
        cr8=draw(st.integers(0, 15)),
        efer=EFER_LME | EFER_LMA if long_mode else 0,
        dr=tuple(draw(st.lists(u64, min_size=4, max_size=4))),
        dr6=DR6_FIXED,
        dr7=DR7_FIXED,
        star=draw(u64),
        lstar=draw(u64),
        cstar=draw(u64),
        fmask=draw(u64),
        kernel_gs_base=draw(u64),
        sysenter_cs=draw(st.integers(0, 0xFFFF)),
        sysenter_esp=draw(u64),
        sysenter_eip=draw(u64),
        tsc_aux=draw(u64),
        tsc=draw(u64),
        fcw=draw(st.integers(0, 0xFFFF)) | 0x40,
        fsw=draw(st.integers(0, 0xFFFF)),
        ftw=draw(st.integers(0, 0xFF)),
        fop=draw(st.integers(0, 0x7FF)),
        fip=draw(u64),
        fdp=draw(u64),
        st=draw(st.binary(min_size=80, max_size=80)),
        mxcsr=draw(st.integers(0, 0xFFFF)),
        xmm=draw(st.binary(min_size=256, max_size=256)),
        interrupt_shadow=draw(st.booleans()),
        nmi_blocked=draw(st.booleans()),
        halted=halted,
        pending_vector=256 if halted else draw(st.integers(0, 256)),
        pending_error=draw(st.integers(0, 0xFFFFFFFF)),
        pending_soft=draw(st.booleans()),
    )


@given(states())
def test_encoding_loses_nothing(state: CpuState) -> None:
    assert decode(encode(state)) == state


@given(states())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_the_engine_gives_back_what_it_was_given(vcpu: Vcpu, state: CpuState) -> None:
    vcpu.load(state)
    assert vcpu.save() == state
    assert vcpu.save() == state


@pytest.mark.parametrize(
    "change",
    [
        {"cr0": CR0_PG},
        {"cr0": 1 << 63},
        {"cr4": 1 << 40},
        {"cr0": CR0_PE | CR0_PG, "efer": EFER_LME | EFER_LMA, "cr4": 0},
        {"cr0": CR0_PE, "efer": EFER_LMA},
        {"efer": 1 << 12},
        {"rflags": 1 << 22},
        {"rflags": RFLAGS_FIXED | RFLAGS_VM},
        {"mxcsr": 1 << 16},
        {"ss": Segment(access=0x60)},
        {"pending_vector": 14, "halted": True},
        {"dr7": 1 << 32},
    ],
    ids="-".join,
)
def test_an_impossible_state_is_refused_and_changes_nothing(
    vcpu: Vcpu, change: dict[str, Any]
) -> None:
    vcpu.reset()
    before = vcpu.save()
    with pytest.raises(CorruptStateError, match="x86-cpu"):
        vcpu.load(replace(CpuState(), **change))
    assert vcpu.save() == before


def test_a_state_of_the_wrong_size_is_refused(vcpu: Vcpu) -> None:
    with pytest.raises(CorruptStateError, match="size"):
        vcpu._core.load(b"short")


def test_the_reset_state_is_the_architectural_one(vcpu: Vcpu) -> None:
    """Intel SDM 3A table 10-1."""
    vcpu.reset()
    state = vcpu.save()
    assert (state.rip, state.cs.selector, state.cs.base) == (0xFFF0, 0xF000, 0xFFFF0000)
    assert (state.rflags, state.cr0, state.cr4) == (2, 0x60000010, 0)
    assert (state.fcw, state.mxcsr, state.dr7) == (0x37F, 0x1F80, 0x400)


def test_the_tsc_stands_still_until_it_is_let_run(vcpu: Vcpu) -> None:
    vcpu.load(replace(vcpu.save(), tsc=10_000_000))
    assert vcpu.save().tsc == vcpu.save().tsc == 10_000_000
    vcpu.run_tsc(True)
    try:
        first, second = vcpu.save().tsc, vcpu.save().tsc
    finally:
        vcpu.run_tsc(False)
    assert 10_000_000 < first < second


def test_a_kick_is_not_lost_before_the_run(vcpu: Vcpu) -> None:
    vcpu.reset()
    vcpu.kick()
    assert vcpu.run() is VcpuExit.KICK


def test_a_closed_vcpu_says_so() -> None:
    ram = GuestRam(MIB)
    vcpu = Vcpu(ram.buffer, [(0, 0x1000, 0)])
    vcpu.close()
    with pytest.raises(EngineError, match="closed"):
        vcpu.run()
    vcpu.close()


@pytest.mark.parametrize(
    "regions",
    [
        [],
        [(0, 0x1000, 0)] * 2,
        [(0, 0x1000, 0x10000000)],
        [(0, 0x800, 0)],
        [(0x1000, 0x1000, 0), (0, 0x1000, 0x1000)],
        [(2**64 - 0x1000, 0x2000, 0)],
    ],
)
def test_regions_that_are_not_ram_are_refused(regions: list[tuple[int, int, int]]) -> None:
    ram = GuestRam(MIB)
    with pytest.raises(ValueError, match="RAM regions"):
        Vcpu(ram.buffer, regions)
    ram.close()
