"""A Ray of our own on this machine: started, found again and ended by its processes.

Every process of it carries RAYVISOR_CLUSTER_ID in its environment, whatever process group or
session it moved to, so that `stop` ends all of them and nobody else's. Only the loopback
address is listened on, and every connection needs the token that `up` made.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import rayvisor
from rayvisor.runtime import cluster_file, local_hosts
from rayvisor.runtime.cluster_file import ClusterFile
from rayvisor.vmm.errors import ClusterError

if TYPE_CHECKING:
    from collections.abc import Callable

LOOPBACK: Final = "127.0.0.1"
MARK: Final = "RAYVISOR_CLUSTER_ID"
START_TIMEOUT_S: Final = 90.0
TERM_S: Final = 0.5  # nothing in it is worth saving, and Ray's own parts take their time
KILL_S: Final = 5.0

_MAX_TEMP_DIR = 40  # a socket's path, of at most 107 bytes, goes 64 bytes deeper


def start(
    *,
    object_store_bytes: int,
    cpus: int | None,
    dashboard: bool,
    hosts: int = 1,
    progress: Callable[[str], None],
    meanwhile: Callable[[ClusterFile], None] = lambda _cluster: None,
) -> ClusterFile:
    """Start the nodes and wait until they are ready; the file it writes says "starting".

    `meanwhile` is called while it starts, on a thread of its own.

    Raises:
        ClusterError: Ray did not start; nothing is left of it.
    """
    cluster = _prepare(dashboard=dashboard).model_copy(update={"hosts": hosts})
    try:
        progress("starting Ray on this machine")
        threading.Thread(target=_try, args=(meanwhile, cluster), daemon=True).start()
        command = _command(
            cluster, object_store_bytes=object_store_bytes, cpus=cpus, dashboard=dashboard
        )
        share = local_hosts.shares(hosts)
        first = {} if hosts == 1 else local_hosts.environment(cluster, 1)
        head = command + local_hosts.options(1, share)
        Starter.of(head, {**environment(cluster), **first}).wait()
        address = (Path(cluster.temp_dir) / "ray_current_cluster").read_text(encoding="ascii")
        cluster = cluster.model_copy(update={"address": address.strip()})
        cluster_file.save(cluster)
        if hosts > 1:
            progress("starting another host" if hosts == 2 else f"starting {hosts - 1} more hosts")
            local_hosts.start_others(cluster, share, environment(cluster), object_store_bytes)
    except BaseException:
        stop(cluster)
        raise
    return cluster


def _try(meanwhile: Callable[[ClusterFile], None], cluster: ClusterFile) -> None:
    """What fails here fails again, and is told, where it is needed."""
    with contextlib.suppress(Exception):
        meanwhile(cluster)


def stop(cluster: ClusterFile) -> int:
    """End every process of the cluster and remove its files; gives how many there were.

    Raises:
        ClusterError: a process does not end.
    """
    sessions: set[int] = set()
    found = _members(cluster, sessions)
    for number, patience_s in ((signal.SIGTERM, TERM_S), (signal.SIGKILL, KILL_S)):
        deadline_s = time.monotonic() + patience_s
        left = _members(cluster, sessions)
        for pid in left:
            _signal(pid, number)
        while left and time.monotonic() < deadline_s:
            time.sleep(0.02)
            left = _members(cluster, sessions)
    if left:
        raise ClusterError(f"processes {', '.join(map(str, left))} of the cluster do not end")
    cluster_file.forget(cluster)
    return len(found)


def processes(cluster: ClusterFile) -> list[int]:
    """The processes of an owned cluster that run, as pids."""
    return _members(cluster, set())


def _members(cluster: ClusterFile, sessions: set[int]) -> list[int]:
    mark = f"{MARK}={cluster.cluster_id}"
    return marked_processes(mark, sessions) if cluster.cluster_id else []


def marked_processes(mark: str, sessions: set[int]) -> list[int]:
    """Processes with `mark` in their environment, or in a session that `start` opened.

    Some of Ray's agents overwrite their environment, and its workers are in process groups of
    their own; but all of them stay in that session. It is known by a marked process in it, and
    by its leader, which carries the mark as well or is gone: a marked process in a session of
    somebody else's is one of the cluster, its neighbours are not. The sessions found are added
    to `sessions`, for the next call to know when the marked ones are gone.
    """
    session_of: dict[int, int] = {}
    marked: set[int] = set()
    for entry in Path("/proc").iterdir():
        # What has gone meanwhile, and what is somebody else's, is none of it.
        with contextlib.suppress(OSError):
            if not entry.name.isdigit():
                continue
            # proc(5): pid (comm) state ppid pgrp session; comm may hold anything.
            state, _, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
            if state in "ZX":
                continue
            session_of[int(entry.name)] = int(session)
            if mark.encode() in (entry / "environ").read_bytes().split(b"\0"):
                marked.add(int(entry.name))
    opened = {session_of[pid] for pid in marked} - {os.getsid(0)}
    sessions |= {leader for leader in opened if leader in marked or leader not in session_of}
    return sorted(pid for pid, s in session_of.items() if pid in marked or s in sessions)


def answers(address: str) -> bool:
    """Whether something listens at HOST:PORT."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=2.0):
            return True
    except (OSError, ValueError):
        return False


