"""A guest can do no harm: whatever it does, the process lives, and stopping it works."""

from __future__ import annotations

import time

import pytest

from rayvisor.vmm.machine import PowerState
from tests.support.flat import assemble, long_mode, missing_tools, protected, real
from tests.support.machines import MIB, exits_with, expect, flat_vm, run_flat, text_of

pytestmark = pytest.mark.skipif(bool(missing_tools()), reason="needs binutils")

# 3 GiB..4 GiB has no RAM in any machine; 16 MiB machines have none at 128 MiB either.
_NOWHERE = "0xFED00000"
_HOLE = "0x08000000"
_LOAD_SS = "mov ax, KDATA64\nmov ss, ax"


def _crashes(guest: bytes) -> None:
    ended = run_flat(guest)
    assert (ended.power, ended.crash_reason) == (PowerState.CRASHED, "triple fault"), ended


@pytest.mark.parametrize("status", [0, 1, 255])
def test_debug_exit(status: int) -> None:
    exits_with(real(f"exit {status}"), status)


def test_halt_with_interrupts_off_ends_the_machine() -> None:
    assert run_flat(real("cli\nhlt")).power is PowerState.HALTED


def test_output_before_the_end_is_not_lost() -> None:
    ended = run_flat(real('print "last words"\ncli\nhlt'))
    assert (ended.power, ended.output) == (PowerState.HALTED, "last words")


# --- Ends in a triple fault -------------------------------------------------------------------


@pytest.mark.parametrize(
    "code",
    [
        "lidt [no_idt]\nud2",
        "lidt [no_idt]\nint3",
        f"mov rax, {_NOWHERE}\njmp rax",
        f"mov eax, {_HOLE}\njmp rax",
        "mov rax, 0x1234567800000000\njmp rax",
        f"mov eax, {_NOWHERE}\nmov cr3, rax",
        f"mov eax, {_HOLE}\nmov cr3, rax",
        f"mov qword ptr [PML4], {_HOLE} + 7\nmov rax, cr3\nmov cr3, rax",
        f"mov qword ptr [PML4 + 0x1000], {_HOLE} + 7\nmov rax, cr3\nmov cr3, rax",
        f"mov qword ptr [PML4 + 0x2000], {_HOLE} + 7\nmov rax, cr3\nmov cr3, rax",
        f"mov rax, {_NOWHERE}\nmov [idt_pointer64 + 2], rax\nlidt [idt_pointer64]\nint3",
        f"mov eax, {_NOWHERE}\nmov [gdt_pointer + 2], eax\nlgdt [gdt_pointer]\n{_LOAD_SS}",
        "mov qword ptr [PML4 + 0x3000], 0\nmov esp, 0x40001000\ninvlpg [rsp]\npush rax",
        "mov rsp, 0x1234567800000000\npush rax",
    ],
    ids=[
        "no IDT",
        "no IDT, int3",
        "jump to MMIO",
        "jump to a hole",
        "jump to a non-canonical address",
        "CR3 in MMIO",
        "CR3 in a hole",
        "PDPT in a hole",
        "page directory in a hole",
        "page table in a hole",
        "IDT in MMIO",
        "GDT in MMIO",
        "no stack",
        "non-canonical stack",
    ],
)
def test_triple_fault_is_a_crash(code: str) -> None:
    _crashes(long_mode(code + "\njmp $"))


def test_triple_fault_of_32_bit_code() -> None:
    _crashes(protected("lidt [no_idt]\nxor ecx, ecx\ndiv ecx"))


def test_triple_fault_of_real_mode_code() -> None:
    _crashes(real("lidt [no_idt]\nint3"))


def test_a_machine_that_crashed_starts_over() -> None:
    with flat_vm(long_mode('print "up"\nlidt [no_idt]\nud2')) as vm:
        for times in range(1, 4):
            vm.start()
            assert vm.wait(30) is PowerState.CRASHED
            assert text_of(vm) == "up" * times


def test_code_in_mmio_is_an_undefined_opcode() -> None:
    """A bus that nothing answers reads as ones, and FF FF is no instruction."""
    guest = long_mode(
        f"gate64 6, handler\nmov ebx, {_NOWHERE}\njmp rbx\nhandler: cmp [rsp], rbx\njne $\nexit 6"
    )
    exits_with(guest, 6)


# --- Memory that is not there -----------------------------------------------------------------


