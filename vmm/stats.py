"""What a VM and the machine it is on tell of themselves, as plain values.

Read often and by others than the machine's thread, so nothing here waits for the guest.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Final

from rayvisor.vmm.errors import CorruptStateError
from rayvisor.vmm.lateness import Lateness

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rayvisor.vmm.vm import Vm

_BLOCK_BYTES: Final = 512  # of st_blocks, whatever the file system (stat(2))


@dataclass(frozen=True, slots=True)
class FtStats:
    """The fault tolerance of one VM, as its primary sees it. Counts are since this pair began.

    Attributes:
        state: "seeding", "protected", "lagging" (its epochs are longer than they should ever be),
            or "unprotected" (wanted, but there is no secondary now).
        epochs: checkpoints that the secondary has acknowledged.
        epoch_s: length of the last epoch.
        pause_s: how long the guest stood still for the last checkpoint.
        lag_s: age of the last checkpoint that was acknowledged: what a failover now would lose of
            the guest's work, none of which anybody has seen.
        dirty_bytes: pages written in the last epoch.
        dirty_bytes_total: pages written, epoch by epoch.
        sent_bytes_total: what was sent for them, seeding included.
        held_bytes: console output that waits for its epoch.
        failovers: how often the VM has gone on from its secondary, since it was created.
    """

    state: str
    epochs: int = 0
    epoch_s: float = 0.0
    pause_s: float = 0.0
    lag_s: float = 0.0
    dirty_bytes: int = 0
    dirty_bytes_total: int = 0
    sent_bytes_total: int = 0
    held_bytes: int = 0
    failovers: int = 0


@dataclass(frozen=True, slots=True)
class MoveStats:
    """A migration that goes on, as its source sees it.

    Attributes:
        phase: as in `rayvisor.migration.phases`.
        round: pre-copy rounds that are over.
        remaining_bytes: guest memory that is not there yet.
        dirty_bytes_per_s: how fast the guest writes pages that must be sent again.
        sent_bytes_per_s: how fast pages are sent.
        throttle_ratio: the share of its time that the guest is kept from running.
    """

    phase: str
    round: int
    remaining_bytes: int
    sent_bytes: int
    dirty_bytes_per_s: float
    sent_bytes_per_s: float
    throttle_ratio: float
    elapsed_s: float


@dataclass(frozen=True, slots=True)
class VmStats:
    """One VM, as its own process sees it. Counts are since power-on unless they say otherwise.

    Attributes:
        state: what `rayvisor ls` shows.
        token: the fencing token it runs under.
        told_unix_s: when this was measured.
        started_unix_s: when it was powered on, or when it arrived here.
        memory_bytes: guest RAM, as configured.
        touched_bytes: guest RAM that has pages behind it. It falls when pages are given back.
        vcpu_cpu_s: CPU time of the thread that executes the guest.
        native_s: time in guest code that ran directly, beside the thread's CPU time.
        switching_s: time of going between translated and direct code, most of it the thread's.
        stolen_s: how long the thread could have run and did not, because the host was busy.
        wall_s: how long the guest has been on and not paused.
        timers_late: how long after their deadlines alarms of the board's chips have fired.
        interrupts_late: how long interrupts waited for the guest to take them.
        exits: exits by kind, also kinds that did not happen.
        console_bytes: console output.
        resets: starts over without a power-off, since its process began.
        hangs: times its watchdog expired or its heartbeat stopped, since its process began.
        entered: how often each state was entered, since its process began.
        ft: its fault tolerance; None where it is not wanted.
        move: the migration that goes on, if one does.
    """

    name: str
    state: str
    token: int
    pid: int
    told_unix_s: float
    started_unix_s: float
    cpus: int
    memory_bytes: int
    touched_bytes: int
    vcpu_cpu_s: float
    console_bytes: int
    resets: int
    native_s: float = 0.0
    switching_s: float = 0.0
    stolen_s: float = 0.0
    wall_s: float = 0.0
    timers_late: Lateness = field(default_factory=Lateness)
    interrupts_late: Lateness = field(default_factory=Lateness)
    image: str = ""
    hangs: int = 0
    exits: dict[str, int] = field(default_factory=dict)
    entered: dict[str, int] = field(default_factory=dict)
    ft: FtStats | None = None
    move: MoveStats | None = None


_FIELDS: Final = tuple(f.name for f in fields(VmStats))
_PARTS: Final = {
    "timers_late": Lateness,
    "interrupts_late": Lateness,
    "ft": FtStats,
    "move": MoveStats,
}


@dataclass(frozen=True, slots=True)
class ProcessStats:
    """A process as the operating system accounts for it (proc(5): stat, statm).

    Attributes:
        own_bytes: resident memory that nobody else can share: anonymous.
        shared_bytes: resident memory that others may share: guest RAM, and files.
    """

    cpu_s: float
    own_bytes: int = 0
    shared_bytes: int = 0


@dataclass(frozen=True, slots=True)
class HostStats:
    """One machine and the VMs whose processes are on it.

    Attributes:
        vcpus_limit, vm_memory_limit_bytes: what may be promised to VMs.
        vm_memory_promised_bytes: what is promised, each VM's process included.
        memory_bytes, memory_available_bytes: of the machine, or of the container this is in.
        cpu_s: CPU seconds of the machine by what they went to ("user", "system", ...), summed
            over its CPUs, since it booted. In a container still those of the whole machine.
        processes: the VMs' processes by the VMs' names.
        vms_started: VMs it has started since its host actor began.
        vm_failures: VMs whose process ended without being told to, since then.
    """

    host_id: str
    cores: int
    vcpus_limit: int
    vm_memory_limit_bytes: int
    vm_memory_promised_bytes: int
    memory_bytes: int
    memory_available_bytes: int
    cpu_s: dict[str, float] = field(default_factory=dict)
    vms: tuple[VmStats, ...] = ()
    processes: dict[str, ProcessStats] = field(default_factory=dict)
    vms_started: int = 0
    vm_failures: int = 0


def measure(
    vm: Vm,
    *,
    state: str,
    token: int,
    started_unix_s: float,
    entered: Mapping[str, int],
    image: str = "",
    ft: FtStats | None = None,
    move: MoveStats | None = None,
) -> VmStats:
    """How the VM is now. Any thread; the guest does not notice.

    Raises:
        EngineError: the VM is closed.
    """
    machine = vm.machine
    direct = machine.vcpu.direct_counts()
    return VmStats(
        name=machine.spec.name,
        state=state,
        token=token,
        pid=os.getpid(),
        told_unix_s=time.time(),
        started_unix_s=started_unix_s,
        cpus=machine.spec.cpus,
        memory_bytes=machine.ram.size_bytes,
        exits=machine.vcpu.exit_counts(),
        touched_bytes=os.fstat(machine.ram.fd).st_blocks * _BLOCK_BYTES,
        vcpu_cpu_s=vm.cpu_s,
        native_s=direct.native_s,
        switching_s=direct.switching_s,
        stolen_s=vm.stolen_s,
        wall_s=vm.wall_s,
        timers_late=machine.clock.lateness.now() + machine.vcpu.tick_lateness(),
        interrupts_late=machine.vcpu.interrupt_lateness(),
        console_bytes=vm.console.end_offset,
        resets=machine.resets,
        hangs=machine.hangs,
        image=image,
        entered=dict(entered),
        ft=ft,
        move=move,
    )


def encode(stats: VmStats) -> bytes:
    """The stats as JSON."""
    # Not by asdict, whose deep copies cost as much as everything else a VM does to tell.
    values = {name: getattr(stats, name) for name in _FIELDS}
    for name in _PARTS:
        if values[name] is not None:
            values[name] = asdict(values[name])
    return json.dumps(values, separators=(",", ":")).encode()


def decode(data: bytes) -> VmStats:
    """What `encode` made.

    Raises:
        CorruptStateError: it is something else.
    """
    try:
        values = json.loads(data)
        for name, kind in _PARTS.items():
            if values.get(name) is not None:
                values[name] = kind(**values[name])
        return VmStats(**values)
    except (AttributeError, TypeError, ValueError) as error:
        raise CorruptStateError(f"no statistics of a VM: {error}") from None
