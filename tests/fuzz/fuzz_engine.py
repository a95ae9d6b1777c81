"""Runs random code in random processor states: no guest may crash or hang the process, or get into
a state that cannot be saved and restored.

    python tests/fuzz/fuzz_engine.py --seconds 600
    python tests/fuzz/fuzz_engine.py --seed 4711       # one case again

Every case runs in a child process that tells its seed before it starts; a child that dies or
stays away is the finding.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from typing import Final

from rayvisor.vmm.core.vcpu import Vcpu
from rayvisor.vmm.cpu_state import CpuState, DescriptorTable, Segment
from rayvisor.vmm.errors import EngineError
from rayvisor.vmm.memory import GuestRam, file_offset

RAM_BYTES: Final = 4 << 20
CODE, GDT, IDT, TSS, TABLES, DIRECTORY = 0x10000, 0x50000, 0x60000, 0x70000, 0x80000, 0x90000
STACKS: Final = (0x48000, 0xFFFFFFF8, RAM_BYTES + 8)
SLICE_NS: Final = 5_000_000
HANG_S: Final = 60.0
BATCH: Final = 200
VM: Final = 1 << 17

# Beginnings of the instructions that do more than compute.
OPENINGS: Final = tuple(
    bytes.fromhex(code)
    for code in (
        "0f01 0f00 0f22 0f20 0f23 0f30 0f32 0fae 0fc7 f3a4 f36c cd cf 0f05 0f34 db d9 df 8e 9a ea "
        "ff 0f18 660f c5 c4 62 f00f 67 48 0f38 0f3a 0f07 0f35 9d 0fa2 0f31 f4 e4 e6 f1 0f0b 17 1f"
    ).split()
)


def random_code(r: random.Random) -> bytes:
    """Noise, noise behind openings that reach the interesting parts of the translator, or few
    instructions again and again."""
    kind = r.random()
    if kind < 0.25:
        return r.randbytes(4096)
    if kind < 0.5:
        some = [_instruction(r) for _ in range(r.randrange(1, 4))]
        return b"".join(r.choice(some) for _ in range(r.randrange(100, 2000)))
    return b"".join(_instruction(r) for _ in range(800))


def _instruction(r: random.Random) -> bytes:
    return r.choice(OPENINGS) + r.randbytes(r.randrange(6))


def _flat(access: int, selector: int = 0x10) -> Segment:
    return Segment(selector, 0, 0xFFFFFFFF, access)


def _real(r: random.Random) -> CpuState:
    del r
    return CpuState(
        cs=Segment(CODE >> 4, CODE, 0xFFFF, 0x9B),
        ds=Segment(0x2000, 0x20000, 0xFFFF, 0x93),
        es=Segment(0x3000, 0x30000, 0xFFFF, 0x93),
        ss=Segment(0x4000, 0x40000, 0xFFFF, 0x93),
        idtr=DescriptorTable(0, 0x3FF),
        cr0=0x10,
    )


def _protected(r: random.Random) -> CpuState:
    del r
    data = _flat(0xC093)
    return CpuState(
        rip=CODE, cs=_flat(0xC09B, 8), ds=data, es=data, ss=data, fs=data, gs=data, cr0=0x11
    )


def _long(r: random.Random) -> CpuState:
    data = _flat(0xC093)
    odd = (0xFEE00000, 0xFFFFFFFF000, RAM_BYTES - 0x1000, r.getrandbits(52) & ~0xFFF)
    return CpuState(
        rip=CODE,
        cs=_flat(0xA09B, 8),
        ds=data,
        es=data,
        ss=data,
        fs=data,
        gs=data,
        cr0=0x80010011,
        cr3=TABLES if r.random() < 0.9 else r.choice(odd),
        cr4=0x620 | r.choice((0, 0x80, 0x100000)),
        efer=0xD01,
        lstar=CODE + 16,
        star=0x0008001000000000,
    )


def _virtual_8086(r: random.Random) -> CpuState:
    code, data = Segment(CODE >> 4, CODE, 0xFFFF, 0xFB), Segment(0x2000, 0x20000, 0xFFFF, 0xF3)
    state = _paged(r) if r.random() < 0.5 else _protected(r)
    return replace(
        state, rip=0, cs=code, ds=data, es=data, ss=data, fs=data, gs=data, rflags=VM | 2
    )


def _paged(r: random.Random) -> CpuState:
    """32-bit code, with page tables of either form."""
    if r.random() < 0.5:
        return replace(_protected(r), cr0=0x80010011, cr3=DIRECTORY, cr4=0x610)
    return replace(_protected(r), cr0=0x80010011, cr3=TABLES + 0x1000, cr4=0x620, efer=0x800)


def _compatibility(r: random.Random) -> CpuState:
    return replace(_long(r), cs=_flat(r.choice((0xC09B, 0x009B)), 8))


def _user(r: random.Random) -> CpuState:
    data = _flat(0xC0F3, 0x23)
    code = _flat(r.choice((0xA0FB, 0xA0FB, 0xC0FB)), 0x1B)
    return replace(_long(r), cs=code, ds=data, es=data, ss=data, fs=data, gs=data)


MODES: Final = (_real, _protected, _paged, _virtual_8086, _long, _long, _compatibility, _user)


def random_state(r: random.Random) -> CpuState:
    """A state that the engine must accept."""
    odd = (r.getrandbits(64), r.getrandbits(20), r.getrandbits(12), (1 << 64) - 1, 0xC0000080)
    state = replace(
        r.choice(MODES)(r),
        gpr=tuple(r.choice(odd) for _ in range(16)),
        gdtr=DescriptorTable(GDT, 0x7F),
        mxcsr=r.getrandbits(16),
    )
    rflags = state.rflags | (r.getrandbits(22) & 0x3F7FD7 & ~VM)
    state = replace(state, rflags=rflags)
    if state.cr0 & 1:
        state = replace(state, idtr=DescriptorTable(IDT, 0xFFF))
        if r.random() < 0.8:
            state = replace(state, tr=Segment(0x28, TSS, 0x67, 0x8B))
    return state


def fill_tables(r: random.Random, ram: GuestRam, *, long_mode: bool) -> None:
    """Page tables, a GDT and an IDT: some that make sense, with holes and noise."""
    entries = [TABLES + 0x1007, *(r.getrandbits(64) for _ in range(3))]
    ram.write(TABLES, b"".join(e.to_bytes(8, "little") for e in entries))
    entries = [TABLES + 0x2007, r.getrandbits(64) | 1, 0xFEE00087, r.getrandbits(39) & ~0xFFF | 7]
    ram.write(TABLES + 0x1000, b"".join(e.to_bytes(8, "little") for e in entries))
    pages = b"".join(((i << 21) | 0x87).to_bytes(8, "little") for i in range(512))
    ram.write(TABLES + 0x2000, pages)
    ram.write(DIRECTORY, b"".join((i << 22 | 0x87).to_bytes(4, "little") for i in range(1024)))
    ram.write(TSS, bytes(4) + r.choice(STACKS).to_bytes(8, "little") * 12)
    code = 0x00AF9B000000FFFF if long_mode else 0x00CF9B000000FFFF
    descriptors = (0, code, 0x00CF93000000FFFF)
    ram.write(GDT, b"".join(d.to_bytes(8, "little") for d in descriptors) + r.randbytes(104))
    if r.random() < 0.3:
        ram.write(IDT, r.randbytes(4096))
        return
    for vector in range(64):
        handler = CODE + r.randrange(4000)
        low, high = handler & 0xFFFF, handler >> 16
        if long_mode:
            gate = low | 8 << 16 | r.randrange(2) << 32 | 0x8E << 40 | high << 48
            ram.write(IDT + 16 * vector, gate.to_bytes(16, "little"))
        else:
            gate = low | 8 << 16 | 0x8E << 40 | high << 48
            ram.write(IDT + 8 * vector, gate.to_bytes(8, "little"))


class Victim:
    """One vCPU that runs case after case."""

    def __init__(self) -> None:
        self.ram = GuestRam(RAM_BYTES)
        regions = [(gpa, count, file_offset(gpa)) for gpa, count in self.ram.ranges()]
        self.vcpu = Vcpu(self.ram.buffer, regions)
        self.vcpu.map_ports(0, 0xFFFF, lambda offset: offset & 0xFF, lambda _offset, _value: None)
        self.vcpu.set_acknowledge(lambda: 0x20)

    def run(self, seed: int) -> str:
        """Run one case; how it ended."""
        r = random.Random(seed)  # noqa: S311 - cases must come again from their seeds
        if seed % 8 == 0:
            self.ram.buffer[:] = bytes(RAM_BYTES)
        state = random_state(r)
        self.ram.write(CODE, random_code(r)[:8192])
        fill_tables(r, self.ram, long_mode=bool(state.efer & 0x400))
        self.vcpu.reset()
        self.vcpu.load(state)
        self.vcpu.set_intr(r.random() < 0.5)
        self.vcpu.set_deadline(time.monotonic_ns() + SLICE_NS)
        try:
            ending = self.vcpu.run().name
        except EngineError as error:
            ending = str(error)
        state = self.vcpu.save()
        self.vcpu.load(state)
        if self.vcpu.save() != state:
            raise AssertionError(f"seed {seed}: another state after saving and loading it")
        return ending


def run_here(first: int, count: int) -> None:
    """The child: tell each seed before it runs, and at the end how they ended."""
    victim, endings = Victim(), Counter[str]()
    for seed in range(first, first + count):
        sys.stdout.write(f"{seed}\n")
        sys.stdout.flush()
        endings[victim.run(seed)] += 1
    for ending, times in endings.most_common():
        sys.stderr.write(f"{times:7} {ending}\n")


def run_batch(first: int, count: int, *, quiet: bool = False) -> int | None:
    """Run cases in a child; the seed that killed or hung it, or None."""
    command = [sys.executable, __file__, "--child", "--seed", str(first), "--count", str(count)]
    log = subprocess.DEVNULL if quiet else None
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as child:
        try:
            output, _ = child.communicate(timeout=HANG_S)
        except subprocess.TimeoutExpired:
            child.kill()
            output, _ = child.communicate()
    if child.returncode == 0:
        return None
    seeds = output.split()
    if not seeds:
        raise RuntimeError("the child did not even start: is the native core built?")
    return int(seeds[-1])


def main() -> int:
    """Fuzz for a while; 1 when something was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        run_here(options.seed, options.count)
        return 0
    if options.seed is not None:
        return int(run_batch(options.seed, options.count) is not None)
    first, end = random.SystemRandom().randrange(1 << 32), time.monotonic() + options.seconds
    cases = 0
    while time.monotonic() < end:
        found = run_batch(first + cases, BATCH, quiet=True)
        if found is not None:
            sys.stderr.write(f"seed {found} ends or hangs the process: run again with --seed\n")
            return 1
        cases += BATCH
    sys.stderr.write(f"{cases} cases, nothing found\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
