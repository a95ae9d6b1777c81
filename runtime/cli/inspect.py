"""`rayvisor disasm` and `exits`: looking into a VM of the cluster while it runs, or after."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from rayvisor.runtime.cli.cluster import Name
from rayvisor.runtime.cli.output import JsonOption, emit
from rayvisor.vmm.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from rayvisor.vmm.debug.disasm import Instruction

DISASM_EPILOG = """
[bold]Examples[/bold]

Where the guest is now: [cyan]rayvisor disasm web[/cyan]

A kernel's entry: [cyan]rayvisor disasm web 0xffffffff81000000 --count 32[/cyan]
"""

EXITS_EPILOG = """
[bold]Examples[/bold]

The busiest places: [cyan]rayvisor exits web[/cyan]

All CPUID leaves asked for: [cyan]rayvisor exits web --json | jq '.sites[] | select(.kind=="cpuid") | .what'[/cyan]
"""  # noqa: E501 - one line is one paragraph of help


def register(app: typer.Typer) -> None:
    """Put the commands on the command line."""
    app.command("disasm", epilog=DISASM_EPILOG)(disasm)
    app.command("exits", epilog=EXITS_EPILOG)(exits)


def disasm(
    name: Name,
    address: Annotated[
        str, typer.Argument(metavar="ADDRESS", help="A linear address, or rip.")
    ] = "rip",
    *,
    count: Annotated[int, typer.Option(min=1, max=1024, help="How many instructions.")] = 16,
    as_json: JsonOption = False,
) -> None:
    """Disassemble a VM's memory as its CPU would run it now."""
    from rayvisor.runtime.cluster import Cluster

    where = parse_address(address)
    found = Cluster.connect().vm(name).disasm(where, count)

    def render() -> RenderableType:
        from rich.text import Text

        return Text("\n".join(_line(instruction) for instruction in found))

    if not found:
        raise ConfigError(
            f"{address} is not in mapped memory of {name!r} now: rayvisor show {name} tells where"
            " its CPU is"
        )
    emit([i.as_dict() for i in found], as_json=as_json, render=render)


def _line(instruction: Instruction) -> str:
    return f"{instruction.address:16x}: {instruction.raw.hex(' '):<30} {instruction.text}"


def exits(
    name: Name,
    *,
    top: Annotated[int, typer.Option(min=0, max=4096, help="How many places to show.")] = 20,
    as_json: JsonOption = False,
) -> None:
    """Show which sensitive instructions a VM's guest ran, how often, from where."""
    from rayvisor.runtime.cluster import Cluster

    plain = Cluster.connect().vm(name).exit_sites(top)

    def render() -> RenderableType:
        from rich.text import Text

        from rayvisor.vmm.debug.census import render_census
        from rayvisor.vmm.debug.direct import render_direct

        return Text(f"{render_census(plain)}\n\nuser code: {render_direct(plain['direct'])}")

    emit(plain, as_json=as_json, render=render)


def parse_address(text: str) -> int | None:
    """A linear address as people type it; None for "rip", where the CPU is.

    Raises:
        ConfigError: neither, or beyond 64 bits.
    """
    if text.lower() in {"rip", "eip", "ip"}:
        return None
    try:
        address = int(text, 0)
    except ValueError:
        raise ConfigError(f"{text!r} is not an address: write 0xffffffff81000000, or rip") from None
    if not 0 <= address < 1 << 64:
        raise ConfigError(f"address {text} is beyond 64 bits")
    return address
