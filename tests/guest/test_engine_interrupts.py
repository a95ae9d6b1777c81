"""Interrupts and timers as a guest's code meets them: the chips, the vCPU and time together."""

from __future__ import annotations

import pytest

from rayvisor.vmm.machine import PowerState
from tests.support.flat import long_mode, missing_tools, protected, real
from tests.support.machines import exits_with, expect, flat_vm, run_flat

pytestmark = pytest.mark.skipif(bool(missing_tools()), reason="needs binutils")

# Channel 0 in mode 0, `count` ticks of 838 ns: one interrupt.
_ONE_SHOT = "pic_init 0xFFFE\ngate64 0x20, handler\npit_start 0, 2000\n"
# Waits, with interrupts off, until the 8259A has the request.
_UNTIL_PENDING = """
    mov al, 0x0A
    out 0x20, al
9:  in al, 0x20
    test al, 1
    jz 9b
"""


def test_hlt_wakes_at_the_interrupt_and_goes_on_behind_it() -> None:
    guest = long_mode(f"""
    {_ONE_SHOT}
    xor ebx, ebx
    sti
    hlt
back:
    cmp ebx, 1
    jne $
    exit 3
handler:
    inc ebx
    eoi
    mov rax, offset back
    cmp [rsp], rax
    jne $
    iretq
    """)
    exits_with(guest, 3)


def test_sti_hlt_never_misses_a_pending_interrupt() -> None:
    """What arrived before STI is taken in HLT, not before: 200 times over."""
    guest = long_mode(f"""
    pic_init 0xFFFE
    gate64 0x20, handler
    mov r12d, 200
1:  pit_start 0, 50
    {_UNTIL_PENDING}
    sti
    hlt
    cli
    dec r12d
    jnz 1b
    mov eax, ebp
    exit_al
handler:
    inc ebp
    eoi
    iretq
    """)
    exits_with(guest, 200)


@pytest.mark.parametrize(
    ("code", "passed"),
    [
        ("sti\ninc ebx\ninc ebx\ninc ebx", 1),
        ("sti\nsti\ninc ebx\ninc ebx", 0),
        ("sti\ncli\ninc ebx\ninc ebx\nexit 7", 7),
        ("push 0x202\npopfq\ninc ebx\ninc ebx", 0),
    ],
    ids=["sti", "sti, sti", "sti, cli", "popf"],
)
def test_interrupt_shadow(code: str, passed: int) -> None:
    """How many of the instructions behind STI run before a pending interrupt is taken."""
    guest = long_mode(f"""
    {_ONE_SHOT}
    {_UNTIL_PENDING}
    xor ebx, ebx
    {code}
    jmp $
handler:
    mov eax, ebx
    exit_al
    """)
    exits_with(guest, passed)


def test_masked_interrupt_waits_in_the_chip() -> None:
    guest = long_mode(f"""
    pic_init 0xFFFF
    gate64 0x20, handler
    pit_start 0, 100
    sti
    {_UNTIL_PENDING}
    test ebx, ebx
    jnz $
    mov al, 0xFE
    out 0x21, al
    nop
1:  test ebx, ebx
    jz 1b
    exit 1
handler:
    inc ebx
    eoi
    iretq
    """)
    exits_with(guest, 1)


def test_timer_of_real_mode_code() -> None:
    """IRQ 0 at vector 8 through the interrupt vector table, 16-bit code and IRET."""
    guest = real("""
    mov word ptr [8 * 4], offset handler
    mov word ptr [8 * 4 + 2], 0
    mov al, 0x11
    out 0x20, al
    mov al, 8
    out 0x21, al
    mov al, 4
    out 0x21, al
    mov al, 1
    out 0x21, al
    mov al, 0xFE
    out 0x21, al
    pit_start 2, 5000
    xor bx, bx
    sti
1:  hlt
    cmp bx, 20
    jb 1b
    mov al, bl
    exit_al
handler:
    inc bx
    push ax
    eoi
    pop ax
    iret
    """)
    exits_with(guest, 20)


def test_ticks_keep_pace_with_the_clock() -> None:
    """2000 periods of 1 kHz take two seconds of the RTC, never less; more on a host that is late.

    A timer that is late shows the periods it has missed as one.
    """
    read_second = "8: mov al, 0\nout 0x70, al\nin al, 0x71\nmov cl, al\n"
    guest = long_mode(f"""
    pic_init 0xFFFE
    gate64 0x20, handler
    {read_second.replace("8:", "3:")}
    mov r12b, cl
    {read_second.replace("8:", "4:")}
    cmp cl, r12b
    je 4b
    mov r12b, cl
    pit_start 2, 1193
    xor ebp, ebp
    sti
1:  hlt
    cmp ebp, 2000
    jb 1b
    cli
    {read_second.replace("8:", "5:")}
    movzx eax, cl
    mov ecx, eax
    shr ecx, 4
    imul ecx, ecx, 10
    and eax, 15
    add eax, ecx
    movzx edx, r12b
    mov ecx, edx
    shr ecx, 4
    imul ecx, ecx, 10
    and edx, 15
    add edx, ecx
    sub eax, edx
    jns 2f
    add eax, 60
2:  exit_al
handler:
    inc ebp
    push rax
    eoi
    pop rax
    iretq
    """)
    ended = run_flat(guest)
    assert ended.power is PowerState.EXITED
    # It begins at the turn of a second, so that 1.9999 s may still read 1.
    assert ended.exit_status is not None, ended
    assert ended.exit_status >= 1, ended


