"""Quantities as people type them."""

from __future__ import annotations

import re
from pathlib import Path

from rayvisor.vmm.errors import ConfigError
from rayvisor.vmm.memory import MIN_MEMORY_BYTES, PAGE_BYTES

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30


_SCALES = {"": 1, "K": KIB, "M": MIB, "G": GIB, "T": 1 << 40}
_SIZE = re.compile(r"([+-]?\d{1,20}(?:\.\d{1,9})?)\s*([KMGT]?)(?:I?B)?", re.IGNORECASE | re.ASCII)


def parse_bytes(text: str) -> int:
    """A size in bytes from "256M", "1G", "1.5GiB", "512 MB" or a plain number of bytes.

    All suffixes are powers of 1024, as QEMU and the kernel's command line have them.

    Raises:
        ConfigError: not a size. The sign is kept: what a negative size means is the caller's.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"{text!r} is not a size: use a number with K, M or G, such as 256M")
    number, suffix = match[1], match[2].upper()
    whole, _, part = number.partition(".")
    scale = _SCALES[suffix]
    fraction = int(part) * scale // 10 ** len(part) if part else 0
    return int(whole) * scale + (-fraction if number.startswith("-") else fraction)


_SPANS = {"": 1.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "min": 60.0, "h": 3600.0}
_SPAN = re.compile(r"(\d{1,12}(?:\.\d{1,9})?)\s*(ms|us|s|min|h|)", re.ASCII)


def parse_seconds(given: float | str) -> float:
    """A span of time in seconds, from a number of them or from "30ms", "1.5s", "10min".

    Raises:
        ConfigError: not a span of time.
    """
    if not isinstance(given, str):
        return float(given)
    match = _SPAN.fullmatch(given.strip())
    if match is None:
        raise ConfigError(f"{given!r} is not a span of time: write it as 30ms, 1.5s or 10min")
    return float(match[1]) * _SPANS[match[2]]


def format_bytes(count: int) -> str:
    """A size as people read it: "256 MiB", "1.5 GiB", "12 B"."""
    for unit, scale in (("TiB", 1 << 40), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if abs(count) >= scale:
            return f"{count / scale:.1f}".removesuffix(".0") + f" {unit}"
    return f"{count} B"


def host_available_bytes() -> int:
    """Memory a new process can have without swapping: MemAvailable, or less under a cgroup."""
    available = _meminfo_available()
    room = _cgroup_room()
    return available if room is None else min(available, room)


def parse_memory(text: str) -> int:
    """A VM's memory in bytes, whole pages, from what a person typed.

    Raises:
        ConfigError: not a size, below 1 MiB, not whole pages, or more than this host has
            available; the message gives both numbers.
    """
    count = parse_bytes(text)
    if count <= 0:
        raise ConfigError(f"memory of {text} is no memory: ask for at least 1M, such as 256M")
    if count < MIN_MEMORY_BYTES:
        raise ConfigError(
            f"memory of {format_bytes(count)} is below the minimum of 1 MiB:"
            f" for {text} mebibytes write {text}M"
            if text.strip().isdigit()
            else f"memory of {format_bytes(count)} is below the minimum of 1 MiB"
        )
    if count % PAGE_BYTES:
        raise ConfigError(
            f"memory of {count} bytes is not whole pages of 4096 bytes:"
            f" {count - count % PAGE_BYTES} would be"
        )
    available = host_available_bytes()
    if count > available:
        raise ConfigError(
            f"memory of {format_bytes(count)} is more than the {format_bytes(available)}"
            " this host has available: ask for less"
        )
    return count


def _meminfo_available() -> int:
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * KIB
    raise ConfigError("/proc/meminfo has no MemAvailable: Linux 3.14 or later is needed")


def _cgroup_room() -> int | None:
    """What the memory controller of this container still grants (cgroup v2 or v1), or None."""
    for limit_file, usage_file in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        (
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        ),
    ):
        try:
            limit = Path(limit_file).read_text(encoding="ascii").strip()
            usage = Path(usage_file).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if limit.isdigit() and usage.isdigit():
            return max(0, int(limit) - int(usage))
    return None
