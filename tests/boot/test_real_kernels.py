"""Debian's own kernels, as they come and packed anew in every other way."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rayvisor.vmm.boot import elf, load, payload
from rayvisor.vmm.errors import LoaderError
from rayvisor.vmm.memory import GuestRam
from rayvisor.vmm.spec import BootSource
from tests.support import kernel_files, kernels

if TYPE_CHECKING:
    from rayvisor.vmm.cpu_state import CpuState

pytestmark = pytest.mark.network
MIB = 1 << 20


def u32(data: bytes, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 4], "little")


def split(image: bytes) -> tuple[int, int]:
    """(start, end) of the payload in the file, by boot.rst."""
    code = (image[0x1F1] + 1) * 512
    start = code + u32(image, 0x248)
    return start, start + u32(image, 0x24C)


def unpacked(image: bytes) -> bytes:
    start, end = split(image)
    vmlinux = payload.unpack(memoryview(image)[start:end], 256 * MIB)
    assert vmlinux is not None
    return bytes(vmlinux)


def repacked(image: bytes, compression: str) -> bytes:
    """The same kernel with its payload packed in another way."""
    start, end = split(image)
    packed = kernel_files.payload(unpacked(image), compression)
    code = (image[0x1F1] + 1) * 512
    head = bytearray(image[:start])
    body = bytes(head[code:]) + packed + image[end : code + 16 * u32(image, 0x1F4)]
    body += bytes(-len(body) % 16)
    head[0x24C:0x250] = len(packed).to_bytes(4, "little")
    head[0x1F4:0x1F8] = (len(body) // 16).to_bytes(4, "little")
    return bytes(head[:code]) + body


def assert_in_place(ram: GuestRam, cpu: CpuState, vmlinux: bytes) -> None:
    """Every segment of `vmlinux` is in memory and the vCPU stands at its entry."""
    kernel = elf.parse(memoryview(vmlinux))
    assert cpu.rip == kernel.entry
    for part in kernel.segments:
        content = vmlinux[part.offset : part.offset + part.file_bytes]
        assert ram.read(part.address, part.file_bytes) == content
        gap = part.memory_bytes - part.file_bytes
        assert ram.read(part.address + part.file_bytes, gap) == bytes(gap)


def test_the_cloud_kernel(big_ram: GuestRam, cloud_kernel: bytes) -> None:
    cpu = load(big_ram, BootSource(cloud_kernel, initrd=b"x" * MIB, cmdline="console=ttyS0"))
    assert cpu.efer == 0x500
    assert_in_place(big_ram, cpu, unpacked(cloud_kernel))
    page = big_ram.read(cpu.gpr[6], 4096)
    assert page[0x202:0x206] == b"HdrS"
    assert page[0x1F1:0x1FA] == cloud_kernel[0x1F1:0x1FA]
    assert u32(page, 0x218) == 255 * MIB


def test_the_686_kernel(big_ram: GuestRam, i686_kernel: bytes) -> None:
    cpu = load(big_ram, BootSource(i686_kernel, initrd=b"x" * MIB, cmdline="console=ttyS0"))
    assert (cpu.cr0, cpu.efer) == (0x11, 0)
    assert_in_place(big_ram, cpu, unpacked(i686_kernel))


@pytest.mark.parametrize("compression", kernel_files.COMPRESSIONS)
def test_the_686_kernel_packed_anew(
    big_ram: GuestRam, i686_kernel: bytes, compression: str
) -> None:
    cpu = load(big_ram, BootSource(repacked(i686_kernel, compression)))
    assert_in_place(big_ram, cpu, unpacked(i686_kernel))


def test_a_bare_vmlinux(big_ram: GuestRam, cloud_kernel: bytes) -> None:
    vmlinux = unpacked(cloud_kernel)
    assert_in_place(big_ram, load(big_ram, BootSource(vmlinux)), vmlinux)


@pytest.mark.parametrize("bits", [32, 64])
def test_the_kernels_own_decompressor(
    big_ram: GuestRam, cloud_kernel: bytes, i686_kernel: bytes, bits: int
) -> None:
    image = bytearray(cloud_kernel if bits == 64 else i686_kernel)
    start, _ = split(bytes(image))
    image[start : start + 4] = b"\x89LZO"
    cpu = load(big_ram, BootSource(bytes(image)))
    address = 16 * MIB
    assert cpu.rip == address + (0x200 if bits == 64 else 0)
    code = bytes(image[(image[0x1F1] + 1) * 512 :])[: u32(bytes(image), 0x1F4) * 16]
    assert big_ram.read(address, len(code)) == code


@pytest.mark.parametrize("keep", [0.0005, 0.1, 0.5, 0.99])
def test_truncated(big_ram: GuestRam, cloud_kernel: bytes, keep: float) -> None:
    with pytest.raises(LoaderError, match=r"truncated|cut off"):
        load(big_ram, BootSource(cloud_kernel[: int(len(cloud_kernel) * keep)]))


def test_a_machine_too_small_for_the_kernel(cloud_kernel: bytes) -> None:
    end = elf.parse(memoryview(unpacked(cloud_kernel))).end
    for size, message in (
        (32 * MIB, r"payload unpacks to .* the machine's memory takes 32.0 MiB"),
        ((end - 1) // 4096 * 4096, r"the kernel's segment at .* RAM of .*: give it more memory"),
    ):
        ram = GuestRam(size)
        with pytest.raises(LoaderError, match=message):
            load(ram, BootSource(cloud_kernel))
        ram.close()


def test_memtest_has_no_payload_and_decides_for_itself(ram: GuestRam) -> None:
    image = kernels.fetch("memtest86+", "amd64", "boot/memtest86+x64.bin")
    cpu = load(ram, BootSource(image))
    assert (cpu.rip, cpu.efer) == (MIB + 0x200, 0x500)


def test_a_multiboot_game(ram: GuestRam) -> None:
    image = kernels.fetch("grub-invaders", "amd64", "boot/invaders.exec")
    cpu = load(ram, BootSource(image))
    # An ELF file whose Multiboot header has load addresses as well, which leave a part out.
    assert (cpu.gpr[0], cpu.rip) == (0x2BADB002, MIB + 0x24)
    assert ram.read(MIB, 0x19D8) == image[128 : 128 + 0x19D8]
    assert ram.read(MIB + 0x19D8, 0x4178) == bytes(0x4178)
