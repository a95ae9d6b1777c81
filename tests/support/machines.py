"""Machines for tests: a flat guest run to its end, and a Debian guest with a shell."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import pytest

from rayvisor.runtime.expect import ExpectConsole
from rayvisor.vmm.machine import PowerState
from rayvisor.vmm.spec import BootSource, MachineSpec
from rayvisor.vmm.vm import Vm

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from rayvisor.runtime.images.image import Image

MIB: Final = 1 << 20
HANGS_AFTER_S: Final = 30.0


class HungError(AssertionError):
    """The guest did not end by itself."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a flat guest ended."""

    power: PowerState
    exit_status: int | None
    crash_reason: str | None
    output: str


@contextmanager
def flat_vm(image: bytes, *, memory_bytes: int = 16 * MIB) -> Iterator[Vm]:
    """A VM with a flat image at 0000:7C00, switched off; closed at the end."""
    vm = Vm(MachineSpec(memory_bytes, BootSource(image, format="flat"), name="flat"))
    try:
        yield vm
    finally:
        vm.close()


def run_flat(image: bytes, *, memory_bytes: int = 16 * MIB, typed: bytes = b"") -> Ended:
    """Run a flat image to its end.

    Raises:
        HungError: it ran for longer than any guest here should.
    """
    with flat_vm(image, memory_bytes=memory_bytes) as vm:
        vm.start()
        if typed:
            vm.console.send(typed)
        power = vm.wait(HANGS_AFTER_S)
        output = text_of(vm)
        if power is None:
            raise HungError(f"still running; it wrote {output!r}")
        return Ended(power, vm.machine.exit_status, vm.machine.crash_reason, output)


def exits_with(image: bytes, status: int) -> Ended:
    """Run a flat image, which must end itself with this exit status."""
    ended = run_flat(image)
    assert (ended.power, ended.exit_status) == (PowerState.EXITED, status), ended
    return ended


def require_direct(vm: Vm) -> None:
    """Skip the test where user code cannot be executed directly."""
    if vm.machine.direct_refused:
        pytest.skip(f"no direct execution here: {vm.machine.direct_refused}")


def text_of(vm: Vm) -> str:
    """All that is kept of a VM's console."""
    _, data = vm.console.read(vm.console.start_offset, max_bytes=1 << 21)
    return data.decode(errors="replace").replace("\r\n", "\n")


def expect(vm: Vm) -> ExpectConsole:
    """A VM's console, read from its beginning by a program."""
    return ExpectConsole(
        lambda offset, timeout_s: vm.console.read(offset, timeout_s=timeout_s),
        vm.console.send,
        lambda: vm.power in {PowerState.RUNNING, PowerState.PAUSED},
    )


@contextmanager
def debian_vm(
    image: Image,
    append: str = "",
    *,
    files: Mapping[str, bytes | Path] | None = None,
    memory_bytes: int = 256 * MIB,
    direct: bool = True,
) -> Iterator[Vm]:
    """A VM that has been started with an image; closed at the end."""
    boot = image.boot_source(append, files=files)
    vm = Vm(MachineSpec(memory_bytes, boot, name="debian", direct=direct))
    try:
        vm.start()
        yield vm
    finally:
        vm.close()
