"""Code that the translator left to itself does not bear: long blocks, and LOCK in wrong places."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.flat import long_mode, missing_tools, protected, real
from tests.support.machines import exits_with

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.skipif(bool(missing_tools()), reason="needs binutils")


@pytest.mark.parametrize(
    ("build", "instruction"),
    [
        (real, "aad"),
        (protected, "aad"),
        (protected, "fadd st, st(1)"),
        (long_mode, "fadd st, st(1)"),
        (long_mode, "fxch st(1)"),
    ],
    ids=["aad, 16 bits", "aad, 32 bits", "fadd, 32 bits", "fadd, 64 bits", "fxch"],
)
def test_block_of_instructions_that_give_no_temporary_back(
    build: Callable[[str], bytes], instruction: str
) -> None:
    exits_with(build(f"fninit\njmp 1f\n1: .rept 600\n{instruction}\n.endr\nexit 5"), 5)


def _locked(code: str) -> bytes:
    """`code` behind LOCK, without the assembler's own look at it."""
    return long_mode(f"""
    gate64 6, handler
    mov ebx, 0x50000
    mov qword ptr [rbx], 7
    mov ecx, 1
    jmp 1f
1:  mov edx, 9
    add [rbx], ecx
refused:
    .byte 0xF0
    {code}
    exit 1
handler:
    cmp qword ptr [rsp], offset refused
    jne $
    cmp edx, 9
    jne $
    cmp qword ptr [rbx], 8
    jne $
    exit 6
    """)


@pytest.mark.parametrize(
    "code",
    [
        "bts edx, 1",
        "btr rdx, rcx",
        "btc dx, cx",
        "bt [rbx], ecx",
        "bt dword ptr [rbx], 1",
        "inc edx",
        "add edx, ecx",
        "add edx, [rbx]",
        "neg rdx",
        "xchg edx, ecx",
        "xadd edx, ecx",
        "cmpxchg edx, ecx",
        "cmp [rbx], ecx",
        "cmp dword ptr [rbx], 8",
        "mov edx, [rbx]",
        "mov [rbx], ecx",
        "push rcx",
        "shl dword ptr [rbx], 1",
        "mul dword ptr [rbx]",
        "test dword ptr [rbx], 1",
        "jmp [rbx]",
        "nop",
        "pause",
        "cpuid",
        "mov cr0, rcx",
    ],
)
def test_lock_where_it_may_not_stand(code: str) -> None:
    exits_with(_locked(code), 6)


def test_lock_first_in_a_block() -> None:
    guest = long_mode("gate64 6, handler\njmp 1f\n1: .byte 0xF0\nbts ecx, 1\nhandler: exit 6")
    exits_with(guest, 6)


def test_lock_of_16_bit_code() -> None:
    guest = real(
        "xor ax, ax\nmov es, ax\nmov word ptr es:[24], offset handler\nmov es:[26], cs\n"
        "mov bx, 0x5000\n.byte 0xF0, 0x0F, 0xBA, 0xF0, 0x01\nhandler: exit 6"
    )
    exits_with(guest, 6)


def test_lock_where_it_may_stand() -> None:
    guest = long_mode("""
    mov ebx, 0x50000
    mov qword ptr [rbx], 0
    mov ecx, 1
    lock inc dword ptr [rbx]
    lock add [rbx], ecx
    lock or dword ptr [rbx], 4
    lock xor qword ptr [rbx], 0x10
    lock bts dword ptr [rbx], 8
    lock btr dword ptr [rbx], ecx
    lock neg qword ptr [rbx]
    lock not qword ptr [rbx]
    mov eax, 0x113
    lock cmpxchg [rbx], ecx
    jne $
    lock xadd [rbx], ecx
    lock xchg [rbx], ecx
    cmp ecx, 2
    jne $
    exit 4
    """)
    exits_with(guest, 4)
