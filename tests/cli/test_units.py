"""Sizes as people type them, and what cannot be a VM's memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayvisor.runtime import units
from rayvisor.runtime.units import format_bytes, host_available_bytes, parse_bytes, parse_memory
from rayvisor.vmm.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("4096", 4096),
        ("256M", 256 << 20),
        ("1G", 1 << 30),
        ("512MiB", 512 << 20),
        ("512 mb", 512 << 20),
        (" 2k ", 2048),
        ("1.5G", 3 << 29),
        ("1T", 1 << 40),
        ("100B", 100),
        ("-1", -1),
        ("-1.5K", -1536),
    ],
)
def test_sizes(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "M", "12Q", "1e3", "0x10", "1 2", "٣M", "1..5G", "nan"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a size: use a number with K, M or G"):
        parse_bytes(text)


@given(st.integers(0, 1 << 50), st.sampled_from("KMGT"))
def test_suffixes_are_powers_of_1024(number: int, suffix: str) -> None:
    expected = number * 1024 ** (1 + "KMGT".index(suffix))
    for unit in (suffix, suffix.lower(), f"{suffix}B", f"{suffix}iB"):
        assert parse_bytes(f"{number}{unit}") == expected


@given(st.text(max_size=20))
def test_any_text_gives_a_number_or_one_line(text: str) -> None:
    try:
        count = parse_bytes(text)
    except ConfigError as error:
        found = str(error)
    else:
        found = format_bytes(count)
    assert "\n" not in found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0", "memory of 0 is no memory: ask for at least 1M, such as 256M"),
        ("-1", "memory of -1 is no memory"),
        ("-5G", "memory of -5G is no memory"),
        ("256", "memory of 256 B is below the minimum of 1 MiB: for 256 mebibytes write 256M"),
        ("512K", "memory of 512 KiB is below the minimum of 1 MiB"),
        ("1048577", "not whole pages of 4096 bytes: 1048576 would be"),
    ],
)
def test_what_is_no_memory_for_a_machine(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_memory(text)


def test_more_than_the_host_has_gives_both_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "host_available_bytes", lambda: 3 << 29)
    assert parse_memory("1G") == 1 << 30
    with pytest.raises(ConfigError, match=r"memory of 2 GiB is more than the 1\.5 GiB this host"):
        parse_memory("2G")


def test_no_host_of_today_has_an_exbibyte() -> None:
    assert 0 < host_available_bytes() < 1 << 60
    with pytest.raises(ConfigError, match="more than the"):
        parse_memory("1048576T")


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (3 << 29, "1.5 GiB"), (1 << 40, "1 TiB")],
)
def test_as_people_read_them(count: int, text: str) -> None:
    assert format_bytes(count) == text
