"""A Ray job that needs a kernel of its own: boots a VM, runs one command in it, removes it.

    ray job submit --working-dir examples -- python job.py
    ray job submit --working-dir examples -- python job.py --memory 256M -- "dmesg | tail -3"

The job ends with the command's exit status. Its VM goes with it, also when the job is stopped.
"""

from __future__ import annotations

import argparse
import secrets
import signal
import sys

from rayvisor import Cluster, VmSpec

PROMPT = "# "
BOOT_S = 300.0
"""Patience with a guest that boots on a busy host, in seconds."""


def main() -> int:
    """Run the command in a new VM; gives its exit status."""
    parser = argparse.ArgumentParser(description="Run a command in a VM of its own.")
    parser.add_argument("command", nargs="?", default="uname -a", help="for the guest's shell")
    parser.add_argument("--memory", default="128M", help="the guest's, such as 128M")
    options = parser.parse_args()

    # `ray job stop` sends SIGTERM: as an exception it takes the way out through `finally`.
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(128 + signal.SIGTERM))

    spec = VmSpec(name=f"job-{secrets.token_hex(4)}", image="debian", memory=options.memory)
    with Cluster.connect() as cluster:
        vm = cluster.create(spec)
        try:
            print(f"{vm.name} boots on {vm.status().host}", flush=True)
            vm.console.read_until(PROMPT, timeout_s=BOOT_S)
            result = vm.console.run(options.command)
            print(result.output, end="", flush=True)
        finally:
            vm.remove(force=True)
    return result.status


if __name__ == "__main__":
    sys.exit(main())
