"""Translated code that goes on by address never goes where a mapping no longer leads."""

from __future__ import annotations

import pytest

from tests.support.flat import long_mode, missing_tools
from tests.support.machines import exits_with

pytestmark = pytest.mark.skipif(bool(missing_tools()), reason="needs binutils")


def test_two_address_spaces_with_different_code_at_one_address() -> None:
    """The kernel's own code, which both have in common, is called in between as well."""
    guest = long_mode("""
    mov dword ptr [0x400000], 0x000001B8
    mov word ptr [0x400004], 0xC300
    mov dword ptr [0x600000], 0x000200B8
    mov word ptr [0x600004], 0xC300
    mov dword ptr [PML4 + 0x3000], 0x400087
    mov dword ptr [0x300000], 0x301007
    mov dword ptr [0x300004], 0
    mov dword ptr [0x301000], PML4 + 0x2007
    mov dword ptr [0x301004], 0
    mov dword ptr [0x301008], 0x302007
    mov dword ptr [0x30100C], 0
    mov dword ptr [0x302000], 0x600087
    mov dword ptr [0x302004], 0
    mov r14d, PML4
    mov r15d, 0x300000
    mov ebx, 0x40000000
    mov r13, offset common
    xor ebp, ebp
    mov r12d, 500
1:  mov cr3, r14
    call rbx
    call r13
    call rbx
    call r13
    mov cr3, r15
    call rbx
    call r13
    dec r12d
    jnz 1b
    cmp ebp, 500 * 0x202
    jne $
    exit 1
    .skip 4096
common:
    add ebp, eax
    ret
    """)
    exits_with(guest, 1)


def test_block_in_two_pages_of_which_the_second_changes() -> None:
    """MOV EAX begins in the first page; its operand's upper bytes and a RET are in the second."""
    guest = long_mode("""
    mov word ptr [0x400FFE], 0x01B8
    mov dword ptr [0x401000], 0xC3000000
    mov dword ptr [0x402000], 0xC3000001
    map_two_pages
    mov ebx, 0x40000FFE
    mov esi, 0x40001000
    xor ebp, ebp
    mov r12d, 500
1:  mov dword ptr [0x310008], 0x401007
    invlpg [rsi]
    call rbx
    add ebp, eax
    call rbx
    add ebp, eax
    mov dword ptr [0x310008], 0x402007
    invlpg [rsi]
    call rbx
    add ebp, eax
    dec r12d
    jnz 1b
    cmp ebp, 500 * 0x103
    jne $
    exit 1
    """)
    exits_with(guest, 1)


def test_code_that_is_gone_is_a_page_fault_at_the_next_call() -> None:
    guest = long_mode("""
    gate64 14, handler
    mov dword ptr [0x400000], 0x000001B8
    mov word ptr [0x400004], 0xC300
    mov ebx, 0x40000000
    xor ebp, ebp
    mov r12d, 100
1:  mov dword ptr [PML4 + 0x3000], 0x400087
    mov dword ptr [PML4 + 0x3004], 0
    call rbx
    call rbx
    mov dword ptr [PML4 + 0x3000], 0
    invlpg [rbx]
    call rbx
    dec r12d
    jnz 1b
    cmp ebp, 100
    jne $
    exit 1
handler:
    mov rax, cr2
    cmp rax, rbx
    jne $
    cmp qword ptr [rsp + 8], rbx
    jne $
    inc ebp
    add rsp, 8
    mov rax, [rsp + 24]
    mov rax, [rax]
    mov [rsp], rax
    add qword ptr [rsp + 24], 8
    iretq
    """)
    exits_with(guest, 1)


def test_code_written_through_another_mapping_is_new_at_the_next_call() -> None:
    guest = long_mode("""
    mov dword ptr [PML4 + 0x3000], 0x400087
    mov dword ptr [PML4 + 0x3004], 0
    mov dword ptr [0x400000], 0x000000B8
    mov word ptr [0x400004], 0xC300
    mov ebx, 0x40000000
    xor ebp, ebp
    mov r12d, 200
1:  mov [0x400001], r12b
    call rbx
    add ebp, eax
    call rbx
    add ebp, eax
    dec r12d
    jnz 1b
    cmp ebp, 200 * 201
    jne $
    exit 1
    """)
    exits_with(guest, 1)


