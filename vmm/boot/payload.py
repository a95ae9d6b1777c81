"""Unpacking the kernel inside a bzImage on the host, in bounded memory.

A payload is a compressed ELF file; its last four bytes are the size of that ELF file (the
kernel's build appends them, and a gzip member ends with them anyway). That size is checked
before anything is allocated, and no decompressor may produce more. Formats: RFC 1952, xz 1.1,
LZMA_Alone, bzip2, RFC 8878, and the LZ4 legacy frame (lz4_Frame_format.md). Not modelled: LZO.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable
from typing import Final

import lz4.block
import zstandard

from rayvisor.vmm.boot.plan import size_text
from rayvisor.vmm.errors import LoaderError

MAX_BYTES: Final = 1 << 30
"""No kernel is larger than this, whatever the machine's memory."""

_DICTIONARY_BYTES: Final = 128 << 20  # what xz -9e, lzma -9 and zstd -22 --ultra need at most
_DECODER_BYTES: Final = 2 * _DICTIONARY_BYTES
_LZ4_MAGIC: Final = 0x184C2102
_LZ4_BLOCK_BYTES: Final = 8 << 20
_WORD_BYTES: Final = 4

_Unpack = Callable[[memoryview, int], "bytes | bytearray"]


class _DamagedError(Exception):
    """What a decompressor found wrong."""


def _gzip(data: memoryview, limit: int) -> bytes:
    decoder = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    out = decoder.decompress(data, limit)
    if not decoder.eof and len(out) < limit:
        raise _DamagedError("it ends early")
    return out


def _stream(
    decoder: lzma.LZMADecompressor | bz2.BZ2Decompressor, data: memoryview, limit: int
) -> bytes:
    out = decoder.decompress(data, limit)
    if not decoder.eof and len(out) < limit:
        raise _DamagedError("it ends early")
    return out


def _xz(data: memoryview, limit: int) -> bytes:
    return _stream(lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_DECODER_BYTES), data, limit)


def _lzma(data: memoryview, limit: int) -> bytes:
    return _stream(lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=_DECODER_BYTES), data, limit)


def _bzip2(data: memoryview, limit: int) -> bytes:
    return _stream(bz2.BZ2Decompressor(), data, limit)


def _zstd(data: memoryview, limit: int) -> bytes:
    decoder = zstandard.ZstdDecompressor(max_window_size=_DICTIONARY_BYTES)
    with decoder.stream_reader(data, read_across_frames=False) as reader:
        return reader.read(limit)


def _lz4(data: memoryview, limit: int) -> bytearray:
    out, at = bytearray(), 0
    while len(data) - at > _WORD_BYTES:
        word = int.from_bytes(data[at : at + _WORD_BYTES], "little")
        at += _WORD_BYTES
        if word == _LZ4_MAGIC:
            continue
        block = data[at : at + word]
        if len(block) != word or not word:
            raise _DamagedError(f"a block of {word} bytes at {at}, {len(block)} of them there")
        room = min(limit - len(out), _LZ4_BLOCK_BYTES)
        if not room:
            break
        out += lz4.block.decompress(block, uncompressed_size=room)
        at += word
    return out


_FORMATS: Final[tuple[tuple[bytes, str, _Unpack], ...]] = (
    (b"\x1f\x8b\x08", "gzip", _gzip),
    (b"\xfd7zXZ\0", "xz", _xz),
    (b"\x5d\0\0", "lzma", _lzma),
    (b"BZh", "bzip2", _bzip2),
    (b"\x28\xb5\x2f\xfd", "zstd", _zstd),
    (_LZ4_MAGIC.to_bytes(_WORD_BYTES, "little"), "lz4", _lz4),
)


def unpack(payload: memoryview, limit: int) -> memoryview | None:
    """The ELF file inside `payload`, or None if its compression is not known here.

    Args:
        payload: As it lies in the bzImage, its size word included.
        limit: The most it may unpack to, in bytes: the machine's memory.

    Raises:
        LoaderError: it is damaged, claims to be larger than `limit`, or is not as long as it
            claims.
    """
    if bytes(payload[:4]) == b"\x7fELF":
        return payload
    for magic, name, function in _FORMATS:
        if bytes(payload[: len(magic)]) == magic:
            return memoryview(_unpack(payload, limit, name, function))
    return None


def _unpack(payload: memoryview, limit: int, name: str, function: _Unpack) -> bytes | bytearray:
    size = int.from_bytes(payload[-_WORD_BYTES:], "little")
    if size > min(limit, MAX_BYTES):
        raise LoaderError(
            f"the kernel's {name} payload unpacks to {size_text(size)}: the machine's memory "
            f"takes {size_text(min(limit, MAX_BYTES))}"
        )
    try:
        # One byte more than allowed: a payload that has it is caught without unpacking the rest.
        out = function(payload, size + 1)
    except (
        _DamagedError,
        zlib.error,
        lzma.LZMAError,
        OSError,  # bz2
        EOFError,
        ValueError,
        zstandard.ZstdError,
        lz4.block.LZ4BlockError,
    ) as error:
        raise LoaderError(f"the kernel's {name} payload is damaged ({error})") from error
    if len(out) != size:
        found = "more" if len(out) > size else f"{len(out)} bytes"
        raise LoaderError(
            f"the kernel's {name} payload is damaged (unpacks to {found}, claims {size} bytes)"
        )
    return out
