"""Minutes of user code under a storm: what it prints must be what it prints natively.

Many processes of one guest compute, fault, fork, are signalled, traced and single-stepped at once
(tests/guest/programs/ring3), beside a timer interrupt every millisecond, while the vCPU is stopped
about a thousand times a second, half of the time with all of its state taken out and put back.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
from pathlib import Path

from bench.report import Report, finish, take_precedence
from bench.storm import storm
from rayvisor.runtime.images import ImageStore, exec_argument
from rayvisor.vmm.machine import PowerState
from rayvisor.vmm.spec import MachineSpec
from rayvisor.vmm.vm import Vm
from tests.guest.test_ring3 import NOT_IN_A_STORM, PROGRAMS, sections
from tests.support.programs import build_into


def main() -> None:
    take_precedence()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=600, help="how long")
    parser.add_argument("--processes", type=int, default=64, help="of the guest, at most 256")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rayvisor-bench-") as folder:
        program = build_into(Path(folder), *PROGRAMS)
        names = " ".join(name for name in sections(program) if name not in NOT_IN_A_STORM)
        command = [str(program), "--storm", str(arguments.processes), "1", *names.split()]
        wanted = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        files: dict[str, bytes | Path] = {
            f"/usr/bin/{name}": (Path(folder) / name).resolve() for name in PROGRAMS
        }
        script = exec_argument(
            "/usr/bin/selfcheck --tick 1000 &"
            f" /usr/bin/ring3 --until {arguments.processes} {arguments.seconds} {names}"
        )
        boot = ImageStore().build("debian").boot_source(f"vsyscall=xonly {script}", files=files)
    started_s = time.perf_counter()
    with_stops = Vm(MachineSpec(512 << 20, boot))
    try:
        with_stops.start()
        stops = storm(with_stops)
        took_s = time.perf_counter() - started_s
        _, data = with_stops.console.read(0, max_bytes=1 << 20)
        _, _, output = data.decode(errors="replace").replace("\r\n", "\n").partition("\n")
        failed = with_stops.machine.power is not PowerState.HALTED or output != wanted
        counts = with_stops.exits().counts
    finally:
        with_stops.close()
    if failed:
        print(f"failed:\n{output}", flush=True)
    kinds = ("syscall", "exception", "interrupt")
    finish(
        Report(
            name="ring3_storm",
            title="User code under a storm of signals, faults and stops",
            columns=("processes", "failures", "stops", *(f"{kind}s" for kind in kinds), "seconds"),
            rows=(
                (
                    arguments.processes,
                    int(failed),
                    stops,
                    *(counts.get(kind, 0) for kind in kinds),
                    took_s,
                ),
            ),
            verdicts=(f"what a native run prints: {'MISSED' if failed else 'met'}",),
            notes=("beside a timer of 1 kHz; all processes take signals of timers and neighbours",),
        )
    )
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
