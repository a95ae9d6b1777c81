"""A Ray job that needs a kernel of its own: boots a VM, runs one command in it, removes it.

    ray job submit --working-dir examples -- python job.py
    ray job submit --working-dir examples -- python job.py --memory 256M -- "dmesg | tail -3"
    ray job submit --working-dir examples -- python job.py --move -- "sleep 3; uptime"

With --move the VM goes to another host of the cluster while the command runs in it. The job ends
with the command's exit status. Its VM goes with it, also when the job is stopped, and even when it
is killed: `VmSpec(detached=True)` would make one that stays.
"""

from __future__ import annotations

import argparse
import secrets
import signal
import sys
from concurrent.futures import ThreadPoolExecutor

from rayvisor import Cluster, VmSpec

PROMPT = "# "
BOOT_S = 300.0
"""Patience with a guest that boots on a busy host, in seconds."""


def main() -> int:
    """Run the command in a new VM; gives its exit status."""
    parser = argparse.ArgumentParser(description="Run a command in a VM of its own.")
    parser.add_argument("command", nargs="?", default="uname -a", help="for the guest's shell")
    parser.add_argument("--memory", default="128M", help="the guest's, such as 128M")
    parser.add_argument("--move", action="store_true", help="to another host, while it runs")
    options = parser.parse_args()

    # `ray job stop` sends SIGTERM: as an exception it takes the way out through `finally`.
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(128 + signal.SIGTERM))

    spec = VmSpec(name=f"job-{secrets.token_hex(4)}", image="debian", memory=options.memory)
    with Cluster.connect() as cluster:
        vm = cluster.create(spec)
        thread = ThreadPoolExecutor(1)
        try:
            print(f"{vm.name} boots on {vm.status().host}", flush=True)
            vm.console.read_until(PROMPT, timeout_s=BOOT_S)
            work = thread.submit(vm.console.run, options.command)
            if options.move:
                report = vm.migrate()
                print(
                    f"{vm.name} moved to {report.destination} in {report.total_s:.2f} s, "
                    f"{report.downtime_s * 1000:.0f} ms of them standing still",
                    flush=True,
                )
            result = work.result()
            print(result.output, end="", flush=True)
        finally:
            vm.remove(force=True)
    return result.status


if __name__ == "__main__":
    sys.exit(main())
