"""Every metric there is: name, help, unit and labels, in one place.

Names follow https://prometheus.io/docs/practices/naming/: base units, the unit at the end of the
name, `_total` after a counter's. Labels are few and bounded: hosts and VMs that are there, and
kinds and states that the code names. What a host tells of itself carries no label `host`; the
scraper attaches it (docs/monitoring.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

PREFIX: Final = "rayvisor_"


class Kind(StrEnum):
    """A metric's type, as the exposition format calls it."""

    GAUGE = "gauge"
    COUNTER = "counter"
    HISTOGRAM = "histogram"


class Scope(StrEnum):
    """Who exposes a metric."""

    HOST = "host"
    CLUSTER = "cluster"


@dataclass(frozen=True, slots=True, eq=False)
class Metric:
    """One metric.

    Attributes:
        name: without the prefix.
        unit: "seconds", "bytes", or empty for what is counted in pieces.
        labels: in the order in which values are given.
    """

    name: str
    kind: Kind
    help: str
    unit: str = ""
    labels: tuple[str, ...] = ()
    scope: Scope = Scope.HOST

    @property
    def full_name(self) -> str:
        """The name that is exposed."""
        return PREFIX + self.name


def _gauge(name: str, text: str, unit: str = "", *labels: str) -> Metric:
    return Metric(name, Kind.GAUGE, text, unit, labels)


def _counter(name: str, text: str, unit: str = "", *labels: str) -> Metric:
    return Metric(name, Kind.COUNTER, text, unit, labels)


BUILD_INFO = _gauge("build_info", "What serves this: always 1.", "", "version", "python", "unicorn")

HOST_CORES = _gauge("host_cores", "Cores that this host may use.")
HOST_CPU = _counter(
    "host_cpu_seconds_total",
    "CPU time of the machine, by mode, over all its CPUs.",
    "seconds",
    "mode",
)
HOST_MEMORY = _gauge("host_memory_bytes", "Memory of this machine or container.", "bytes")
HOST_MEMORY_AVAILABLE = _gauge(
    "host_memory_available_bytes", "Memory that can be used without taking any away.", "bytes"
)
HOST_MEMORY_LIMIT = _gauge(
    "host_vm_memory_limit_bytes", "Memory that may be promised to VMs.", "bytes"
)
HOST_MEMORY_PROMISED = _gauge(
    "host_vm_memory_promised_bytes",
    "Memory promised to the VMs here: guest RAM and each VM's process.",
    "bytes",
)
HOST_GUEST_MEMORY = _gauge(
    "host_guest_memory_bytes", "Guest RAM of the VMs here, as configured.", "bytes"
)
HOST_VCPUS = _gauge("host_vcpus", "vCPUs of the VMs here.")
HOST_VCPUS_LIMIT = _gauge("host_vcpus_limit", "vCPUs that may be promised to VMs.")
HOST_VMS = _gauge("host_vms", "VMs that have a process here, by state.", "", "state")
HOST_VMS_STARTED = _counter("host_vms_started_total", "VMs that this host has started.")
HOST_VM_FAILURES = _counter(
    "host_vm_failures_total", "VMs whose process ended without being told to."
)
HOST_COLLECT = _gauge(
    "host_collect_seconds", "How long it took to collect what this scrape shows.", "seconds"
)

