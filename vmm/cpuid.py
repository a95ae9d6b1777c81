"""The processor that the guest sees, as CPUID tells it (Intel SDM 2A, CPUID).

It has what the translator can do, less what costs more translated than it gives (SMAP, fast
strings: each is slower than what a kernel uses without it), less what is not there (MTRR, machine
check), less state that snapshots do not carry (XSAVE and all that needs it).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from rayvisor.vmm.devices.local_apic_timer import CRYSTAL_HZ

if TYPE_CHECKING:
    from collections.abc import Callable

Entry = tuple[int, int, int, int, int, int]

VENDOR = b"GenuineIntel"
HYPERVISOR = b"RayvisorVMM\0"
BRAND = b"Rayvisor virtual CPU"
MAX_LEAF = 0x16
MAX_EXTENDED_LEAF = 0x8000_0008
HYPERVISOR_LEAF = 0x4000_0000
HYPERVISOR_TIMING_LEAF = 0x4000_0010
PHYSICAL_BITS, LINEAR_BITS = 40, 48
CACHE_LINE_QUADWORDS = 8


def _bits(*numbers: int) -> int:
    return sum(1 << n for n in numbers)


# SSE3 PCLMULQDQ SSSE3 CMPXCHG16B SSE4.1 SSE4.2 MOVBE POPCNT AES RDRAND
LEAF_1_ECX = _bits(0, 1, 9, 13, 19, 20, 22, 23, 25, 30)
# Not the translator's but the board's: TSC deadline, hypervisor; APIC
BOARD_1_ECX, BOARD_1_EDX = _bits(24, 31), _bits(9)
ARAT = _bits(2)
# FPU VME DE PSE TSC MSR PAE CX8 SEP PGE CMOV PAT PSE36 CLFSH MMX FXSR SSE SSE2
LEAF_1_EDX = _bits(0, 1, 2, 3, 4, 5, 6, 8, 11, 13, 15, 16, 17, 19, 23, 24, 25, 26)
# FSGSBASE BMI1 SMEP BMI2 RDSEED ADX
LEAF_7_EBX = _bits(0, 3, 7, 8, 18, 19)
# LAHF LZCNT
EXTENDED_1_ECX = _bits(0, 5)
# SYSCALL NX 1GB-pages RDTSCP LM
EXTENDED_1_EDX = _bits(11, 20, 26, 27, 29)
INVARIANT_TSC = _bits(8)


def _text(leaf: int, registers: bytes) -> Entry:
    """An entry whose EAX, EBX, ECX and EDX hold 16 characters."""
    eax, ebx, ecx, edx = struct.unpack("<4I", registers)
    return leaf, 0, eax, ebx, ecx, edx


def cpuid_table(
    engine: Callable[[int, int], tuple[int, int, int, int]], tsc_hz: int
) -> list[Entry]:
    """The whole table: (leaf, subleaf, EAX, EBX, ECX, EDX).

    Args:
        engine: what the translator implements, by (leaf, subleaf).
        tsc_hz: ticks a second of the guest's TSC. The guest is told, so that it need not
            spend time measuring.
    """
    # The vendor's name runs through EBX, EDX and ECX.
    vendor = struct.unpack("<3I", VENDOR)
    signature, _, ecx_1, edx_1 = engine(1, 0)
    _, ebx_7, _, _ = engine(7, 0)
    _, _, extended_ecx, extended_edx = engine(0x8000_0001, 0)
    brand = BRAND.ljust(48, b"\0")
    tsc_khz, tsc_mhz = tsc_hz // 1000, tsc_hz // 1_000_000
    return [
        (0, 0, MAX_LEAF, vendor[0], vendor[2], vendor[1]),
        (
            1,
            0,
            signature,
            CACHE_LINE_QUADWORDS << 8,
            (ecx_1 & LEAF_1_ECX) | BOARD_1_ECX,
            (edx_1 & LEAF_1_EDX) | BOARD_1_EDX,
        ),
        # The APIC timer counts on in every state of sleep
        (6, 0, ARAT, 0, 0, 0),
        (7, 0, 0, ebx_7 & LEAF_7_EBX, 0, 0),
        # TSC = crystal clock (ECX, Hz) * EBX / EAX
        (0x15, 0, CRYSTAL_HZ // 1000, tsc_khz, CRYSTAL_HZ, 0),
        (0x16, 0, tsc_mhz, tsc_mhz, 100, 0),
        _text(HYPERVISOR_LEAF, struct.pack("<I", HYPERVISOR_TIMING_LEAF) + HYPERVISOR),
        (HYPERVISOR_TIMING_LEAF, 0, tsc_khz, 1000, 0, 0),
        (0x8000_0000, 0, MAX_EXTENDED_LEAF, 0, 0, 0),
        (
            0x8000_0001,
            0,
            0,
            0,
            extended_ecx & EXTENDED_1_ECX,
            extended_edx & EXTENDED_1_EDX,
        ),
        *(_text(0x8000_0002 + i, brand[16 * i : 16 * i + 16]) for i in range(3)),
        (0x8000_0007, 0, 0, 0, 0, INVARIANT_TSC),
        (0x8000_0008, 0, PHYSICAL_BITS | LINEAR_BITS << 8, 0, 0, 0),
    ]
