"""The debug exit ends the machine at that instruction, whatever stands behind it."""

from __future__ import annotations

import pytest

from rayvisor.vmm.machine import PowerState
from tests.support.flat import assemble, missing_tools
from tests.support.machines import flat_vm, run_flat

pytestmark = pytest.mark.skipif(bool(missing_tools()), reason="needs binutils")

OUT = {
    "immediate": "out 0xf4, al",
    "by DX": "out dx, al",
    "prefixed": ".byte 0x67\nout dx, al",
}


@pytest.mark.parametrize("how", OUT)
@pytest.mark.parametrize(
    "after",
    ["mov al, 7\nout 0xf4, al", "lidt [none]\nint3\nnone: .word 0, 0, 0", "cli\nhlt", "jmp ."],
    ids=["another exit", "triple fault", "halt", "loop"],
)
def test_nothing_behind_it_counts(how: str, after: str) -> None:
    guest = assemble(f"mov dx, 0xf4\nmov al, 42\n{OUT[how]}\n{after}", bits=16)
    ended = run_flat(guest)
    assert (ended.power, ended.exit_status) == (PowerState.EXITED, 42), ended


def test_the_guest_stands_behind_the_out() -> None:
    with flat_vm(assemble("mov al, 1\nout 0xf4, al\nhere: inc bx\njmp here", bits=16)) as vm:
        vm.start()
        assert vm.wait(30) is PowerState.EXITED
        state = vm.machine.cpu_state()
    assert (state.rip, state.gpr[3]) == (0x7C04, 0)


def test_an_ended_machine_starts_over() -> None:
    with flat_vm(assemble("mov al, 3\nout 0xf4, al\nlidt [0]\nint3", bits=16)) as vm:
        for _ in range(3):
            vm.start()
            assert vm.wait(30) is PowerState.EXITED
            assert vm.machine.exit_status == 3
