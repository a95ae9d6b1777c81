"""Minutes of asynchronous stops: the self-check in a guest must print what it prints natively.

The vCPU is stopped about a thousand times a second, half of the time with all of its state taken
out and put back, while a timer interrupts the guest every millisecond.
"""

from __future__ import annotations

import argparse
import subprocess
import time

from bench.report import Report, finish, take_precedence
from rayvisor.runtime.images import ImageStore, exec_argument
from rayvisor.vmm.errors import MachineStateError
from rayvisor.vmm.machine import PowerState
from rayvisor.vmm.spec import MachineSpec
from rayvisor.vmm.vm import Vm
from tests.support.programs import build_program

IN_GUEST = "/usr/bin/selfcheck"
ROUNDS = 3


def storm(vm: Vm) -> int:
    """Stop `vm` again and again until it ends; how often."""
    stops = 0
    while vm.wait(0.001) is None:
        stops += 1
        if stops % 2:
            vm.machine.vcpu.kick()
            continue
        try:
            vm.pause()
        except MachineStateError:
            break
        if vm.power is PowerState.PAUSED:
            vm.machine.vcpu.load(vm.machine.cpu_state())
            vm.resume()
    return stops


def main() -> None:
    take_precedence()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=180, help="how long")
    seconds = parser.parse_args().seconds
    program = build_program("selfcheck")
    command = [str(program), "--rounds", str(ROUNDS)]
    wanted = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    script = exec_argument(f"{IN_GUEST} --tick 1000 & {IN_GUEST} --rounds {ROUNDS}")
    boot = ImageStore().build("debian").boot_source(script, files={IN_GUEST: program})
    started_s = time.perf_counter()
    boots = stops = failures = interrupts = 0
    while time.perf_counter() - started_s < seconds:
        vm = Vm(MachineSpec(256 << 20, boot))
        vm.start()
        stops += storm(vm)
        _, data = vm.console.read(0, max_bytes=1 << 20)
        _, _, output = data.decode(errors="replace").replace("\r\n", "\n").partition("\n")
        boots += 1
        interrupts += vm.exits().counts.get("interrupt", 0)
        if vm.machine.power is not PowerState.HALTED or output != wanted:
            failures += 1
            print(f"boot {boots} failed ({vm.machine.power}):\n{output}", flush=True)
        vm.close()
    took_s = time.perf_counter() - started_s
    finish(
        Report(
            name="storm",
            title="The self-check under a storm of stops",
            columns=("boots", "failures", "stops", "stops a second", "interrupts", "seconds"),
            rows=((boots, failures, stops, stops / took_s, interrupts, took_s),),
            verdicts=(f"a translator that loses nothing: {'MISSED' if failures else 'met'}",),
            notes=(f"each boot runs {ROUNDS} rounds of all sections, beside a 1 kHz timer",),
        )
    )
    if failures:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
