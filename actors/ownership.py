"""The placement record as the two sides of a migration ask it: over Ray."""

from __future__ import annotations

import time
from typing import Any, Final, cast

import ray

from rayvisor.actors.calls import answer
from rayvisor.actors.errors import ActorAwayError, ActorGoneError
from rayvisor.actors.names import CLUSTER_ACTOR, NAMESPACE

ANSWER_S: Final = 10.0
RETRY_S: Final = 0.1


class RayOwnership:
    """See `rayvisor.migration.roles.Ownership`; for the process of the actor `actor`."""

    def __init__(self, actor: str) -> None:
        self._actor = actor
        self._cluster: Any = None

    def reach(self) -> None:
        """Find and greet the record now: the first call takes long, and a guest would wait.

        A record that is being made anew is waited for.

        Raises:
            ClusterError: it does not answer.
        """
        until = time.monotonic() + ANSWER_S
        while True:
            try:
                self._call("record_ready")
            except (ActorAwayError, ActorGoneError):
                if time.monotonic() >= until:
                    raise
                time.sleep(RETRY_S)
            else:
                return

    def commit(self, vm: str, token: int) -> int:
        """The destination takes the VM."""
        return cast("int", self._call("commit_move", vm, token, self._actor))

    def take_back(self, vm: str, token: int, *, given_up: bool) -> int:
        """The source wants to go on."""
        return cast("int", self._call("take_back", vm, token, self._actor, given_up))

    def _call(self, method: str, *arguments: object) -> Any:  # noqa: ANN401 - Ray's have no type
        if self._cluster is None:
            self._cluster = ray.get_actor(CLUSTER_ACTOR, namespace=NAMESPACE)
        try:
            return answer(getattr(self._cluster, method).remote(*arguments), ANSWER_S)
        except ActorGoneError:
            self._cluster = None
            raise
