"""Boot loaders: what a firmware and a boot loader would have left in memory and in the vCPU.

`load` recognises a kernel by its content:

* a Linux bzImage (setup header at 202h), unpacked on the host;
* a Multiboot 1 image (header in the first 8 KiB), ELF or with load addresses;
* an x86 ELF executable, taken for a Linux vmlinux of 64 or 32 bits;
* a flat binary with a boot sector's signature, at 0000:7C00 in real mode;
* a BIOS image with a jump at its reset vector.

Everything that is read is untrusted. Whatever is wrong with it is a LoaderError of one line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rayvisor.vmm.boot import bzimage, elf, firmware, flat, linux, multiboot
from rayvisor.vmm.boot.describe import describe
from rayvisor.vmm.boot.plan import MemoryPlan, size_text
from rayvisor.vmm.errors import LoaderError

if TYPE_CHECKING:
    from rayvisor.vmm.cpu_state import CpuState
    from rayvisor.vmm.memory import GuestRam
    from rayvisor.vmm.spec import BootSource

__all__ = ["FORMATS", "load"]

FORMATS: Final = ("auto", "linux", "elf", "multiboot", "flat")
"""The values of `BootSource.format`."""

_WAY_OUT: Final = "give a bzImage, an ELF or Multiboot kernel, or a boot sector"


def load(ram: GuestRam, source: BootSource) -> CpuState:
    """Write `source` into `ram` and return the vCPU about to run its first instruction.

    RAM that the kernel has not been given keeps its content, so a machine that starts over may
    call this on memory that was in use.

    Raises:
        LoaderError: what was given is not a kernel of the wanted format, is damaged, or does
            not fit into `ram`. The RAM's content is undefined then.
    """
    image = memoryview(source.kernel)
    kind = _recognise(image, source.format)
    plan = MemoryPlan(ram)
    if kind in ("flat", "rom"):
        return _load_raw(plan, image, source, kind)
    firmware.write(plan)
    if kind == "multiboot":
        header = multiboot.find(image)
        if header is None:
            raise LoaderError(f"not a Multiboot kernel but {describe(image)}")
        return multiboot.load(plan, image, source, header)
    if source.modules:
        raise LoaderError("modules are for Multiboot kernels alone: give Linux an initrd")
    if kind == "linux":
        return bzimage.load(plan, image, source)
    return linux.start_vmlinux(plan, image, source)


def _recognise(image: memoryview, wanted: str) -> str:
    """The loader for `image`: "linux", "elf", "multiboot", "flat" or "rom"."""
    if wanted not in FORMATS:
        raise LoaderError(f"unknown kernel format {wanted!r}: use one of {', '.join(FORMATS)}")
    if wanted == "linux" and not bzimage.recognised(image):
        raise LoaderError(f"not a bzImage but {describe(image)}")
    if wanted == "elf" and bytes(image[:4]) != elf.MAGIC:
        raise LoaderError(f"not an ELF kernel but {describe(image)}")
    if wanted != "auto":
        return wanted
    if bzimage.recognised(image):
        return "linux"
    if multiboot.find(image):
        return "multiboot"
    if bytes(image[:4]) == elf.MAGIC:
        return "elf"
    if flat.is_boot_sector(image) and bytes(image[:2]) != b"MZ":
        if len(image) > flat.MAX_BYTES:
            raise LoaderError(
                f"not a kernel but a disk image of {size_text(len(image))}: there is no BIOS to "
                f"boot it, {_WAY_OUT}"
            )
        return "flat"
    if flat.is_rom(image):
        return "rom"
    raise LoaderError(f"not a kernel but {describe(image)}: {_WAY_OUT}")


def _load_raw(plan: MemoryPlan, image: memoryview, source: BootSource, kind: str) -> CpuState:
    if source.initrd or source.modules:
        raise LoaderError("a flat binary takes no initrd and no modules")
    return flat.load(plan, image) if kind == "flat" else flat.load_rom(plan, image)
