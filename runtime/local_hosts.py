"""This machine as several hosts: one Ray node each, in a session of its own.

A node's processes (its raylet, its agents, its workers and so its VMs) carry the host's name in
their environment and are in one session, so that all of them can be ended at once, as when a
machine dies. The first host also has Ray's control service.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rayvisor.actors import capacity
from rayvisor.vmm.errors import ClusterError

if TYPE_CHECKING:
    from rayvisor.runtime.cluster_file import ClusterFile
    from rayvisor.runtime.local_ray import Starter

MAX_HOSTS: Final = 16
RESTARTED_OBJECT_STORE_BYTES: Final = 256 << 20
MARK: Final = "RAYVISOR_LOCAL_HOST"
SOCKETS: Final = "RAYVISOR_LOCAL_SOCKETS"
"""What the names of a node's sockets begin with; see `rayvisor.actors.start_hook`."""


@dataclass(frozen=True, slots=True)
class Share:
    """What each of `hosts` hosts has of this machine."""

    hosts: int
    cores: int
    memory_bytes: int


def shares(hosts: int) -> Share:
    """This machine in equal parts; each has a core at least."""
    whole = capacity.measure()
    return Share(hosts, max(1, whole.cores // hosts), whole.memory_bytes // hosts)


def name_of(number: int) -> str:
    """What host `number`, from 1, is called."""
    return f"host-{number}"


def options(number: int, share: Share) -> list[str]:
    """What `ray start` is told of a host."""
    if share.hosts == 1:
        return []
    resources = {
        capacity.CORES_RESOURCE: share.cores,
        capacity.MEMORY_RESOURCE: share.memory_bytes,
    }
    return [
        f"--node-name={name_of(number)}",
        f"--resources={json.dumps(resources)}",
        *("--min-worker-port=0", "--max-worker-port=0"),
    ]


def environment(cluster: ClusterFile, number: int) -> dict[str, str]:
    """What the processes of a host are told, and known by."""
    name = name_of(number)
    return {MARK: f"{cluster.cluster_id}/{name}", SOCKETS: f"{cluster.temp_dir}/{name}"}


def start_others(
    cluster: ClusterFile, share: Share, env: dict[str, str], object_store_bytes: int
) -> None:
    """Start every host but the first, all at once.

    Raises:
        ClusterError: one does not start.
    """
    starters = [
        _starter(cluster, number, share, env, object_store_bytes)
        for number in range(2, share.hosts + 1)
    ]
    for starter in starters:
        starter.wait()


def start(cluster: ClusterFile, number: int) -> None:
    """Start a host again that has died. It comes back empty, as another Ray node.

    Raises:
        ClusterError: it does not start.
    """
    from rayvisor.runtime import local_ray

    share, env = shares(cluster.hosts), local_ray.environment(cluster)
    _starter(cluster, number, share, env, RESTARTED_OBJECT_STORE_BYTES).wait()


def _starter(
    cluster: ClusterFile, number: int, share: Share, env: dict[str, str], object_store_bytes: int
) -> Starter:
    from rayvisor.runtime.local_ray import Starter

    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start"),
        *(f"--address={cluster.address}", "--node-ip-address=127.0.0.1"),
        *("--dashboard-agent-listen-port=0", f"--object-store-memory={object_store_bytes}"),
        *("--include-log-monitor=false", "--disable-usage-stats"),
        *("--log-style=record", "--log-color=false"),
        *options(number, share),
    ]
    return Starter.of(command, {**env, **environment(cluster, number)}, f"start-{name_of(number)}")


def processes(cluster: ClusterFile, name: str) -> list[int]:
    """The processes of a host, as pids."""
    from rayvisor.runtime.local_ray import marked_processes

    return marked_processes(f"{MARK}={cluster.cluster_id}/{name}", set())


def kill(cluster: ClusterFile, name: str) -> int:
    """End a host as a machine dies: all of its processes at once; gives how many there were.

    Raises:
        ClusterError: there is no such host, or it has Ray's control service, without which the
            whole cluster ends.
    """
    if name == name_of(1):
        raise ClusterError(f"{name} has Ray's control service: `rayvisor down` ends the cluster")
    found = processes(cluster, name)
    if not found:
        raise ClusterError(f"no process of host {name!r} runs on this machine")
    for pid in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return len(found)
