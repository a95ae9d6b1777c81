"""What hosts and the cluster tell each other about VMs: plain values that pickle and print."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from rayvisor.actors.policy import HaPolicy
from rayvisor.vmm.errors import MigrationError

if TYPE_CHECKING:
    from rayvisor.vmm.stats import FtStats


class VmState(StrEnum):
    """What `ls` shows of a VM."""

    CREATING = "creating"
    """Placed; its host is building it."""
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"
    """Powered off from outside, by `stop`."""
    HALTED = "halted"
    """The guest powered itself off or halted for ever."""
    EXITED = "exited"
    """The guest used the debug exit."""
    CRASHED = "crashed"
    """The guest died: triple fault, halted with interrupts off."""
    FAILED = "failed"
    """The VM's process is gone, or its host."""
    RESTARTING = "restarting"
    """It is down, and by its policy is started again: now, or after a pause."""
    UNREACHABLE = "unreachable"
    """The VM's process is there and does not answer."""

    @property
    def is_live(self) -> bool:
        """Whether a guest is running (or paused) in it."""
        return self in {VmState.RUNNING, VmState.PAUSED}


@dataclass(frozen=True, slots=True)
class VmRequest:
    """A VM to be placed. `host` is a host's name or an unambiguous start of its id, or None.

    `owner` is the Ray job that it ends with, or empty.
    """

    name: str
    memory_bytes: int
    cpus: int = 1
    image: str = ""
    host: str | None = None
    direct: bool = True
    ha: HaPolicy = field(default_factory=HaPolicy)
    owner: str = ""


@dataclass(frozen=True, slots=True)
class Spot:
    """A process that has a VM, or is to get it: its host, its actor's name, its pid."""

    host_id: str
    host_name: str
    actor: str = ""
    pid: int = 0


@dataclass(frozen=True, slots=True)
class Move:
    """A migration, as the ledger knows it.

    `token` is set aside for the destination; the VM has it once `committed`. Until then it has
    `origin_token`.
    """

    id: str
    token: int
    origin_token: int
    origin: Spot
    target: Spot
    committed: bool = False


@dataclass(frozen=True, slots=True)
class Pair:
    """A VM's secondary, as the ledger knows it.

    `token` is set aside for the secondary; the VM has it once the pair's cell names the secondary
    (`rayvisor.actors.ft_record`). `ready` is set when it has had a whole epoch.
    """

    id: str
    token: int
    secondary: Spot
    ready: bool = False


@dataclass(frozen=True, slots=True)
class Remains:
    """A process that has lost a VM to the other side of its pair, and is to be ended."""

    pair_id: str
    spot: Spot


@dataclass(frozen=True, slots=True)
class Protection:
    """Fault tolerance is wanted for a VM. `pair` is None while it has no secondary.

    `host` is the one that was asked for, by name; `failovers` counts how often the VM has gone on
    from a secondary, and `reason` says why there is no pair.
    """

    epoch_s: float
    silence_s: float
    host: str | None = None
    pair: Pair | None = None
    failovers: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Comeback:
    """A VM that is being started again, as the ledger knows it.

    `was` is the process that had it, `why` what became of that.
    """

    why: str
    was: Spot
    since_unix_s: float


