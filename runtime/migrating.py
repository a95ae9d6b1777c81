"""Moving VMs, from Python: one VM with a report, or everything off a host."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

from rayvisor.runtime import switching
from rayvisor.runtime.units import parse_bytes, parse_seconds
from rayvisor.vmm.errors import MigrationError, RayvisorError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rayvisor.actors.moves import MoveEnd
    from rayvisor.actors.records import FtStatus, HostStatus, Placement, VmStatus
    from rayvisor.migration.config import MigrationConfig
    from rayvisor.migration.report import MigrationReport, Progress

AT_ONCE: Final = 3
"""VMs that leave a host at the same time."""

LOOK_EVERY_S: Final = 0.1
CANCEL_TAKES_S: Final = 30.0
EVACUATE_TIMEOUT_S: Final = 3600.0


class Moving(switching.Switching, Protocol):
    """What a cluster knows of VMs that move: a `rayvisor.Cluster`."""

    def start_move(self, name: str, host: str | None, config: MigrationConfig) -> Placement:
        """Begin to move a VM; its placement, with the move."""

    def move_end(self, move_id: str, timeout_s: float) -> MoveEnd | None:
        """How a migration ended, or None after `timeout_s` seconds."""

    def move_progress(self, placement: Placement) -> Progress | None:
        """Where a migration stands; None when that is not known."""

    def cancel_migration(self, name: str) -> bool:
        """Call a VM's migration off; whether one was under way."""


class Emptying(switching.Switching, Protocol):
    """What an evacuation needs of a cluster."""

    def ft_statuses(self) -> list[FtStatus]:
        """How protected each fault tolerant VM is."""

    def vms(self) -> list[VmStatus]:
        """How every VM is."""

    def set_maintenance(self, host: str, *, on: bool) -> HostStatus:
        """Have a host take no more VMs, or take them again."""

    def vm(self, name: str) -> Any:  # noqa: ANN401 - a VmHandle, which knows this room
        """The VM called `name`."""


def config_of(
    *,
    downtime: float | str | None = None,
    bandwidth: float | str | None = None,
    timeout: float | str | None = None,
    post_copy: bool = False,
) -> MigrationConfig:
    """What is asked of a migration, from seconds and bytes a second, or "30ms" and "500M".

    Raises:
        ConfigError: a limit is malformed, or leaves nothing.
    """
    from rayvisor.migration.config import MigrationConfig

    options: dict[str, Any] = {"post_copy": post_copy}
    if downtime is not None:
        options["downtime_s"] = parse_seconds(downtime)
    if bandwidth is not None:
        given = parse_bytes(bandwidth) if isinstance(bandwidth, str) else bandwidth
        options["bandwidth_bytes_per_s"] = float(given)
    if timeout is not None:
        options["timeout_s"] = parse_seconds(timeout)
    return MigrationConfig(**options)


def migrate(
    cluster: Moving,
    name: str,
    host: str | None,
    config: MigrationConfig,
    on_progress: Callable[[Progress], None] | None = None,
) -> MigrationReport:
    """Move a VM and wait for it. KeyboardInterrupt calls it off, and is raised when that is done.

    One that is fault tolerant goes on at its secondary; see `switching.move`.

    Raises:
        MigrationFailedError: the VM has not moved, and runs where it was.
        MigrationError, PlacementError, UnknownVmError: nothing was begun.
    """
    protection = cluster.ft_status(name)
    if protection.state != "off":
        return switching.move(cluster, protection, host, config.timeout_s)
    placement = cluster.start_move(name, host, config)
    move_id = placement.moving.id
    try:
        end = _wait(cluster, placement, on_progress)
    except KeyboardInterrupt:
        ended = _call_off(cluster, name, move_id)
        if ended is not None and ended.error is None:
            return ended.report  # too late: it has moved
        raise
    if end.error is not None:
        raise end.error
    return end.report


def _wait(
    cluster: Moving, placement: Placement, on_progress: Callable[[Progress], None] | None
) -> MoveEnd:
    move_id = placement.moving.id
    while True:
        end = cluster.move_end(move_id, 5.0 if on_progress is None else LOOK_EVERY_S)
        if end is not None:
            return end
        if on_progress is not None:
            progress = cluster.move_progress(placement)
            if progress is not None:
                on_progress(progress)


def _call_off(cluster: Moving, name: str, move_id: str) -> MoveEnd | None:
    with contextlib.suppress(RayvisorError):
        cluster.cancel_migration(name)
        return cluster.move_end(move_id, CANCEL_TAKES_S)
    return None


