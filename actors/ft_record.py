"""Fault tolerance in the placement record.

Each pair has a cell, a key of the store that is written once: who goes on with the VM when primary
and secondary lose sight of each other. Both write to it themselves, so that a failover waits for
nobody but the store. What the cell says counts from that instant; the placement, which the ledger
alone writes, follows, and until then every reader works out what it will say (`effective`).

    ft/PAIR         "primary", "secondary" or "removed"
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from rayvisor.actors.records import Remains
from rayvisor.migration.ft_config import FtConfig
from rayvisor.migration.ft_protocol import Verdict
from rayvisor.vmm.errors import ClusterError, ConfigError, MigrationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rayvisor.actors.records import Pair, Placement, Protection, Spot
    from rayvisor.actors.store import KeyValueStore

_PREFIX = "ft/"


class StoreCell:
    """See `rayvisor.migration.ft_primary.Cell`."""

    def __init__(self, store: KeyValueStore, pair_id: str) -> None:
        self._store = store
        self._key = _PREFIX + pair_id

    def decide(self, verdict: Verdict) -> Verdict:
        """Write `verdict` if nothing is there yet; what is there.

        Raises:
            ClusterError: it cannot be read.
        """
        found = _verdict(self._store.put_new(self._key, verdict.encode()))
        if found is None:
            raise ClusterError(f"{self._key} is unreadable")
        return found

    def read(self) -> Verdict | None:
        """What is there."""
        return _verdict(self._store.get(self._key))

    def forget(self) -> None:
        """Only once neither side of the pair can ask any more."""
        self._store.delete(self._key)


def _verdict(raw: bytes | None) -> Verdict | None:
    try:
        return None if raw is None else Verdict(raw.decode())
    except ValueError:
        return None


def for_primary(pair: Pair, store: KeyValueStore) -> Verdict:
    """Have the primary go on without this pair, unless it is decided otherwise; what is."""
    if not pair.secondary.actor:  # it was never begun
        return Verdict.PRIMARY
    return StoreCell(store, pair.id).decide(Verdict.PRIMARY)


def config_of(placement: Placement) -> FtConfig:
    """What was asked of the VM's fault tolerance."""
    ft, _ = _paired(placement)
    return FtConfig(epoch_s=ft.epoch_s, silence_s=ft.silence_s)


def failovers_of(placement: Placement) -> int:
    """How often the VM has gone on from a secondary."""
    return 0 if placement.ft is None else placement.ft.failovers


def effective(placement: Placement, store: KeyValueStore) -> Placement:
    """The placement as its pair's cell has it."""
    pair = placement.pair
    if pair is None or not pair.secondary.actor:
        return placement
    match StoreCell(store, pair.id).read():
        case Verdict.SECONDARY:
            return taken_over(placement)
        case Verdict.PRIMARY:
            return parted(placement, "")
        case _:
            return placement


def taken_over(placement: Placement) -> Placement:
    """The secondary has the VM."""
    ft, pair = _paired(placement)
    there = pair.secondary
    return replace(
        placement,
        token=pair.token,
        host_id=there.host_id,
        host_name=there.host_name,
        actor=there.actor,
        pid=there.pid,
        took_back=None,
        remains=(*placement.remains, Remains(pair.id, placement.spot)),
        ft=replace(
            ft, pair=None, failovers=ft.failovers + 1, reason=f"{placement.host_name} was lost"
        ),
    )


def parted(placement: Placement, reason: str) -> Placement:
    """The pair is over, and the primary goes on."""
    ft, pair = _paired(placement)
    there = (Remains(pair.id, pair.secondary),) if pair.secondary.actor else ()
    return replace(
        placement,
        remains=(*placement.remains, *there),
        ft=replace(ft, pair=None, reason=reason or ft.reason),
    )


def cleared(remains: Remains) -> Callable[[Placement], Placement]:
    """A process that has lost the VM has ended."""

    def edit(placement: Placement) -> Placement:
        return replace(placement, remains=tuple(r for r in placement.remains if r != remains))

    return edit


def wanted(protection: Protection | None) -> Callable[[Placement], Placement]:
    """Fault tolerance is wanted from now on, or not; a pair that is there stays."""

    def edit(placement: Placement) -> Placement:
        if protection is None or placement.ft is None:
            return replace(placement, ft=protection)
        if placement.ft.pair is not None:
            raise ConfigError(
                f"VM {placement.name!r} is protected already: `rayvisor ft disable"
                f" {placement.name}` first"
            )
        return replace(placement, ft=replace(protection, failovers=placement.ft.failovers))

    return edit


def seated(host: str) -> Callable[[Placement], Placement]:
    """The next secondary is to be on this host."""

    def change(placement: Placement) -> Placement:
        if placement.ft is None:
            return placement
        return replace(placement, ft=replace(placement.ft, host=host))

    return change


def paired(pair: Pair) -> Callable[[Placement], Placement]:
    """The VM gets a secondary."""

    def edit(placement: Placement) -> Placement:
        ft = placement.ft
        if ft is None or ft.pair is not None or placement.move is not None:
            raise MigrationError(f"VM {placement.name!r} takes no secondary now")
        return replace(placement, ft=replace(ft, pair=pair))

    return edit


def aimed(pair_id: str, spot: Spot) -> Callable[[Placement], Placement]:
    """The secondary is this process."""

    def edit(placement: Placement) -> Placement:
        ft, pair = _paired(placement, pair_id)
        return replace(placement, ft=replace(ft, pair=replace(pair, secondary=spot)))

    return edit


def ready(pair_id: str) -> Callable[[Placement], Placement]:
    """The secondary has had a whole epoch."""

    def edit(placement: Placement) -> Placement:
        ft, pair = _paired(placement, pair_id)
        return replace(placement, ft=replace(ft, reason="", pair=replace(pair, ready=True)))

    return edit


def _paired(placement: Placement, pair_id: str | None = None) -> tuple[Protection, Pair]:
    ft, pair = placement.ft, placement.pair
    if ft is None or pair is None or pair_id not in {None, pair.id}:
        raise MigrationError(f"this pair of VM {placement.name!r} is over")
    return ft, pair
