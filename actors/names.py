"""What the actors are called, and how their classes are told to Ray."""

from __future__ import annotations

from typing import Final

NAMESPACE: Final = "rayvisor"
"""The Ray namespace of every actor, whatever namespace the caller's program uses."""

CLUSTER_ACTOR: Final = "rayvisor-cluster"
CONSOLE_GROUP: Final = "console"
INPUT_GROUP: Final = "input"


def vm_actor_name(vm: str) -> str:
    """The actor of the VM called `vm`."""
    return f"rayvisor-vm-{vm}"


def host_actor_name(host_id: str) -> str:
    """The host actor of the Ray node whose id in hex is `host_id`."""
    return f"rayvisor-host-{host_id}"
