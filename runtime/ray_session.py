"""This program's connection to a Ray: the only file beside those of actors/ that imports it."""

from __future__ import annotations

import os
import socket
import sys
from typing import TYPE_CHECKING, cast

from rayvisor.runtime import local_ray
from rayvisor.vmm.errors import ClusterError

if TYPE_CHECKING:
    from rayvisor.runtime.cluster_file import ClusterFile


def is_connected() -> bool:
    """Whether this program has connected to a Ray; Ray is not imported to find out."""
    ray = sys.modules.get("ray")
    # A module without it is one whose import was broken off, or still goes on.
    is_initialized = getattr(ray, "is_initialized", None)
    return is_initialized is not None and bool(is_initialized())


def is_up(file: ClusterFile) -> bool:
    """Whether the cluster of this file answers, by a look at its processes or its port."""
    if file.owned and not local_ray.processes(file):
        return False
    return file.address in {"", "auto"} or local_ray.answers(file.address)


def connect(file: ClusterFile) -> None:
    """Connect this process to Ray. Harmless when it is connected to this one.

    Raises:
        ClusterError: it is connected to another.
    """
    if is_connected():
        refuse_another(file.address)
        return
    import_ray(file)
    from rayvisor.actors import link

    link.connect(
        file.address,
        loopback=file.owned or file.address.startswith((local_ray.LOOPBACK, "localhost:")),
        working_dir=file.working_dir,
    )


def address_of() -> str:
    """Where the control service listens of the Ray that this process is connected to."""
    import ray

    return cast("str", ray.get_runtime_context().gcs_address)


def refuse_another(address: str) -> None:
    """Raise ClusterError if this program is connected to a Ray that is not at `address`.

    Everything would be asked of that one. It is not for us to leave it: it may be the program's.
    """
    if not is_connected() or address == "auto":
        return
    here = address_of()
    if not address or _resolved(address) != _resolved(here):
        raise ClusterError(
            f"this program is connected to the Ray at {here}: leave it first, by close() of its"
            " Cluster or by ray.shutdown()"
        )


def _resolved(address: str) -> str:
    host, _, port = address.rpartition(":")
    try:
        return f"{socket.gethostbyname(host)}:{port}"
    except OSError:
        return address


def import_ray(file: ClusterFile) -> None:
    """Import what talks to Ray, under the environment that says how to."""
    if file.owned:
        os.environ.update(local_ray.client_environment(file))
        os.environ.pop("RAY_AUTH_TOKEN", None)
    import rayvisor.actors.cluster  # noqa: F401 - takes half a second, which `up` has to wait


def disconnect() -> None:
    """Leave the Ray that this program is connected to. Harmless when it is to none."""
    if is_connected():
        import ray

        ray.shutdown()
