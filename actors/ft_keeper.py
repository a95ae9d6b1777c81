"""Keeps fault tolerant VMs fault tolerant: gives each a secondary, and another when that is lost.

Plain and tested without Ray. Failover itself waits for nothing here: the two sides of a pair settle
it between them (`rayvisor.actors.ft_record`). What is here makes pairs, ends them, and clears away
what they leave.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Protocol

from rayvisor.actors import ft_record
from rayvisor.actors.errors import ActorGoneError
from rayvisor.actors.events import EventKind
from rayvisor.actors.ft_record import StoreCell
from rayvisor.actors.placing import choose_host, named
from rayvisor.actors.records import PROTECTED, FtStatus, Pair, Protection, Spot
from rayvisor.migration.ft_protocol import Verdict
from rayvisor.vmm.errors import (
    ClusterError,
    MigrationError,
    PlacementError,
    RayvisorError,
    UnknownVmError,
)

if TYPE_CHECKING:
    from rayvisor.actors.directory import Directory
    from rayvisor.actors.events import EventLog
    from rayvisor.actors.records import HostStatus, Placement, Remains
    from rayvisor.actors.store import KeyValueStore
    from rayvisor.migration.ft_config import FtConfig
    from rayvisor.vmm.stats import FtStats

_log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 1.0
PAUSE_AFTER_FAILURE_S: Final = 2.0
GRACE_S: Final = 1.0
"""How long a primary lives on after a failover, to tell who still asks it where the VM is."""


class FtCarrier(Protocol):
    """Reaches hosts and VMs; with Ray, `rayvisor.actors.carrier.RayCarrier`."""

    def prepare_secondary(self, placement: Placement) -> Spot:
        """An empty process on the host of the VM's secondary."""

    def protect(self, placement: Placement) -> None:
        """Have the VM's process give it the secondary that the placement names."""

    def unprotect(self, spot: Spot, why: str, *, for_good: bool) -> None:
        """Have the VM's process end its pair."""

    def switch_over(self, placement: Placement) -> None:
        """Have the VM's process hand over to its secondary."""

    def ft_pair(self, spot: Spot) -> tuple[str, FtStats]:
        """The pair that a VM's process has, or empty, and its stats."""

    def is_alive(self, host_id: str) -> bool:
        """Whether the machine is part of the cluster."""

    def has_ended(self, spot: Spot) -> bool:
        """Whether a process is known to have ended; ClusterError when that cannot be known."""

    def kill(self, spot: Spot) -> None:
        """End a VM's process and return once it has ended. Harmless when there is none."""


