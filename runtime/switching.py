"""Moving VMs that are fault tolerant: they go on at their secondary, and get another one.

A secondary is made where the VM is to go, if it is not there already, and then takes over as it
would if the host were lost, but from the guest's very last instruction.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, Protocol

from rayvisor.actors.placing import named
from rayvisor.actors.records import PROTECTED
from rayvisor.migration.report import MigrationReport
from rayvisor.runtime.protecting import FAILOVER_S, wait_until_protected
from rayvisor.vmm.errors import MigrationError, PlacementError

if TYPE_CHECKING:
    from rayvisor.actors.records import FtStatus, HostStatus

READY_S: Final = 60.0
"""How long a secondary that is asked for may take to be ready, unless somebody says so."""


class Switching(Protocol):
    """What is needed of a cluster: a `rayvisor.Cluster`."""

    def hosts(self) -> list[HostStatus]:
        """Every host."""

    def ft_status(self, name: str) -> FtStatus:
        """How protected a VM is."""

    def ft_reseat(self, name: str, host: str | None) -> FtStatus:
        """Have a VM's secondary made anew on `host`, or on any other one than now."""

    def ft_failover(self, name: str, timeout_s: float) -> FtStatus:
        """Have a VM go on at its secondary; how it is protected once it does."""


def move(
    cluster: Switching, before: FtStatus, host: str | None, timeout_s: float
) -> MigrationReport:
    """Move a VM that is fault tolerant, and wait for it.

    Until its secondary takes over it runs where it was, whatever goes wrong.

    Args:
        cluster: where it is.
        before: how protected it is.
        host: a host's name, or an unambiguous start of its id; that of its secondary if left out.
        timeout_s: how long its secondary may take to be ready.

    Raises:
        MigrationError: it is there already, or stays where it is.
        PlacementError: no such host, or no room on it.
    """
    began_s, name = time.monotonic(), before.vm
    hosts = cluster.hosts()
    target = None if host is None else named(host, hosts).name
    if target == before.host:
        raise MigrationError(f"VM {name!r} is on host {before.host} already")
    timeout_s = min(timeout_s, READY_S)
    closed = any(h.name == before.secondary and (h.reason or not h.alive) for h in hosts)
    if target not in {None, before.secondary} or closed:
        ready = reseat(cluster, name, target, timeout_s)
    else:
        ready = _wait(cluster, name, timeout_s)
    asked_s = time.monotonic()
    after = cluster.ft_failover(name, FAILOVER_S)
    ended_s = time.monotonic()
    return MigrationReport(
        name,
        ready.host,
        after.host,
        outcome="moved",
        total_s=ended_s - began_s,
        downtime_s=ended_s - asked_s,
        downtime_is_bound=True,
        phases={"secondary_s": asked_s - began_s, "switch_over_s": ended_s - asked_s},
    )


def reseat(cluster: Switching, name: str, host: str | None, timeout_s: float) -> FtStatus:
    """Have a VM's secondary made on another host, and wait until that protects it.

    Raises:
        MigrationError: it does not in time; it is tried on.
        PlacementError: no host has room; its secondary stays where it is.
    """
    cluster.ft_reseat(name, host)
    status = _wait(cluster, name, timeout_s)
    if host not in {None, status.secondary}:
        raise PlacementError(
            f"the secondary of VM {name!r} is on {status.secondary}: {host} had no room any more"
        )
    return status


def _wait(cluster: Switching, name: str, timeout_s: float) -> FtStatus:
    status = cluster.ft_status(name)
    if status.state in PROTECTED:
        return status
    try:
        return wait_until_protected(cluster, name, timeout_s)
    except MigrationError as error:
        raise MigrationError(
            f"{error}; `rayvisor ft disable {name}` makes it a VM that is moved without a secondary"
        ) from None
