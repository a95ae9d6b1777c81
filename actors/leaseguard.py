"""A VM's side of its host's lease: it stands still while the host is not part of the cluster.

    held -> frozen          the deadline passed, or the lease was lost and had again meanwhile
    frozen -> held          the lease is held, and the placement record gave the VM back
    frozen -> ended         the record gave the VM to somebody else

The rules are in `LeaseGuard.look`, which a thread calls and a test calls by hand.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Final, Protocol

from rayvisor.migration.errors import OwnershipLostError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rayvisor.actors.lease import Held

_log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 0.25
STAND_IN_SHARE: Final = 0.5
"""A VM's process renews for its host when less than this share of the lease is left."""


class Lease(Protocol):
    """The host's lease, see `rayvisor.actors.lease.LeaseFile`."""

    def read(self) -> Held:
        """As it stands."""


class Ward(Protocol):
    """The VM that is guarded."""

    def freeze(self) -> None:
        """Let no instruction run. Any number of times."""

    def thaw(self) -> None:
        """Go on."""

    def retake(self) -> None:
        """Ask the placement record for the VM, under a new token.

        Raises:
            OwnershipLostError: somebody else has it.
            Exception: the record cannot be asked now.
        """

    def end(self) -> None:
        """Somebody else has it: end this copy, and its process."""


class LeaseGuard:
    """Lets a VM run under its host's lease alone.

    Args:
        lease: where the lease is read.
        ward: the VM; it runs, and the lease is held.
        renew: begins to renew the lease, and does not wait.
        clock_ns: the clock of the lease.
        lease_s: how long a lease holds.
        stand_in_share: see `STAND_IN_SHARE`; other processes should have another one, so that
            not all of them renew at once.
    """

    def __init__(
        self,
        lease: Lease,
        ward: Ward,
        renew: Callable[[], None],
        *,
        clock_ns: Callable[[], int],
        lease_s: float,
        stand_in_share: float = STAND_IN_SHARE,
    ) -> None:
        self._lease = lease
        self._ward = ward
        self._renew = renew
        self._clock_ns = clock_ns
        self._stand_in_ns = int(stand_in_share * lease_s * 1e9)
        self._term = lease.read().term
        self.frozen = False
        """Whether the VM stands still for want of a lease."""
        self.freezes = 0
        """How often that came to be."""
        self._ended = False
        self._stopping = threading.Event()

    def look(self) -> float:
        """Look once, and do what follows; when to look again, in seconds."""
        held = self._lease.read()
        left_ns = held.deadline_ns - self._clock_ns()
        if not self.frozen and (left_ns <= 0 or held.term != self._term):
            self._ward.freeze()
            self.frozen = True
            self.freezes += 1
        if left_ns < self._stand_in_ns:
            self._renew()
        if self.frozen and left_ns > 0:
            self._come_back(held)
        return min(LOOK_EVERY_S, max(left_ns / 1e9, 0.01)) if left_ns > 0 else LOOK_EVERY_S

    def start(self) -> None:
        """Guard it from a thread of its own."""
        threading.Thread(target=self._run, name="lease-guard", daemon=True).start()

    def stop(self) -> None:
        """Guard it no more: it is elsewhere, or its policy has changed."""
        self._stopping.set()

    def _come_back(self, held: Held) -> None:
        try:
            self._ward.retake()
        except OwnershipLostError as error:
            _log.warning("%s", error)
            self._ended = True
            self._ward.end()
            return
        except Exception as error:  # noqa: BLE001 - Ray's and ours: asked again at the next look
            _log.warning("the VM stands still until it is ours again: %s", error)
            return
        again = self._lease.read()
        if again.term != held.term or again.deadline_ns <= self._clock_ns():
            return  # lost again while we asked
        self._term = held.term
        self.frozen = False
        self._ward.thaw()

    def _run(self) -> None:
        wait_s = 0.0
        while not self._stopping.wait(wait_s) and not self._ended:
            wait_s = self.look()
