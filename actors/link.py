"""This process's connection to Ray, made quiet."""

from __future__ import annotations

import logging
from typing import Any

import ray
from ray import _raylet
from ray._private import worker as ray_worker

from rayvisor.actors.names import NAMESPACE
from rayvisor.vmm.errors import ClusterError


def connect(address: str, *, node_ip: str | None, working_dir: str = "") -> None:
    """Connect to the Ray at `address`, HOST:PORT or "auto".

    Raises:
        ClusterError: there is none, or it does not let us in.
    """
    # Ray may have been imported before the environment said how to authenticate.
    raylet: Any = _raylet
    raylet.Config.initialize("")
    raylet.AuthenticationTokenLoader.instance().reset_cache()
    options: dict[str, Any] = {"_node_ip_address": node_ip} if node_ip else {}
    if working_dir:
        options["runtime_env"] = {"working_dir": working_dir}
    try:
        ray.init(
            address=address,
            namespace=NAMESPACE,
            log_to_driver=False,
            logging_level=logging.ERROR,
            **options,
        )
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        first, *_ = str(error).strip().splitlines() or [type(error).__name__]
        raise ClusterError(f"no Ray to connect to at {address}: {first}") from error
    # The raylet's remarks on each process that ends would go to standard output; what they say
    # of a VM is its reason.
    ray_worker._worker_logs_enabled = False  # noqa: SLF001 - Ray offers no public switch
