"""User code of a guest that wants out gets what Linux gives it, and the VM's process lives.

Each attack runs in the guest as root, and natively for what it must print; those that a host
could not bear, or that name what only the guest's kernel is, have their text here.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Final

import pytest

from rayvisor.runtime.images import Image, ImageStore, exec_argument
from rayvisor.vmm.machine import PowerState
from tests.support import programs
from tests.support.machines import HANGS_AFTER_S, debian_vm, require_direct, text_of

pytestmark = [pytest.mark.guest, pytest.mark.network]

PROGRAM: Final = "/usr/bin/attack"
MIB: Final = 1 << 20

NOT_THERE: Final = "SIGSEGV 1 trap 14 error 0x15 at"
# Linux grants IOPL 3 for ports alone: it steps over CLI and STI.
GUEST_TEXTS: Final = {
    "guest-no-vsyscall": "".join(
        f"call: {NOT_THERE} {0xFFFFFFFFFF600000 + offset:#x}\n"
        for offset in (0, 0x400, 0x800, 1, 0xFFF)
    ),
    "guest-newer": "".join(f"syscall {number:#x}: ENOSYS\n" for number in range(455, 480)),
    "guest-low": "0: runs, 42000\n0x1000: runs, 42000\n0xf000: runs, 42000\n",
    "guest-ports": (
        "ioperm 0\nout 0x80: nothing\nout 0x81: SIGSEGV 128 trap 13 error 0 at 0\niopl 0\n"
        "out 0x81: nothing\ncli: nothing\nsti: nothing\ninterrupts on, IOPL 0\n"
        "out 0x80, given back: SIGSEGV 128 trap 13 error 0 at 0\n"
    ),
}


@pytest.fixture(scope="module")
def program() -> Path:
    if missing := programs.missing_tools():
        pytest.skip(f"needs {', '.join(missing)}")
    return programs.build_program("attack")


@pytest.fixture(scope="module")
def image() -> Image:
    return ImageStore().build("debian")


def _natively(program: Path, *arguments: str) -> str:
    command = [str(program), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _in_guest(
    image: Image, program: Path, sections: str, *, direct: bool = True, coin: bool = False
) -> str:
    """What the attacks print in a guest, which then powers off; with `coin` in both worlds."""
    script = exec_argument(f"{PROGRAM} {sections}")
    with debian_vm(
        image, script, files={PROGRAM: program}, memory_bytes=512 * MIB, direct=direct
    ) as vm:
        if coin:
            require_direct(vm)
            vm.pause()
            vm.machine.vcpu.choose_at_random(on=True)
            vm.resume()
        assert vm.wait(3 * HANGS_AFTER_S) is not None, text_of(vm)
        _, _, output = text_of(vm).partition("\n")
        assert vm.power is PowerState.HALTED, output
        return output


@pytest.mark.parametrize(
    "sections",
    [
        "calls returns bases edges",
        "frames",
        "own-pages holes",
        "pieces crossing beside",
        "blocked stopped",
        "seccomp clock",
        "sysenter",
    ],
)
def test_attacks_get_what_linux_gives(image: Image, program: Path, sections: str) -> None:
    if sections == "sysenter" and "GenuineIntel" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("no instruction of this processor's 64-bit mode")
    wanted = _natively(program, *sections.split())
    assert "BROKEN" not in wanted
    assert _in_guest(image, program, sections).splitlines() == wanted.splitlines()


@pytest.mark.parametrize("direct", [True, False])
def test_bases_that_are_no_addresses_are_refused_in_either_world(
    image: Image, program: Path, direct: bool
) -> None:
    """One that the translator took could not be had in the native world, for ever."""
    wanted = _natively(program, "bases")
    found = _in_guest(image, program, "bases", direct=direct, coin=direct)
    assert found.splitlines() == wanted.splitlines()


@pytest.mark.parametrize("section", GUEST_TEXTS)
def test_attack_on_what_is_the_guests_own(image: Image, program: Path, section: str) -> None:
    wanted = f"[{section}]\n{GUEST_TEXTS[section]}done\n"
    assert _in_guest(image, program, section) == wanted
