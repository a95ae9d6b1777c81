"""bzImage: a Linux kernel as distributions ship it, a setup header and a compressed vmlinux.

The vmlinux is unpacked on the host and entered where it is linked, which spares the guest the
work. A compression unknown here is left to the kernel's own decompressor, entered by the 64-bit
or the 32-bit boot protocol. Source: Documentation/arch/x86/boot.rst. Not modelled: zImage, boot
protocols before 2.04 (Linux 2.6.14).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rayvisor.vmm.boot import linux, payload
from rayvisor.vmm.errors import LoaderError
from rayvisor.vmm.memory import EXTENDED_START

if TYPE_CHECKING:
    from rayvisor.vmm.boot.plan import MemoryPlan
    from rayvisor.vmm.cpu_state import CpuState
    from rayvisor.vmm.spec import BootSource

MAGIC_AT: Final = 0x202

_SECTOR_BYTES: Final = 512
_OLDEST_VERSION: Final = 0x204
_LOADED_HIGH: Final = 0x01
_KERNEL_64: Final = 0x01  # in xloadflags
_ENTRY_64: Final = 0x200
_INITRD_MAX_OLD: Final = 0x37FF_FFFF
_CMDLINE_MAX_OLD: Final = 255

# (offset, format, the first protocol version that has the field)
_FIELDS: Final = {
    "setup_sects": (0x1F1, "B", 0),
    "syssize": (0x1F4, "I", 0x204),
    "boot_flag": (0x1FE, "H", 0),
    "version": (0x206, "H", 0x200),
    "loadflags": (0x211, "B", 0x200),
    "initrd_addr_max": (0x22C, "I", 0x203),
    "relocatable_kernel": (0x234, "B", 0x205),
    "xloadflags": (0x236, "H", 0x20C),
    "cmdline_size": (0x238, "I", 0x206),
    "payload_offset": (0x248, "I", 0x208),
    "payload_length": (0x24C, "I", 0x208),
    "pref_address": (0x258, "Q", 0x20A),
    "init_size": (0x260, "I", 0x20A),
}


@dataclass(frozen=True, slots=True)
class _BzImage:
    """The parts of a file that has been checked against its own header."""

    version: int
    protocol: linux.Protocol
    code: memoryview
    payload: memoryview
    relocatable: bool
    is_64: bool
    pref_address: int
    init_size: int


def recognised(image: memoryview) -> bool:
    """Whether `image` has the signature of a Linux setup header."""
    return bytes(image[MAGIC_AT : MAGIC_AT + 4]) == linux.HEADER_MAGIC


def load(plan: MemoryPlan, image: memoryview, source: BootSource) -> CpuState:
    """Place the kernel `image` and what it is told; returns the vCPU at its entry.

    Raises:
        LoaderError: the file is truncated, contradicts itself or is too old, or something does
            not fit.
    """
    kernel = _parse(image)
    vmlinux = payload.unpack(kernel.payload, plan.ram.size_bytes) if kernel.payload else None
    if vmlinux is not None:
        return linux.start_vmlinux(plan, vmlinux, source, kernel.protocol)
    return _start_compressed(plan, kernel, source)


def _parse(image: memoryview) -> _BzImage:
    header_end = MAGIC_AT + (image[0x201] if len(image) > MAGIC_AT else 0)
    if len(image) < max(header_end, 0x214):
        raise LoaderError(f"bzImage: truncated: {len(image)} bytes end within the setup header")
    version = _field(image, "version", header_end)
    if version < _OLDEST_VERSION:
        raise LoaderError(
            f"bzImage: boot protocol {version >> 8}.{version & 0xFF:02}, 2.04 (Linux 2.6.14) is "
            "the oldest supported"
        )
    if _field(image, "boot_flag", header_end) != linux.BOOT_FLAG:
        raise LoaderError("bzImage: damaged: the setup header has no AA55h signature")
    if not _field(image, "loadflags", header_end) & _LOADED_HIGH:
        raise LoaderError("zImage: kernels that load below 1 MiB are not supported: give a bzImage")
    setup_bytes = ((_field(image, "setup_sects", header_end) or 4) + 1) * _SECTOR_BYTES
    code_bytes = _field(image, "syssize", header_end) * 16
    if not code_bytes or len(image) <= setup_bytes + code_bytes - 16:
        raise LoaderError(
            f"bzImage: truncated: the header promises {setup_bytes + code_bytes} bytes, "
            f"the file has {len(image)}"
        )
    # What follows the code in the file (a signature) is no part of the kernel.
    code = image[setup_bytes : setup_bytes + code_bytes]
    start = _field(image, "payload_offset", header_end)
    count = _field(image, "payload_length", header_end)
    if start + count > len(code):
        raise LoaderError(
            f"bzImage: truncated: the payload ends at byte {setup_bytes + start + count}, "
            f"the kernel at {setup_bytes + len(code)}"
        )
    return _BzImage(
        version=version,
        protocol=linux.Protocol(
            initrd_max=_field(image, "initrd_addr_max", header_end) or _INITRD_MAX_OLD,
            cmdline_max=_field(image, "cmdline_size", header_end) or _CMDLINE_MAX_OLD,
            version=version,
            header=bytes(image[linux.HEADER_START : header_end]),
        ),
        code=code,
        payload=code[start : start + count],
        relocatable=bool(_field(image, "relocatable_kernel", header_end)),
        is_64=bool(_field(image, "xloadflags", header_end) & _KERNEL_64),
        pref_address=_field(image, "pref_address", header_end),
        init_size=_field(image, "init_size", header_end),
    )


def _field(image: memoryview, name: str, header_end: int) -> int:
    """A header field, 0 if the kernel's protocol does not have it yet."""
    offset, code, since = _FIELDS[name]
    layout = struct.Struct("<" + code)
    if since > 0x200:
        (version,) = struct.unpack_from("<H", image, 0x206)
        if version < since or offset + layout.size > header_end:
            return 0
    (value,) = layout.unpack_from(image, offset)
    return int(value)


def _start_compressed(plan: MemoryPlan, kernel: _BzImage, source: BootSource) -> CpuState:
    # Only a relocatable kernel may start elsewhere than at 1 MiB; there it need not move first.
    address = EXTENDED_START
    if kernel.relocatable and kernel.pref_address:
        address = kernel.pref_address
    count = max(len(kernel.code), kernel.init_size)
    if not kernel.relocatable and kernel.pref_address > address:
        count = max(count, kernel.pref_address - address + kernel.init_size)
    plan.claim(address, count, "the kernel with its decompressor")
    plan.ram.write(address, kernel.code)
    bits, rip = (64, address + _ENTRY_64) if kernel.is_64 else (32, address)
    return linux.start(plan, source, kernel.protocol, bits=bits, rip=rip, code_start=address)
