"""The placement record: which host owns which VM, decided in one place and written down.

Keys in the store::

    token           the greatest fencing token ever given out, in decimal
    vm/NAME         the VM's Placement, as JSON
    end/NAME        how it ended, as JSON with its token: written by whoever saw it last, the VM's
                    own process or its host

Every change is in the store before the call that makes it returns, so a new `Ledger` over the
same store is the old one.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pydantic import TypeAdapter, ValidationError

from rayvisor.actors.ft_record import effective, for_primary, parted
from rayvisor.actors.records import Comeback, LastWords, Move, Placement, Spot, VmRequest
from rayvisor.migration.errors import OwnershipLostError
from rayvisor.migration.ft_protocol import Verdict
from rayvisor.vmm.errors import ClusterError, MigrationError, UnknownVmError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rayvisor.actors.policy import HaPolicy
    from rayvisor.actors.store import KeyValueStore

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _End:
    token: int
    words: LastWords


_PLACEMENT = TypeAdapter(Placement)
_END = TypeAdapter(_End)


class NameTakenError(ClusterError):
    """A VM of that name is there already."""


class StaleTokenError(ClusterError):
    """The caller's placement is no longer the one in the ledger."""


class Ledger:
    """The one writer of placements. Thread-safe."""

    def __init__(self, store: KeyValueStore, now_s: Callable[[], float] = time.time) -> None:
        self._store = store
        self._now_s = now_s
        self._lock = threading.Lock()
        self._placements: dict[str, Placement] = {}
        for key in store.keys("vm/"):
            placement = read_placement(store, key.removeprefix("vm/"))
            if placement is not None:
                self._placements[placement.name] = placement
        for placement in self._placements.values():
            if placement.ft is not None:  # what a cell has said is written down
                self._write(placement)
        greatest = max((t for p in self._placements.values() for t in _tokens(p)), default=0)
        self._token = max(greatest, int(store.get("token") or b"0"))

    def placements(self) -> list[Placement]:
        """Every VM there is, by name."""
        with self._lock:
            return [self._current(name) for name in sorted(self._placements)]

    def get(self, name: str) -> Placement:
        """Where the VM is.

        Raises:
            UnknownVmError: there is none of that name.
        """
        with self._lock:
            if name not in self._placements:
                raise _unknown(name)
            return self._current(name)

    def next_token(self) -> int:
        """A token greater than any before."""
        with self._lock:
            return self._next_token()

    def edit(self, name: str, change: Callable[[Placement], Placement]) -> Placement:
        """Write what `change` makes of a placement; what it raises changes nothing.

        Raises:
            UnknownVmError: there is none of that name.
        """
        with self._lock:
            if name not in self._placements:
                raise _unknown(name)
            return self._write(change(self._current(name)))

    def check_free(self, name: str) -> None:
        """Raise NameTakenError when there is a VM of that name."""
        with self._lock:
            self._check_free(name)

    def reserve(self, request: VmRequest, host_id: str, host_name: str) -> Placement:
        """Give a new VM to a host, with a token greater than any before.

        Raises:
            NameTakenError: the name is in use.
        """
        with self._lock:
            self._check_free(request.name)
            self._store.delete(f"end/{request.name}")
            return self._write(
                Placement(request, self._next_token(), host_id, host_name, self._now_s())
            )

    def assign(self, name: str, token: int, actor: str) -> Placement:
        """A new VM is made by this actor.

        Raises:
            StaleTokenError: the VM was removed or placed anew in the meantime.
        """
        with self._lock:
            return self._write(replace(self._owned(name, token), actor=actor))

    def confirm(self, name: str, token: int, pid: int) -> Placement:
        """The host runs the VM in process `pid`.

        Raises:
            StaleTokenError: the VM was removed or placed anew in the meantime.
        """
        with self._lock:
            return self._write(replace(self._owned(name, token), pid=pid))

    def release(self, name: str, token: int) -> None:
        """Forget the VM. Harmless when it is gone or placed anew."""
        with self._lock:
            placement = self._placements.get(name)
            if placement is not None and placement.token == token:
                self._store.delete(f"vm/{name}")
                self._store.delete(f"end/{name}")
                del self._placements[name]

    def begin_comeback(
        self, name: str, token: int, host_id: str, host_name: str, why: str
    ) -> Placement:
        """A VM that is down is to be started again on this host, under a new token.

        Whoever had it under `token` can neither move it nor take it back any more.

        Raises:
            StaleTokenError: the VM was removed, moved or taken back in the meantime.
        """
        with self._lock:
            found = self._without_pair(self._owned(name, token))
            before = found.comeback
            self._store.delete(f"end/{name}")
            return self._write(
                replace(
                    found,
                    token=self._next_token(),
                    host_id=host_id,
                    host_name=host_name,
                    actor="",
                    pid=0,
                    move=None,
                    took_back=None,
                    comeback=Comeback(why, before.was, before.since_unix_s)
                    if before
                    else Comeback(why, found.spot, self._now_s()),
                )
            )

    def come_back(self, name: str, token: int, pid: int) -> Placement:
        """The VM runs again, in process `pid`.

        Raises:
            StaleTokenError: the VM was removed in the meantime.
        """
        with self._lock:
            found = self._owned(name, token)
            return self._write(replace(found, pid=pid, comeback=None, restarts=found.restarts + 1))

    def count_restart(self, name: str, token: int) -> None:
        """The VM was started again in its own process. Harmless when it is gone."""
        with self._lock:
            found = self._placements.get(name)
            if found is not None and found.token == token:
                self._write(replace(found, restarts=found.restarts + 1))

    def set_policy(self, name: str, policy: HaPolicy) -> Placement:
        """From now on this is done about the VM.

        Raises:
            UnknownVmError: there is none of that name.
        """
        with self._lock:
            found = self._placements.get(name)
            if found is None:
                raise _unknown(name)
            return self._write(replace(found, request=replace(found.request, ha=policy)))

    def shelve(self, name: str, token: int) -> None:
        """Starting it again failed: it waits, and holds no room. Harmless when it is gone."""
        with self._lock:
            found = self._placements.get(name)
            if found is not None and found.token == token and found.comeback is not None:
                was = found.comeback.was
                host_id, host_name = was.host_id, was.host_name
                self._write(replace(found, actor="", pid=0, host_id=host_id, host_name=host_name))

    def begin_move(self, name: str, move_id: str, host_id: str, host_name: str) -> Placement:
        """Set room aside for the VM on another host, and the token it will have there.

        Raises:
            UnknownVmError: there is none of that name.
            MigrationError: it moves already, or is still being made.
        """
        with self._lock:
            found = self._placements.get(name)
            if found is None:
                raise _unknown(name)
            if found.ft is not None:
                raise MigrationError(
                    f"VM {name!r} is fault tolerant by now, and moves to its secondary: try again"
                )
            if found.move is not None:
                raise MigrationError(
                    f"VM {name!r} is on its way to host {found.move.target.host_name} already:"
                    f" wait for that, or `rayvisor migrate {name} --cancel`"
                )
            if not found.pid:
                raise MigrationError(f"VM {name!r} is still being made: try again in a moment")
            target = Spot(host_id, host_name)
            move = Move(move_id, self._next_token(), found.token, found.spot, target)
            return self._write(replace(found, move=move))

    def aim(self, name: str, move_id: str, actor: str, pid: int) -> Placement:
        """The VM goes to this process.

        Raises:
            MigrationError: that migration is over.
        """
        with self._lock:
            found, move = self._moving(name, move_id)
            target = replace(move.target, actor=actor, pid=pid)
            return self._write(replace(found, move=replace(move, target=target)))

    def commit(self, name: str, token: int, actor: str) -> int:
        """The destination of a migration takes the VM. Idempotent.

        Args:
            name: the VM.
            token: under which the source has it.
            actor: who asks.

        Returns:
            The VM's new token.

        Raises:
            OwnershipLostError: the source has gone back on it, or `actor` never was to get it.
        """
        with self._lock:
            found = self._placements.get(name)
            move = None if found is None else found.move
            if (
                found is None
                or move is None
                or (move.origin_token, move.target.actor) != (token, actor)
            ):
                raise OwnershipLostError(f"VM {name!r} is not to be had under token {token}")
            if not move.committed:
                there = move.target
                self._write(
                    replace(
                        found,
                        token=move.token,
                        host_id=there.host_id,
                        host_name=there.host_name,
                        actor=there.actor,
                        pid=there.pid,
                        move=replace(move, committed=True),
                    )
                )
            return move.token

    def take_back(self, name: str, token: int, actor: str, *, revert: bool) -> int:
        """The source of a migration goes on with the VM. Idempotent.

        Args:
            name: the VM.
            token: under which the source had it.
            actor: who asks.
            revert: also when the destination has taken it: its process has ended.

        Returns:
            The VM's new token.

        Raises:
            OwnershipLostError: the destination has it, or somebody else.
        """
        with self._lock:
            found = self._placements.get(name)
            if found is not None:
                move = found.move
                if (found.took_back, found.actor) == (token, actor):
                    return found.token
                if (found.token, found.actor) == (token, actor):
                    again = replace(found, token=self._next_token(), move=None, took_back=token)
                    return self._write(again).token
                if (
                    revert
                    and move is not None
                    and (move.origin_token, move.origin.actor) == (token, actor)
                ):
                    here = move.origin
                    again = replace(
                        found,
                        token=self._next_token(),
                        host_id=here.host_id,
                        host_name=here.host_name,
                        actor=here.actor,
                        pid=here.pid,
                        move=None,
                        took_back=token,
                    )
                    return self._write(again).token
            raise OwnershipLostError(f"VM {name!r} belongs to somebody else than token {token}")

    def end_move(self, name: str, move_id: str) -> Placement | None:
        """The migration is over: who has not committed by now never will.

        Returns:
            The placement as it was before, with the move; None if that was over already.
        """
        with self._lock:
            try:
                found, _ = self._moving(name, move_id)
            except MigrationError:
                return None
            self._write(replace(found, move=None))
            return found

    def _moving(self, name: str, move_id: str) -> tuple[Placement, Move]:
        found = self._placements.get(name)
        if found is None or found.move is None or found.move.id != move_id:
            raise MigrationError(f"this migration of VM {name!r} is over")
        return found, found.move

    def _current(self, name: str) -> Placement:
        """The placement, after what its pair's cell says is written down."""
        placement = self._placements[name]
        now = effective(placement, self._store)
        return placement if now is placement else self._write(now)

    def _without_pair(self, placement: Placement) -> Placement:
        """Of a VM that is down: its secondary, if it has had no epoch, shall not go on."""
        pair = placement.pair
        if pair is None:
            return placement
        if pair.ready:
            raise StaleTokenError(f"VM {placement.name!r} has a secondary, which takes over")
        if for_primary(pair, self._store) is not Verdict.PRIMARY:
            raise StaleTokenError(f"the secondary of VM {placement.name!r} has taken over")
        return parted(placement, "")

    def _check_free(self, name: str) -> None:
        taken = self._placements.get(name)
        if taken is not None:
            raise NameTakenError(
                f"a VM is called {name!r} already, on host {taken.host_name};"
                f" choose another name or `rayvisor rm {name}`"
            )

    def _owned(self, name: str, token: int) -> Placement:
        placement = self._placements.get(name)
        if placement is None or placement.token != token:
            raise StaleTokenError(f"VM {name!r} was removed or placed anew in the meantime")
        return placement

    def _next_token(self) -> int:
        self._token += 1
        self._store.put("token", str(self._token).encode())
        return self._token

    def _write(self, placement: Placement) -> Placement:
        self._store.put(f"vm/{placement.name}", _PLACEMENT.dump_json(placement))
        self._placements[placement.name] = placement
        return placement