class FtKeeper:
    """The fault tolerant VMs of a cluster. A new one over the same record is the old one."""

    def __init__(
        self,
        directory: Directory[Any],
        carrier: FtCarrier,
        events: EventLog,
        store: KeyValueStore,
        *,
        look_every_s: float = LOOK_EVERY_S,
    ) -> None:
        self._directory = directory
        self._ledger = directory.ledger
        self._carrier = carrier
        self._events = events
        self._store = store
        self._look_every_s = look_every_s
        self._changed = threading.Condition()
        self._asked = False
        self._busy: set[str] = set()
        self._making: set[str] = set()
        self._not_before_s: dict[str, float] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ft-keeper", daemon=True)
        self._thread.start()

    # --- Asked by people ------------------------------------------------------------------------

    def enable(self, name: str, config: FtConfig, host: str | None) -> FtStatus:
        """Protect a VM from now on.

        Raises:
            UnknownVmError: there is none of that name.
            ConfigError: it is protected already, in another way.
            MigrationError: it is on its way to another host, or does not run.
            PlacementError: no other host has room; with the numbers.
        """
        placement = self._ledger.get(name)
        if placement.ft is None:
            state = self._directory.status(name).state
            if not state.is_live:
                raise MigrationError(f"VM {name!r} is {state}: only one that runs is protected")
            if placement.move is not None:
                raise MigrationError(f"VM {name!r} is being moved: wait for that")
            with self._directory.placing:
                self._choose(placement, host)
        protection = Protection(config.epoch_s, config.silence_s, host)
        self._ledger.edit(name, ft_record.wanted(protection))
        self._tell(EventKind.FT_ENABLED, f"VM {name} is to be fault tolerant", placement)
        self._not_before_s.pop(name, None)
        self.wake()
        return self.status(name)

    def disable(self, name: str) -> FtStatus:
        """Protect a VM no longer. Harmless when it is not.

        Raises:
            UnknownVmError: there is none of that name.
            ClusterError: who has the VM cannot be known now.
        """
        placement = self._ledger.get(name)
        if placement.ft is None:
            return self.status(name)
        with contextlib.suppress(ActorGoneError):
            self._carrier.unprotect(placement.spot, "disabled", for_good=True)
        pair = placement.pair
        if pair is not None and self._ledger.get(name).pair is not None:
            # It was still being seeded: its secondary has nothing that it could go on with.
            StoreCell(self._store, pair.id).decide(Verdict.PRIMARY)
        now = self._ledger.edit(name, ft_record.wanted(None))
        if now.token != placement.token:  # it has failed over meanwhile
            with contextlib.suppress(ActorGoneError):
                self._carrier.unprotect(now.spot, "disabled", for_good=True)
        self._tell(EventKind.FT_DISABLED, f"VM {name} is no longer fault tolerant", now)
        self.wake()
        return self.status(name)

    def failover(self, name: str) -> None:
        """Have a VM go on at its secondary, without any loss; see `status` for when it does.

        Raises:
            UnknownVmError: there is none of that name.
            MigrationError: it has no secondary that is ready.
        """
        placement = self._ledger.get(name)
        if placement.pair is None or not placement.pair.ready:
            raise MigrationError(
                f"VM {name!r} has no secondary that is ready: see `rayvisor ft status {name}`"
            )
        self._carrier.switch_over(placement)

    def reseat(self, name: str, host: str | None) -> FtStatus:
        """Have a VM's secondary made anew on `host`, or on any other one than now.

        The VM is not protected until that is ready; its old secondary goes only when there is room
        for the new one.

        Raises:
            UnknownVmError: there is none of that name.
            MigrationError: it is not fault tolerant, or has failed over this moment.
            PlacementError: no such host, or no room; with the numbers.
        """
        placement = self._ledger.get(name)
        pair = placement.pair
        if placement.ft is None:
            raise MigrationError(f"VM {name!r} is not fault tolerant")
        if pair is not None and host == pair.secondary.host_name:
            return self.status(name)
        avoided = pair.secondary.host_id if pair is not None and host is None else ""
        with self._directory.placing:
            target = self._choose(placement, host, avoided=avoided)
        self._ledger.edit(name, ft_record.seated(target.name))
        self._not_before_s.pop(name, None)
        if pair is not None:
            with contextlib.suppress(ActorGoneError):
                why = f"another is made on {target.name}"
                self._carrier.unprotect(placement.spot, why, for_good=False)
                self._end_pair(name, pair.id)
        self.wake()
        return self.status(name)

    def status(self, name: str) -> FtStatus:
        """How protected a VM is.

        Raises:
            UnknownVmError: there is none of that name.
        """
        placement = self._ledger.get(name)
        ft = placement.ft
        if ft is None:
            return FtStatus(name, "off", placement.host_name)
        state, secondary, stats = "unprotected", "", None
        if ft.pair is not None:
            secondary = ft.pair.secondary.host_name
            state = "protected" if ft.pair.ready else "seeding"
            with contextlib.suppress(RayvisorError):
                pair_id, stats = self._carrier.ft_pair(placement.spot)
                # A primary that is protected is so once the record knows: by it others go on.
                if pair_id == ft.pair.id and (ft.pair.ready or stats.state not in PROTECTED):
                    state = stats.state
        return FtStatus(
            name,
            state,
            placement.host_name,
            secondary,
            reason=ft.reason if state != "protected" else "",
            epoch_s=ft.epoch_s,
            silence_s=ft.silence_s,
            failovers=ft.failovers,
            stats=stats,
        )

    def statuses(self) -> list[FtStatus]:
        """How protected each VM is for which that is wanted, by name."""
        found = []
        for placement in self._ledger.placements():
            if placement.ft is not None:
                with contextlib.suppress(UnknownVmError):
                    found.append(self.status(placement.name))
        return found

    # --- Told by the two sides ------------------------------------------------------------------

    def changed(self, name: str, pair_id: str, state: str, reason: str) -> None:
        """One side of a pair says how it stands."""
        with contextlib.suppress(MigrationError, UnknownVmError):
            if state == "protected":
                self._ledger.edit(name, ft_record.ready(pair_id))
        if state == "unprotected":
            self._end_pair(name, pair_id)
            self._note_reason(name, reason, tell=False)
        self.wake()

    def wake(self) -> None:
        """Look after all now."""
        with self._changed:
            self._asked = True
            self._changed.notify_all()

    # --- Looking after them ---------------------------------------------------------------------

    def stop(self) -> None:
        """Look after none any more."""
        self._stopped.set()
        self.wake()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.is_set():
            with self._changed:
                self._changed.wait_for(lambda: self._asked, self._look_every_s)
                self._asked = False
            try:
                self.look()
            except Exception:  # noqa: BLE001 - the next look may go better
                _log.exception("looking after fault tolerant VMs")

    def look(self) -> None:
        """See to every VM once."""
        for placement in self._ledger.placements():
            for remains in placement.remains:
                self._in_background(self._clear_away, placement, remains)
            if placement.pair is not None:
                self._in_background(self._look_after_pair, placement)
            elif self._wants_pair(placement):
                self._in_background(self._make_pair, placement)

    def _wants_pair(self, placement: Placement) -> bool:
        wanted = placement.ft is not None and placement.move is None and bool(placement.pid)
        return wanted and time.monotonic() >= self._not_before_s.get(placement.name, 0.0)

    def _in_background(self, work: Any, placement: Placement, *more: Any) -> None:  # noqa: ANN401
        key = f"{work.__name__} {placement.name} {placement.token} {more}"
        with self._changed:
            if key in self._busy:
                return
            self._busy.add(key)

        def run() -> None:
            try:
                work(placement, *more)
            except RayvisorError as error:
                _log.warning("VM %s: %s", placement.name, error)
            except Exception:  # noqa: BLE001 - as in `_run`
                _log.exception("VM %s", placement.name)
            finally:
                with self._changed:
                    self._busy.discard(key)

        threading.Thread(target=run, name="ft", daemon=True).start()

    def _clear_away(self, placement: Placement, remains: Remains) -> None:
        """End the process that has lost the VM."""
        time.sleep(GRACE_S)
        self._carrier.kill(remains.spot)
        if self._has_ended(remains.spot):
            self._ledger.edit(placement.name, ft_record.cleared(remains))
            # A process on a host that was cut off may live, and ask some day: its cell stays.
            if self._carrier.is_alive(remains.spot.host_id):
                StoreCell(self._store, remains.pair_id).forget()

    def _look_after_pair(self, placement: Placement) -> None:
        """End a pair that nobody will end: both sides are gone, or it was never begun."""
        pair = _pair(placement)
        if pair.id in self._making:
            return
        if not pair.secondary.actor:
            self._end_pair(placement.name, pair.id)
            return
        if self._has_ended(placement.spot):
            if self._has_ended(pair.secondary):
                self._end_pair(placement.name, pair.id)
                self._note_reason(placement.name, "both of its hosts were lost", tell=True)
            return
        if not pair.ready:
            with contextlib.suppress(ClusterError):
                pair_id, stats = self._carrier.ft_pair(placement.spot)
                if pair_id != pair.id:
                    self._end_pair(placement.name, pair.id)
                elif stats.epochs:
                    self._ledger.edit(placement.name, ft_record.ready(pair.id))

    def _make_pair(self, placement: Placement) -> None:
        name = placement.name
        if not self._directory.status(name).state.is_live:
            return
        pair_id = secrets.token_hex(6)
        self._making.add(pair_id)
        try:
            with self._directory.placing:
                wanted = placement.ft.host if placement.ft is not None else None
                host = self._choose(placement, wanted, needed=False)
                pair = Pair(pair_id, self._ledger.next_token(), Spot(host.host_id, host.name))
                paired = self._ledger.edit(name, ft_record.paired(pair))
            spot = self._carrier.prepare_secondary(paired)
            paired = self._ledger.edit(name, ft_record.aimed(pair_id, spot))
            self._carrier.protect(paired)
        except RayvisorError as error:
            self._not_before_s[name] = time.monotonic() + PAUSE_AFTER_FAILURE_S
            self._end_pair(name, pair_id)
            self._note_reason(name, str(error), tell=True)
            raise
        finally:
            self._making.discard(pair_id)
            self._end_unknown(name)

    def _end_unknown(self, name: str) -> None:
        """End a pair of the VM's process that the record dropped while it was being made."""
        with contextlib.suppress(RayvisorError):
            placement = self._ledger.get(name)
            pair_id, _ = self._carrier.ft_pair(placement.spot)
            known = self._ledger.get(name).pair
            if pair_id and (known is None or known.id != pair_id):
                self._carrier.unprotect(
                    placement.spot, "the record has no such pair", for_good=False
                )

    def _end_pair(self, name: str, pair_id: str) -> None:
        """The primary goes on alone, or nobody does."""

        def end(placement: Placement) -> Placement:
            if placement.pair is None or placement.pair.id != pair_id:
                return placement
            if ft_record.for_primary(placement.pair, self._store) is Verdict.SECONDARY:
                return ft_record.taken_over(placement)
            return ft_record.parted(placement, "")

        with contextlib.suppress(UnknownVmError):
            self._ledger.edit(name, end)

    def _note_reason(self, name: str, reason: str, *, tell: bool) -> None:
        """Keep why the VM has no secondary now."""

        def note(now: Placement) -> Placement:
            if now.ft is None or now.pair is not None or now.ft.reason == reason:
                return now
            if tell:
                text = f"VM {now.name} is not protected: {reason}"
                self._tell(EventKind.FT_UNPROTECTED, text, now)
            return replace(now, ft=replace(now.ft, reason=reason))

        with contextlib.suppress(UnknownVmError):
            self._ledger.edit(name, note)

    def _choose(
        self, placement: Placement, host: str | None, *, needed: bool = True, avoided: str = ""
    ) -> HostStatus:
        """A host for a secondary: never the VM's own, nor `avoided`. With `needed`, `host`."""
        hosts = self._directory.hosts()
        others = [h for h in hosts if h.host_id not in {placement.host_id, avoided}]
        if not others:
            known = " and ".join(h.name for h in hosts)
            raise PlacementError(
                f"VM {placement.name!r} has no other host to be protected by: there is only {known}"
            )
        if host is not None:
            asked = named(host, hosts) if needed else None
            if asked is not None and asked.host_id == placement.host_id:
                raise PlacementError(f"VM {placement.name!r} runs on {asked.name} itself")
            with contextlib.suppress(PlacementError):
                return choose_host(replace(placement.request, host=host), others)
            if needed:
                return choose_host(replace(placement.request, host=host), others)
        return choose_host(replace(placement.request, host=None), others)

    def _has_ended(self, spot: Spot) -> bool:
        try:
            return self._carrier.has_ended(spot)
        except ClusterError:
            return False

    def _tell(self, kind: EventKind, text: str, placement: Placement) -> None:
        self._events.write(kind, text, vm=placement.name, host=placement.host_name)


def _pair(placement: Placement) -> Pair:
    if placement.pair is None:
        raise MigrationError(f"VM {placement.name!r} has no secondary")
    return placement.pair
