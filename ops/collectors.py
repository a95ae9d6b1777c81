"""Metric families from plain snapshots, for `prometheus_client`."""

from __future__ import annotations

import functools
import platform
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Final, Protocol

from prometheus_client.registry import Collector

import rayvisor
from rayvisor.ops import metrics
from rayvisor.ops.event_book import Histogram
from rayvisor.ops.page import Page
from rayvisor.vmm.lateness import BOUNDS_NS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from prometheus_client import Metric as Family

    from rayvisor.ops.event_book import EventBook
    from rayvisor.vmm.lateness import Lateness
    from rayvisor.vmm.stats import FtStats, HostStats, MoveStats, VmStats

LIVE_STATES: Final = ("running", "paused")
ENDED_STATES: Final = ("stopped", "halted", "exited", "crashed")
"""States of a VM that has a process; shown with 0 too, so that a graph has no holes."""

FT_STATES: Final = ("seeding", "protected", "lagging", "unprotected")
"""Shown with 0 too, so that an alert on one of them sees it begin and end."""

_NEVER_ENTERED: Final = {"running": 0, "crashed": 0}
"""Shown from the beginning: an increase is only seen of a series that was there before."""

_NO_RESTARTS: Final = {"restarted": 0, "failed": 0, "refused": 0}
"""As above."""

LATENESS_BUCKETS_S: Final = tuple(bound / 1e9 for bound in BOUNDS_NS)

LOOK_EVERY_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class HostFacts:
    """A host as the cluster sees it."""

    name: str
    up: bool
    vms: int
    host_id: str = ""
    maintenance: bool = False


class HaLike(Protocol):
    """What is read of the statistics of high availability; see `rayvisor.actors.guardian`."""

    @property
    def restarts(self) -> Mapping[str, int]: ...  # noqa: D102
    @property
    def causes(self) -> Mapping[str, int]: ...  # noqa: D102
    @property
    def refusals(self) -> Mapping[str, int]: ...  # noqa: D102
    @property
    def waiting(self) -> int: ...  # noqa: D102
    @property
    def reserve_hosts(self) -> int: ...  # noqa: D102
    @property
    def leases(self) -> Mapping[str, str]: ...  # noqa: D102
    @property
    def lease_age_s(self) -> Mapping[str, float]: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class ClusterFacts:
    """The cluster as a whole.

    Attributes:
        outcomes: requests to create a VM, by outcome.
        looked_unix_s: when the hosts were looked at.
        book: what happened; None where it is not known.
        ha: high availability; None where it is not known.
        addresses: where each host's metrics are, as HOST:PORT by host id.
    """

    hosts: tuple[HostFacts, ...] = ()
    outcomes: Mapping[str, int] = field(default_factory=dict)
    looked_unix_s: float = 0.0
    book: EventBook | None = None
    addresses: Mapping[str, str] = field(default_factory=dict)
    ha: HaLike | None = None


class HostCollector(Collector):
    """The metrics of one host and its VMs. Each scrape takes a new snapshot.

    Nothing is kept between scrapes, so a VM that is gone leaves no series behind.
    """

    def __init__(self, snapshot: Callable[[], HostStats]) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterable[Family]:
        """One family for each metric."""
        return self.page().families()

    def page(self) -> Page:
        """The samples of one scrape."""
        begun_s = time.perf_counter()
        page = Page(metrics.Scope.HOST)
        stats = self._snapshot()
        _add_build(page)
        _add_host(page, stats)
        now_s = time.time()
        for vm in stats.vms:
            name = vm.name
            page.add(metrics.VM_INFO, 1, name, vm.image)
            page.add(metrics.VM_STATE, 1, name, vm.state)
            page.add(metrics.VM_START_TIME, vm.started_unix_s, name)
            page.add(metrics.VM_AGE, max(0.0, now_s - vm.told_unix_s), name)
            page.add(metrics.VM_VCPUS, vm.cpus, name)
            page.add(metrics.VM_MEMORY, vm.memory_bytes, name)
            page.add(metrics.VM_MEMORY_TOUCHED, vm.touched_bytes, name)
            page.add(metrics.VM_CONSOLE, vm.console_bytes, name)
            page.add(metrics.VM_RESETS, vm.resets, name)
            for kind, count in vm.exits.items():
                page.add(metrics.VM_EXITS, count, name, kind)
            for state, count in {**_NEVER_ENTERED, **vm.entered}.items():
                page.add(metrics.VM_TRANSITIONS, count, name, state)
            _add_time(page, vm)
            if vm.move is not None:
                _add_move(page, name, vm.move)
            if vm.ft is not None:
                _add_ft(page, name, vm.ft)
            process = stats.processes.get(name)
            if process is not None:
                page.add(metrics.VM_PROCESS_CPU, process.cpu_s, name)
                page.add(metrics.VM_RESIDENT, process.own_bytes, name, "own")
                page.add(metrics.VM_RESIDENT, process.shared_bytes, name, "shared")
        page.add(metrics.HOST_COLLECT, time.perf_counter() - begun_s)
        return page


