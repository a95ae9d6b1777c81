"""The primary of a fault tolerant VM, in the process that has the VM."""

from __future__ import annotations

import contextlib
import logging
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from rayvisor.actors.errors import MovedError
from rayvisor.actors.quay import connect
from rayvisor.migration.errors import OwnershipLostError
from rayvisor.migration.ft_primary import Protector
from rayvisor.migration.ft_source import VmCheckpoints
from rayvisor.migration.precopy import Migration
from rayvisor.migration.vm_source import VmSource
from rayvisor.vmm.errors import ClusterError, MigrationError, RayvisorError
from rayvisor.vmm.stats import FtStats

if TYPE_CHECKING:
    from collections.abc import Callable

    from rayvisor.actors.guest import Guest
    from rayvisor.actors.quay import Berth
    from rayvisor.migration.ft_config import FtConfig
    from rayvisor.migration.ft_primary import Cell
    from rayvisor.migration.ft_sending import Aside
    from rayvisor.migration.ft_source import Checkpoint
    from rayvisor.migration.roles import Ownership

_log = logging.getLogger(__name__)

COMMIT_S: Final = 20.0
SETTLE_S: Final = 20.0


class _GuestCheckpoints(VmCheckpoints):
    """Keeps others from stopping or resetting the guest while it stands still to be handed over."""

    def __init__(self, guest: Guest, config: FtConfig, pending: bytes) -> None:
        super().__init__(guest.vm, guest.inputs, config, pending)
        self._guest = guest
        self._held = False

    def cut(self, *, hold: bool, stay: bool, overflow: Callable[[Aside], None]) -> Checkpoint:
        if stay:
            self._guest.hold()
            self._held = True
        try:
            return super().cut(hold=hold, stay=stay, overflow=overflow)
        except BaseException:
            self._let_go()
            raise

    def go_alone(self) -> None:
        try:
            super().go_alone()
        finally:
            self._let_go()

    def fence(self) -> None:
        self._guest.leave()
        try:
            super().fence()
        finally:
            self._let_go()

    def _let_go(self) -> None:
        if self._held:
            self._held = False
            self._guest.let_go()


class Shield:
    """One secondary of the guest of this process, from its seeding to the end of the pair.

    Args:
        guest: what is protected.
        pair_id: the pair.
        token: under which the guest runs.
        config: limits and choices.
        cell: who goes on when the two part.
        on_change: called with the state, and a reason, whenever it is another; at the end with
            "unprotected", or "lost" when the secondary has the VM.

    Attributes:
        over: set once the pair has ended.
    """

    def __init__(
        self,
        guest: Guest,
        pair_id: str,
        token: int,
        config: FtConfig,
        cell: Cell,
        on_change: Callable[[str, str], None],
    ) -> None:
        self.pair_id = pair_id
        self.over = threading.Event()
        self._guest = guest
        self._token = token
        self._config = config
        self._cell = cell
        self._on_change = on_change
        self._protector: Protector | None = None
        self._migration: Migration | None = None
        self._ending = ""
        self._lock = threading.Lock()

    def start(self, berth: Callable[[], Berth], record: Ownership) -> None:
        """Seed the secondary that listens at `berth`, then protect; on a thread of its own."""
        threading.Thread(target=self._run, args=(berth, record), name="ft", daemon=True).start()

    def stats(self) -> FtStats:
        """What is counted."""
        protector, migration = self._protector, self._migration
        if protector is not None:
            return protector.stats()
        if migration is not None and not self.over.is_set():
            return FtStats("seeding")
        return FtStats("unprotected" if self.over.is_set() else "seeding")

    def commit(self, mark: int) -> None:
        """Wait until what has been typed up to `mark` cannot be lost.

        Raises:
            MovedError: the VM goes on elsewhere, perhaps without it.
            MigrationError: that cannot be known now.
        """
        protector = self._protector
        if protector is None:
            return
        try:
            protector.commit(mark, COMMIT_S)
        except OwnershipLostError as error:
            raise MovedError(str(error)) from None

    def dissolve(self, why: str, timeout_s: float | None = SETTLE_S) -> None:
        """End the pair, with the guest going on here.

        Raises:
            MovedError: its secondary has the VM.
            ClusterError: the placement record does not say who has it.
        """
        with self._lock:
            self._ending = why
            protector, migration = self._protector, self._migration
        if protector is not None:
            protector.dissolve(why)
            if not self.over.wait(timeout_s):
                raise ClusterError("the placement record does not say who has the VM: try again")
        elif migration is not None:
            migration.cancel()  # its secondary has nothing yet that it could go on with
        self._guest.require_here()

    def switch_over(self) -> None:
        """Have the secondary go on.

        Raises:
            MigrationError: there is none that could.
        """
        protector = self._protector
        if protector is None or not protector.stats().epochs:
            raise MigrationError("its secondary is not ready: see `rayvisor ft status`")
        protector.switch_over()

    def _run(self, berth: Callable[[], Berth], record: Ownership) -> None:
        here, reason = True, ""
        try:
            protector = self._seed(berth, record)
            here = protector.run()
            reason = protector.reason
        except (RayvisorError, OSError) as error:
            reason = str(error)
            _log.warning("not protected: %s", error)
        finally:
            self.over.set()
        with contextlib.suppress(RayvisorError):
            self._on_change("unprotected" if here else "lost", reason)

    def _seed(self, berth: Callable[[], Berth], record: Ownership) -> Protector:
        migration = Migration(
            VmSource(self._guest.vm),
            connect(berth()),
            record,
            token=self._token,
            config=self._config.seeding,
        )
        with self._lock:
            self._migration = migration
            if self._ending:
                migration.cancel()
        seeded = migration.seed()
        source = _GuestCheckpoints(self._guest, self._config, seeded.pending)
        protector = Protector(source, seeded, self._cell, self._config, self._tell)
        with self._lock:
            self._protector = protector
            if self._ending:
                protector.dissolve(self._ending)
        return protector

    def _tell(self) -> None:
        protector = self._protector
        if protector is not None and protector.stats().state in {"protected", "lagging"}:
            with contextlib.suppress(RayvisorError):
                self._on_change(protector.stats().state, "")


def stats_of(shield: Shield | None, failovers: int) -> FtStats:
    """The stats of a VM that wants to be protected, and is perhaps."""
    found = FtStats("unprotected") if shield is None else shield.stats()
    return replace(found, failovers=failovers)
