"""What `ray start` leaves out for a local cluster of ours: named by RAY_START_HOOK."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ray._private import ray_constants, services

if TYPE_CHECKING:
    from ray._private.parameter import RayParams

SOCKETS_VARIABLE: Final = "RAYVISOR_LOCAL_SOCKETS"


def lighten(params: RayParams, head: bool) -> None:
    """Start neither of two processes that nobody here connects to, and stay on the loopback.

    One serves Ray Client, on a port of its own. The other is the dashboard's, which Ray starts,
    at 80 MiB and a second of processor time, to report usage even where no dashboard is wanted;
    Ray goes on without it as it does when that process cannot start.
    """
    params.ray_client_server_port = None
    if not params.include_dashboard:
        services.start_api_server = _start_nothing
    if not head:
        # By the switch that keeps a head node on the loopback address, Ray refuses others to join:
        # in this process, which starts one and ends, both are had.
        ray_constants.ENABLE_RAY_CLUSTER = True
        services.get_node_ip_address = _loopback
        _name_sockets(params)


def _name_sockets(params: RayParams) -> None:
    """Give a node the names of its sockets: Ray counts them up, and two may count at once."""
    prefix = os.environ.get(SOCKETS_VARIABLE)
    if prefix:
        names = [Path(f"{prefix}-{part}") for part in ("plasma", "raylet")]
        for name in names:
            name.unlink(missing_ok=True)
        params.plasma_store_socket_name, params.raylet_socket_name = map(str, names)


def _start_nothing(*_args: object, **_options: object) -> tuple[str, None]:
    return "", None


def _loopback(_address: str | None = None) -> str:
    return "127.0.0.1"
