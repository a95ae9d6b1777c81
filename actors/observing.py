"""What a program that is connected to Ray asks of hosts and cluster to watch them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast

import ray
from ray.exceptions import RayError

from rayvisor.actors import services
from rayvisor.actors.calls import answer
from rayvisor.actors.carrier import host_actor
from rayvisor.actors.cluster import cluster_actor
from rayvisor.actors.events import EventLog
from rayvisor.actors.store import RayStore

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rayvisor.actors.events import Event
    from rayvisor.vmm.stats import HostStats

ANSWER_S: Final = 3.0


def host_stats(host_ids: Sequence[str]) -> list[HostStats | None]:
    """What the hosts count, all asked at once; None for one that does not answer."""
    asked = [host_actor(host_id).stats.remote() for host_id in host_ids]
    if asked:
        ray.wait(asked, num_returns=len(asked), timeout=ANSWER_S)
    found: list[HostStats | None] = []
    for reference in asked:
        try:
            found.append(ray.get(reference, timeout=0))
        except (RayError, TimeoutError):
            found.append(None)
    return found


def outcomes() -> dict[str, int]:
    """See `Directory.outcomes`."""
    return cast("dict[str, int]", answer(cluster_actor().outcomes.remote(), ANSWER_S))


def service_addresses() -> dict[str, str]:
    """Where the services of this Ray cluster are; see `services.addresses`."""
    return services.addresses(RayStore())


def events() -> list[Event]:
    """What happened, as far as it is kept, oldest first."""
    return EventLog(RayStore()).read()
