"""Telling kernels from everything else, and naming everything else."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
from typing import TYPE_CHECKING

import lz4.frame
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from rayvisor.vmm.boot import FORMATS, load
from rayvisor.vmm.boot.describe import describe
from rayvisor.vmm.errors import LoaderError
from rayvisor.vmm.spec import BootSource
from tests.support.kernel_files import Part, elf_file

if TYPE_CHECKING:
    from rayvisor.vmm.memory import GuestRam


def tar() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("file"))
    return out.getvalue()


OTHERS = [
    (b"", "an empty file"),
    (b"\x89PNG\r\n\x1a\n" + bytes(100), "PNG image data"),
    (gzip.compress(tar()), "a tar archive, compressed by gzip"),
    (gzip.compress(b"hello\n"), "text, compressed by gzip"),
    (gzip.compress(elf_file([Part(1 << 20, b"x")], 1 << 20)),
     "a 64-bit ELF executable for x86-64, compressed by gzip"),
    (gzip.compress(gzip.compress(b"hello")), "gzip compressed data"),
    (b"\x1f\x8b damaged", "gzip compressed data"),
    (tar(), "a tar archive"),
    (b"070701" + b"0" * 104, "a cpio archive (an initrd?)"),
    (lzma.compress(b"x"), "xz compressed data"),
    (bz2.compress(b"x"), "bzip2 compressed data"),
    (zstandard.compress(b"x"), "zstd compressed data"),
    (lz4.frame.compress(b"x"), "lz4 compressed data"),
    (b"Hello, this is not a kernel.\n", "text"),
    ("grüße aus dem Text\n".encode() * 500, "text"),
    (("x" + "€" * 3000).encode(), "text"),
    (b"#!/bin/sh\necho no\n", "a script"),
    (bytes(0x38) + b"ARM\x64" + bytes(100), "an ARM64 Linux kernel"),
    (bytes(0x8001) + b"CD001", "an ISO 9660 disc image"),
    (b"QFI\xfb" + bytes(100), "a QCOW disk image"),
    (b"MZ" + bytes(100), "a DOS or EFI program, or a bzImage cut off in its setup header"),
    (bytes(5000), "a file that starts with zeros"),
    (b"\x01\x02\x03\xff\xfe", "data of an unknown kind (it starts with 01 02 03 ff fe)"),
    (elf_file([], 0, machine=183), "a 64-bit ELF executable for ARM64"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "phrase"), OTHERS, ids=[phrase for _, phrase in OTHERS])
def test_what_is_not_a_kernel_is_named(ram: GuestRam, content: bytes, phrase: str) -> None:
    assert describe(memoryview(content)) == phrase
    with pytest.raises(LoaderError) as caught:
        load(ram, BootSource(content))
    assert phrase in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.binary(max_size=6000))
def test_any_bytes_have_a_description(content: bytes) -> None:
    phrase = describe(memoryview(content))
    assert phrase
    assert phrase.isprintable()


@pytest.mark.parametrize("wanted", ["linux", "elf", "multiboot"])
def test_a_format_that_is_insisted_on(ram: GuestRam, wanted: str) -> None:
    with pytest.raises(LoaderError, match=r"not an? .* but text"):
        load(ram, BootSource(b"Hello", format=wanted))


def test_an_unknown_format_lists_the_known_ones(ram: GuestRam) -> None:
    with pytest.raises(LoaderError, match="'pvh': use one of auto, linux, elf, multiboot, flat"):
        load(ram, BootSource(b"Hello", format="pvh"))
    assert FORMATS[0] == BootSource(b"").format
