"""The self-check program and the guest it runs in."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import pytest

from rayvisor.runtime.images import BANNER_PREFIX, Image, ImageStore, exec_argument
from rayvisor.vmm.machine import PowerState
from tests.support import programs
from tests.support.machines import HANGS_AFTER_S, debian_vm, text_of

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

    from rayvisor.vmm.vm import Vm

_PROGRAM: Final = "/usr/bin/selfcheck"
_ROUNDS: Final = 3


@dataclass(frozen=True, slots=True)
class Selfcheck:
    """The program, its image, and what it printed on this host."""

    image: Image
    executable: Path
    expected: str
    sections: tuple[str, ...] = ()

    def run_natively(self) -> str:
        return _run_natively(self.executable, self.sections)

    def only(self, *sections: str) -> Selfcheck:
        """A part of it."""
        expected = _run_natively(self.executable, sections)
        return replace(self, sections=sections, expected=expected)

    def started(self, *, tick_us: int = 0) -> AbstractContextManager[Vm]:
        """A VM that runs the program and powers off, with a timer that ticks beside it."""
        tick = f"{_PROGRAM} --tick {tick_us} & " if tick_us else ""
        script = exec_argument(f"{tick}{' '.join([_PROGRAM, *_arguments(self.sections)])}")
        return debian_vm(self.image, script, files={_PROGRAM: self.executable})

    def check(self, vm: Vm) -> None:
        """The VM has powered off and printed what this host printed."""
        assert vm.wait(2 * HANGS_AFTER_S) is PowerState.HALTED, text_of(vm)
        banner, _, output = text_of(vm).partition("\n")
        assert banner.startswith(BANNER_PREFIX)
        assert output == self.expected


def _arguments(sections: tuple[str, ...]) -> list[str]:
    return ["--rounds", str(_ROUNDS), *sections]


def _run_natively(executable: Path, sections: tuple[str, ...] = ()) -> str:
    command = [str(executable), *_arguments(sections)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="session")
def selfcheck() -> Selfcheck:
    if missing := programs.missing_tools():
        pytest.skip(f"needs {', '.join(missing)}")
    executable = programs.build_program("selfcheck")
    return Selfcheck(ImageStore().build("debian"), executable, _run_natively(executable))
