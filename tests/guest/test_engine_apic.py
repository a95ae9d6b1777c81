"""The local APIC as a guest's code meets it: its page, its MSRs, CR8, and interrupts from it."""

from __future__ import annotations

import pytest

from rayvisor.vmm.machine import PowerState
from tests.support.flat import long_mode, missing_tools, protected
from tests.support.machines import HANGS_AFTER_S, exits_with, flat_vm

pytestmark = pytest.mark.skipif(bool(missing_tools()), reason="needs binutils")

_MACROS = """
.macro apic_write register, value
    mov r15d, 0xFEE00000
    mov dword ptr [r15 + \\register], \\value
.endm
.macro wrmsr_eax index
    mov ecx, \\index
    xor edx, edx
    wrmsr
.endm
"""
_DEADLINE_TIMER = "apic_write 0x320, 0x40040\ngate64 0x40, handler\n"
# A deadline `after` ticks from now.
_SET_DEADLINE = """
    rdtsc
    add eax, {after}
    adc edx, 0
    mov ecx, 0x6E0
    wrmsr
"""


def _long(body: str) -> bytes:
    return long_mode(f"{_MACROS}\n{body}")


def test_a_deadline_wakes_a_halted_guest_and_never_early() -> None:
    """Fifty sleeps of about a millisecond: at the handler the TSC has reached its deadline."""
    setting = _SET_DEADLINE.format(after=2_000_000)
    guest = _long(f"""
    {_DEADLINE_TIMER}
    mov ebp, 50
1:  {setting}
    shl rdx, 32
    lea r12, [rdx + rax]
    sti
    hlt
    cli
    dec ebp
    jnz 1b
    mov eax, r13d
    exit_al
handler:
    rdtsc
    shl rdx, 32
    or rax, rdx
    cmp rax, r12
    jb $
    mov ecx, 0x6E0
    rdmsr
    or eax, edx
    jnz $
    inc r13d
    apic_write 0xB0, 0
    iretq
    """)
    exits_with(guest, 50)


def test_a_deadline_stops_a_guest_that_computes() -> None:
    setting = _SET_DEADLINE.format(after=3_000_000)
    guest = _long(f"{_DEADLINE_TIMER}{setting}\nsti\njmp $\nhandler: exit 5")
    exits_with(guest, 5)


def test_a_deadline_in_the_past_interrupts_at_once() -> None:
    guest = _long(f"""
    {_DEADLINE_TIMER}
    sti
    mov eax, 1
    wrmsr_eax 0x6E0
    nop
    jmp $
handler: exit 6
    """)
    exits_with(guest, 6)


def test_a_tick_in_a_row_is_the_cores_and_its_registers_are_true_in_between() -> None:
    """Every tenth handler looks at the registers before it ends its interrupt, which is a look at
    the chip itself; every seventh sends a message of lower priority, which comes after it."""
    setting = _SET_DEADLINE.format(after=300_000)
    guest = _long(f"""
    {_DEADLINE_TIMER}
    gate64 0x30, message
    xor ebp, ebp
    xor ebx, ebx
    {setting}
    sti
1:  cmp ebp, 210
    jb 1b
    cli
    cmp ebx, 30
    jne $
    exit 9
message:
    inc ebx
    apic_write 0xB0, 0
    iretq
handler:
    push rax
    push rcx
    push rdx
    push r15
    mov r15d, 0xFEE00000
    inc ebp
    mov eax, ebp
    xor edx, edx
    mov ecx, 10
    div ecx
    test edx, edx
    jnz 2f
    cmp dword ptr [r15 + 0x120], 1
    jne $
    cmp dword ptr [r15 + 0x220], 0
    jne $
    cmp dword ptr [r15 + 0xA0], 0x40
    jne $
    mov ecx, 0x6E0
    rdmsr
    or eax, edx
    jnz $
2:  mov eax, ebp
    xor edx, edx
    mov ecx, 7
    div ecx
    test edx, edx
    jnz 3f
    apic_write 0x300, 0x40030
    cmp dword ptr [r15 + 0x210], 0x10000
    jne $
3:  apic_write 0xB0, 0
    {setting}
    pop r15
    pop rdx
    pop rcx
    pop rax
    iretq
    """)
    with flat_vm(guest) as vm:
        vm.start()
        assert vm.wait(HANGS_AFTER_S) is PowerState.EXITED
        assert vm.machine.exit_status == 9
        assert vm.machine.vcpu.tick_lateness().times > 100


def test_a_tick_waits_for_its_priority() -> None:
    """The deadline passes while the task priority is the tick's own, and another is in service."""
    setting = _SET_DEADLINE.format(after=200_000)
    guest = _long(f"""
    {_DEADLINE_TIMER}
    xor ebp, ebp
    mov r12d, 40
1:  {setting}
    mov eax, 4
    mov cr8, rax
    sti
    mov ecx, 2000000
2:  dec ecx
    jnz 2b
    test ebp, ebp
    jnz $
    mov r15d, 0xFEE00000
    cmp dword ptr [r15 + 0x220], 1
    jne $
    xor eax, eax
    mov cr8, rax
    nop
    cli
    cmp ebp, 1
    jne $
    xor ebp, ebp
    dec r12d
    jnz 1b
    exit 10
handler:
    inc ebp
    apic_write 0xB0, 0
    iretq
    """)
    exits_with(guest, 10)


