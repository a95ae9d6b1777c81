"""Every benchmark, one after the other: `python -m bench [NAME...]`."""

from __future__ import annotations

import argparse
import subprocess
import sys
from typing import Final

NAMES: Final = (
    "boot",
    "idle",
    "console",
    "stop",
    "memory",
    "stub_memory",
    "direct",
    "storm",
    "scrape",
    "migration",
    "ha",
    "ft",
)


def main() -> int:
    """Run them; 1 if one could not be run or failed."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}")
    names = parser.parse_args().names or NAMES
    failed = []
    for name in names:
        print(f"--- bench.{name}", flush=True)
        # A process of its own each: one benchmark's memory and threads do not meet the next.
        if subprocess.run([sys.executable, "-m", f"bench.{name}"], check=False).returncode:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
