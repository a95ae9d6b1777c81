"""What a container's probes ask of the host in it, and how that host joins the cluster.

    python -m rayvisor.runtime.probe live     # Ray's processes on this node are healthy
    python -m rayvisor.runtime.probe ready    # and the host actor of this node runs
    python -m rayvisor.runtime.probe join     # wait for Ray, then see to it that there is one

Exit status 0 for yes; 1 for no, with a line that says what is missing. `live` and `ready` run every
few seconds beside busy guests, so they import neither Ray nor what talks to it: one request to
Ray's agent, one look at /proc. They suppose one Ray node in sight, as in a container.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rayvisor.vmm.errors import ClusterError, ConfigError, RayvisorError

if TYPE_CHECKING:
    from collections.abc import Sequence

AGENT_PORT: Final = 52365
"""Where Ray's agent on each node answers by default: `ray start --dashboard-agent-listen-port`."""

PORT_VARIABLE: Final = "RAYVISOR_RAY_AGENT_PORT"
HEALTH_PATH: Final = "/api/healthz"
"""Asked without a token; 200 while the raylet is healthy, and on a head the control service too."""

HOST_TITLE: Final = b"ray::HostActor"
"""How Ray names the process of a host actor, followed by a method's name while one runs."""

ANSWER_S: Final = 3.0
JOIN_S: Final = 240.0
PAUSE_S: Final = 1.0


def agent_port() -> int:
    """The port of Ray's agent on this node.

    Raises:
        ConfigError: the environment names something else than a port.
    """
    text = os.environ.get(PORT_VARIABLE) or str(AGENT_PORT)
    if not text.isdecimal() or not 0 < int(text) < 1 << 16:
        raise ConfigError(f"{PORT_VARIABLE}={text!r} is no port: give one from 1 to 65535")
    return int(text)


def check_live(port: int, timeout_s: float = ANSWER_S) -> None:
    """Return if Ray's processes on this node are healthy.

    Raises:
        ClusterError: they are not, or do not answer within `timeout_s` seconds.
    """
    agent = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        agent.request("GET", HEALTH_PATH)
        status = agent.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        raise ClusterError(f"Ray's agent does not answer on port {port}: {error!r}") from None
    finally:
        agent.close()
    if status != http.HTTPStatus.OK:
        raise ClusterError(f"Ray on this node is not healthy: its agent says {status}")


def check_host(proc: Path = Path("/proc")) -> None:
    """Return if the process of a host actor runs here.

    Raises:
        ClusterError: there is none.
    """
    for command in proc.glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has gone meanwhile
            if command.read_bytes().startswith(HOST_TITLE):
                return
    raise ClusterError("no host actor runs on this node: `rayvisor hosts` starts one")


def join(port: int, patience_s: float = JOIN_S) -> None:
    """Wait until Ray answers on this node, then have its host actor started.

    Raises:
        ClusterError: one of the two did not come about within `patience_s` seconds.
    """
    from rayvisor.runtime.cluster import Cluster

    deadline_s = time.monotonic() + patience_s
    while True:
        try:
            check_live(port)
            with Cluster.connect() as cluster:
                cluster.hosts()
            check_host()
        except ClusterError as error:
            if time.monotonic() >= deadline_s:
                raise ClusterError(f"not joined after {patience_s:.0f} s: {error}") from error
            time.sleep(PAUSE_S)
        else:
            return


def main(arguments: Sequence[str] | None = None) -> int:
    """Answer the probe; gives the exit status."""
    parser = argparse.ArgumentParser(prog="rayvisor.runtime.probe", allow_abbrev=False)
    parser.add_argument("question", choices=("live", "ready", "join"))
    question = parser.parse_args(arguments).question
    try:
        port = agent_port()
        if question == "join":
            join(port)
        else:
            check_live(port)
        if question == "ready":
            check_host()
    except RayvisorError as error:
        print(f"rayvisor: {error}", file=sys.stderr)  # noqa: T201 - for the kubelet's event
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