def test_a_paused_guests_tick_comes_when_its_time_goes_on() -> None:
    setting = _SET_DEADLINE.format(after=300_000)
    guest = _long(f"""
    {_DEADLINE_TIMER}
    xor ebp, ebp
    {setting}
    sti
1:  cmp ebp, 3000
    jb 1b
    exit 11
handler:
    inc ebp
    push rax
    push rcx
    push rdx
    apic_write 0xB0, 0
    {setting}
    pop rdx
    pop rcx
    pop rax
    iretq
    """)
    with flat_vm(guest) as vm:
        vm.start()
        for _ in range(20):
            vm.pause()
            state = vm.machine.devices["apic"].snapshot()
            vm.machine.devices["apic"].restore(state)
            vm.resume()
            if vm.wait(0.01) is not None:
                break
        assert vm.wait(HANGS_AFTER_S) is PowerState.EXITED
        assert vm.machine.exit_status == 11


def test_a_message_to_itself_is_taken_behind_sti() -> None:
    guest = _long("""
    gate64 0x50, handler
    apic_write 0x300, 0x40050
    xor ebx, ebx
    sti
    inc ebx
    inc ebx
    jmp $
handler: mov eax, ebx
    exit_al
    """)
    exits_with(guest, 1)


def test_cr8_holds_interrupts_back_and_reads_as_written() -> None:
    guest = _long("""
    gate64 0x50, handler
    mov eax, 5
    mov cr8, rax
    mov r15d, 0xFEE00000
    cmp dword ptr [r15 + 0x80], 0x50
    jne $
    mov rcx, cr8
    cmp rcx, 5
    jne $
    sti
    apic_write 0x300, 0x40050
    nop
    nop
    test ebx, ebx
    jnz $
    inc ebx
    xor eax, eax
    mov cr8, rax
    nop
    jmp $
handler: mov eax, ebx
    exit_al
    """)
    exits_with(guest, 1)


@pytest.mark.parametrize(
    ("value", "instruction"),
    [(0xFEE00D00, "wrmsr"), (0x10, "mov cr8, rax")],
    ids=["APIC base: x2APIC", "CR8: reserved bit"],
)
def test_a_value_that_is_none_is_a_general_protection_fault(value: int, instruction: str) -> None:
    """At the instruction itself, with error code 0."""
    guest = _long(f"""
    gate64 13, handler
    mov eax, {value}
    mov ecx, 0x1B
    xor edx, edx
at: {instruction}
    jmp $
handler:
    cmp qword ptr [rsp], 0
    jne $
    mov rax, offset at
    cmp [rsp + 8], rax
    jne $
    exit 13
    """)
    exits_with(guest, 13)


def test_the_base_register_tells_of_the_boot_processor() -> None:
    guest = _long("""
    mov ecx, 0x1B
    rdmsr
    cmp eax, 0xFEE00900
    jne $
    test edx, edx
    jnz $
    exit 9
    """)
    exits_with(guest, 9)


def test_accesses_that_are_no_aligned_words_harm_nothing() -> None:
    guest = _long("""
    mov ebx, 0xFEE00000
    mov byte ptr [rbx + 0x80], 0x50
    mov word ptr [rbx + 0x82], 0x50
    mov rax, [rbx + 0x30]
    mov al, [rbx + 0x30]
    lock inc qword ptr [rbx + 0xFFC]
    fxsave [rbx]
    cmp dword ptr [rbx + 0x80], 0
    jne $
    exit 8
    """)
    exits_with(guest, 8)


def test_code_in_its_page_ends_nothing_but_the_guest() -> None:
    guest = _long("gate64 6, h\ngate64 13, h\nmov ebx, 0xFEE00F00\njmp rbx\nh: exit 6")
    exits_with(guest, 6)


def test_it_works_for_32_bit_code() -> None:
    guest = protected("""
    mov ebx, 0xFEE00000
    cmp dword ptr [ebx + 0x30], 0x50014
    jne $
    mov dword ptr [ebx + 0x80], 0x30
    cmp dword ptr [ebx + 0x80], 0x30
    jne $
    exit 7
    """)
    exits_with(guest, 7)


def test_a_reset_leaves_it_as_firmware_does() -> None:
    """A guest that has masked LINT0 resets: the 8259A's timer comes through again."""
    guest = _long("""
    mov ebx, 0x600
    pic_init 0xFFFE
    gate64 0x20, handler
    pit_start 0, 2000
    sti
    hlt
    jmp $
handler:
    inc byte ptr [rbx]
    cmp byte ptr [rbx], 2
    je 1f
    apic_write 0x350, 0x10000
    mov al, 0xFE
    out 0x64, al
    jmp $
1:  exit 2
    """)
    with flat_vm(guest) as vm:
        vm.start()
        assert vm.wait(30) is PowerState.EXITED
        assert vm.machine.exit_status == 2
        assert vm.machine.resets == 1