def client_environment(cluster: ClusterFile) -> dict[str, str]:
    """What a process needs in its environment, before it imports ray, to talk to the cluster."""
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": cluster.token_file,
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def _prepare(*, dashboard: bool) -> ClusterFile:
    base = tempfile.gettempdir()
    if len(base) > _MAX_TEMP_DIR:
        base = "/tmp"  # noqa: S108 - mkdtemp makes a private folder in it
    folder = cluster_file.folder()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    cluster_id = secrets.token_hex(8)
    cluster = ClusterFile(
        phase="starting",
        owned=True,
        cluster_id=cluster_id,
        temp_dir=str(Path(base) / f"rayvisor-{cluster_id}"),
        token_file=str(folder / "token"),
        dashboard_url=f"http://{LOOPBACK}:{_free_port()}" if dashboard else "",
        started_unix_s=time.time(),
    )
    cluster_file.save(cluster)
    Path(cluster.temp_dir).mkdir(mode=0o700)
    token = os.open(cluster.token_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.write(token, secrets.token_hex(32).encode())
    finally:
        os.close(token)
    return cluster


def _command(
    cluster: ClusterFile, *, object_store_bytes: int, cpus: int | None, dashboard: bool
) -> list[str]:
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head"),
        *(f"--node-ip-address={LOOPBACK}", "--port=0", "--dashboard-agent-listen-port=0"),
        *(f"--temp-dir={cluster.temp_dir}", f"--object-store-memory={object_store_bytes}"),
        *("--no-monitor", "--include-log-monitor=false", "--disable-usage-stats"),
        *("--log-style=record", "--log-color=false"),
        f"--include-dashboard={str(dashboard).lower()}",
    ]
    if dashboard:
        port = cluster.dashboard_url.rpartition(":")[2]
        command += [f"--dashboard-host={LOOPBACK}", f"--dashboard-port={port}"]
    if cpus is not None:
        command.append(f"--num-cpus={cpus}")
    return command


@dataclass(frozen=True, slots=True)
class Starter:
    """A `ray start` under way; it ends once its node is ready, and leaves its processes behind."""

    process: subprocess.Popen[bytes]
    log: Path

    @classmethod
    def of(cls, command: list[str], env: dict[str, str], name: str = "start") -> Starter:
        """Begin it."""
        log = cluster_file.folder() / f"{name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=env,
                start_new_session=True,  # ctrl-C is ours to handle
            )
        return cls(process, log)

    def wait(self) -> None:
        """Until the node is ready.

        Raises:
            ClusterError: it does not start.
        """
        try:
            status = self.process.wait(START_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise ClusterError(
                f"Ray was not ready after {START_TIMEOUT_S:.0f} s; its output is in {self.log}"
            ) from None
        if status:
            raise ClusterError(f"Ray did not start: {_last_line(self.log)} (all of it: {self.log})")


def environment(cluster: ClusterFile) -> dict[str, str]:
    """What the processes of a local cluster have in their environment."""
    env = {
        **{k: v for k, v in os.environ.items() if k not in _NOT_INHERITED},
        **client_environment(cluster),
        MARK: cluster.cluster_id,
        # A host that is killed is missed after three seconds of silence.
        "RAY_health_check_period_ms": "1000",
        "RAY_health_check_failure_threshold": "3",
        # And one that stands still, whose connections stay open, after ten.
        "RAY_health_check_timeout_ms": "3000",
        # The switch by which Ray stays on the loopback address, on any system.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_START_HOOK": "rayvisor.actors.start_hook.lighten",
    }
    try:
        importlib.metadata.distribution("rayvisor")
    except importlib.metadata.PackageNotFoundError:
        # Run from a source tree: tell Ray's processes where it is.
        here = str(Path(rayvisor.__file__).parent.parent)
        env["PYTHONPATH"] = os.pathsep.join(filter(None, (here, env.get("PYTHONPATH"))))
    return env


_NOT_INHERITED = {"RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_NAMESPACE", "RAY_RUNTIME_ENV_HOOK"}


def _free_port() -> int:
    with socket.create_server((LOOPBACK, 0)) as server:
        return int(server.getsockname()[1])


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"
