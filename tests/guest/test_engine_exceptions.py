"""Exceptions, gates and privilege: what the SDM promises software, to the bit (3A, chapter 6)."""

from __future__ import annotations

import pytest

from rayvisor.vmm.machine import PowerState
from tests.support.flat import assemble, long_mode, missing_tools, protected, real
from tests.support.machines import exits_with, run_flat

pytestmark = pytest.mark.skipif(bool(missing_tools()), reason="needs binutils")

# What a handler of 64-bit code prints: error code, RIP from `here`, CR2, CS.
_REPORT = """
    print_hex
    print " "
    pop rax
    sub rax, offset here
    print_hex
    print " "
    mov rax, cr2
    print_hex
    print " "
    pop rax
    print_hex
    exit 0
"""
_HANDLERS = f"""
with_error:
    pop rax
    {_REPORT}
without_error:
    mov eax, 0xFFFFFFFF
    {_REPORT}
"""
# 1 GiB..1 GiB+2 MiB: not mapped; the next 2 MiB: read-only; the next: NX; the next: reserved bit.
_SPECIAL_PAGES = """
    mov qword ptr [PML4 + 0x3000], 0
    mov qword ptr [PML4 + 0x3008], 0x85
    mov dword ptr [PML4 + 0x3010], 0x87
    mov dword ptr [PML4 + 0x3014], 0x80000000
    mov dword ptr [PML4 + 0x3018], 0x87
    mov dword ptr [PML4 + 0x301C], 0x00080000
    mov qword ptr [PML4 + 0x3020], 0x83
    mov rax, cr0
    or eax, 0x10000
    mov cr0, rax
    mov rax, cr3
    mov cr3, rax
"""
_TO_USER = """
    load_tss64
    push UDATA64 | 3
    push 0x68000
    push 0x2
    push UCODE64 | 3
    mov rax, offset user
    push rax
    iretq
user:
"""
NO_ERROR = 0xFFFFFFFF
KCODE64, UCODE64 = 0x38, 0x2B


def _report(vector: int, code: str, *, error: bool, user: bool = False) -> list[int]:
    """(error code, RIP - here, CR2, CS) as the handler of `vector` found them."""
    guest = long_mode(
        f"{_SPECIAL_PAGES}\ngate64 {vector}, {'with' if error else 'without'}_error\n"
        f"{_TO_USER if user else ''}\n{code}\nexit 99\n{_HANDLERS}"
    )
    ended = run_flat(guest)
    assert (ended.power, ended.exit_status) == (PowerState.EXITED, 0), ended
    return [int(word, 16) for word in ended.output.split()]


@pytest.mark.parametrize(
    ("vector", "code"),
    [
        (0, "xor ecx, ecx\nhere: div ecx"),
        (0, "xor edx, edx\nmov rax, 1\nror rax\ncqo\nmov rcx, -1\nhere: idiv rcx"),
        (6, "here: ud2"),
        (6, "here: .byte 0x0F, 0xFF, 0xC0"),
        (6, "here: .byte 0x06"),
        (6, "here: .byte 0xF0, 0x01, 0xC0"),
        (7, "mov rax, cr0\nor eax, 8\nmov cr0, rax\nhere: fld1"),
    ],
)
def test_fault_without_error_code(vector: int, code: str) -> None:
    error, rip, _, cs = _report(vector, code, error=False)
    assert (error, rip, cs) == (NO_ERROR, 0, KCODE64)


@pytest.mark.parametrize(
    ("vector", "code", "rip"),
    [
        (3, "here: int3", 1),
        (4, "here: int 4", 2),
        (6, "here: int 6", 2),
        (0x50, "here: int 0x50", 2),
    ],
)
def test_software_interrupt_returns_behind_itself(vector: int, code: str, rip: int) -> None:
    assert _report(vector, code, error=False)[:2] == [NO_ERROR, rip]


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("mov ax, 0x1000\nhere: mov ds, ax", 0x1000),
        ("mov ax, 0x1004\nhere: mov es, ax", 0x1004),
        ("push 0x99\npush 0x1000\nhere: retfq", 0x98),
    ],
)
def test_general_protection(code: str, error: int) -> None:
    assert _report(13, code, error=True) == [error, 0, 0, KCODE64]


@pytest.mark.parametrize(
    "code",
    [
        "mov rax, cr0\nbtr rax, 31\nhere: mov cr0, rax",
        "mov rax, cr0\nbtr rax, 0\nhere: mov cr0, rax",
        "mov rax, cr0\nbts rax, 29\nbtr rax, 30\nhere: mov cr0, rax",
        "mov rax, cr0\nbts rax, 40\nhere: mov cr0, rax",
        "mov rax, cr4\nbtr rax, 5\nhere: mov cr4, rax",
        "mov rax, cr4\nbts rax, 12\nhere: mov cr4, rax",
        "mov rax, cr4\nbts rax, 14\nhere: mov cr4, rax",
        "mov ecx, 0xC0000080\nrdmsr\nbtr eax, 8\nhere: wrmsr",
        "mov ecx, 0xC0000080\nrdmsr\nbts eax, 12\nhere: wrmsr",
    ],
    ids=["PG", "PE", "NW", "CR0 bit 40", "PAE", "LA57", "VMXE", "LME", "SVME"],
)
def test_control_registers_take_no_state_that_cannot_be(code: str) -> None:
    assert _report(13, code, error=True) == [0, 0, 0, KCODE64]