VM_INFO = _gauge("vm_info", "A VM that has a process here: always 1.", "", "vm", "image")
VM_STATE = _gauge("vm_state", "The state the VM is in: always 1.", "", "vm", "state")
VM_START_TIME = _gauge(
    "vm_start_time_seconds", "When the VM was powered on, in Unix time.", "seconds", "vm"
)
VM_AGE = _gauge(
    "vm_stats_age_seconds", "How long ago the VM's process told its statistics.", "seconds", "vm"
)
VM_VCPUS = _gauge("vm_vcpus", "The VM's vCPUs.", "", "vm")
VM_TIME = _counter(
    "vm_vcpu_seconds_total",
    "Where the vCPU's time went: guest code run directly (native), translated code and chips"
    " (translated), going between the two (switching), ready but without a CPU (stolen), halted"
    " (idle).",
    "seconds",
    "vm",
    "kind",
)
VM_PROCESS_CPU = _counter(
    "vm_process_cpu_seconds_total",
    "CPU time of the VM's process and native code.",
    "seconds",
    "vm",
)
VM_MEMORY = _gauge("vm_memory_bytes", "Guest RAM, as configured.", "bytes", "vm")
VM_MEMORY_TOUCHED = _gauge(
    "vm_memory_touched_bytes", "Guest RAM that has pages of the host behind it.", "bytes", "vm"
)
VM_RESIDENT = _gauge(
    "vm_process_resident_bytes",
    "Resident memory of the VM's process: its own, and what others may share (guest RAM, files).",
    "bytes",
    "vm",
    "part",
)
VM_EXITS = _counter(
    "vm_exits_total", "Times the guest left the translator, by kind.", "", "vm", "kind"
)
VM_TIMERS_LATE = Metric(
    "vm_timer_lateness_seconds",
    Kind.HISTOGRAM,
    "How long after their deadlines alarms of the VM's chips fired.",
    "seconds",
    ("vm",),
)
VM_INTERRUPTS_LATE = Metric(
    "vm_interrupt_lateness_seconds",
    Kind.HISTOGRAM,
    "How long interrupts waited for the guest to take them.",
    "seconds",
    ("vm",),
)
VM_CONSOLE = _counter(
    "vm_console_output_bytes_total", "Bytes the guest wrote to its console.", "bytes", "vm"
)
VM_RESETS = _counter("vm_resets_total", "Times the VM started over without a power-off.", "", "vm")
VM_TRANSITIONS = _counter(
    "vm_transitions_total", "Times the VM entered a state.", "", "vm", "state"
)

MOVE_PHASE = _gauge(
    "vm_migration_phase",
    "The phase of the VM's migration that goes on: always 1.",
    "",
    "vm",
    "phase",
)
MOVE_ROUND = _gauge("vm_migration_round", "Pre-copy rounds that are over.", "", "vm")
MOVE_ELAPSED = _gauge(
    "vm_migration_elapsed_seconds", "How long the VM's migration has gone on.", "seconds", "vm"
)
MOVE_REMAINING = _gauge(
    "vm_migration_remaining_bytes", "Guest memory that is not at the destination.", "bytes", "vm"
)
MOVE_SENT = _gauge(
    "vm_migration_sent_bytes", "What the migration that goes on has sent.", "bytes", "vm"
)
MOVE_DIRTY_RATE = _gauge(
    "vm_migration_dirty_bytes_per_second",
    "How fast the guest writes pages that must be sent again.",
    "",
    "vm",
)
MOVE_SEND_RATE = _gauge(
    "vm_migration_sent_bytes_per_second", "How fast guest memory is sent.", "", "vm"
)
MOVE_THROTTLE = _gauge(
    "vm_migration_throttle_ratio",
    "The share of its time that the guest is kept from running so that its migration ends.",
    "",
    "vm",
)

FT_STATE = _gauge(
    "vm_ft_state",
    "The state of a VM's fault tolerance: 1 for the one of seeding, protected, lagging and"
    " unprotected that it is in.",
    "",
    "vm",
    "state",
)
FT_EPOCHS = _counter(
    "vm_ft_epochs_total", "Checkpoints that the secondary has acknowledged.", "", "vm"
)
FT_EPOCH = _gauge("vm_ft_epoch_seconds", "Length of the last epoch.", "seconds", "vm")
FT_PAUSE = _gauge(
    "vm_ft_pause_seconds", "How long the guest stood for the last checkpoint.", "seconds", "vm"
)
FT_LAG = _gauge(
    "vm_ft_lag_seconds",
    "Age of the last acknowledged checkpoint: the work that a failover would do again.",
    "seconds",
    "vm",
)
FT_DIRTY = _gauge("vm_ft_dirty_bytes", "Pages written in the last epoch.", "bytes", "vm")
FT_DIRTIED = _counter("vm_ft_dirty_bytes_total", "Pages written, by epochs.", "bytes", "vm")
FT_SENT = _counter("vm_ft_sent_bytes_total", "What was sent to the secondary.", "bytes", "vm")
FT_HELD = _gauge(
    "vm_ft_held_output_bytes", "Output that waits for the checkpoint of its epoch.", "bytes", "vm"
)
FT_FAILOVERS = _counter(
    "vm_ft_failovers_total", "How often the VM has gone on from its secondary.", "", "vm"
)

