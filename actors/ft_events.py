"""What the two sides of a fault tolerant VM say of themselves: events, and a word to the keeper."""

from __future__ import annotations

import contextlib
import logging
import time
from typing import TYPE_CHECKING, Any, Final, cast

import ray
from ray.exceptions import RayError

from rayvisor.actors.events import EventKind, EventLog
from rayvisor.actors.names import CLUSTER_ACTOR, NAMESPACE
from rayvisor.vmm.errors import RayvisorError

if TYPE_CHECKING:
    from rayvisor.actors.records import Placement
    from rayvisor.actors.store import KeyValueStore
    from rayvisor.migration.ft_standby import Takeover

_log = logging.getLogger(__name__)

LAGGING_EVERY_S: Final = 10.0
"""A link that is slow now and then is told of this often at most."""


class Teller:
    """Tells of one pair, from one of its processes."""

    def __init__(self, placement: Placement, store: KeyValueStore) -> None:
        """`placement` is the VM's, with the pair."""
        if placement.pair is None:
            raise ValueError("a placement with a pair is wanted")
        self._placement = placement
        self._pair = placement.pair
        self._events = EventLog(store)
        self._protected = False
        self._lagged_s = float("-inf")

    def tell(self, state: str, reason: str) -> None:
        """The primary's state is another."""
        name, here = self._placement.name, self._placement.host_name
        there = self._pair.secondary.host_name
        if state == "protected" and not self._protected:
            self._protected = True
            self._write(EventKind.FT_PROTECTED, f"VM {name} is protected by {there}", here)
        elif state == "lagging" and time.monotonic() - self._lagged_s > LAGGING_EVERY_S:
            self._lagged_s = time.monotonic()
            self._write(
                EventKind.FT_LAGGING,
                f"VM {name}: the link to its secondary on {there} is too slow for its epochs",
                here,
            )
        elif state == "unprotected":
            self._write(
                EventKind.FT_UNPROTECTED,
                f"VM {name} goes on at {here} without its secondary on {there}: {reason}",
                here,
            )
        _wake_keeper(name, self._pair.id, state, reason)

    def tell_takeover(self, takeover: Takeover) -> None:
        """The secondary has the VM."""
        name, there = self._placement.name, self._pair.secondary.host_name
        detected_s = (takeover.lost_ns - takeover.heard_ns) / 1e9
        resumed_s = (takeover.resumed_ns - takeover.lost_ns) / 1e9
        self._write(
            EventKind.FT_FAILOVER,
            f"VM {name} goes on at {there} from epoch {takeover.epoch}:"
            f" {self._placement.host_name} was missed after {detected_s * 1000:.0f} ms,"
            f" the guest ran {resumed_s * 1000:.0f} ms later",
            there,
            {
                "epoch": takeover.epoch,
                "token": self._pair.token,
                "detection_s": detected_s,
                "decision_s": (takeover.decided_ns - takeover.lost_ns) / 1e9,
                "takeover_s": resumed_s,
                "resumed_monotonic_ns": takeover.resumed_ns,
            },
        )
        _wake_keeper(name, self._pair.id, "taken over", "")

    def _write(
        self, kind: EventKind, text: str, host: str, data: dict[str, Any] | None = None
    ) -> None:
        # Its own fault must not be the VM's.
        with contextlib.suppress(RayvisorError, RayError, OSError):
            known = {"pair": self._pair.id, **(data or {})}
            self._events.write(kind, text, vm=self._placement.name, host=host, data=known)


def _wake_keeper(name: str, pair_id: str, state: str, reason: str) -> None:
    """Say it to the cluster actor and wait for nothing: it looks for itself, too."""
    try:
        cluster = cast("Any", ray.get_actor(CLUSTER_ACTOR, namespace=NAMESPACE))
        cluster.ft_changed.remote(name, pair_id, state, reason)
    except (ValueError, RayError) as error:
        _log.info("the cluster actor is away: %s", error)
