"""This process's connection to Ray, made quiet."""

from __future__ import annotations

import contextlib
import logging
import os
from typing import TYPE_CHECKING, Any

import ray
from ray import _raylet
from ray._private import ray_constants
from ray._private import worker as ray_worker
from ray.exceptions import RayError

from rayvisor.actors.names import NAMESPACE
from rayvisor.vmm.errors import ClusterError

if TYPE_CHECKING:
    from collections.abc import Iterator


def connect(address: str, *, loopback: bool, working_dir: str = "") -> None:
    """Connect to the Ray at `address`, HOST:PORT or "auto".

    With `loopback`, it is one that listens on the loopback address alone, and so does this
    process.

    Raises:
        ClusterError: there is none, or it does not let us in.
    """
    # Ray may have been imported before the environment said how to authenticate.
    raylet: Any = _raylet
    raylet.Config.initialize("")
    raylet.AuthenticationTokenLoader.instance().reset_cache()
    options: dict[str, Any] = {"_node_ip_address": "127.0.0.1"} if loopback else {}
    if working_dir:
        options["runtime_env"] = {"working_dir": working_dir}
    try:
        with _loopback_allowed() if loopback else contextlib.nullcontext():
            ray.init(
                address=address,
                namespace=NAMESPACE,
                log_to_driver=False,
                logging_level=logging.ERROR,
                **options,
            )
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        first, *_ = str(error).strip().splitlines() or [type(error).__name__]
        raise ClusterError(f"no Ray to connect to at {address}: {first}") from error
    # The answer of a process that has lost its VM is not waited for once the VM is elsewhere.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    # The raylet's remarks on each process that ends would go to standard output; what they say
    # of a VM is its reason.
    ray_worker._worker_logs_enabled = False  # noqa: SLF001 - Ray offers no public switch


@contextlib.contextmanager
def _loopback_allowed() -> Iterator[None]:
    """Inside, Ray takes 127.0.0.1 for this node's address instead of looking for another.

    The environment variable for it is read when Ray is imported, which may be long ago.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
