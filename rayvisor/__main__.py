"""`python -m rayvisor` and the `rayvisor` script."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line and leave with its status."""
    from rayvisor.runtime.cli.app import main as command_line

    sys.exit(command_line())


if __name__ == "__main__":
    main()
