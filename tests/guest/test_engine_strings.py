"""REP STOS and REP MOVS, which the core does by the page, end where a processor's end."""

from __future__ import annotations

import pytest

from tests.support.flat import long_mode, missing_tools
from tests.support.machines import exits_with

pytestmark = pytest.mark.skipif(bool(missing_tools()), reason="needs binutils")


@pytest.mark.parametrize(
    ("instruction", "size"),
    [("stosb", 1), ("stosd", 4), ("stosq", 8), ("movsb", 1), ("movsd", 4), ("movsq", 8)],
)
def test_a_fault_on_the_way_finds_the_registers_of_what_is_done(
    instruction: str, size: int
) -> None:
    """Three pages are asked for and two are there; the handler gives the third."""
    count = 0x3000 // size
    guest = long_mode(f"""
    gate64 14, handler
    map_two_pages
    xor ebp, ebp
    mov edi, 0x600000
    mov ecx, 0x3000 / 8
    mov rax, 0x5A5A5A5A5A5A5A5A
    cld
    rep stosq
    mov r12d, 3
1:  mov esi, 0x600000
    mov edi, 0x40000000
    mov ecx, {count}
    mov rax, 0x5A5A5A5A5A5A5A5A
fault_at:
    rep {instruction}
    cmp edi, 0x40003000
    jne $
    test rcx, rcx
    jnz $
    mov edi, 0x40000000
    mov ecx, 0x3000
    repe scasb
    jne $
    mov dword ptr [0x310010], 0
    mov rbx, cr3
    mov cr3, rbx
    mov edi, 0x400000
    mov ecx, 0x3000
    xor eax, eax
    rep stosb
    dec r12d
    jnz 1b
    cmp ebp, 3
    jne $
    exit 1
handler:
    inc ebp
    add rsp, 8
    push rax
    mov rax, offset fault_at
    cmp [rsp + 8], rax
    jne $
    mov rax, cr2
    cmp eax, 0x40002000
    jne $
    cmp edi, eax
    jne $
    cmp ecx, 0x1000 / {size}
    jne $
    mov dword ptr [0x310010], 0x402007
    pop rax
    iretq
    """)
    exits_with(guest, 1)


def test_a_copy_that_overlaps_repeats_what_it_has_copied() -> None:
    """Also where only another mapping of the page shows that it does; downwards, it is a move."""
    guest = long_mode("""
    map_two_pages
    mov r12d, 20
1:  mov edi, 0x400000
    mov ecx, 0x2000
    xor eax, eax
    rep stosb
    mov dword ptr [0x400000], 0x64636261
    mov esi, 0x400000
    mov edi, 0x40000004
    mov ecx, 0x1800
    rep movsb
    cmp dword ptr [0x400800], 0x64636261
    jne $
    cmp dword ptr [0x401800], 0x64636261
    jne $
    cmp dword ptr [0x401804], 0
    jne $
    mov byte ptr [0x401803], 0x7A
    mov esi, 0x400001
    mov edi, 0x400000
    mov ecx, 0x1803
    rep movsb
    cmp dword ptr [0x400800], 0x61646362
    jne $
    cmp dword ptr [0x401800], 0x7A7A6362
    jne $
    mov dword ptr [0x4017FC], 0x34333231
    mov esi, 0x4017FF
    mov edi, 0x4017FB
    mov ecx, 0x1000
    std
    rep movsb
    cld
    cmp dword ptr [0x4007F8], 0x61646362
    jne $
    cmp dword ptr [0x4017F8], 0x34333231
    jne $
    dec r12d
    jnz 1b
    exit 1
    """)
    exits_with(guest, 1)


def test_code_that_is_copied_over_other_code_is_what_runs() -> None:
    guest = long_mode("""
    mov dword ptr [0x500000], 0x000001B8
    mov word ptr [0x500004], 0xC300
    mov dword ptr [0x600000], 0x000100B8
    mov word ptr [0x600004], 0xC300
    mov ebx, 0x400000
    xor ebp, ebp
    mov r12d, 100
1:  mov r13d, 0x500000
    call copied
    mov r13d, 0x600000
    call copied
    dec r12d
    jnz 1b
    cmp ebp, 100 * 0x101
    jne $
    exit 1
copied:
    mov esi, r13d
    mov edi, ebx
    mov ecx, 0x800
    rep movsb
    call rbx
    add ebp, eax
    ret
    """)
    exits_with(guest, 1)
