"""Which host takes a VM: pure functions over what hosts have and what is promised."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rayvisor.vmm.errors import PlacementError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rayvisor.actors.records import HostStatus, VmRequest

PROCESS_BYTES: Final = 128 << 20
"""Counted for a VM beside its guest RAM: interpreter, Ray, translated code. Measured as PSS."""

_MIB: Final = 1 << 20


def footprint_bytes(request: VmRequest) -> int:
    """Host memory a VM is counted with: guest RAM, as if all were touched, and its process."""
    return request.memory_bytes + PROCESS_BYTES


def choose_host(request: VmRequest, hosts: Sequence[HostStatus]) -> HostStatus:
    """The best of `candidates`.

    Raises:
        PlacementError: no host with that name, or no host with room; with the numbers.
    """
    return candidates(request, hosts)[0]


def candidates(request: VmRequest, hosts: Sequence[HostStatus]) -> list[HostStatus]:
    """Hosts with room, the one with the most memory left first; equal ones by name.

    Raises:
        PlacementError: no host with that name, or no host with room; with the numbers.
    """
    asked = [named(request.host, hosts)] if request.host else list(hosts)
    fits = [h for h in asked if _shortage(request, h) is None]
    if fits:
        return sorted(fits, key=lambda h: (h.memory_used_bytes - h.memory_bytes, h.name))
    needs = (
        f"{request.cpus} vCPU and {footprint_bytes(request) // _MIB} MiB"
        f" ({PROCESS_BYTES // _MIB} MiB of it for the VM's process)"
    )
    why = "; ".join(f"{h.name}: {_shortage(request, h)}" for h in asked[:8])
    if len(asked) > 8:
        why += f"; and {len(asked) - 8} more"
    raise PlacementError(
        f"no room for VM {request.name!r}: it needs {needs}; {why or 'the cluster has no host'};"
        " remove a VM (`rayvisor rm`), ask for less, or add a host"
    )


def lacking(request: VmRequest, hosts: Sequence[HostStatus]) -> str:
    """What kept a VM from being placed, in a word, for counting: that of the nearest miss."""
    misses = {_lack(request, h) for h in hosts if request.host in {None, h.name}}
    return next((lack for lack in LACKS if lack in misses), "no-host")


LACKS: Final = ("memory", "vcpus", "cores", "maintenance", "away")
"""What a host may lack, the nearest miss first."""


def _lack(request: VmRequest, host: HostStatus) -> str:
    if host.reason or not host.alive:
        return "maintenance" if host.maintenance and host.alive else "away"
    if request.cpus > host.cores:
        return "cores"
    return "vcpus" if request.cpus > host.vcpus - host.vcpus_used else "memory"


def named(wanted: str, hosts: Iterable[HostStatus]) -> HostStatus:
    """The host of that name, or with that unambiguous start of an id.

    Raises:
        PlacementError: there is none, or there are several.
    """
    hosts = list(hosts)
    found = [h for h in hosts if h.name == wanted]
    found = found or [h for h in hosts if h.host_id.startswith(wanted)]
    if len(found) == 1:
        return found[0]
    known = ", ".join(sorted(h.name for h in hosts)) or "none"
    what = f"{len(found)} hosts' ids start with" if found else "no host is called"
    raise PlacementError(f"{what} {wanted!r}; hosts: {known} (`rayvisor hosts`)")


def _shortage(request: VmRequest, host: HostStatus) -> str | None:
    """What the host lacks for the VM, or None when it fits."""
    if not host.alive:
        return host.reason or "not alive"
    if host.reason:
        return host.reason
    if request.cpus > host.cores:
        return f"has {host.cores} cores, fewer than the VM has vCPUs"
    if request.cpus > host.vcpus - host.vcpus_used:
        return f"{host.vcpus - host.vcpus_used} of {host.vcpus} vCPUs free"
    free_bytes = host.memory_bytes - host.memory_used_bytes
    if footprint_bytes(request) > free_bytes:
        return f"{free_bytes // _MIB} of {host.memory_bytes // _MIB} MiB free"
    return None