@pytest.mark.parametrize(
    "address", [_HOLE, _NOWHERE, "0xA0000", "0xBFFF8", "0xC0000000", "0x01000000"]
)
def test_hole_reads_ones_and_swallows_writes(address: str) -> None:
    guest = long_mode(f"""
    mov ebx, {address}
    mov rcx, 0x1122334455667788
    mov [rbx], rcx
    mov byte ptr [rbx], 0
    lock inc dword ptr [rbx]
    cmp qword ptr [rbx], -1
    jne $
    movzx eax, word ptr [rbx + 2]
    cmp eax, 0xFFFF
    jne $
    mov esi, ebx
    mov edi, 0x50000
    movsq
    cmp qword ptr [0x50000], -1
    jne $
    exit 2
    """)
    exits_with(guest, 2)


def test_access_across_the_end_of_ram() -> None:
    guest = long_mode(f"""
    mov ebx, {16 * MIB - 4}
    mov dword ptr [rbx], 0x01020304
    mov rax, [rbx]
    mov rcx, 0xFFFFFFFF01020304
    cmp rax, rcx
    jne $
    mov rcx, 0x5566778811223344
    mov [rbx], rcx
    cmp dword ptr [rbx], 0x11223344
    jne $
    exit 4
    """)
    exits_with(guest, 4)


def test_ports_that_nothing_answers_read_ones() -> None:
    guest = protected("""
    mov dx, 0x1234
    in eax, dx
    cmp eax, -1
    jne $
    in ax, dx
    cmp ax, -1
    jne $
    out dx, eax
    mov edi, 0x50000
    mov ecx, 4
    rep insb
    cmp dword ptr [0x50000], -1
    jne $
    exit 3
    """)
    exits_with(guest, 3)


# --- Code that changes ------------------------------------------------------------------------


@pytest.mark.parametrize("build", [real, protected, long_mode])
def test_code_that_rewrites_itself(build: object) -> None:
    assert callable(build)
    guest = build("""
    mov cx, 200
    mov bx, 0
again:
    inc byte ptr [1f + 1]
    jmp 1f
1:  mov al, 0
    mov ah, 0
    add bx, ax
    dec cx
    jnz again
    cmp bx, 20100
    jne $
    exit 1
    """)
    exits_with(guest, 1)


def test_store_into_the_running_block_takes_effect_at_once() -> None:
    """`inc ebx` is blanked by the instruction before it, and written again behind it."""
    guest = long_mode("""
    mov ecx, 100
    xor ebx, ebx
1:  mov word ptr [2f], 0x9090
2:  .byte 0xFF, 0xC3
    mov word ptr [2b], 0xC3FF
    dec ecx
    jnz 1b
    test ebx, ebx
    jnz $
    exit 9
    """)
    exits_with(guest, 9)


def test_code_copied_over_other_code() -> None:
    guest = long_mode("""
    mov ebp, 0
    mov r12d, 50
1:  mov rsi, offset first
    mov edi, 0x200000
    mov ecx, 6
    rep movsb
    mov eax, 0x200000
    call rax
    add ebp, eax
    mov rsi, offset second
    mov edi, 0x200000
    mov ecx, 6
    rep movsb
    mov eax, 0x200000
    call rax
    add ebp, eax
    dec r12d
    jnz 1b
    cmp ebp, 50 * 0x33
    jne $
    exit 1
first:
    mov eax, 0x11
    ret
second:
    mov eax, 0x22
    ret
    """)
    exits_with(guest, 1)


def test_remapped_code_page_runs_its_new_content() -> None:
    """The same linear address over two physical pages in turn (INVLPG between them)."""
    guest = long_mode("""
    mov dword ptr [0x400000], 0x000001B8
    mov word ptr [0x400004], 0xC300
    mov dword ptr [0x600000], 0x000002B8
    mov word ptr [0x600004], 0xC300
    mov ebx, 0x40000000
    xor ebp, ebp
    mov r12d, 40
1:  mov dword ptr [PML4 + 0x3000], 0x400087
    mov dword ptr [PML4 + 0x3004], 0
    invlpg [rbx]
    call rbx
    add ebp, eax
    mov dword ptr [PML4 + 0x3000], 0x600087
    invlpg [rbx]
    call rbx
    add ebp, eax
    dec r12d
    jnz 1b
    cmp ebp, 120
    jne $
    exit 1
    """)
    exits_with(guest, 1)


# --- Stopping what does not want to stop --------------------------------------------------------


