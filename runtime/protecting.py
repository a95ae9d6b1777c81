"""Fault tolerance, from Python: what is asked of it, and waiting for it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final, Protocol

from rayvisor.actors.records import PROTECTED
from rayvisor.runtime.units import parse_seconds
from rayvisor.vmm.errors import MigrationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rayvisor.actors.records import FtStatus
    from rayvisor.migration.ft_config import FtConfig

FAILOVER_S: Final = 20.0
LOOK_EVERY_S: Final = 0.05


class Protecting(Protocol):
    """What a cluster knows of fault tolerant VMs: a `rayvisor.Cluster`."""

    def ft_status(self, name: str) -> FtStatus:
        """How protected a VM is."""


def config_of(*, epoch: float | str | None = None, silence: float | str | None = None) -> FtConfig:
    """What is asked, from seconds or "25ms".

    Raises:
        ConfigError: a time is malformed, or makes no sense.
    """
    from rayvisor.migration.ft_config import FtConfig

    options: dict[str, Any] = {}
    if epoch is not None:
        options["epoch_s"] = parse_seconds(epoch)
    if silence is not None:
        options["silence_s"] = parse_seconds(silence)
    return FtConfig(**options)


def wait_until_protected(
    cluster: Protecting,
    name: str,
    timeout_s: float,
    on_look: Callable[[FtStatus], None] = lambda _status: None,
) -> FtStatus:
    """How a VM is protected, once it is.

    Raises:
        MigrationError: it is not in time, or is not to be any more.
    """
    deadline_s = time.monotonic() + timeout_s
    while True:
        status = cluster.ft_status(name)
        on_look(status)
        if status.state in PROTECTED:
            return status
        if status.state == "off":
            raise MigrationError(f"VM {name!r} is not to be protected any more")
        if time.monotonic() > deadline_s:
            raise MigrationError(
                f"VM {name!r} is not protected after {timeout_s:g} s:"
                f" {status.reason or status.state}; it goes on being tried"
                f" (`rayvisor ft status {name}`)"
            )
        time.sleep(LOOK_EVERY_S)


def wait_for_failover(cluster: Protecting, before: FtStatus, timeout_s: float) -> FtStatus:
    """How a VM is protected once it has gone on elsewhere.

    Raises:
        MigrationError: it has not in time.
    """
    deadline_s = time.monotonic() + timeout_s
    while True:
        status = cluster.ft_status(before.vm)
        if status.failovers > before.failovers:
            return status
        if status.state == "unprotected" or time.monotonic() > deadline_s:
            raise MigrationError(
                f"VM {before.vm!r} stays on {status.host}:"
                f" {status.reason or f'its secondary has not taken over in {timeout_s:g} s'}"
            )
        time.sleep(LOOK_EVERY_S)
