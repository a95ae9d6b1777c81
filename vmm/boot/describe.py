"""What a file is that is not a kernel, in one phrase for the message that refuses it."""

from __future__ import annotations

import zlib
from typing import Final

from rayvisor.vmm.boot import elf

_GZIP: Final = b"\x1f\x8b"

# (offset, magic, phrase); the first that matches names the file.
_SIGNATURES: Final[tuple[tuple[int, bytes, str], ...]] = (
    (0, b"\x89PNG\r\n\x1a\n", "PNG image data"),
    (0, b"\xff\xd8\xff", "JPEG image data"),
    (0, b"GIF8", "GIF image data"),
    (0, b"%PDF-", "a PDF document"),
    (0, b"\xfd7zXZ\0", "xz compressed data"),
    (0, b"BZh", "bzip2 compressed data"),
    (0, b"\x28\xb5\x2f\xfd", "zstd compressed data"),
    (0, b"\x04\x22\x4d\x18", "lz4 compressed data"),
    (0, b"\x02\x21\x4c\x18", "lz4 compressed data"),
    (0, b"\x5d\0\0", "lzma compressed data"),
    (0, b"PK\x03\x04", "a zip archive"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7-zip archive"),
    (0, b"!<arch>\ndebian-binary", "a Debian package"),
    (0, b"!<arch>\n", "an ar archive"),
    (0, b"\xed\xab\xee\xdb", "an RPM package"),
    (0, b"07070", "a cpio archive (an initrd?)"),
    (257, b"ustar", "a tar archive"),
    (0x8001, b"CD001", "an ISO 9660 disc image"),
    (0, b"QFI\xfb", "a QCOW disk image"),
    (0, b"KDMV", "a VMDK disk image"),
    (0, b"conectix", "a VHD disk image"),
    (0, b"vhdxfile", "a VHDX disk image"),
    (512, b"EFI PART", "a GPT disk image"),
    (0, b"hsqs", "a squashfs image"),
    (0x438, b"\x53\xef", "an ext2, ext3 or ext4 image"),
    (0x38, b"ARM\x64", "an ARM64 Linux kernel"),
    (0x38, b"RSC\x05", "a RISC-V Linux kernel"),
    (0, b"\xd0\x0d\xfe\xed", "a device tree or FIT image"),
    (0, b"\x27\x05\x19\x56", "a U-Boot image"),
    (0, b"\xcf\xfa\xed\xfe", "a Mach-O file"),
    (0, b"\xca\xfe\xba\xbe", "a Java class or Mach-O file"),
    (0, b"\0asm", "a WebAssembly module"),
    (0, b"\x55\xaa", "an option ROM (the BIOS of a card)"),
    (0, b"#!", "a script"),
    (0, b"MZ", "a DOS or EFI program, or a bzImage cut off in its setup header"),
)
_TEXT_BYTES: Final = 4096
_GZIP_PEEK_BYTES: Final = 512


def describe(image: memoryview) -> str:
    """One phrase such as "PNG image data", for any bytes at all."""
    if not image:
        return "an empty file"
    if bytes(image[:4]) == elf.MAGIC:
        return elf.describe(image)
    if bytes(image[:2]) == _GZIP:
        return _describe_gzip(image)
    for offset, magic, phrase in _SIGNATURES:
        if bytes(image[offset : offset + len(magic)]) == magic:
            return phrase
    head = bytes(image[:_TEXT_BYTES])
    if not any(head):
        return "a file that starts with zeros"
    if _is_text(head):
        return "text"
    return f"data of an unknown kind (it starts with {head[:8].hex(' ')})"


def _describe_gzip(image: memoryview) -> str:
    try:
        inside = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS).decompress(image, _GZIP_PEEK_BYTES)
    except zlib.error:
        inside = b""
    if not inside or inside[:2] == _GZIP:
        return "gzip compressed data"
    return f"{describe(memoryview(inside))}, compressed by gzip"


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3 or len(head) < _TEXT_BYTES:
            return False
        text = head[: error.start].decode("utf-8")  # a character cut in two by the end of `head`
    return all(char.isprintable() or char in "\t\n\r\f" for char in text)
