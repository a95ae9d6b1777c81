"""What the actors are called, and how their classes are told to Ray."""

from __future__ import annotations

import secrets
from typing import Final

NAMESPACE: Final = "rayvisor"
"""The Ray namespace of every actor, whatever namespace the caller's program uses."""

CLUSTER_ACTOR: Final = "rayvisor-cluster"
CONSOLE_GROUP: Final = "console"
INPUT_GROUP: Final = "input"
MOVE_GROUP: Final = "move"
_VM_PREFIX: Final = "rayvisor-vm-"


def new_vm_actor_name(host_id: str) -> str:
    """A name for a new VM actor on this Ray node. It has no VM yet, and a VM may leave it."""
    return f"{vm_actor_prefix(host_id)}{secrets.token_hex(6)}"


def vm_actor_prefix(host_id: str) -> str:
    """What the names of the VM actors on this Ray node begin with."""
    return f"{_VM_PREFIX}{host_id[:16]}-"


def host_actor_name(host_id: str) -> str:
    """The host actor of the Ray node whose id in hex is `host_id`."""
    return f"rayvisor-host-{host_id}"
