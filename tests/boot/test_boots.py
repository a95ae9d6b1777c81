"""What was loaded runs: each format and each entry, on the real machine."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from rayvisor.vmm.boot import payload
from rayvisor.vmm.machine import PowerState
from rayvisor.vmm.spec import BootSource, MachineSpec
from rayvisor.vmm.vm import Vm
from tests.boot.test_real_kernels import unpacked
from tests.support import kernels
from tests.support.flat import assemble, boot_sector
from tests.support.kernel_files import Part, elf_file, multiboot_header

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1 << 20
QUIET_PC = "console=ttyS0 earlyprintk=serial,ttyS0 nolapic noapic acpi=off pci=off nokaslr panic=0"
WAIT_S = 60.0

# The byte written to port 0xf4 is the exit status of the machine, which stops soon after.
EXIT = "out 0xf4, al; jmp ."


@contextlib.contextmanager
def running(source: BootSource, memory_bytes: int = 256 * MIB) -> Iterator[Vm]:
    vm = Vm(MachineSpec(memory_bytes, source))
    try:
        vm.start()
        yield vm
    finally:
        vm.stop()
        vm.close()


def exit_status(source: BootSource) -> int | None:
    with running(source, 16 * MIB) as vm:
        assert vm.wait(WAIT_S) is PowerState.EXITED, vm.machine.crash_reason
        return vm.machine.exit_status


def console_until(vm: Vm, wanted: bytes) -> bytes:
    """Console output up to and with `wanted`, or all there was if the guest stops first."""
    seen, offset = b"", 0
    while wanted not in seen:
        start, data = vm.console.read(offset, timeout_s=WAIT_S)
        if not data:
            break
        seen, offset = seen + data, start + len(data)
    return seen


def test_a_boot_sector_runs_in_real_mode() -> None:
    # Real mode, the disk in DL, a stack, and a BIOS call that comes back.
    source = """
        cmp dl, 0x80
        jne 1f
        mov ah, 0x0e
        int 0x10
        smsw ax
        test al, 1
        jnz 1f
        push 42
        pop ax
        out 0xf4, al; jmp .
    1:  mov al, 1
        out 0xf4, al; jmp .
    """
    assert exit_status(BootSource(boot_sector(source))) == 42


def test_a_flat_binary_runs() -> None:
    assert exit_status(BootSource(assemble(f"mov al, 43\n{EXIT}"), format="flat")) == 43


def test_a_bios_runs_from_the_reset_vector() -> None:
    rom = bytearray(b"\xf4" * 65536)
    rom[0x100:0x104] = b"\xb0\x2c\xe6\xf4"  # mov al, 44; out 0xf4, al; hlt
    rom[0xFFF0:0xFFF5] = b"\xea\x00\x01\x00\xf0"  # jmp f000:0100
    assert exit_status(BootSource(bytes(rom))) == 44


def test_a_multiboot_kernel_finds_its_command_line_and_module() -> None:
    code = assemble(
        """
        cmp eax, 0x2badb002
        jne 1f
        mov esi, [ebx + 16]
        mov al, [esi]
        cmp dword ptr [ebx + 20], 1
        jne 1f
        mov edi, [ebx + 24]
        mov edi, [edi]
        add al, [edi]
        mov cx, ds
        mov es, cx
        out 0xf4, al; jmp .
    1:  mov al, 1
        out 0xf4, al; jmp .
        """,
        bits=32,
        org=MIB + 12,
    )
    kernel = elf_file([Part(MIB, multiboot_header() + code)], MIB + 12, bits=32)
    source = BootSource(kernel, cmdline="\x20", modules=(("m", b"\x0a"),))
    assert exit_status(source) == 0x2A


def test_segments_can_be_loaded_again_in_long_mode() -> None:
    code = assemble(
        """
        mov ax, 0x18
        mov ds, ax
        mov ss, ax
        lea rax, [rip + 1f]
        push 0x10
        push rax
        .byte 0x48, 0xcb  # a 64-bit far return through the GDT
    1:  cmp dword ptr [rsi + 0x202], 0x53726448
        jne 2f
        mov al, 45
        out 0xf4, al; jmp .
    2:  mov al, 1
        out 0xf4, al; jmp .
        """,
        bits=64,
        org=4 * MIB,
    )
    stack = b"\x48\xbc" + (8 * MIB).to_bytes(8, "little")  # mov rsp, 8 MiB
    kernel = elf_file([Part(4 * MIB - len(stack), stack + code)], 4 * MIB - len(stack))
    assert exit_status(BootSource(kernel)) == 45


def linux_starts(image: bytes) -> None:
    with running(BootSource(image, cmdline=QUIET_PC)) as vm:
        assert b"Linux version " in console_until(vm, b"Linux version ")


@pytest.mark.guest
@pytest.mark.network
@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("way", ["bzimage", "vmlinux", "own decompressor"])
def test_linux_starts(
    monkeypatch: pytest.MonkeyPatch, cloud_kernel: bytes, i686_kernel: bytes, bits: int, way: str
) -> None:
    image = cloud_kernel if bits == 64 else i686_kernel
    if way == "vmlinux":
        image = unpacked(image)
    elif way == "own decompressor":
        # As for a compression that is not known here.
        monkeypatch.setattr(payload, "unpack", lambda _data, _limit: None)
    linux_starts(image)


@pytest.mark.guest
@pytest.mark.network
@pytest.mark.slow
def test_memtest_starts() -> None:
    image = kernels.fetch("memtest86+", "amd64", "boot/memtest86+x64.bin")
    with running(BootSource(image, cmdline="console=ttyS0,115200"), 64 * MIB) as vm:
        assert b"Memtest86+" in console_until(vm, b"Memtest86+")