def _add_host(page: Page, stats: HostStats) -> None:
    page.add(metrics.HOST_CORES, stats.cores)
    for mode, cpu_s in stats.cpu_s.items():
        page.add(metrics.HOST_CPU, cpu_s, mode)
    page.add(metrics.HOST_MEMORY, stats.memory_bytes)
    page.add(metrics.HOST_MEMORY_AVAILABLE, stats.memory_available_bytes)
    page.add(metrics.HOST_MEMORY_LIMIT, stats.vm_memory_limit_bytes)
    page.add(metrics.HOST_MEMORY_PROMISED, stats.vm_memory_promised_bytes)
    page.add(metrics.HOST_GUEST_MEMORY, sum(vm.memory_bytes for vm in stats.vms))
    page.add(metrics.HOST_VCPUS, sum(vm.cpus for vm in stats.vms))
    page.add(metrics.HOST_VCPUS_LIMIT, stats.vcpus_limit)
    states = Counter(dict.fromkeys((*LIVE_STATES, *ENDED_STATES), 0))
    states.update(vm.state for vm in stats.vms)
    for state, count in states.items():
        page.add(metrics.HOST_VMS, count, state)
    page.add(metrics.HOST_VMS_STARTED, stats.vms_started)
    page.add(metrics.HOST_VM_FAILURES, stats.vm_failures)


def _add_time(page: Page, vm: VmStats) -> None:
    busy_s = vm.vcpu_cpu_s + vm.native_s + vm.stolen_s
    page.add(metrics.VM_TIME, vm.native_s, vm.name, "native")
    page.add(metrics.VM_TIME, max(0.0, vm.vcpu_cpu_s - vm.switching_s), vm.name, "translated")
    page.add(metrics.VM_TIME, vm.switching_s, vm.name, "switching")
    page.add(metrics.VM_TIME, vm.stolen_s, vm.name, "stolen")
    page.add(metrics.VM_TIME, max(0.0, vm.wall_s - busy_s), vm.name, "idle")
    page.add_histogram(metrics.VM_TIMERS_LATE, _lateness(vm.timers_late), vm.name)
    page.add_histogram(metrics.VM_INTERRUPTS_LATE, _lateness(vm.interrupts_late), vm.name)


def _lateness(late: Lateness) -> Histogram:
    return Histogram(LATENESS_BUCKETS_S, list(late.counts), late.total_ns / 1e9)


def _add_move(page: Page, name: str, move: MoveStats) -> None:
    page.add(metrics.MOVE_PHASE, 1, name, move.phase)
    page.add(metrics.MOVE_ROUND, move.round, name)
    page.add(metrics.MOVE_ELAPSED, move.elapsed_s, name)
    page.add(metrics.MOVE_REMAINING, move.remaining_bytes, name)
    page.add(metrics.MOVE_SENT, move.sent_bytes, name)
    page.add(metrics.MOVE_DIRTY_RATE, move.dirty_bytes_per_s, name)
    page.add(metrics.MOVE_SEND_RATE, move.sent_bytes_per_s, name)
    page.add(metrics.MOVE_THROTTLE, move.throttle_ratio, name)


