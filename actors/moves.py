"""Migrations as the cluster sees them: begun, watched to their end, and decided by the record.

Plain and tested without Ray. A migration is run by the process that has the VM; here a thread for
each waits for its outcome. When this process dies, the migration goes on, and whoever comes after
it waits for the outcome again: a move is in the placement record from its first moment to its last.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Protocol

from rayvisor.actors.errors import ActorAwayError, ActorGoneError
from rayvisor.actors.events import EventKind
from rayvisor.actors.placing import choose_host, named
from rayvisor.migration.errors import MigrationFailedError, OwnershipLostError
from rayvisor.migration.report import MigrationReport
from rayvisor.vmm.errors import (
    MigrationError,
    PlacementError,
    RayvisorError,
    UnknownVmError,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from rayvisor.actors.directory import Directory
    from rayvisor.actors.events import EventLog
    from rayvisor.actors.records import HostStatus, Move, Placement, Spot
    from rayvisor.migration.config import MigrationConfig

_log = logging.getLogger(__name__)

ENDS_KEPT: Final = 200
GRACE_S: Final = 1.0
"""How long a source lives on after the move, to tell who still asks it that the VM has moved."""
AWAY_PAUSE_S: Final = 0.5
CANCEL_TRIES, CANCEL_PAUSE_S = 100, 0.05


@dataclass(frozen=True, slots=True)
class MoveEnd:
    """How a migration ended. `error` is what to raise when the VM has not moved."""

    report: MigrationReport
    error: MigrationError | None = None


class MoveCarrier(Protocol):
    """Reaches hosts and VMs; with Ray, `rayvisor.actors.carrier.RayCarrier`."""

    def prepare(self, placement: Placement) -> Spot:
        """An empty process on the host that the VM is to be made on, or moves to."""

    def migrate(self, placement: Placement, config: MigrationConfig | None) -> MigrationReport:
        """Have the VM's process move it; without `config`, wait for what it does already.

        Raises:
            ActorGoneError: the VM's process has ended meanwhile.
            ActorAwayError: it cannot be reached now.
            RayvisorError: the VM has not moved.
        """

    def cancel(self, placement: Placement) -> bool:
        """Call the VM's migration off; whether it was under way."""

    def has_ended(self, spot: Spot) -> bool:
        """Whether a process is known to have ended; ClusterError when that cannot be known."""

    def kill(self, spot: Spot) -> None:
        """End a VM's process and return once it has ended. Harmless when there is none."""