def test_paging_needs_protection() -> None:
    guest = real(
        "xor ax, ax\nmov es, ax\nmov word ptr es:[52], offset handler\nmov es:[54], cs\n"
        "mov eax, 0x80000010\nmov cr0, eax\njmp $\nhandler: exit 13"
    )
    exits_with(guest, 13)


@pytest.mark.parametrize(
    ("code", "error", "cr2"),
    [
        ("here: mov al, [0x40000123]", 0, 0x40000123),
        ("here: mov [0x40000123], al", 2, 0x40000123),
        ("here: mov rax, [0x3FFFFFFC]", 0, 0x40000000),
        ("here: mov [0x40200008], al", 3, 0x40200008),
        ("here: lock inc dword ptr [0x40200008]", 3, 0x40200008),
        ("here: mov al, [0x40600000]", 9, 0x40600000),
    ],
)
def test_page_fault_of_the_kernel(code: str, error: int, cr2: int) -> None:
    assert _report(14, code, error=True) == [error, 0, cr2, KCODE64]


@pytest.mark.parametrize(("target", "error"), [(0x40000010, 0x10), (0x40400010, 0x11)])
def test_page_fault_of_a_fetch(target: int, error: int) -> None:
    found = _report(14, f"here: mov rax, {target:#x}\njmp rax", error=True)
    assert (found[0], found[2]) == (error, target)


@pytest.mark.parametrize(
    ("vector", "code", "error"),
    [
        (14, "here: mov al, [0x40000123]", 4),
        (14, "here: mov [0x40000123], al", 6),
        (14, "here: mov [0x40200008], al", 7),
        (14, "here: mov al, [0x40800000]", 5),
        (13, "here: hlt", 0),
        (13, "here: cli", 0),
        (13, "here: mov rax, cr0", 0),
        (13, "here: rdmsr", 0),
        (13, "here: in al, 0x60", 0),
        (13, "here: out 0xF4, al", 0),
        (13, "mov dx, 0x3F8\nhere: in eax, dx", 0),
        (13, "mov dx, 0x3F8\nmov rsi, 0x68000\nhere: outsb", 0),
        (13, "here: int 0x21", 0x21 << 3 | 2),
        (13, "here: int 13", 13 << 3 | 2),
        (13, "mov ax, 0x38\nhere: mov ds, ax", 0x38),
        (13, "here: lgdt [0x68000]", 0),
        (13, "here: invlpg [0x68000]", 0),
        (13, "here: int 6", 6 * 8 + 2),
    ],
)
def test_what_ring_3_may_not(vector: int, code: str, error: int) -> None:
    found = _report(vector, f"{code}\n", error=True, user=True)
    assert (found[0], found[1], found[3]) == (error, 0, UCODE64)


def test_ring_3_may_use_the_ports_that_the_tss_grants() -> None:
    """The I/O bitmap (SDM 1, 19.5.2): port 0xF4 allowed, the others not."""
    bitmap = """
    mov word ptr [gdt + TSS_SELECTOR], 0x68 + 0x80
    mov rdi, TSS + 0x68
    mov ecx, 0x81
    mov al, 0xFF
    rep stosb
    mov byte ptr [TSS + 0x68 + 0xF4 / 8], 0xEF
    """
    guest = long_mode(
        f"{bitmap}\ngate64 13, bad\n{_TO_USER}\nmov al, 21\nout 0xF4, al\njmp $\nbad: exit 1"
    )
    exits_with(guest, 21)
    guest = long_mode(
        f"{bitmap}\ngate64 13, bad\n{_TO_USER}\nmov al, 21\nout 0xF5, al\njmp $\nbad: exit 1"
    )
    exits_with(guest, 1)


def test_interrupt_gate_open_to_ring_3_switches_stacks() -> None:
    guest = long_mode(f"""
    gate64 0x80, handler, 0xEE
    {_TO_USER}
    mov rbx, rsp
    int 0x80
    cmp rsp, rbx
    jne $
    mov ax, cs
    cmp ax, UCODE64 | 3
    jne $
    int 0x80
handler:
    cmp rsp, STACK - 40
    jne $
    cmp qword ptr [rsp + 24], 0x68000
    jne $
    inc dword ptr [0x50000]
    cmp dword ptr [0x50000], 2
    je 1f
    iretq
1:  exit 5
    """)
    exits_with(guest, 5)


def test_ist_gives_the_stack_of_the_tss() -> None:
    guest = long_mode(
        "load_tss64\ngate64 6, handler, 0x8E, 1\nud2\n"
        "handler: cmp rsp, IST_STACK - 40\njne $\nexit 3"
    )
    exits_with(guest, 3)