_ENDLESS = {
    "tight loop": real("cli\njmp $"),
    "tight loop, 32 bits": protected("jmp $"),
    "tight loop, 64 bits": long_mode("jmp $"),
    "idle": long_mode("pic_init\n1: sti\nhlt\njmp 1b"),
    "exceptions": long_mode("gate64 6, handler\nhandler: mov rsp, STACK\nud2"),
    "exceptions that return": long_mode("gate64 0, handler\nxor ecx, ecx\ndiv ecx\nhandler: iretq"),
    "page faults": long_mode(
        "gate64 14, handler\nmov qword ptr [PML4 + 0x3000], 0\nmov al, [0x40000000]\n"
        "handler: add rsp, 8\niretq"
    ),
    "string instruction": long_mode("1: mov rcx, 0x0F000000\nmov esi, 0x300000\nrep lodsb\njmp 1b"),
    "ports": long_mode("1: in al, 0x64\nout 0x80, al\njmp 1b"),
    "console": long_mode("mov dx, COM1\nmov al, 0x2E\n1: out dx, al\njmp 1b"),
    "mmio": long_mode(f"mov ebx, {_NOWHERE}\n1: inc dword ptr [rbx]\njmp 1b"),
    "new code for ever": long_mode(
        "mov edi, 0x200000\nmov ebx, edi\n"
        "1: mov dword ptr [rdi], 0xC3C0FF90\ncall rdi\nadd edi, 4\n"
        "cmp edi, 0x800000\njb 1b\nmov edi, ebx\njmp 1b"
    ),
    "TLB flushes": long_mode("1: mov rax, cr3\nmov cr3, rax\njmp 1b"),
    "mode switches": real(
        "1: mov eax, cr0\nxor al, 1\nmov cr0, eax\njmp 2f\n2: xor al, 1\nmov cr0, eax\njmp 1b"
    ),
    "single steps": long_mode(
        "gate64 1, handler\npushfq\nor dword ptr [rsp], 0x100\npopfq\njmp $\nhandler: iretq"
    ),
    "interrupts": long_mode(
        "pic_init 0xFFFE\ngate64 0x20, handler\npit_start 2, 100\nsti\njmp $\nhandler: eoi\niretq"
    ),
}


@pytest.mark.parametrize("what", _ENDLESS)
def test_endless_guest_stops_and_goes_on(what: str) -> None:
    with flat_vm(_ENDLESS[what]) as vm:
        vm.start()
        for _ in range(20):
            time.sleep(0.002)
            vm.pause()
            assert vm.power is PowerState.PAUSED
            vm.machine.cpu_state()
            vm.resume()
        assert vm.wait(0.02) is None
        vm.stop()
        assert vm.wait(0) is PowerState.OFF


def test_stops_lose_and_repeat_nothing() -> None:
    """A counted loop of read-modify-writes, calls and stack traffic, stopped all the time."""
    guest = long_mode("""
    mov ecx, 3000000
    xor eax, eax
1:  inc dword ptr [0x50000]
    add dword ptr [0x50004], 3
    call 2f
    push rcx
    pop rdx
    dec ecx
    jnz 1b
    cmp dword ptr [0x50000], 3000000
    jne $
    cmp dword ptr [0x50004], 9000000
    jne $
    cmp eax, 3000000
    jne $
    exit 1
2:  inc eax
    ret
    """)
    with flat_vm(guest) as vm:
        vm.start()
        stops = 0
        while vm.wait(0.0005) is None:
            vm.machine.vcpu.kick()
            stops += 1
        assert (vm.machine.power, vm.machine.exit_status) == (PowerState.EXITED, 1)
        assert stops > 5


# --- Resets -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code",
    ["mov al, 0xFE\nout 0x64, al", "in al, 0x92\nor al, 1\nout 0x92, al"],
    ids=["keyboard controller", "port 0x92"],
)
def test_guest_resets_itself(code: str) -> None:
    with flat_vm(long_mode(f'print "boot "\n{code}\njmp $')) as vm:
        vm.start()
        expect(vm).read_until("boot boot boot ")
        vm.stop()


def test_reset_from_outside_reaches_a_tight_loop() -> None:
    with flat_vm(protected('print "boot "\ncli\njmp $')) as vm:
        console = expect(vm)
        vm.start()
        for _ in range(3):
            console.read_until("boot ")
            vm.reset()
        console.read_until("boot ")


def test_image_is_loaded_afresh_at_a_reset() -> None:
    """What the guest did to its own image is undone."""
    guest = assemble("""
    real_start
    cmp byte ptr [flag], 0
    jne $
    inc byte ptr [flag]
    print "clean "
    mov al, 0xFE
    out 0x64, al
    jmp $
flag:
    .byte 0
    """)
    with flat_vm(guest) as vm:
        vm.start()
        expect(vm).read_until("clean clean clean ")