CLUSTER_HOST_UP = Metric(
    "cluster_host_up",
    Kind.GAUGE,
    "Whether the host answers: 0 when it is gone, too.",
    labels=("host",),
    scope=Scope.CLUSTER,
)
CLUSTER_HOST_MAINTENANCE = Metric(
    "cluster_host_maintenance",
    Kind.GAUGE,
    "Whether the host is in maintenance and takes no VMs.",
    labels=("host",),
    scope=Scope.CLUSTER,
)
CLUSTER_HOST_VMS = Metric(
    "cluster_host_vms",
    Kind.GAUGE,
    "VMs placed on the host, ended ones that were not removed among them.",
    labels=("host",),
    scope=Scope.CLUSTER,
)
CLUSTER_PLACEMENTS = Metric(
    "cluster_placements_total",
    Kind.COUNTER,
    "Requests to create a VM: placed, refused for lack of room, or failed on the host.",
    labels=("outcome",),
    scope=Scope.CLUSTER,
)
CLUSTER_MIGRATIONS = Metric(
    "cluster_migrations_total",
    Kind.COUNTER,
    "Migrations that have ended, by outcome.",
    labels=("outcome",),
    scope=Scope.CLUSTER,
)
CLUSTER_MIGRATION_DURATION = Metric(
    "cluster_migration_duration_seconds",
    Kind.HISTOGRAM,
    "How long migrations took that moved their VM.",
    unit="seconds",
    scope=Scope.CLUSTER,
)
CLUSTER_MIGRATION_DOWNTIME = Metric(
    "cluster_migration_downtime_seconds",
    Kind.HISTOGRAM,
    "How long guests stood still in migrations that moved their VM.",
    unit="seconds",
    scope=Scope.CLUSTER,
)
CLUSTER_MIGRATION_BYTES = Metric(
    "cluster_migration_sent_bytes_total",
    Kind.COUNTER,
    "Bytes that migrations sent, also those that did not move their VM.",
    unit="bytes",
    scope=Scope.CLUSTER,
)


def _cluster(name: str, kind: Kind, text: str, unit: str = "", *labels: str) -> Metric:
    return Metric(name, kind, text, unit, labels, Scope.CLUSTER)


CLUSTER_RESTARTS = _cluster(
    "cluster_vm_restarts_total",
    Kind.COUNTER,
    "Attempts to start a VM again that was down, by what came of them.",
    "",
    "outcome",
)
CLUSTER_RESTART_CAUSES = _cluster(
    "cluster_vm_restart_causes_total",
    Kind.COUNTER,
    "VMs that were started again, by why they were down.",
    "",
    "kind",
)
CLUSTER_REFUSALS = _cluster(
    "cluster_refusals_total",
    Kind.COUNTER,
    "Requests to create a VM that were refused, by what was lacking.",
    "",
    "kind",
)
CLUSTER_WAITING = _cluster(
    "cluster_vms_waiting", Kind.GAUGE, "VMs that are down and are to be started again."
)
CLUSTER_RESERVE = _cluster(
    "cluster_reserve_hosts", Kind.GAUGE, "Hosts for whose loss room is kept on the others."
)
CLUSTER_LEASE = _cluster(
    "cluster_host_lease", Kind.GAUGE, "The state of a host's lease: always 1.", "", "host", "state"
)
CLUSTER_LEASE_AGE = _cluster(
    "cluster_host_lease_age_seconds",
    Kind.GAUGE,
    "How long ago the host was last heard of.",
    "seconds",
    "host",
)
CLUSTER_EVENTS = Metric(
    "cluster_events_total",
    Kind.COUNTER,
    "Events in the cluster's log, by kind.",
    labels=("kind",),
    scope=Scope.CLUSTER,
)
CLUSTER_AGE = Metric(
    "cluster_view_age_seconds",
    Kind.GAUGE,
    "How long ago the hosts were last looked at.",
    unit="seconds",
    scope=Scope.CLUSTER,
)

ALL: Final = tuple(v for v in list(globals().values()) if isinstance(v, Metric))
"""Every metric, in the order above."""
