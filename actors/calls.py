"""Calls to actors: their answers, and their errors as they were raised."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast

import ray
from ray.exceptions import (
    ActorUnavailableError,
    GetTimeoutError,
    RayActorError,
    RayError,
    RayTaskError,
)

from rayvisor.actors.errors import ActorAwayError, ActorGoneError
from rayvisor.actors.ledger import read_placement
from rayvisor.actors.names import NAMESPACE
from rayvisor.actors.store import RayStore
from rayvisor.vmm.errors import ClusterError, RayvisorError

if TYPE_CHECKING:
    from rayvisor.actors.records import Placement
    from rayvisor.migration.report import Progress

PROGRESS_S: Final = 1.0


def answer(reference: Any, timeout_s: float) -> Any:  # noqa: ANN401 - Ray's have no static type
    """What a call gave.

    Raises:
        RayvisorError: what the actor raised, as it raised it.
        ActorGoneError: it has died, before or while it did it.
        ActorAwayError: it cannot be reached now; whether it did it is not known.
        ClusterError: no answer within `timeout_s` seconds.
    """
    try:
        return ray.get(reference, timeout=timeout_s)
    except RayTaskError as error:
        cause: BaseException | None = error
        while isinstance(cause, RayTaskError):
            cause = cause.cause
        if isinstance(cause, RayvisorError):
            raise cause from None
        raise
    except GetTimeoutError:
        raise ClusterError(f"no answer within {timeout_s:g} s: try again") from None
    except ActorUnavailableError as error:
        raise ActorAwayError(f"a part of the cluster is away: {_first_line(error)}") from error
    except RayActorError as error:
        raise ActorGoneError(f"a part of the cluster is gone: {_first_line(error)}") from error
    except RayError as error:
        raise ClusterError(f"the cluster failed: {_first_line(error)}") from error


def has_arrived(reference: Any, timeout_s: float) -> bool:  # noqa: ANN401 - as above
    """Whether an answer is there, waiting up to `timeout_s` seconds for it."""
    ready, _ = ray.wait([reference], timeout=timeout_s)
    return bool(ready)


def put(value: object) -> Any:  # noqa: ANN401 - as above
    """A reference to `value` in the object store, where it stays while there is a reference."""
    return ray.put(value)


def find_vm(name: str) -> Any:  # noqa: ANN401 - as above
    """The actor that has a VM now, by the placement record.

    Raises:
        ActorGoneError: there is none.
    """
    placement = read_placement(RayStore(), name)
    if placement is None or not placement.actor:
        raise ActorGoneError(f"there is no process of VM {name!r}")
    return find_actor(placement.actor)


def fails_over(name: str) -> bool:
    """Whether the VM has a secondary that may take over if its process is lost."""
    placement = read_placement(RayStore(), name)
    return placement is not None and placement.pair is not None


def find_actor(name: str) -> Any:  # noqa: ANN401 - as above
    """The actor of that name.

    Raises:
        ActorGoneError: there is none.
    """
    try:
        return ray.get_actor(name, namespace=NAMESPACE)
    except ValueError:
        raise ActorGoneError(f"actor {name} is gone") from None


def migration_progress(placement: Placement) -> Progress | None:
    """Where the migration in `placement` stands; None when that is not known."""
    move = placement.moving
    try:
        source = find_actor(move.origin.actor)
        found = answer(source.migration_progress.remote(move.id), PROGRESS_S)
    except ClusterError:
        return None
    return cast("Progress | None", found)


def _first_line(error: Exception) -> str:
    first, *_ = str(error).splitlines() or [type(error).__name__]
    return first
