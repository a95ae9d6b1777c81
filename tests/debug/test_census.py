"""The exit census as people and programs get it."""

from __future__ import annotations

import json

import pytest

from rayvisor.vmm.cpu_state import CR0_PE, CpuState, Segment
from rayvisor.vmm.debug.census import (
    census_as_dict,
    describe_exit,
    port_name,
    render_census,
    render_recent,
)
from rayvisor.vmm.exits import ExitCensus

CPU = CpuState(cr0=CR0_PE, cs=Segment(8, 0, 0xFFFFFFFF, 0xC09B))
CENSUS = ExitCensus(
    {"io_out": 30, "cpuid": 5, "hlt": 0, "exception": 65},
    [("cpuid", 0x16, 0x102, 5), ("exception", 14, 0x5000, 65), ("io_out", 0x3F8, 0x100, 30)],
    [("io_out", 0x20, 0x100), ("io_out", 0x20, 0x100), ("cpuid", 1, 0x102)],
)


def read(gpa: int, count: int) -> bytes:
    if gpa + count > 0x1000:
        raise ValueError(gpa)
    return (bytes(0x100) + b"\xe6\x20\x0f\xa2" + bytes(0x1000))[gpa : gpa + count]


def test_sites_come_busiest_first_with_their_instruction() -> None:
    plain = census_as_dict(CENSUS, CPU, read)
    assert json.loads(json.dumps(plain)) == plain
    assert plain["total"] == 100
    assert list(plain["counts"]) == ["exception", "io_out", "cpuid", "hlt"]
    assert [(s["count"], s["instruction"]) for s in plain["sites"]] == [
        (65, None),
        (30, "out 0x20, al"),
        (5, "cpuid"),
    ]
    assert plain["sites"][1]["what"] == "port 0x3f8 (COM1)"
    assert plain["sites_left_out"] == 0


def test_the_limit_is_told() -> None:
    plain = census_as_dict(CENSUS, CPU, read, limit=1)
    assert (len(plain["sites"]), plain["sites_left_out"]) == (1, 2)
    assert render_census(plain).endswith("... and 2 more places")


def test_as_text() -> None:
    assert render_census(census_as_dict(CENSUS, CPU, read)) == (
        "100 exits\n"
        "  exception             65   65.0%\n"
        "  io_out                30   30.0%\n"
        "  cpuid                  5    5.0%\n"
        "\n"
        "       count  kind      from                instruction                     for\n"
        "          65  exception 0x5000              ?                               "
        "#PF page fault\n"
        "          30  io_out    0x100               out 0x20, al                    "
        "port 0x3f8 (COM1)\n"
        "           5  cpuid     0x102               cpuid                           leaf 0x16"
    )
    assert render_census(census_as_dict(ExitCensus(), CPU, read)) == "no exits yet"


def test_equal_neighbours_share_a_line() -> None:
    assert render_recent(census_as_dict(CENSUS, CPU, read)["recent"]) == (
        "  io_out     at 0x100               port 0x20 (PIC 1) x2\n"
        "  cpuid      at 0x102               leaf 0x1"
    )


@pytest.mark.parametrize(
    ("kind", "detail", "text"),
    [
        ("io_in", 0x1234, "port 0x1234"),
        ("exception", 13, "#GP general protection"),
        ("exception", 0x80, "vector 0x80"),
        ("interrupt", 0x30, "vector 0x30"),
        ("mmio", 0xFEE00020, "address 0xfee00020"),
        ("hlt", 0, ""),
        ("stop", 2, "timer due"),
        ("stop", 3, "asked to, timer due"),
        ("new", 7, "0x7"),
    ],
)
def test_details_in_words(kind: str, detail: int, text: str) -> None:
    assert describe_exit(kind, detail) == text


def test_classic_ports_have_names() -> None:
    assert port_name(0x43) == "timer"
    assert port_name(0xF4) == "debug exit"
    assert port_name(0x5658) == ""
