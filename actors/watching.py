"""What a VM's process does for high availability: the guard of its lease, and what it tells."""

from __future__ import annotations

import os
import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rayvisor.actors import lease
from rayvisor.actors.events import EventKind, EventLog
from rayvisor.actors.leaseguard import LeaseGuard
from rayvisor.actors.ledger import read_placement
from rayvisor.actors.policy import Restart
from rayvisor.migration.errors import OwnershipLostError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rayvisor.actors.guest import Guest
    from rayvisor.actors.lease import LeaseFile
    from rayvisor.actors.records import LastWords, VmRequest
    from rayvisor.actors.store import KeyValueStore
    from rayvisor.migration.roles import Ownership
    from rayvisor.vmm.spec import HangAction

_STAND_IN: Final = (0.35, 0.6)


@dataclass(frozen=True, slots=True)
class Claim:
    """What a process asks for its VM: the placement record, and what it is called there."""

    actor: str
    ownership: Ownership
    store: KeyValueStore

    def renewed(self, vm: str, token: int) -> int:
        """The VM's token, if it is still this process's.

        Raises:
            OwnershipLostError: somebody else has it.
            ClusterError: the record cannot be asked now.
        """
        placement = read_placement(self.store, vm)
        if placement is None or placement.actor != self.actor:
            raise OwnershipLostError(f"VM {vm!r} is not this process's any more")
        if placement.pair is not None:
            return token  # its pair decides who goes on, and nobody starts it again meanwhile
        return self.ownership.take_back(vm, token, given_up=False)


class GuestWard:
    """See `rayvisor.actors.leaseguard.Ward`: a guest under a fencing token.

    Args:
        name: the VM's.
        guest: it.
        claim: the placement record.
        events: where it is told.
        retaken: called with the token before, when the guest has another one.
    """

    def __init__(
        self,
        name: str,
        guest: Guest,
        claim: Claim,
        events: EventLog,
        retaken: Callable[[int], None],
    ) -> None:
        self._name = name
        self._guest = guest
        self._claim = claim
        self._events = events
        self._retaken = retaken
        self._since_s = 0.0

    def freeze(self) -> None:
        """Let no instruction run."""
        self._since_s = time.monotonic()
        self._guest.vm.freeze()

    def thaw(self) -> None:
        """Go on, and say so."""
        self._guest.vm.thaw()
        stood_s = time.monotonic() - self._since_s
        text = (
            f"VM {self._name} goes on: its host is part of the cluster again,"
            f" after {stood_s:.1f} s in which it stood still"
        )
        self._events.write(EventKind.VM_THAWED, text, vm=self._name, data={"stood_s": stood_s})

    def retake(self) -> None:
        """Ask the placement record for the VM, under a new token.

        Raises:
            OwnershipLostError: somebody else has it.
            ClusterError: the record cannot be asked now.
        """
        before = self._guest.token
        self._guest.token = self._claim.renewed(self._name, before)
        self._retaken(before)

    def end(self) -> None:
        """Somebody else has the VM: end this process."""
        text = f"VM {self._name} runs elsewhere: its old copy has ended without going on"
        self._events.write(EventKind.VM_FENCED, text, vm=self._name)
        os._exit(0)


def guard_of(
    host_id: str, request: VmRequest, store: KeyValueStore, file: LeaseFile, ward: GuestWard
) -> LeaseGuard | None:
    """The guard of a VM that may be started elsewhere; None for one that never is."""
    if request.ha.restart is Restart.NEVER:
        return None
    lease_s = lease.lease_s()
    standby = lease.Standby(lease.Renewal(host_id, store, file, lease_s=lease_s))
    return LeaseGuard(
        file,
        ward,
        standby.renew,
        clock_ns=lease.now_ns,
        lease_s=lease_s,
        stand_in_share=random.uniform(*_STAND_IN),  # noqa: S311 - to spread, not to hide
    )


def tell_end(events: EventLog, name: str, words: LastWords) -> None:
    """Write down that a guest ended, and why."""
    text = f"VM {name} is {words.state.value}: {words.reason}"
    data = {"state": words.state.value, "exit_status": words.exit_status}
    events.write(EventKind.VM_ENDED, text, vm=name, data=data)


def tell_hang(events: EventLog, name: str, action: HangAction, reason: str) -> None:
    """Write down that a guest hangs, and what is done about it."""
    text = f"VM {name} hangs: {reason}; it is {_DONE[action.value]}"
    events.write(EventKind.VM_HUNG, text, vm=name, data={"action": action.value})


_DONE: Final = {"reset": "started over", "stop": "ended", "ignore": "left alone"}
