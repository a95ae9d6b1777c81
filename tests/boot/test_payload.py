"""Unpacking on the host: every compression, and what a hostile payload gets."""

from __future__ import annotations

import contextlib
import functools
import tracemalloc

import pytest

from rayvisor.vmm.boot.payload import unpack
from rayvisor.vmm.errors import LoaderError
from tests.support.kernel_files import COMPRESSIONS, payload

MIB = 1 << 20
# Some of it compresses and some does not; longer than one LZ4 block of 8 MiB.
CONTENT = b"".join(i.to_bytes(4, "little") for i in range(MIB // 4)) + bytes(8 * MIB) + b"kernel"

packed_content = functools.cache(functools.partial(payload, CONTENT))
names = pytest.mark.parametrize("name", COMPRESSIONS)


@names
def test_round_trip(name: str) -> None:
    unpacked = unpack(memoryview(packed_content(name)), 64 * MIB)
    assert unpacked is not None
    assert bytes(unpacked) == CONTENT


def test_uncompressed_kernels_are_taken_as_they_are() -> None:
    image = memoryview(b"\x7fELF and so on")
    assert unpack(image, MIB) is image


@pytest.mark.parametrize("head", [b"", b"\x89LZO", b"\0\0\0\0", b"\x1f\x8b\x07", b"BZ"])
def test_unknown_compressions_are_left_to_the_guest(head: bytes) -> None:
    assert unpack(memoryview(head), MIB) is None


@names
def test_a_size_above_the_machines_memory_is_refused_unread(name: str) -> None:
    packed = memoryview(packed_content(name))
    tracemalloc.start()
    with pytest.raises(LoaderError, match=rf"{name} payload unpacks to 9.0 MiB: .* takes 4.0 MiB"):
        unpack(packed, 4 * MIB)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < MIB


@names
def test_a_bomb_with_a_small_size_word_is_stopped(name: str) -> None:
    packed = payload(bytes(64 * MIB), name)
    claims = packed[:-4] + (MIB).to_bytes(4, "little")
    tracemalloc.start()
    with pytest.raises(LoaderError, match=f"{name} payload is damaged"):
        unpack(memoryview(claims), 64 * MIB)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16 * MIB


@names
def test_a_payload_shorter_than_it_claims(name: str) -> None:
    packed = packed_content(name)
    claims = packed[:-4] + (len(CONTENT) + 5).to_bytes(4, "little")
    with pytest.raises(LoaderError, match=f"{name} payload is damaged"):
        unpack(memoryview(claims), 64 * MIB)


@names
@pytest.mark.parametrize("keep", [0.01, 0.5, 0.99])
def test_truncation(name: str, keep: float) -> None:
    packed = packed_content(name)
    cut = packed[: int(len(packed) * keep)] + len(CONTENT).to_bytes(4, "little")
    with pytest.raises(LoaderError, match=f"{name} payload is damaged"):
        unpack(memoryview(cut), 64 * MIB)


@names
def test_a_flipped_bit_never_escapes_as_another_error(name: str) -> None:
    packed = bytearray(payload(b"some text " * 500, name))
    for bit in range(0, 8 * len(packed), 7):
        packed[bit // 8] ^= 1 << bit % 8
        with contextlib.suppress(LoaderError):
            unpack(memoryview(bytes(packed)), MIB)
        packed[bit // 8] ^= 1 << bit % 8


def test_an_xz_dictionary_of_gigabytes_is_refused() -> None:
    packed = bytearray(payload(b"some text " * 500, "lzma"))
    packed[1:5] = (0xF000_0000).to_bytes(4, "little")
    packed[1:3] = b"\0\0"
    with pytest.raises(LoaderError, match=r"lzma payload is damaged .*[Mm]emory"):
        unpack(memoryview(bytes(packed)), 64 * MIB)