# Channel 2, whose gate is port 0x61 bit 0. AH becomes the status byte of the read-back command.
_STATUS = """
    mov al, 0xE8
    out 0x43, al
    in al, 0x42
"""


def _wait_for_out(level: int, label: str) -> str:
    return f"{label}: {_STATUS} test al, 0x80\n{'jz' if level else 'jnz'} {label}\n"


def _channel_2(mode: int, count: int) -> str:
    return f"""
    mov al, 0xB0 | {mode} << 1
    out 0x43, al
    mov al, {count & 0xFF}
    out 0x42, al
    mov al, {count >> 8}
    out 0x42, al
    """


_GATE = "in al, 0x61\nand al, 0xFC\nor al, {}\nout 0x61, al\n"
_GATE_ON, _GATE_OFF = _GATE.format(1), _GATE.format(0)


@pytest.mark.parametrize(
    ("mode", "code"),
    [
        (0, _GATE_ON + "{set}" + _wait_for_out(0, "low") + _wait_for_out(1, "high")),
        (
            1,
            _GATE_OFF
            + "{set}"
            + _wait_for_out(1, "high")
            + _GATE_ON
            + _wait_for_out(0, "low")
            + _wait_for_out(1, "again"),
        ),
        (2, _GATE_ON + "{set}" + _wait_for_out(1, "high")),
        (
            3,
            _GATE_ON
            + "{set}"
            + "mov ebx, 3\n1:\n"
            + _wait_for_out(0, "low")
            + _wait_for_out(1, "high")
            + "dec ebx\njnz 1b\n",
        ),
        (4, _GATE_ON + "{set}" + _wait_for_out(1, "high")),
        (5, _GATE_OFF + "{set}" + _wait_for_out(1, "high") + _GATE_ON + _wait_for_out(1, "on")),
    ],
)
def test_each_pit_mode_shows_its_output(mode: int, code: str) -> None:
    """The status byte names the mode, and OUT does what the mode's figure shows."""
    guest = protected(f"""
    {code.format(set=_channel_2(mode, 3000))}
    {_STATUS}
    and al, 0x0E
    exit_al
    """)
    exits_with(guest, mode << 1)


@pytest.mark.parametrize("mode", [2, 3])
def test_periodic_count_stays_below_its_reload_value(mode: int) -> None:
    guest = protected(f"""
    {_GATE_ON}
    {_channel_2(mode, 1000)}
    mov ebx, 3000
1:  mov al, 0x80
    out 0x43, al
    in al, 0x42
    mov cl, al
    in al, 0x42
    mov ch, al
    movzx ecx, cx
    cmp ecx, 1000
    ja $
    test ecx, ecx
    jz $
    dec ebx
    jnz 1b
    exit 1
    """)
    exits_with(guest, 1)


def test_uart_echoes_by_interrupts() -> None:
    """Receive interrupts alone: what is typed comes back, until a q."""
    guest = long_mode("""
    pic_init 0xFFEF
    gate64 0x24, handler
    mov dx, COM1 + 2
    mov al, 7
    out dx, al
    mov dx, COM1 + 3
    mov al, 3
    out dx, al
    mov dx, COM1 + 4
    mov al, 0x0B
    out dx, al
    mov dx, COM1 + 1
    mov al, 1
    out dx, al
    print "ready:"
1:  sti
    hlt
    jmp 1b
handler:
    mov dx, COM1 + 2
    in al, dx
    test al, 1
    jnz done
    mov dx, COM1 + 5
    in al, dx
    test al, 1
    jz handler
    mov dx, COM1
    in al, dx
    out dx, al
    cmp al, 0x71
    jne handler
    exit 2
done:
    eoi
    iretq
    """)
    text = "The five boxing wizards jump; " * 40
    with flat_vm(guest) as vm:
        vm.start()
        console = expect(vm)
        console.read_until("ready:")
        console.send(text)
        console.read_until(text)
        console.send("q")
        assert vm.wait(30) is PowerState.EXITED
        assert vm.machine.exit_status == 2


def test_time_stands_still_while_paused() -> None:
    """Ticks come by machine time: a pause neither loses any nor lets them pile up."""
    guest = long_mode("""
    pic_init 0xFFFE
    gate64 0x20, handler
    pit_start 2, 11932
    xor ebp, ebp
    sti
1:  hlt
    cmp ebp, 50
    jb 1b
    exit 5
handler:
    inc ebp
    push rax
    eoi
    pop rax
    iretq
    """)
    with flat_vm(guest) as vm:
        vm.start()
        while vm.wait(0.02) is None:
            vm.pause()
            before_ns = vm.machine.clock.now_ns()
            assert vm.machine.clock.now_ns() == before_ns
            vm.resume()
        assert vm.machine.exit_status == 5
        # Fifty periods of 10 ms, of which the first may be short.
        assert vm.machine.clock.now_ns() >= 49 * 10_000_000