class Mover:
    """The migrations of a cluster. A new one over the same record is the old one. Thread-safe."""

    def __init__(
        self,
        directory: Directory[Any],
        carrier: MoveCarrier,
        events: EventLog,
        pause_s: Callable[[float], None] = time.sleep,
    ) -> None:
        self._directory = directory
        self._ledger = directory.ledger
        self._carrier = carrier
        self._events = events
        self._pause_s = pause_s
        self._changed = threading.Condition()
        self._ends: OrderedDict[str, MoveEnd] = OrderedDict()
        self._cancelled: set[str] = set()
        for placement in self._ledger.placements():
            if placement.move is not None:
                self._watch(placement, None)

    def start(self, name: str, host: str | None, config: MigrationConfig) -> Placement:
        """Begin to move a VM to a host with room, or to `host`; its placement, with the move.

        Raises:
            UnknownVmError: there is none of that name.
            MigrationError: it moves already, is on that host already, or has ended.
            PlacementError: no such host, or no room; with the numbers.
        """
        placement = self._ledger.get(name)
        state = self._directory.status(name).state
        if not state.is_live and placement.pid:
            raise MigrationError(f"VM {name!r} is {state}: only one that runs can be moved")
        with self._directory.placing:
            target = self._choose(placement, host)
            moving = self._ledger.begin_move(
                name, secrets.token_hex(6), target.host_id, target.name
            )
        self._events.write(
            EventKind.MIGRATION_STARTED,
            f"VM {name} is moved from {placement.host_name} to {target.name}",
            vm=name,
            host=placement.host_name,
            data={"move": moving.moving.id, "to": target.name},
        )
        self._watch(moving, config)
        return moving

    def cancel(self, name: str) -> bool:
        """Call a VM's migration off; whether one was under way.

        Raises:
            UnknownVmError: there is none of that name.
        """
        placement = self._ledger.get(name)
        if placement.move is None:
            return False
        with self._changed:
            self._cancelled.add(placement.move.id)
        for _ in range(CANCEL_TRIES):
            # Until its process has begun with it, or need not.
            with contextlib.suppress(ActorGoneError):
                if self._carrier.cancel(placement):
                    break
            self._pause_s(CANCEL_PAUSE_S)
            if self._ledger.get(name).move != placement.move:
                placement = self._ledger.get(name)
                if placement.move is None:
                    break
        return True

    def end(self, move_id: str, timeout_s: float) -> MoveEnd | None:
        """How a migration ended, or None after `timeout_s` seconds.

        Raises:
            MigrationError: nothing is known of it.
        """
        with self._changed:
            self._changed.wait_for(lambda: move_id in self._ends, timeout_s)
            end = self._ends.get(move_id)
        if end is None and not any(
            p.move is not None and p.move.id == move_id for p in self._ledger.placements()
        ):
            with self._changed:  # it may have ended between the two looks
                end = self._ends.get(move_id)
            if end is None:
                raise MigrationError("nothing is known of this migration: see `rayvisor events`")
        return end

    def commit(self, name: str, token: int, actor: str) -> int:
        """See `Ledger.commit`."""
        return self._ledger.commit(name, token, actor)

    def take_back(self, name: str, token: int, actor: str, *, given_up: bool) -> int:
        """See `Ledger.take_back`, and `rayvisor.migration.roles.Ownership`.

        Raises:
            OwnershipLostError: the destination has the VM, or it was removed.
            ClusterError: whether the destination lives is not known yet.
        """
        try:
            move = self._ledger.get(name).move
        except UnknownVmError:
            raise OwnershipLostError(f"VM {name!r} was removed") from None
        revert = False
        if move is not None and move.committed and move.origin_token == token:
            revert = given_up or self._carrier.has_ended(move.target)
            if revert:
                self._carrier.kill(move.target)
        return self._ledger.take_back(name, token, actor, revert=revert)

    def _choose(self, placement: Placement, host: str | None) -> HostStatus:
        hosts = self._directory.hosts()
        request = replace(placement.request, host=host)
        if host is not None:
            if named(host, hosts).host_id == placement.host_id:
                raise MigrationError(
                    f"VM {placement.name!r} is on host {placement.host_name} already"
                )
        else:
            hosts = [h for h in hosts if h.host_id != placement.host_id]
            if not hosts:
                raise PlacementError(
                    f"VM {placement.name!r} can go nowhere: {placement.host_name} is the only host"
                )
        return choose_host(request, hosts)

    def _watch(self, placement: Placement, config: MigrationConfig | None) -> None:
        threading.Thread(
            target=self._see_through, args=(placement, config), name="move", daemon=True
        ).start()

    def _see_through(self, placement: Placement, config: MigrationConfig | None) -> None:
        move_id = placement.moving.id
        outcome: MigrationReport | Exception
        try:
            outcome = self._carry_out(placement, config)
        except Exception as error:  # noqa: BLE001 - told to who asked for the move
            outcome = error
        ended = self._ledger.end_move(placement.name, move_id)
        move = (ended or placement).moving
        end = self._judge(placement, move, outcome)
        with self._changed:
            self._ends[move_id] = end
            self._cancelled.discard(move_id)
            while len(self._ends) > ENDS_KEPT:
                self._ends.popitem(last=False)
            self._changed.notify_all()
        self._tell(move_id, end)
        if end.error is None:
            self._pause_s(GRACE_S)
            self._carrier.kill(move.origin)
        else:
            self._carrier.kill(move.target)

    def _carry_out(self, placement: Placement, config: MigrationConfig | None) -> MigrationReport:
        move = placement.moving
        if not move.target.actor:
            spot = self._carrier.prepare(placement)
            placement = self._ledger.aim(placement.name, move.id, spot.actor, spot.pid)
            with self._changed:
                cancelled = move.id in self._cancelled
            if cancelled:
                raise _failed(placement, "cancelled", outcome="cancelled")
        while True:
            try:
                return self._carrier.migrate(placement, config)
            except ActorAwayError as error:
                _log.warning("VM %s: %s", placement.name, error)
                self._pause_s(AWAY_PAUSE_S)

    def _judge(
        self, placement: Placement, move: Move, outcome: MigrationReport | Exception
    ) -> MoveEnd:
        if isinstance(outcome, MigrationReport):
            return MoveEnd(outcome)
        if isinstance(outcome, MigrationFailedError):
            return MoveEnd(outcome.report, outcome)
        if move.committed:
            # The source said nothing, but the destination has the VM.
            report = _report(placement, "moved")
            report.error = f"the source ended before it could report: {outcome}"
            report.token = move.token
            return MoveEnd(report)
        if isinstance(outcome, ActorGoneError):
            return _end(
                _failed(
                    placement,
                    f"the VM's process on {move.origin.host_name} has ended, and the VM with it",
                    where="",
                )
            )
        if not isinstance(outcome, RayvisorError):
            _log.error("migration of %s", placement.name, exc_info=outcome)
        return _end(_failed(placement, str(outcome) or type(outcome).__name__))

    def _tell(self, move_id: str, end: MoveEnd) -> None:
        report = end.report
        data = {"move": move_id, "report": report.as_dict()}
        if end.error is None:
            kind = EventKind.MIGRATION_MOVED
            text = (
                f"VM {report.vm} moved from {report.source} to {report.destination}"
                f" in {report.total_s:.2f} s; downtime {report.downtime_s * 1000:.0f} ms"
            )
        else:
            cancelled = report.outcome == "cancelled"
            kind = EventKind.MIGRATION_CANCELLED if cancelled else EventKind.MIGRATION_FAILED
            text = str(end.error)
        host = report.source if end.error else report.destination
        self._events.write(kind, text, vm=report.vm, host=host, data=data)


def _report(placement: Placement, outcome: str) -> MigrationReport:
    move = placement.moving
    return MigrationReport(
        placement.name, move.origin.host_name, move.target.host_name, outcome=outcome
    )


def _failed(
    placement: Placement, why: str, *, outcome: str = "failed", where: str | None = None
) -> MigrationFailedError:
    report = _report(placement, outcome)
    report.error = why
    stays = f" and stays at {report.source}" if where is None else where
    return MigrationFailedError(f"VM {report.vm} was not moved{stays}: {why}", report)


def _end(error: MigrationFailedError) -> MoveEnd:
    return MoveEnd(error.report, error)
