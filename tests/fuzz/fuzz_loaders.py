"""Fuzz target: the loaders, on any bytes.

By hand, for ten minutes or as long as wanted:

    .venv/bin/python tests/fuzz/fuzz_loaders.py --seconds 600

Atheris (coverage-guided) drives it where it is installed, otherwise mutations of the seeds do. A
finding is written to build/fuzz/crash-<digest>; give such files as arguments to run them again.
Seeds and findings are inputs of `test_one_input`: four bytes that choose the options, then the
kernel file.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import random
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rayvisor.vmm.boot import FORMATS, load
from rayvisor.vmm.errors import LoaderError
from rayvisor.vmm.memory import GuestRam
from rayvisor.vmm.spec import BootSource
from rayvisor.vmm.state import check

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

MIB: Final = 1 << 20
OPTION_BYTES: Final = 4
MAX_MESSAGE: Final = 400
MAX_INPUT_BYTES: Final = 1 << 16
OUTPUT: Final = Path(__file__).resolve().parents[2] / "build" / "fuzz"
INTERESTING: Final = (0, 1, 0x7F, 0xFF, 0x1000, 0xA_0000, MIB, 0x7FFF_FFFF, 0xFFFF_FFFF)

_ram = GuestRam(32 * MIB)


def test_one_input(data: bytes) -> None:
    """Load what `data` describes; raises for anything but success or a one-line LoaderError."""
    options, kernel = data[:OPTION_BYTES].ljust(OPTION_BYTES, b"\0"), data[OPTION_BYTES:]
    source = BootSource(
        kernel=bytes(kernel),
        initrd=bytes(options[1] * 37),
        cmdline=chr(options[2]) * options[2],
        modules=(("module", bytes(options[3])),) * (options[3] % 4),
        format=FORMATS[options[0] % len(FORMATS)],
    )
    try:
        cpu = load(_ram, source)
    except LoaderError as error:
        message = str(error)
        if "\n" in message or len(message) > MAX_MESSAGE:
            raise AssertionError(f"not one short line: {message!r}") from error
    else:
        check(cpu)


def seeds() -> list[bytes]:
    """Sound kernels of every format, as inputs."""
    from tests.support import kernel_files as files

    vmlinux = files.elf_file([files.Part(16 * MIB, b"\x90" * 99, 5000)], 16 * MIB)
    vmlinux_32 = files.elf_file([files.Part(MIB, b"\x90" * 99)], MIB, bits=32)
    header = files.multiboot_header(3)
    addresses = (MIB, MIB, 0, 2 * MIB, MIB + 32)
    kernels = [files.bz_image(files.payload(vmlinux, name)) for name in files.COMPRESSIONS]
    kernels += [
        files.bz_image(files.payload(vmlinux_32, "lz4"), xloadflags=0),
        files.bz_image(b"\x89LZO" + b"\x90" * 99),
        files.bz_image(b"\x89LZO" + b"\x90" * 99, version=0x204),
        vmlinux,
        vmlinux_32,
        files.elf_file([files.Part(MIB, header + b"\x90" * 99)], MIB + 12, bits=32),
        files.multiboot_header(1 << 16, addresses) + b"\x90" * 99,
        b"\xeb\xfe".ljust(510, b"\x90") + b"\x55\xaa",
        (b"\xf4" * (65536 - 16) + b"\xea").ljust(65536, b"\0"),
        b"#!/bin/sh\n",
        b"",
    ]
    plain = [bytes(OPTION_BYTES) + kernel for kernel in kernels]
    return plain + [b"\0\x09\x20\0" + kernel for kernel in kernels]


def mutate(data: bytes, rng: random.Random) -> bytes:
    """`data` with a few edits, mostly in the headers; sometimes cut."""
    image = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        reach = min(len(image), rng.choice((0x40, 0x280, 0x2000, MAX_INPUT_BYTES)))
        at, width = rng.randrange(reach + 1), rng.choice((1, 1, 2, 4, 8))
        value = rng.choice((rng.choice(INTERESTING), rng.getrandbits(32)))
        edit = rng.randrange(8)
        if edit == 0:
            del image[at : at + width]
        elif edit == 1:
            image[at:at] = value.to_bytes(8, "little")[:width]
        elif edit == 2 and at < len(image):
            image[at] ^= 1 << rng.randrange(8)
        else:
            image[at : at + width] = value.to_bytes(8, "little")[:width]
    if not rng.randrange(8):
        del image[rng.randrange(len(image) + 1) :]
    return bytes(image)


def mutations(seed: int) -> Iterator[bytes]:
    """Inputs without end; the same for the same `seed`."""
    rng, pool = random.Random(seed), seeds()  # noqa: S311 - repeatable, not secret
    while True:
        yield mutate(rng.choice(pool), rng)


def _report(data: bytes) -> None:
    name = OUTPUT / f"crash-{hashlib.sha256(data).hexdigest()[:16]}"
    OUTPUT.mkdir(parents=True, exist_ok=True)
    name.write_bytes(data)
    traceback.print_exc()
    print(f"the input is in {name}", file=sys.stderr)


def _run_mutations(seconds: float, seed: int) -> int:
    started = time.monotonic()
    for count, data in enumerate(mutations(seed)):
        if time.monotonic() - started > seconds:
            print(f"{count} inputs, nothing found (seed {seed})")
            return 0
        try:
            test_one_input(data)
        except Exception:  # noqa: BLE001 - whatever escapes is the finding
            _report(data)
            return 1
    return 0


def _run_atheris(atheris: ModuleType, seconds: float, seed: int) -> int:
    corpus = OUTPUT / "loaders"
    corpus.mkdir(parents=True, exist_ok=True)
    for data in seeds():
        (corpus / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
    atheris.instrument_all()
    target: Callable[[bytes], Any] = test_one_input
    arguments = [
        f"-max_total_time={int(seconds)}",
        f"-seed={seed}",
        f"-max_len={MAX_INPUT_BYTES}",
        f"-artifact_prefix={OUTPUT}/",
    ]
    atheris.Setup([sys.argv[0], *arguments, str(corpus)], target)
    atheris.Fuzz()
    return 0


def main() -> int:
    """Fuzz, or run the given files once."""
    parser = argparse.ArgumentParser(description="Fuzz the loaders, or run inputs again.")
    parser.add_argument("files", nargs="*", type=Path, help="inputs to run once")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plain", action="store_true", help="mutations even if Atheris is there")
    options = parser.parse_args()
    if options.files:
        for file in options.files:
            test_one_input(file.read_bytes())
        return 0
    if not options.plain:
        try:
            atheris = importlib.import_module("atheris")  # no dependency of the tests
        except ImportError:
            print("Atheris is not installed (pip install atheris): mutating the seeds instead")
        else:
            return _run_atheris(atheris, options.seconds, options.seed)
    return _run_mutations(options.seconds, options.seed)


if __name__ == "__main__":
    # The seeds are made by the tests' own helpers.
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    sys.exit(main())