def _add_ft(page: Page, name: str, ft: FtStats) -> None:
    for state in FT_STATES:
        page.add(metrics.FT_STATE, int(state == ft.state), name, state)
    page.add(metrics.FT_EPOCHS, ft.epochs, name)
    page.add(metrics.FT_EPOCH, ft.epoch_s, name)
    page.add(metrics.FT_PAUSE, ft.pause_s, name)
    page.add(metrics.FT_LAG, ft.lag_s, name)
    page.add(metrics.FT_DIRTY, ft.dirty_bytes, name)
    page.add(metrics.FT_DIRTIED, ft.dirty_bytes_total, name)
    page.add(metrics.FT_SENT, ft.sent_bytes_total, name)
    page.add(metrics.FT_HELD, ft.held_bytes, name)
    page.add(metrics.FT_FAILOVERS, ft.failovers, name)


def _add_build(page: Page) -> None:
    page.add(metrics.BUILD_INFO, 1, *_build())


@functools.cache
def _build() -> tuple[str, str, str]:
    try:
        unicorn = version("unicorn")
    except PackageNotFoundError:
        unicorn = "none"
    return rayvisor.__version__, platform.python_version(), unicorn


class ClusterCollector(Collector):
    """The metrics of the cluster as a whole, from the last look at it."""

    def __init__(self, facts: Callable[[], ClusterFacts]) -> None:
        self._facts = facts

    def collect(self) -> Iterable[Family]:
        """One family for each metric."""
        return self.page().families()

    def page(self) -> Page:
        """The samples of one scrape."""
        page = Page(metrics.Scope.CLUSTER)
        facts = self._facts()
        _add_build(page)
        for host in facts.hosts:
            page.add(metrics.CLUSTER_HOST_UP, int(host.up), host.name)
            page.add(metrics.CLUSTER_HOST_MAINTENANCE, int(host.maintenance), host.name)
            page.add(metrics.CLUSTER_HOST_VMS, host.vms, host.name)
        for outcome, count in facts.outcomes.items():
            page.add(metrics.CLUSTER_PLACEMENTS, count, outcome)
        if facts.book is not None:
            for kind, count in facts.book.kinds.items():
                page.add(metrics.CLUSTER_EVENTS, count, kind)
            _add_migrations(page, facts.book)
        if facts.ha is not None:
            _add_ha(page, facts.ha)
        if facts.looked_unix_s:
            page.add(metrics.CLUSTER_AGE, max(0.0, time.time() - facts.looked_unix_s))
        return page


def _add_ha(page: Page, ha: HaLike) -> None:
    for outcome, count in {**_NO_RESTARTS, **ha.restarts}.items():
        page.add(metrics.CLUSTER_RESTARTS, count, outcome)
    for cause, count in ha.causes.items():
        page.add(metrics.CLUSTER_RESTART_CAUSES, count, cause)
    for lack, count in ha.refusals.items():
        page.add(metrics.CLUSTER_REFUSALS, count, lack)
    page.add(metrics.CLUSTER_WAITING, ha.waiting)
    page.add(metrics.CLUSTER_RESERVE, ha.reserve_hosts)
    for host, state in ha.leases.items():
        page.add(metrics.CLUSTER_LEASE, 1, host, state)
    for host, age_s in ha.lease_age_s.items():
        page.add(metrics.CLUSTER_LEASE_AGE, age_s, host)


def _add_migrations(page: Page, book: EventBook) -> None:
    for outcome, count in book.outcomes.items():
        page.add(metrics.CLUSTER_MIGRATIONS, count, outcome)
    page.add_histogram(metrics.CLUSTER_MIGRATION_DURATION, book.duration)
    page.add_histogram(metrics.CLUSTER_MIGRATION_DOWNTIME, book.downtime)
    page.add(metrics.CLUSTER_MIGRATION_BYTES, book.bytes_sent)


class Lookout:
    """Looks at the cluster now and then, so that a host that hangs never holds up a scrape."""

    def __init__(self, look: Callable[[], ClusterFacts], *, every_s: float = LOOK_EVERY_S) -> None:
        self._look = look
        self._every_s = every_s
        self._facts = ClusterFacts()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lookout", daemon=True)

    @property
    def facts(self) -> ClusterFacts:
        """What the last look saw."""
        return self._facts

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._facts = self._look()
            self._stopping.wait(self._every_s)
