"""Taking the vCPU's state out and putting it back, anywhere, is invisible to the guest."""

from __future__ import annotations

import pytest

from rayvisor.vmm.errors import MachineStateError
from rayvisor.vmm.machine import PowerState
from rayvisor.vmm.state import pack, unpack
from tests.support.flat import long_mode, missing_tools, protected, real
from tests.support.machines import flat_vm

pytestmark = pytest.mark.skipif(bool(missing_tools()), reason="needs binutils")

# Each checks itself and leaves with 1; `jmp $` is a failure that shows as a guest that hangs.
_GUESTS = {
    "real mode": real("""
    xor ebx, ebx
    mov ecx, 40000000
1:  add bx, 3
    push bx
    pop dx
    dec ecx
    jnz 1b
    cmp dx, (40000000 * 3) & 0xFFFF
    jne $
    exit 1
    """),
    "32 bits, ring 3": protected("""
    load_tss32
    gate32 0x80, leave, 0xEE
    push UDATA | 3
    push 0x68000
    push 0x202
    push UCODE32 | 3
    push offset user
    iretd
user:
    mov ecx, 40000000
    xor ebx, ebx
1:  add ebx, ecx
    sbb edx, edx
    mov [0x50000], ebx
    dec ecx
    jnz 1b
    int 0x80
leave:
    mov ax, [esp + 4]
    cmp ax, UCODE32 | 3
    jne $
    exit 1
    """),
    "single steps": long_mode("""
    gate64 1, step
    xor ebp, ebp
    pushfq
    or dword ptr [rsp], 0x100
    popfq
    mov ecx, 200000
1:  nop
    loop 1b
    pushfq
    and dword ptr [rsp], 0xFFFFFEFF
    popfq
    cmp ebp, 2 * 200000 + 4
    jne $
    exit 1
step:
    inc ebp
    iretq
    """),
    "x87 and SSE": long_mode("""
    fninit
    fldz
    fld1
    mov eax, 3
    movq xmm1, rax
    pxor xmm0, xmm0
    pxor xmm15, xmm15
    mov ecx, 8000000
1:  fadd st(1), st
    paddq xmm0, xmm1
    psubq xmm15, xmm1
    dec ecx
    jnz 1b
    fstp st(0)
    fistp qword ptr [0x50000]
    cmp qword ptr [0x50000], 8000000
    jne $
    movq rax, xmm0
    cmp rax, 24000000
    jne $
    movq rbx, xmm15
    add rax, rbx
    jnz $
    exit 1
    """),
    "interrupts and halts": long_mode("""
    pic_init 0xFFFE
    gate64 0x20, tick
    pit_start 2, 1193
    xor ebp, ebp
    sti
1:  hlt
    cmp ebp, 300
    jb 1b
    exit 1
tick:
    inc ebp
    push rax
    eoi
    pop rax
    iretq
    """),
    "string instructions": long_mode("""
    mov r12d, 60
1:  mov esi, 0x200000
    mov edi, 0x400000
    mov ecx, 0x200000
    rep movsb
    cmp esi, 0x400000
    jne $
    cmp edi, 0x600000
    jne $
    test ecx, ecx
    jnz $
    dec r12d
    jnz 1b
    exit 1
    """),
}


def test_reserved_bits_of_mxcsr_do_not_travel() -> None:
    """LDMXCSR of the translator takes them, where a processor does not."""
    code = "mov dword ptr [0x50000], -1\nldmxcsr [0x50000]\nmov byte ptr [0x50008], 1\njmp $"
    with flat_vm(long_mode(code)) as vm:
        vm.start()
        while not vm.machine.ram.read(0x50008, 1)[0]:
            assert vm.wait(0.001) is None
        vm.pause()
        state = vm.machine.cpu_state()
        assert state.mxcsr == 0xFFFF
        vm.machine.vcpu.load(unpack(type(state), pack(state)))


@pytest.mark.parametrize("what", _GUESTS)
def test_state_out_and_in_is_invisible(what: str) -> None:
    with flat_vm(_GUESTS[what]) as vm:
        vm.start()
        times = 0
        while vm.wait(0.001) is None and times < 20000:
            try:
                vm.pause()
            except MachineStateError:
                break  # it ended just now
            if vm.power is PowerState.PAUSED:
                state = vm.machine.cpu_state()
                vm.machine.vcpu.load(unpack(type(state), pack(state)))
                assert vm.machine.cpu_state() == state
                vm.resume()
                times += 1
        assert (vm.machine.power, vm.machine.exit_status) == (PowerState.EXITED, 1)
        assert times > 10
