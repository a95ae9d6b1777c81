"""High availability of a VM, as people write it."""

from __future__ import annotations

import dataclasses
from enum import StrEnum
from typing import Any, TypeVar

from rayvisor.actors.policy import MAX_DELAY_S, MAX_PRIORITY, HaPolicy, Restart
from rayvisor.runtime.units import parse_seconds
from rayvisor.vmm.errors import ConfigError
from rayvisor.vmm.spec import HangAction

Choice = TypeVar("Choice", bound=StrEnum)

MIN_HEARTBEAT_S = 1.0
MAX_HEARTBEAT_S = 86400.0


def changed(
    policy: HaPolicy,
    *,
    restart: str | None = None,
    priority: int | None = None,
    delay: float | str | None = None,
    on_hang: str | None = None,
    heartbeat: float | str | None = None,
) -> HaPolicy:
    """The policy with other values; what is None stays.

    Raises:
        ConfigError: a value that cannot be used.
    """
    values: dict[str, Any] = {}
    if restart is not None:
        values["restart"] = _one_of(Restart, restart, "restart policy")
    if priority is not None:
        check_priority(priority)
        values["priority"] = priority
    if delay is not None:
        values["delay_s"] = check_delay(delay)
    if on_hang is not None:
        values["on_hang"] = _one_of(HangAction, on_hang, "on_hang")
    if heartbeat is not None:
        values["heartbeat_s"] = check_heartbeat(heartbeat)
    return dataclasses.replace(policy, **values)


def _one_of(kind: type[Choice], text: str, what: str) -> Choice:
    try:
        return kind(text)
    except ValueError:
        raise ConfigError(f"{what} {text!r}: give one of {', '.join(kind)}") from None


def check_priority(priority: int) -> None:
    """Raise ConfigError unless it is a priority."""
    if not 0 <= priority <= MAX_PRIORITY:
        raise ConfigError(f"priority {priority}: give 0 to {MAX_PRIORITY}; the greater goes first")


def check_delay(delay: float | str) -> float:
    """The delay in seconds.

    Raises:
        ConfigError: it is none.
    """
    delay_s = parse_seconds(delay)
    if not 0 <= delay_s <= MAX_DELAY_S:
        raise ConfigError(f"restart delay of {delay}: give 0s to {MAX_DELAY_S:g}s")
    return delay_s


def check_heartbeat(heartbeat: float | str) -> float:
    """The longest silence in seconds, 0 for any.

    Raises:
        ConfigError: it is none.
    """
    heartbeat_s = parse_seconds(heartbeat)
    if heartbeat_s and not MIN_HEARTBEAT_S <= heartbeat_s <= MAX_HEARTBEAT_S:
        known = f"{MIN_HEARTBEAT_S:g}s to {MAX_HEARTBEAT_S:g}s, or 0s for none"
        raise ConfigError(f"heartbeat of {heartbeat}: give {known}")
    return heartbeat_s


def needs_boot(policy: HaPolicy) -> bool:
    """Whether what the VM boots must be kept, and is not."""
    return policy.restart is not Restart.NEVER and not policy.boot
