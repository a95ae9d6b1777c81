"""The initial file system, the programs in it, and what the kernel is told."""

from __future__ import annotations

import base64
import shutil
import struct
import subprocess

import capstone
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayvisor.runtime.images import cmdline, debug_exit, guest_init, initramfs
from rayvisor.vmm.errors import ConfigError, ImageError

NAMES = sorted(["[", "[[", "ash", "sh", "poweroff", *(f"tool-{n:03}" for n in range(60))])


def program_with(names: list[str]) -> bytes:
    return b"\x7fELF\0[\0other\0" + b"\0".join(name.encode() for name in names) + b"\0\0end"


def test_applets_are_read_from_the_program() -> None:
    assert initramfs.applets(program_with(NAMES)) == NAMES


@pytest.mark.skipif(shutil.which("busybox") is None, reason="needs a busybox to ask")
def test_applets_are_those_busybox_lists() -> None:
    path = shutil.which("busybox")
    assert path is not None
    listed = subprocess.run([path, "--list"], capture_output=True, text=True, check=True).stdout
    with open(path, "rb") as program:  # noqa: PTH123 - the name comes from which
        assert initramfs.applets(program.read()) == listed.split()


@pytest.mark.parametrize(
    "program",
    [
        b"",
        b"\x7fELF",
        program_with(NAMES[:10]),
        program_with([name for name in NAMES if name != "sh"]),
        program_with(list(reversed(NAMES))),
    ],
)
def test_a_program_without_a_table_is_refused(program: bytes) -> None:
    with pytest.raises(ImageError, match="busybox: no table of commands"):
        initramfs.applets(program)


def test_the_same_busybox_gives_the_same_bytes() -> None:
    program = program_with(NAMES)
    assert initramfs.build(program, bits=64) == initramfs.build(program, bits=64)
    assert initramfs.build(program, bits=64) != initramfs.build(program, bits=32)


@pytest.mark.skipif(shutil.which("busybox") is None, reason="needs busybox's cpio")
def test_the_archive_unpacks_to_a_root() -> None:
    data = initramfs.build(program_with(NAMES), bits=64)
    listing = subprocess.run(
        ["busybox", "cpio", "-t"], input=data, capture_output=True, check=True
    ).stdout.decode()
    paths = listing.split("\n")
    assert {"init", "bin/sh", "bin/busybox", "bin/debug-exit", "dev/console", "proc"} <= set(paths)


@pytest.mark.skipif(shutil.which("busybox") is None, reason="needs busybox's shell")
@pytest.mark.parametrize("script", [guest_init.INIT, guest_init.PROFILE])
def test_the_guests_scripts_parse(script: str) -> None:
    subprocess.run(["busybox", "sh", "-n"], input=script.encode(), check=True)


@pytest.mark.parametrize(
    ("bits", "mode", "entry_at", "trap"),
    [(64, capstone.CS_MODE_64, 24, "syscall"), (32, capstone.CS_MODE_32, 24, "int 0x80")],
)
def test_debug_exit_is_what_its_comments_say(
    bits: int, mode: int, entry_at: int, trap: str
) -> None:
    program = debug_exit.program(bits=bits)
    form = "<Q" if bits == 64 else "<I"
    (entry,) = struct.unpack_from(form, program, entry_at)
    code = program[entry - 0x400000 :]
    text = [
        f"{i.mnemonic} {i.op_str}".strip()
        for i in capstone.Cs(capstone.CS_ARCH_X86, mode).disasm(code, 0)
    ]
    assert sum(i.size for i in capstone.Cs(capstone.CS_ARCH_X86, mode).disasm(code, 0)) == len(code)
    assert text[0] == "xor edi, edi"
    assert text.count(trap) == 2
    assert text[-1] == trap
    out = text.index("out dx, al")
    assert text[out - 1] == "mov edx, 0xf4"
    first_trap = text.index(trap)
    assert first_trap < out, "the kernel is asked for the port first"
    assert text[first_trap + 1] == "test eax, eax"


def test_every_kernel_argument_has_a_reason() -> None:
    line = cmdline.default_command_line()
    assert line.split() == [argument for argument, _ in cmdline.ARGUMENTS]
    assert all(reason for _, reason in cmdline.ARGUMENTS)
    assert len(line) < cmdline.COMMAND_LINE_MAX_BYTES / 4


@given(st.text(max_size=200))
def test_a_script_survives_the_command_line(script: str) -> None:
    try:
        encoded_text = script.encode()
    except UnicodeEncodeError:
        return
    argument = cmdline.exec_argument(script)
    assert not any(char.isspace() or char in "\"'" for char in argument)
    name, _, value = argument.partition("=")
    assert name == "rayvisor.exec"
    assert base64.b64decode(value, validate=True) == encoded_text


def test_a_script_that_does_not_fit_is_refused() -> None:
    longest = "x" * (3 * ((2047 - len(cmdline.default_command_line()) - 1 - 14) // 4))
    whole = f"{cmdline.default_command_line()} {cmdline.exec_argument(longest)}"
    assert len(whole) <= cmdline.COMMAND_LINE_MAX_BYTES
    with pytest.raises(ConfigError, match=r"does not fit .* run_argument"):
        cmdline.exec_argument(longest + "xxxx")


@pytest.mark.parametrize("path", ["bin/x", "", "/a b", "/a\tb", '/a"b', "/a'b", "/a\n"])
def test_a_program_that_cannot_be_named_is_refused(path: str) -> None:
    with pytest.raises(ConfigError, match="absolute path without white space"):
        cmdline.run_argument(path)


@pytest.mark.parametrize("size", [(0, 24), (80, 0), (-1, 24), (10000, 24)])
def test_a_terminal_that_is_none_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="each must be 1 to 9999"):
        cmdline.terminal_argument(*size)


def test_arguments_as_the_init_reads_them() -> None:
    assert cmdline.run_argument("/bin/selfcheck") == "rayvisor.run=/bin/selfcheck"
    assert cmdline.terminal_argument(132, 50) == "rayvisor.tty=132x50"
