"""High availability as a state machine: what is seen goes in, what is to be done comes out.

No I/O, no clock, no thread: `look` gets the whole picture each time and so needs no history but
its own, and a new machine over the same record is the old one. `rayvisor.actors.guardian` performs
what comes out and reports it by `done`.

A host is, by its silence and by what Ray says of its node:

    held       heard of lately
    late       silent for longer than half its lease: busy, or in trouble. It gets no new VMs
    isolated   silent for its lease and a grace period, and Ray has not given its node up:
               it has stopped its VMs by now, as it cannot renew its lease
    dead       the same, and Ray has given its node up

Only of an isolated or a dead host VMs are started elsewhere. A VM on a host that is heard of is
down when somebody wrote down its end.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from rayvisor.actors.events import EventKind
from rayvisor.actors.lease import GRACE_S
from rayvisor.actors.policy import STABLE_S, is_ours, pause_s, wants_restart
from rayvisor.actors.turns import NOBODY

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rayvisor.actors.lease import Beat
    from rayvisor.actors.policy import HaPolicy
    from rayvisor.actors.records import LastWords, Placement

AT_ONCE: Final = 4
"""Restarts under way at the same time, those that are less urgent not counted."""

NO_ROOM_RETRY_S: Final = 2.0
REMIND_EVERY_S: Final = 60.0
"""How often it is told of a VM that there is still no room for it."""
LATE_SHARE: Final = 0.5


class HostState(StrEnum):
    """See the module."""

    HELD = "held"
    LATE = "late"
    ISOLATED = "isolated"
    DEAD = "dead"


LOST: Final = frozenset({HostState.ISOLATED, HostState.DEAD})


class Outcome(StrEnum):
    """What came of a restart."""

    RESTARTED = "restarted"
    FAILED = "failed"
    """It did not start."""
    REFUSED = "refused"
    """No host has room for it."""
    OVERTAKEN = "overtaken"
    """It was removed meanwhile, or its host came back first."""


@dataclass(frozen=True, slots=True)
class NodeSeen:
    """A machine as Ray has it."""

    name: str
    alive: bool


@dataclass(frozen=True, slots=True)
class World:
    """All there is to see. `ends` has how VMs ended, under the tokens of their placements."""

    beats: Mapping[str, Beat]
    nodes: Mapping[str, NodeSeen]
    placements: Sequence[Placement]
    ends: Mapping[str, LastWords]


@dataclass(frozen=True, slots=True)
class Tell:
    """Write an event."""

    kind: EventKind
    text: str
    vm: str = ""
    host: str = ""
    data: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Start:
    """Start a VM again, if its placement still has this token.

    `in_place` is for a guest that ended in a process that lives. `cause` is one of "host-dead",
    "host-isolated", "process" and "guest", `why` is for people. None with a greater `priority` that
    is under way may run later.
    """

    name: str
    token: int
    cause: str
    why: str
    in_place: bool = False
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Forget:
    """Forget the lease of a host that is dead and has no VM left."""

    host_id: str


Instruction = Tell | Start | Forget


@dataclass(slots=True)
class _Host:
    name: str
    mark: str
    changed_s: float
    lease_s: float
    state: HostState = HostState.HELD
    silent_s: float = 0.0


@dataclass(slots=True)
class _Vm:
    policy: HaPolicy
    attempts: int = 0
    """Restarts in a row."""
    not_before_s: float = 0.0
    down_since_s: float | None = None
    up_since_s: float | None = None
    busy: bool = False
    complaint: str = ""
    """Why it does not start."""
    complained_s: float | None = None
    """When that was told."""


@dataclass(frozen=True, slots=True)
class _Down:
    cause: str
    why: str
    in_place: bool = False


class Availability:
    """The state machine. Not thread-safe."""

    def __init__(self, *, grace_s: float = GRACE_S, at_once: int = AT_ONCE) -> None:
        self._grace_s = grace_s
        self._at_once = at_once
        self._hosts: dict[str, _Host] = {}
        self._vms: dict[str, _Vm] = {}
        self._down: dict[str, _Down] = {}
        self._foremost = NOBODY

    def host(self, host_id: str) -> tuple[HostState, float] | None:
        """How a host is, and for how long it has been silent; None if it never had a lease."""
        found = self._hosts.get(host_id)
        return None if found is None else (found.state, found.silent_s)

    def hosts(self) -> dict[str, tuple[HostState, float]]:
        """The same for every host, by name."""
        return {h.name: (h.state, h.silent_s) for h in self._hosts.values()}

    def waiting(self) -> dict[str, str]:
        """Why each VM that is to be started again is down, by name."""
        return {
            name: down.why + (f"; {vm.complaint}" if vm.complaint else "")
            for name, down in self._down.items()
            for vm in [self._vms[name]]
        }

    def foremost(self) -> int:
        """The greatest priority of the VMs whose restart is still to be begun, or `NOBODY`.

        Those whose host's lease has run out are among them: within the grace period it is known
        whether they are down, and hosts that die together are not found dead together.
        """
        return self._foremost

    def look(self, now_s: float, world: World) -> list[Instruction]:
        """What is to be done now.

        Args:
            now_s: a clock that never runs backwards.
            world: as it is.
        """
        out: list[Instruction] = []
        self._look_at_hosts(now_s, world, out)
        self._look_at_vms(now_s, world, out)
        return out

    def done(self, now_s: float, start: Start, outcome: Outcome, said: str) -> list[Instruction]:
        """A `Start` was performed. `said` is where it runs now, or why it does not.

        Returns:
            What is to be told of it.
        """
        vm = self._vms.get(start.name)
        if vm is None:  # removed meanwhile
            return []
        vm.busy = False
        if outcome is Outcome.OVERTAKEN:
            self._down.pop(start.name, None)
            return []
        took_s = now_s - (now_s if vm.down_since_s is None else vm.down_since_s)
        data: dict[str, object] = {"cause": start.cause, "why": start.why, "took_s": took_s}
        if outcome is Outcome.RESTARTED:
            vm.attempts += 1
            vm.up_since_s, vm.down_since_s = now_s, None
            vm.complaint, vm.complained_s = "", None
            self._down.pop(start.name, None)
            text = f"VM {start.name} was started again on {said}: {start.why}"
            data["attempt"] = vm.attempts
            return [Tell(EventKind.VM_RESTARTED, text, start.name, said, data)]
        if outcome is Outcome.FAILED:
            vm.attempts += 1
            wait_s = pause_s(vm.policy, vm.attempts + 1)
        else:
            wait_s = NO_ROOM_RETRY_S
        vm.not_before_s = now_s + wait_s
        vm.complaint = said
        silent = vm.complained_s is None or now_s - vm.complained_s >= REMIND_EVERY_S
        if outcome is Outcome.REFUSED and not silent:
            return []
        vm.complained_s = now_s
        text = f"VM {start.name} was not started again: {said}"
        return [Tell(EventKind.VM_RESTART_FAILED, text, start.name, data=data)]

    def _look_at_hosts(self, now_s: float, world: World, out: list[Instruction]) -> None:
        for host_id, beat in world.beats.items():
            node = world.nodes.get(host_id)
            name = node.name if node is not None else host_id[:8]
            host = self._hosts.get(host_id)
            if host is None:
                # Its silence begins now: when it began before we looked is not known.
                host = self._hosts[host_id] = _Host(name, beat.mark, now_s, beat.lease_s)
            host.name = name
            if beat.mark != host.mark:
                host.mark, host.changed_s, host.lease_s = beat.mark, now_s, beat.lease_s
            host.silent_s = now_s - host.changed_s
            self._judge(host, alive=node is not None and node.alive, out=out)
            if host.state is HostState.DEAD and not any(
                p.host_id == host_id for p in world.placements
            ):
                out.append(Forget(host_id))
        for host_id in [h for h in self._hosts if h not in world.beats]:
            del self._hosts[host_id]

    def _judge(self, host: _Host, *, alive: bool, out: list[Instruction]) -> None:
        before = host.state
        if host.silent_s >= host.lease_s + self._grace_s:
            host.state = HostState.ISOLATED if alive else HostState.DEAD
        elif host.silent_s >= LATE_SHARE * host.lease_s:
            host.state = HostState.LATE
        else:
            host.state = HostState.HELD
        if host.state is before:
            return
        silence = f"nothing was heard of it for {host.silent_s:.1f} s"
        match host.state:
            case HostState.HELD:
                kind, text = EventKind.HOST_BACK, f"host {host.name} is heard of again"
            case HostState.LATE:
                kind, text = EventKind.HOST_LATE, f"host {host.name} is slow or busy: {silence}"
            case HostState.ISOLATED:
                kind = EventKind.HOST_ISOLATED
                text = f"host {host.name} is isolated: {silence}; its lease has ended"
            case HostState.DEAD:
                kind = EventKind.HOST_DEAD
                text = f"host {host.name} is dead: {silence}, and Ray has given it up"
        out.append(Tell(kind, text, host=host.name, data={"silent_s": host.silent_s}))

    def _look_at_vms(self, now_s: float, world: World, out: list[Instruction]) -> None:
        ours = {p.name: p for p in world.placements if is_ours(p)}
        for gone in [name for name in self._vms if name not in ours]:
            del self._vms[gone]
            self._down.pop(gone, None)
        for name, placement in ours.items():
            policy = placement.request.ha
            vm = self._vms.setdefault(name, _Vm(policy))
            vm.policy = policy
            if vm.busy:
                continue
            down = self._down_now(placement, world.ends.get(name))
            if down is None:
                self._is_up(name, vm, now_s)
            else:
                self._is_down(name, vm, down, now_s)
        due = [
            n for n in self._down if not self._vms[n].busy and self._vms[n].not_before_s <= now_s
        ]
        due.sort(key=lambda n: (-self._vms[n].policy.priority, n))
        left = [p.request.ha.priority for p in ours.values() if self._is_in_doubt(p)]
        for name in due:
            down, vm = self._down[name], self._vms[name]
            priority = vm.policy.priority
            before = sum(v.busy and v.policy.priority >= priority for v in self._vms.values())
            if before >= self._at_once:
                left.append(priority)
                continue
            vm.busy = True
            token = ours[name].token
            out.append(Start(name, token, down.cause, down.why, down.in_place, priority))
        self._foremost = max(left, default=NOBODY)

    def _is_in_doubt(self, placement: Placement) -> bool:
        host = self._hosts.get(placement.host_id)
        return (
            host is not None
            and host.state is HostState.LATE
            and host.silent_s >= host.lease_s
            and not self._vms[placement.name].busy
        )

    def _down_now(self, placement: Placement, words: LastWords | None) -> _Down | None:
        host = self._hosts.get(placement.host_id)
        if placement.comeback is not None and not placement.pid:
            return _Down("process", placement.comeback.why)
        if not placement.pid:
            return None  # it is being made
        if host is not None and host.state in LOST:
            what = "is dead" if host.state is HostState.DEAD else "is isolated"
            return _Down(f"host-{host.state}", f"its host {placement.host_name} {what}")
        policy = placement.request.ha
        if words is None or not wants_restart(policy, words):
            return None
        if words.state.value == "failed":
            return _Down("process", words.reason)
        return _Down("guest", words.reason or f"it is {words.state.value}", in_place=True)

    def _is_up(self, name: str, vm: _Vm, now_s: float) -> None:
        self._down.pop(name, None)
        vm.down_since_s, vm.complaint, vm.complained_s = None, "", None
        if vm.up_since_s is None:
            vm.up_since_s = now_s
        elif now_s - vm.up_since_s >= STABLE_S:
            vm.attempts = 0

    def _is_down(self, name: str, vm: _Vm, down: _Down, now_s: float) -> None:
        if name not in self._down:
            if vm.up_since_s is not None and now_s - vm.up_since_s >= STABLE_S:
                vm.attempts = 0
            vm.down_since_s = now_s if vm.down_since_s is None else vm.down_since_s
            vm.not_before_s = now_s + pause_s(vm.policy, vm.attempts + 1)
        vm.up_since_s = None
        self._down[name] = down