@dataclass(frozen=True, slots=True)
class Placement:
    """Who runs a VM. The cluster's ledger is the one place where this is decided.

    `token` is the fencing token: every placement of a VM has a greater one than all before, and
    a host runs a vCPU only for the token that the ledger holds for it.
    `actor` is empty until a process has been chosen for it, and `pid` is 0 until the host has
    confirmed that the VM runs there.
    `took_back` is the token under which the source of a migration asked for its VM and got
    `token`: when it asks again, because it did not hear the answer, it gets the same one.
    """

    request: VmRequest
    token: int
    host_id: str
    host_name: str
    created_unix_s: float
    pid: int = 0
    actor: str = ""
    move: Move | None = None
    took_back: int | None = None
    ft: Protection | None = None
    remains: tuple[Remains, ...] = ()
    comeback: Comeback | None = None
    restarts: int = 0

    @property
    def spot(self) -> Spot:
        """The process that has the VM."""
        return Spot(self.host_id, self.host_name, self.actor, self.pid)

    @property
    def spots(self) -> set[Spot]:
        """Every process that has, had or may get the VM."""
        found = {self.spot}
        if self.move is not None:
            found |= {self.move.origin, self.move.target}
        if self.pair is not None:
            found.add(self.pair.secondary)
        found |= {r.spot for r in self.remains}
        return found

    @property
    def pair(self) -> Pair | None:
        """Its secondary, if it has one."""
        return None if self.ft is None else self.ft.pair

    @property
    def moving(self) -> Move:
        """The migration it is in.

        Raises:
            MigrationError: it is in none.
        """
        if self.move is None:
            raise MigrationError(f"VM {self.name!r} does not move")
        return self.move

    @property
    def name(self) -> str:
        """The VM's name."""
        return self.request.name


@dataclass(frozen=True, slots=True)
class LastWords:
    """How a VM ended, kept where it outlives the VM's process."""

    state: VmState
    reason: str
    ended_unix_s: float
    uptime_s: float = 0.0
    exit_status: int | None = None


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a host has for VMs. `vcpus` is more than `cores`: an idle guest sleeps."""

    cores: int
    vcpus: int
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class HostStatus:
    """One host: what it has and what is promised to VMs. Memory includes each VM's process."""

    host_id: str
    name: str
    address: str
    alive: bool
    cores: int = 0
    vcpus: int = 0
    vcpus_used: int = 0
    memory_bytes: int = 0
    memory_used_bytes: int = 0
    vms: int = 0
    reason: str = ""
    """Why it takes no VM; empty when it does."""
    maintenance: bool = False
    """It was evacuated, or is being: it takes no VM until it is resumed."""
    arriving: int = 0
    """VMs on their way here; they are counted in what is used, not in `vms`."""
    lease: str = ""
    """"held", "late", "isolated" or "dead"; empty while nothing is known of it."""
    heard_s: float | None = None
    """How long ago it was last heard of."""


@dataclass(frozen=True, slots=True)
class GuestStatus:
    """What a VM's own process says of it."""

    token: int
    state: VmState
    pid: int
    uptime_s: float
    reason: str = ""
    exit_status: int | None = None


@dataclass(frozen=True, slots=True)
class VmStatus:
    """Everything `ls` shows of a VM, put together from the ledger and from the VM itself."""

    name: str
    state: VmState
    host: str
    pid: int
    memory_bytes: int
    cpus: int
    image: str
    token: int
    created_unix_s: float
    uptime_s: float
    reason: str = ""
    exit_status: int | None = None
    moving_to: str = ""
    """The host it is on its way to."""
    restart: str = "never"
    """Its restart policy."""
    priority: int = 50
    restarts: int = 0
    owner: str = ""
    """The Ray job that it ends with."""


PROTECTED: Final = frozenset({"protected", "lagging"})
"""The states of `FtStatus` in which a secondary would go on."""


@dataclass(frozen=True, slots=True)
class FtStatus:
    """Everything `ft status` shows of a VM.

    Attributes:
        state: "protected", "lagging", "seeding", "unprotected" or "off".
        secondary: the host that stands by, or empty.
        reason: why it is not protected; empty when it is.
        stats: what the primary counts, or None when it does not say.
    """

    vm: str
    state: str
    host: str
    secondary: str = ""
    reason: str = ""
    epoch_s: float = 0.0
    silence_s: float = 0.0
    failovers: int = 0
    stats: FtStats | None = None


@dataclass(frozen=True, slots=True)
class ConsoleChunk:
    """A piece of console output. `offset` is that of its first byte since power-on.

    An offset beyond the one asked for says that the bytes between are no longer kept.
    """

    offset: int
    data: bytes = field(repr=False)
    live: bool
    """False once the guest has ended: after an empty chunk that is not live nothing follows."""


Report = dict[str, Any]
"""A VM's report as `Vm.report` makes it: plain values that JSON can carry."""
