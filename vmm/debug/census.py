"""The exit census for people: which sensitive instructions a guest ran, how often, from where."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rayvisor.vmm.debug.disasm import BAD, code_bits, disassemble
from rayvisor.vmm.debug.pagewalk import read_linear
from rayvisor.vmm.debug.registers import EXCEPTIONS

if TYPE_CHECKING:
    from rayvisor.vmm.cpu_state import CpuState
    from rayvisor.vmm.debug.pagewalk import RamReader
    from rayvisor.vmm.exits import ExitCensus

TOP_SITES = 64

_PORTS = (
    (0x00, 0x1F, "DMA"),
    (0x20, 0x21, "PIC 1"),
    (0x40, 0x43, "timer"),
    (0x60, 0x60, "keyboard"),
    (0x61, 0x61, "speaker"),
    (0x64, 0x64, "keyboard"),
    (0x70, 0x71, "CMOS"),
    (0x80, 0x80, "POST code"),
    (0x92, 0x92, "A20"),
    (0xA0, 0xA1, "PIC 2"),
    (0xC0, 0xDF, "DMA"),
    (0xF0, 0xF1, "x87"),
    (0xF4, 0xF4, "debug exit"),
    (0x1F0, 0x1F7, "disk"),
    (0x2F8, 0x2FF, "COM2"),
    (0x3C0, 0x3DF, "VGA"),
    (0x3F8, 0x3FF, "COM1"),
    (0x441, 0x443, "watchdog"),
    (0x4D0, 0x4D1, "ELCR"),
    (0xCF8, 0xCFF, "PCI"),
)

_STOPS = ((1, "asked to"), (2, "timer due"))  # RV_STOP_ of vmm/core/vcpu.h


def port_name(port: int) -> str:
    """What a PC has at an I/O port, or nothing if it is no classic one."""
    return next((name for low, high, name in _PORTS if low <= port <= high), "")


def describe_exit(kind: str, detail: int) -> str:
    """What an exit was for, such as "port 0x3f8 (COM1)" or "#PF page fault"."""
    match kind:
        case "io_in" | "io_out":
            name = port_name(detail)
            return f"port {detail:#x}" + (f" ({name})" if name else "")
        case "exception":
            return EXCEPTIONS.get(detail, f"vector {detail:#x}")
        case "interrupt":
            return f"vector {detail:#x}"
        case "cpuid":
            return f"leaf {detail:#x}"
        case "mmio":
            return f"address {detail:#x}"
        case "stop":
            return ", ".join(name for bit, name in _STOPS if detail & bit)
        case _:
            return "" if detail == 0 else f"{detail:#x}"


def census_as_dict(
    census: ExitCensus, cpu: CpuState, read: RamReader, *, limit: int = TOP_SITES
) -> dict[str, Any]:
    """The census in JSON's terms, busiest first, each site with its instruction.

    The instruction is read through the page tables in use now and in the mode the CPU is in
    now: of a process that does not run at the moment it may be missing (null).
    """
    busiest = sorted(census.sites, key=lambda site: (-site[3], site[0], site[2], site[1]))
    return {
        "total": census.total,
        "counts": dict(sorted(census.counts.items(), key=lambda item: (-item[1], item[0]))),
        "sites": [
            {
                "kind": kind,
                "detail": detail,
                "what": describe_exit(kind, detail),
                "rip": hex(rip),
                "count": count,
                "instruction": _instruction_at(cpu, read, rip),
            }
            for kind, detail, rip, count in busiest[:limit]
        ],
        "sites_left_out": max(0, len(busiest) - limit),
        "recent": recent_as_dicts(census),
    }


def recent_as_dicts(census: ExitCensus) -> list[dict[str, Any]]:
    """The last exits in JSON's terms, oldest first."""
    return [
        {"kind": kind, "detail": detail, "what": describe_exit(kind, detail), "rip": hex(rip)}
        for kind, detail, rip in census.recent
    ]


def render_census(plain: dict[str, Any]) -> str:
    """What `census_as_dict` gave, as text."""
    total = plain["total"]
    if not total:
        return "no exits yet"
    lines = [f"{total} exits"]
    for kind, count in plain["counts"].items():
        if count:
            lines.append(f"  {kind:<12}{count:>12}  {count / total:6.1%}")
    if plain["sites"]:
        lines += ["", f"{'count':>12}  {'kind':<10}{'from':<20}{'instruction':<32}for"]
    for site in plain["sites"]:
        lines.append(
            f"{site['count']:>12}  {site['kind']:<10}{site['rip']:<20}"
            f"{site['instruction'] or '?':<32}{site['what']}".rstrip()
        )
    if plain["sites_left_out"]:
        lines.append(f"... and {plain['sites_left_out']} more places")
    return "\n".join(lines)


def render_recent(recent: list[dict[str, Any]]) -> str:
    """Exits as `recent_as_dicts` gave them, as text; equal neighbours share a line."""
    lines: list[str] = []
    repeats = 0
    for position, one in enumerate(recent):
        repeats += 1
        if position + 1 < len(recent) and recent[position + 1] == one:
            continue
        times = f" x{repeats}" if repeats > 1 else ""
        lines.append(f"  {one['kind']:<10} at {one['rip']:<20}{one['what']}{times}".rstrip())
        repeats = 0
    return "\n".join(lines)


def _instruction_at(cpu: CpuState, read: RamReader, rip: int) -> str | None:
    code = read_linear(cpu, read, rip, 15)
    found = disassemble(code, rip, code_bits(cpu), 1)
    return found[0].text if found and found[0].text != BAD else None
