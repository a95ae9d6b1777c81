"""What user code sees of its processor: one binary, natively and in a guest, prints the same.

Every section in turn, so that a difference is a readable line; then all of them at once in many
processes, with timers and signals in between, beside an interrupt every millisecond.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Final

import pytest

from rayvisor.runtime.images import Image, ImageStore, exec_argument
from rayvisor.vmm.machine import PowerState
from tests.support import programs
from tests.support.machines import HANGS_AFTER_S, debian_vm, text_of

pytestmark = [pytest.mark.guest, pytest.mark.network]

PROGRAMS: Final = ("ring3", "ring3_32", "selfcheck")
PROCESSES: Final = 16
NOT_IN_A_STORM: Final = frozenset({"watch"})
"""Sections that only run by themselves. A debug register throws all translated code away."""

EXACT: Final = "exact-"
"""Sections whose name begins so check what processors do and translators leave out: unmasked
floating-point exceptions, alignment, watchpoints, some reserved opcodes. Only a native run has
them; where user code may run in either world, none of them is a promise."""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, with the others it needs beside it."""
    if missing := programs.missing_tools():
        pytest.skip(f"needs {', '.join(missing)}")
    return programs.build_into(tmp_path_factory.mktemp("programs"), *PROGRAMS)


@pytest.fixture(scope="module")
def image() -> Image:
    return ImageStore().build("debian")


def _natively(program: Path, *arguments: str) -> str:
    command = [str(program), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def sections(program: Path) -> list[str]:
    """What this host can be asked natively, but for what only processors do."""
    names = _natively(program, "--list").split()
    if "[vsyscall]" not in Path("/proc/self/maps").read_text():
        names.remove("vsyscall")
    return [name for name in names if not name.startswith(EXACT)]


def _in_guest(image: Image, program: Path, arguments: str, *, tick_us: int = 0) -> str:
    """What the program prints in a guest, which then powers off."""
    files: dict[str, bytes | Path] = {
        f"/usr/bin/{name}": (program.parent / name).resolve() for name in PROGRAMS
    }
    tick = f"/usr/bin/selfcheck --tick {tick_us} & " if tick_us else ""
    script = exec_argument(f"{tick}/usr/bin/ring3 {arguments}")
    with debian_vm(image, f"vsyscall=xonly {script}", files=files) as vm:
        assert vm.wait(3 * HANGS_AFTER_S) is not None, text_of(vm)
        _, _, output = text_of(vm).partition("\n")
        assert vm.power is PowerState.HALTED, output
        return output


def test_native_output_is_deterministic(program: Path) -> None:
    output = _natively(program)
    assert "BROKEN" not in output
    assert _natively(program) == output


def test_guest_prints_what_the_host_prints(image: Image, program: Path) -> None:
    names = sections(program)
    wanted = _natively(program, *names)
    assert _in_guest(image, program, " ".join(names)).splitlines() == wanted.splitlines()


def test_many_processes_at_once(image: Image, program: Path) -> None:
    names = [name for name in sections(program) if name not in NOT_IN_A_STORM]
    storm = f"--storm {PROCESSES} 1 {' '.join(names)}"
    wanted = _natively(program, *storm.split())
    assert wanted.endswith("storm done\n")
    assert _in_guest(image, program, storm, tick_us=1000) == wanted
