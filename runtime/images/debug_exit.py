"""The guest's `debug-exit N`: a program that writes N to the debug-exit port.

Debian's kernels have no /dev/port, busybox writes to no port, and a build must not need a compiler:
so the program is assembled here, by hand. It asks the kernel for the port with ioperm(2), writes
the byte, and leaves with status 1 if it is still there.

Sources: ELF specification 1.2 and its AMD64 supplement (headers, initial stack), ioperm(2).
"""

from __future__ import annotations

import struct
from typing import Final

PORT: Final = 0xF4
"""I/O port of the board's debug exit, the same as that of QEMU's `isa-debug-exit`."""

_BASE: Final = 0x400000
_EM_386: Final = 3
_EM_X86_64: Final = 62

# The initial stack holds argc, argv[0], argv[1]; the status collects in EDI, in both programs.
_CODE_AMD64: Final = bytes.fromhex(
    "31ff"  # xor edi, edi
    "488b742410"  # mov rsi, [rsp+16]      argv[1]
    "4885f6"  # test rsi, rsi
    "7413"  # jz go
    "0fb606"  # next: movzx eax, byte [rsi]
    "2c30"  # sub al, '0'
    "3c09"  # cmp al, 9
    "770a"  # ja go
    "6bff0a"  # imul edi, edi, 10
    "01c7"  # add edi, eax
    "48ffc6"  # inc rsi
    "ebed"  # jmp next
    "4189f8"  # go: mov r8d, edi
    "bff4000000"  # mov edi, PORT
    "be01000000"  # mov esi, 1                one port
    "ba01000000"  # mov edx, 1                turn on
    "b8ad000000"  # mov eax, 173              ioperm
    "0f05"  # syscall
    "85c0"  # test eax, eax
    "7509"  # jnz fail
    "4489c0"  # mov eax, r8d
    "baf4000000"  # mov edx, PORT
    "ee"  # out dx, al
    "bf01000000"  # fail: mov edi, 1
    "b83c000000"  # mov eax, 60               exit
    "0f05"  # syscall
)
_CODE_I386: Final = bytes.fromhex(
    "31ff"  # xor edi, edi
    "8b742408"  # mov esi, [esp+8]            argv[1]
    "85f6"  # test esi, esi
    "7411"  # jz go
    "0fb606"  # next: movzx eax, byte [esi]
    "2c30"  # sub al, '0'
    "3c09"  # cmp al, 9
    "7708"  # ja go
    "6bff0a"  # imul edi, edi, 10
    "01c7"  # add edi, eax
    "46"  # inc esi
    "ebef"  # jmp next
    "bbf4000000"  # go: mov ebx, PORT
    "b901000000"  # mov ecx, 1                one port
    "ba01000000"  # mov edx, 1                turn on
    "b865000000"  # mov eax, 101              ioperm
    "cd80"  # int 0x80
    "85c0"  # test eax, eax
    "7508"  # jnz fail
    "89f8"  # mov eax, edi
    "baf4000000"  # mov edx, PORT
    "ee"  # out dx, al
    "bb01000000"  # fail: mov ebx, 1
    "b801000000"  # mov eax, 1                exit
    "cd80"  # int 0x80
)


def program(*, bits: int) -> bytes:
    """The program as a static ELF executable.

    Args:
        bits: 64 for an amd64 guest, 32 for an i386 guest.
    """
    if bits == 64:
        # e_ident, then Elf64_Ehdr and one Elf64_Phdr
        size = 64 + 56 + len(_CODE_AMD64)
        return (
            b"\x7fELF\x02\x01\x01"
            + bytes(9)
            + struct.pack(
                "<HHIQQQIHHHHHH", 2, _EM_X86_64, 1, _BASE + 120, 64, 0, 0, 64, 56, 1, 0, 0, 0
            )
            + struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, 0x1000)
            + _CODE_AMD64
        )
    size = 52 + 32 + len(_CODE_I386)
    return (
        b"\x7fELF\x01\x01\x01"
        + bytes(9)
        + struct.pack("<HHIIIIIHHHHHH", 2, _EM_386, 1, _BASE + 84, 52, 0, 0, 52, 32, 1, 0, 0, 0)
        + struct.pack("<IIIIIIII", 1, 0, _BASE, _BASE, size, size, 5, 0x1000)
        + _CODE_I386
    )
