"""Admission control: room is kept for the loss of hosts. Pure functions.

Before a VM is created, the loss of every set of `reserve` hosts is played through: the VMs there
that have a restart policy must find room on the hosts that are left.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rayvisor.actors.placing import footprint_bytes
from rayvisor.actors.policy import is_ours
from rayvisor.vmm.errors import PlacementError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rayvisor.actors.records import HostStatus, Placement, VmRequest

MOST_CASES: Final = 2000
"""Of more sets of hosts only those are played through that hold the most."""

_MIB: Final = 1 << 20


class ReserveError(PlacementError):
    """There is room, but it is kept for the loss of a host."""


@dataclass(slots=True)
class _Room:
    vcpus: int
    memory_bytes: int


def check(
    request: VmRequest,
    host: HostStatus,
    hosts: Sequence[HostStatus],
    placements: Sequence[Placement],
    reserve: int,
) -> None:
    """Whether the cluster can still lose any `reserve` hosts once `host` has the VM.

    Raises:
        ReserveError: it cannot; says which loss would leave which VMs without room.
    """
    ready = [h for h in hosts if h.alive and not h.reason]
    if reserve <= 0:
        return
    if len(ready) <= reserve:
        raise ReserveError(
            f"no room for VM {request.name!r}: {len(ready)} of the hosts are ready, and"
            f" --ha-reserve {reserve} keeps as many for their loss; add a host, or lower the"
            f" reserve (`rayvisor ha --reserve {len(ready) - 1}`)"
        )
    protected = [(p.host_id, p.request) for p in placements if is_ours(p)]
    if request.ha.restart != "never":
        protected.append((host.host_id, request))
    for lost in _cases(ready, protected, reserve):
        ids = {h.host_id for h in lost}
        homeless = [r for host_id, r in protected if host_id in ids]
        left = [h for h in ready if h.host_id not in ids]
        rooms = [_free(h, request if h.host_id == host.host_id else None) for h in left]
        stranded = _stranded(homeless, rooms)
        if stranded:
            raise ReserveError(_refusal(request, lost, homeless, stranded, left, host, reserve))


def _cases(
    ready: Sequence[HostStatus], protected: Iterable[tuple[str, VmRequest]], reserve: int
) -> Iterable[tuple[HostStatus, ...]]:
    load: dict[str, int] = {}
    for host_id, request in protected:
        load[host_id] = load.get(host_id, 0) + footprint_bytes(request)
    # What carries the most, and what would be missed the most, first.
    worst = sorted(ready, key=lambda h: (-load.get(h.host_id, 0), -h.memory_bytes, h.name))
    if math.comb(len(ready), reserve) > MOST_CASES:
        keep = reserve
        while math.comb(keep + 1, reserve) <= MOST_CASES:
            keep += 1
        worst = worst[:keep]
    return itertools.combinations(worst, reserve)


def _free(host: HostStatus, taken: VmRequest | None) -> _Room:
    room = _Room(host.vcpus - host.vcpus_used, host.memory_bytes - host.memory_used_bytes)
    if taken is not None:
        room.vcpus -= taken.cpus
        room.memory_bytes -= footprint_bytes(taken)
    return room


def _stranded(homeless: Sequence[VmRequest], rooms: list[_Room]) -> list[VmRequest]:
    """Those that find no room, the largest placed first, each where most is left."""
    stranded = []
    for request in sorted(homeless, key=lambda r: (-footprint_bytes(r), r.name)):
        fits = [
            room
            for room in rooms
            if room.vcpus >= request.cpus and room.memory_bytes >= footprint_bytes(request)
        ]
        if not fits:
            stranded.append(request)
            continue
        best = max(fits, key=lambda room: room.memory_bytes)
        best.vcpus -= request.cpus
        best.memory_bytes -= footprint_bytes(request)
    return stranded


def _refusal(
    request: VmRequest,
    lost: Sequence[HostStatus],
    homeless: Sequence[VmRequest],
    stranded: Sequence[VmRequest],
    left: Sequence[HostStatus],
    host: HostStatus,
    reserve: int,
) -> str:
    free = sum(
        max(0, _free(h, request if h.host_id == host.host_id else None).memory_bytes) for h in left
    )
    names = ", ".join(h.name for h in lost)
    needed = sum(map(footprint_bytes, homeless))
    short = sum(map(footprint_bytes, stranded)) // _MIB
    return (
        f"no room for VM {request.name!r}: --ha-reserve {reserve} keeps room for the loss of"
        f" {reserve} host{'s' * (reserve > 1)}; with this VM on {host.name}, losing {names} would"
        f" leave {len(homeless)} VM{'s' * (len(homeless) != 1)} in need of {needed // _MIB} MiB,"
        f" the others have {free // _MIB} MiB free, and {len(stranded)} of {short} MiB would"
        " find no room; remove a VM (`rayvisor rm`), ask for less, add a host, or lower the reserve"
        f" (`rayvisor ha --reserve {reserve - 1}`)"
    )