# 64 pages at 0x40000000 and, by the upper half's only entry, at HIGH: the low word of each is a
# number. CR4.PGE is on, and G (0x100) is set where `flags` says so.
_PAGES = """
    .set HIGH, 0xFFFF800040000000
    mov eax, [PML4]
    mov [PML4 + 0x800], eax
    mov dword ptr [PML4 + 0x3000], 0x310007
    mov dword ptr [PML4 + 0x3004], 0
    mov ecx, 512
    mov edi, 0x310000
    xor eax, eax
    rep stosq
    mov rax, cr4
    or eax, 0x80
    mov cr4, rax
    mov rbx, HIGH
    mov r14, cr3
    mov cr3, r14
"""
# Page n of 0x310000's table leads to `to` + n * 4 KiB; each page there begins with `to` + n.
_FILL = """
    mov edi, {to}
    mov eax, edi
    mov ecx, {pages}
2:  mov [rdi], eax
    inc eax
    add edi, 4096
    dec ecx
    jnz 2b
"""
_MAP = """
    mov edi, 0x310000
    mov eax, {to} + {flags}
    mov ecx, {pages}
2:  mov [rdi], rax
    add edi, 8
    add eax, 4096
    dec ecx
    jnz 2b
"""
_READ = """
    mov rsi, {at}
    mov eax, {to}
    mov ecx, {pages}
2:  cmp [rsi], eax
    jne $
    inc eax
    add rsi, 4096
    dec ecx
    jnz 2b
"""


def _remapping(drop: str, *, at: str, flags: int, pages: int) -> bytes:
    """Two sets of pages in turn at one address, with `drop` between, and each read twice."""
    sets = ("0x400000", "0x800000")
    turns = "".join(
        _MAP.format(to=to, flags=flags, pages=pages)
        + drop.format(pages=pages)
        + 2 * _READ.format(at=at, to=to, pages=pages)
        for to in sets
    )
    fills = "".join(_FILL.format(to=to, pages=pages) for to in sets)
    return long_mode(f"{_PAGES}{fills}mov r12d, 200\n1:{turns}dec r12d\njnz 1b\nexit 1\n")


_INVLPG_EACH = "mov rsi, rbx\nmov ecx, {pages}\n2: invlpg [rsi]\nadd rsi, 4096\ndec ecx\njnz 2b\n"
_LOAD_CR3 = "mov cr3, r14\n"
_TOGGLE_PGE = "mov rax, cr4\nxor eax, 0x80\nmov cr4, rax\nxor eax, 0x80\nmov cr4, rax\n"


@pytest.mark.parametrize("pages", [3, 60, 300])
@pytest.mark.parametrize(
    ("drop", "at", "flags"),
    [
        (_LOAD_CR3, "0x40000000", 7),
        (_LOAD_CR3, "HIGH", 7),
        (_LOAD_CR3, "HIGH", 0x67),
        (_INVLPG_EACH, "HIGH", 0x107),
        (_INVLPG_EACH, "HIGH", 0x163),
        (_TOGGLE_PGE, "HIGH", 0x107),
        (_TOGGLE_PGE + _LOAD_CR3, "HIGH", 0x163),
    ],
)
def test_pages_whose_translation_was_dropped_are_looked_up_anew(
    drop: str, at: str, flags: int, pages: int
) -> None:
    exits_with(_remapping(drop, at=at, flags=flags, pages=pages), 1)


def test_a_page_that_is_not_global_any_more_goes_with_the_next_load_of_cr3() -> None:
    guest = long_mode(f"""{_PAGES}
    mov dword ptr [0x400000], 1
    mov dword ptr [0x401000], 2
    xor ebp, ebp
    mov r12d, 500
1:  mov qword ptr [0x310000], 0x400163
    invlpg [rbx]
    mov cr3, r14
    add ebp, [rbx]
    mov cr3, r14
    mov qword ptr [0x310000], 0x400063
    invlpg [rbx]
    add ebp, [rbx]
    mov qword ptr [0x310000], 0x401063
    mov cr3, r14
    add ebp, [rbx]
    dec r12d
    jnz 1b
    cmp ebp, 500 * 4
    jne $
    exit 1
    """)
    exits_with(guest, 1)