@dataclass(slots=True)
class Evacuation:
    """What came of emptying a host."""

    host: str
    moved: list[MigrationReport] = field(default_factory=list)
    secondaries: dict[str, str] = field(default_factory=dict)
    """Where the secondary of a VM is that was here, by name of the VM."""
    stayed: dict[str, str] = field(default_factory=dict)
    """Why, by name of the VM."""

    def as_dict(self) -> dict[str, Any]:
        """In JSON's terms."""
        return {
            "host": self.host,
            "moved": [report.as_dict() for report in self.moved],
            "secondaries": dict(self.secondaries),
            "stayed": dict(self.stayed),
        }


def evacuate(
    cluster: Emptying,
    host: str,
    *,
    timeout: float | str | None = None,
    at_once: int = AT_ONCE,
    on_event: Callable[[str], None] = lambda _text: None,
) -> Evacuation:
    """Put a host in maintenance and move everything off it, several at a time.

    The host stays in maintenance, whatever comes of it. KeyboardInterrupt calls off what is
    under way.

    Args:
        cluster: whose host it is.
        host: its name, or an unambiguous start of its id.
        timeout: when no more is begun, in seconds or as "90s"; what is under way may end.
        at_once: how many VMs move at the same time.
        on_event: called with a line for each VM.

    Raises:
        PlacementError: there is no such host.
    """
    limit_s = EVACUATE_TIMEOUT_S if timeout is None else parse_seconds(timeout)
    deadline_s = time.monotonic() + limit_s
    name = cluster.set_maintenance(host, on=True).name
    done = Evacuation(name)
    tried: set[str] = set()
    while True:
        # What was being made here when the host closed comes with a later look.
        left = [vm for vm in cluster.vms() if vm.host == name and vm.name not in tried]
        if not left:
            break
        tried |= {vm.name for vm in left}
        for vm in [vm for vm in left if not vm.state.is_live]:
            done.stayed[vm.name] = f"it is {vm.state}: `rayvisor rm {vm.name}` removes it"
            on_event(f"{vm.name} stays: {done.stayed[vm.name]}")
        _empty(
            cluster, done, [vm for vm in left if vm.state.is_live], deadline_s, at_once, on_event
        )
    _reseat(cluster, done, deadline_s, on_event)
    return done


def _reseat(
    cluster: Emptying, done: Evacuation, deadline_s: float, on_event: Callable[[str], None]
) -> None:
    """Have the secondaries that are on the host made elsewhere, one after the other."""
    for status in cluster.ft_statuses():
        if status.secondary != done.host or status.vm in done.stayed:
            continue
        left_s = deadline_s - time.monotonic()
        try:
            if left_s <= 0:
                raise MigrationError("there was no time left")
            now = switching.reseat(cluster, status.vm, None, min(left_s, switching.READY_S))
        except RayvisorError as error:
            done.stayed[status.vm] = f"its secondary: {error}"
            on_event(f"the secondary of {status.vm} stays: {error}")
        else:
            done.secondaries[status.vm] = now.secondary
            on_event(f"the secondary of {status.vm} is on {now.secondary}")


def _empty(
    cluster: Emptying,
    done: Evacuation,
    vms: list[VmStatus],
    deadline_s: float,
    at_once: int,
    on_event: Callable[[str], None],
) -> None:
    waiting: queue.SimpleQueue[VmStatus] = queue.SimpleQueue()
    for vm in vms:
        waiting.put(vm)
    under_way: set[str] = set()
    lock = threading.Lock()

    def work() -> None:
        while True:
            try:
                vm = waiting.get_nowait()
            except queue.Empty:
                return
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                _stays(vm.name, "there was no time left")
                continue
            with lock:
                under_way.add(vm.name)
            try:
                report = cluster.vm(vm.name).migrate(timeout=left_s)
            except RayvisorError as error:
                _stays(vm.name, str(error))
            else:
                with lock:
                    done.moved.append(report)
                on_event(f"{vm.name} is on {report.destination}")
            finally:
                with lock:
                    under_way.discard(vm.name)

    def _stays(name: str, why: str) -> None:
        with lock:
            done.stayed[name] = why
        on_event(f"{name} stays: {why}")

    workers = [threading.Thread(target=work, daemon=True) for _ in range(min(at_once, len(vms)))]
    for worker in workers:
        worker.start()
    try:
        for worker in workers:
            while worker.is_alive():
                worker.join(0.2)
    except KeyboardInterrupt:
        deadline_s = 0.0
        with lock:
            names = list(under_way)
        for name in names:
            with contextlib.suppress(RayvisorError):
                cluster.vm(name).cancel_migration()
        for worker in workers:
            worker.join()
        raise
