"""Errors of calls to actors, and errors that tell a caller where to go on."""

from __future__ import annotations

from rayvisor.vmm.errors import ClusterError


class ActorGoneError(ClusterError):
    """There is no such actor, or it has died."""


class ActorAwayError(ClusterError):
    """The actor cannot be reached now: it is starting again, or the network is down."""


class MovedError(ClusterError):
    """The VM is in another process now: the placement record says in which."""
