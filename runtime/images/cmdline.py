"""What an image's kernel is told at boot, each argument with its reason."""

from __future__ import annotations

import base64
from typing import Final

from rayvisor.vmm.errors import ConfigError

COMMAND_LINE_MAX_BYTES: Final = 2047
"""Linux on x86 keeps 2048 bytes, the last of them NUL (COMMAND_LINE_SIZE)."""

ARGUMENTS: Final[tuple[tuple[str, str], ...]] = (
    ("console=ttyS0,115200", "the 16550A is the only console; at 9600 waits for it are long"),
    ("noapic", "no I/O APIC: interrupts come through the two 8259A"),
    ("pci=off", "no PCI bus: do not probe configuration ports"),
    ("io_delay=none", "the chips need no pause: each would be an exit, two for every tick"),
    ("nokaslr", "addresses in crash reports and in System.map agree from boot to boot"),
    ("mitigations=off", "translated kernel code does not speculate: isolation only costs"),
    ("tsc=reliable", "the machine's clock drives the TSC: a watchdog would doubt it after a stall"),
    ("sysctl.vm.compaction_proactiveness=0", "or an idle guest would wake twice a second for it"),
    ("nowatchdog", "a vCPU that waits for a busy host is not a locked-up kernel"),
    ("cryptomgr.notests", "testing every cipher is two thirds of the instructions of a boot"),
    ("8250.nr_uarts=1", "one UART: do not probe three more"),
    ("reboot=panic_warm,k", "reset by the 8042; 0x1234 at 0x472 tells a panic from a reboot"),
    ("panic=-1", "a panic resets at once; by default the kernel would spin for ever"),
    ("loglevel=3", "the console is the user's; the kernel log (dmesg) has the rest"),
)
"""Kernel arguments of Debian's kernels on the board, with the reason for each.

Later arguments win, so text appended by a user overrides these: `loglevel=7` shows the whole boot.
"""


def default_command_line() -> str:
    """The arguments above as the kernel reads them."""
    return " ".join(argument for argument, _ in ARGUMENTS)


def exec_argument(script: str) -> str:
    """The kernel argument that makes the guest run a shell script and power off.

    The script runs on the console in place of the interactive shell. Its exit status goes to the
    debug-exit port; 0 is a plain power off.

    Args:
        script: text for the guest's `sh`.

    Raises:
        ConfigError: the script does not fit a kernel command line beside the other arguments.
    """
    argument = f"rayvisor.exec={base64.b64encode(script.encode()).decode()}"
    room = COMMAND_LINE_MAX_BYTES - len(default_command_line()) - 1
    if len(argument) > room:
        raise ConfigError(
            f"script of {len(script.encode())} bytes does not fit the kernel command line"
            f" ({len(argument)} of {room} bytes): pack it into the initrd and use run_argument"
        )
    return argument


def run_argument(path: str) -> str:
    """The kernel argument that makes the guest run a program of its initrd and power off.

    Args:
        path: absolute path of a script or program in the guest, without white space.

    Raises:
        ConfigError: the path is not absolute or holds white space or quotes.
    """
    if not path.startswith("/") or any(char.isspace() or char in "\"'" for char in path):
        raise ConfigError(
            f"guest program {path!r}: give an absolute path without white space or quotes"
        )
    return f"rayvisor.run={path}"


def terminal_argument(columns: int, rows: int) -> str:
    """The kernel argument that gives the guest's console a size in characters.

    Raises:
        ConfigError: a size outside 1..9999.
    """
    limit = 9999
    if not (1 <= columns <= limit and 1 <= rows <= limit):
        raise ConfigError(f"terminal of {columns}x{rows} characters: each must be 1 to {limit}")
    return f"rayvisor.tty={columns}x{rows}"