def test_double_fault_when_a_fault_cannot_be_delivered() -> None:
    guest = long_mode(
        "load_tss64\ngate64 8, handler, 0x8E, 1\nmov qword ptr [PML4 + 0x3000], 0\n"
        "invlpg [0x40000000]\nmov al, [0x40000000]\njmp $\n"
        "handler: pop rax\ntest eax, eax\njnz $\nexit 8"
    )
    exits_with(guest, 8)


def test_double_fault_when_the_stack_is_gone() -> None:
    guest = long_mode(
        f"{_SPECIAL_PAGES}\nload_tss64\ngate64 14, page_fault\ngate64 8, handler, 0x8E, 1\n"
        "mov rsp, 0x40001000\nmov al, [0x40000000]\njmp $\npage_fault: exit 1\n"
        "handler: mov rax, cr2\ncmp eax, 0x40000FF8\njne $\nexit 8"
    )
    exits_with(guest, 8)


def test_single_step_counts_instructions() -> None:
    """#DB after each instruction while TF was set at its start; DR6.BS says why."""
    guest = long_mode(
        """
    gate64 1, step
    xor ebp, ebp
    pushfq
    or dword ptr [rsp], 0x100
    popfq
    nop
    mov ecx, 3
1:  loop 1b
    cpuid
    pushfq
    and dword ptr [rsp], 0xFFFFFEFF
    popfq
    mov eax, ebp
    exit_al
step:
    inc ebp
    push rax
    mov rax, dr6
    test eax, 0x4000
    jz $
    pop rax
    iretq
    """
    )
    exits_with(guest, 9)


def test_sysenter_and_sysexit_of_32_bit_code() -> None:
    guest = protected("""
    load_tss32
    mov ecx, 0x174
    xor edx, edx
    mov eax, KCODE32
    wrmsr
    inc ecx
    mov eax, STACK
    wrmsr
    inc ecx
    mov eax, offset entry
    wrmsr
    push UDATA | 3
    push 0x68000
    push 0x202
    push UCODE32 | 3
    push offset user
    iretd
user:
    mov edx, offset back
    mov ecx, esp
    sysenter
    jmp $
back:
    mov ax, cs
    cmp ax, UCODE32 | 3
    jne $
    cmp esp, 0x68000
    jne $
    inc esi
    cmp esi, 3
    jb user
    mov edx, 77
    sysenter
entry:
    mov ax, cs
    cmp ax, KCODE32
    jne $
    cmp esp, STACK
    jne $
    pushfd
    pop eax
    test eax, 0x200
    jnz $
    cmp edx, 77
    je 1f
    sysexit
1:  exit 6
    """)
    exits_with(guest, 6)


def test_syscall_and_sysret_of_64_bit_code() -> None:
    guest = long_mode(
        f"""
    mov ecx, 0xC0000081
    xor eax, eax
    mov edx, (UCODE32 | 3) << 16 | KCODE64
    wrmsr
    inc ecx
    mov eax, offset entry
    xor edx, edx
    wrmsr
    mov ecx, 0xC0000084
    mov eax, 0x400
    wrmsr
    {_TO_USER}
    std
    syscall
back:
    pushfq
    pop rax
    test eax, 0x400
    jz $
    mov ax, cs
    cmp ax, UCODE64 | 3
    jne $
    inc ebp
    cmp ebp, 4
    jb user
    mov edi, 77
    syscall
entry:
    pushfq
    pop rax
    test eax, 0x400
    jnz $
    test r11d, 0x400
    jz $
    mov ax, cs
    cmp ax, KCODE64
    jne $
    cmp edi, 77
    je 1f
    cmp rcx, offset back
    jne $
    sysretq
1:  exit 7
    """
    )
    exits_with(guest, 7)


def test_real_mode_interrupt() -> None:
    guest = real("""
    mov word ptr [0x40 * 4], offset handler
    mov word ptr [0x40 * 4 + 2], 0
    stc
    int 0x40
    jc $
    exit 11
handler:
    push bp
    mov bp, sp
    and word ptr [bp + 6], 0xFFFE
    pop bp
    iret
    """)
    exits_with(guest, 11)


def test_16_bit_protected_mode_and_back_to_real_mode() -> None:
    guest = assemble("""
    real_start
    lgdt [gdt_pointer]
    mov eax, cr0
    or al, 1
    mov cr0, eax
    jmp CODE16:1f
1:  mov ax, DATA16
    mov ds, ax
    mov dword ptr [0x5000], 0x12345678
    mov ax, KDATA
    mov es, ax
    mov edi, 0x200000
    mov byte ptr es:[edi], 0x42
    mov eax, cr0
    and al, 0xFE
    mov cr0, eax
    jmp 0:2f
2:  xor ax, ax
    mov ds, ax
    cmp word ptr [0x5002], 0x1234
    jne $
    mov al, es:[edi]
    exit_al
    tables
    """)
    exits_with(guest, 0x42)