def _tokens(placement: Placement) -> list[int]:
    """The placement's token, and those that are set aside."""
    move, pair = placement.move, placement.pair
    return [placement.token, *(m.token for m in (move, pair) if m is not None)]


def _unknown(name: str) -> UnknownVmError:
    return UnknownVmError(f"no VM is called {name!r}; `rayvisor ls` lists them")


def read_placement(store: KeyValueStore, name: str) -> Placement | None:
    """What the ledger says of a VM, for readers other than its writer; None for nothing."""
    raw = store.get(f"vm/{name}")
    if raw is None:
        return None
    try:
        placement = _PLACEMENT.validate_json(raw)
    except ValidationError:
        _log.exception("placement of VM %r is unreadable and is left out", name)
        return None
    return effective(placement, store)


def write_end(store: KeyValueStore, name: str, token: int, words: LastWords) -> None:
    """Keep how the VM with this token ended."""
    store.put(f"end/{name}", _END.dump_json(_End(token, words)))


def read_end(store: KeyValueStore, name: str, token: int) -> LastWords | None:
    """How the VM with this token ended, if anybody saw it."""
    raw = store.get(f"end/{name}")
    if raw is None:
        return None
    try:
        end = _END.validate_json(raw)
    except ValidationError:
        _log.exception("last words of VM %r are unreadable and are left out", name)
        return None
    return end.words if end.token == token else None


def forget_end(store: KeyValueStore, name: str) -> None:
    """The VM runs again."""
    store.delete(f"end/{name}")
