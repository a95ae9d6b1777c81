"""The source of a migration, in the process that has the VM."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from rayvisor.actors.quay import connect
from rayvisor.migration.errors import MigrationFailedError, UndecidedError
from rayvisor.migration.precopy import Migration
from rayvisor.migration.report import MigrationReport
from rayvisor.migration.vm_source import VmSource
from rayvisor.vmm.errors import RayvisorError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rayvisor.actors.guest import Guest
    from rayvisor.actors.quay import Berth
    from rayvisor.actors.records import Placement
    from rayvisor.migration.config import MigrationConfig
    from rayvisor.migration.report import Progress
    from rayvisor.migration.roles import Ownership

_log = logging.getLogger(__name__)


class _GuestSource(VmSource):
    """Keeps others from stopping, resetting or asking the guest while it stands still."""

    def __init__(self, guest: Guest) -> None:
        super().__init__(guest.vm)
        self._guest = guest
        self._held = False

    def pause(self) -> int:
        self._guest.hold()
        self._held = True
        return super().pause()

    def resume(self) -> None:
        try:
            super().resume()
        finally:
            self._let_go()

    def release(self) -> bytes:
        self._guest.leave()
        try:
            return super().release()
        finally:
            self._let_go()

    def _let_go(self) -> None:
        if self._held:
            self._held = False
            self._guest.let_go()


class Departure:
    """One attempt to move the guest of this process. Thread-safe.

    `run` is called once; `cancel` and `progress` by anybody, at any time.
    """

    def __init__(self, placement: Placement) -> None:
        """`placement` is the VM's, with the move."""
        self._placement = placement
        self._move = placement.moving
        self._lock = threading.Lock()
        self._cancelled = False
        self._migration: Migration | None = None
        self._over = threading.Event()
        self._report: MigrationReport | None = None
        self._error: BaseException | None = None
        self.id = self._move.id
        self.progress: Progress | None = None
        """Where it stands, once it does."""

    def cancel(self) -> None:
        """Call it off; see `Migration.cancel`."""
        with self._lock:
            self._cancelled = True
            if self._migration is not None:
                self._migration.cancel()

    def run(
        self,
        guest: Guest,
        berth: Callable[[], Berth],
        ownership: Ownership,
        config: MigrationConfig,
    ) -> MigrationReport:
        """Move the guest.

        Args:
            guest: what moves.
            berth: asks the destination where to connect to.
            ownership: the placement record.
            config: limits and choices.

        Raises:
            MigrationFailedError: it stays here; has the report.
        """
        guest.departure = self
        try:
            self._report = self._run(guest, berth, ownership, config)
        except BaseException as error:
            self._error = error
            raise
        finally:
            guest.departure = None
            self._over.set()
        return self._report

    def wait(self) -> MigrationReport:
        """What `run`, on another thread, gives or raises."""
        self._over.wait()
        if self._report is None:
            raise self._error or RuntimeError("neither a report nor an error")
        return self._report

    def _run(
        self,
        guest: Guest,
        berth: Callable[[], Berth],
        ownership: Ownership,
        config: MigrationConfig,
    ) -> MigrationReport:
        move = self._move
        try:
            source = _GuestSource(guest)
            transport = connect(berth())
        except (RayvisorError, OSError) as error:
            raise self._never_began(error) from error
        with self._lock:
            self._migration = Migration(
                source,
                transport,
                ownership,
                token=self._placement.token,
                config=config,
                route=(move.origin.host_name, move.target.host_name),
                on_progress=self._note,
            )
            if self._cancelled:
                self._migration.cancel()
        try:
            return self._finish(self._migration)
        except MigrationFailedError as error:
            if error.report.token is not None:
                guest.token = error.report.token
            raise

    def _note(self, progress: Progress) -> None:
        self.progress = progress

    def _finish(self, migration: Migration) -> MigrationReport:
        try:
            return migration.run()
        except UndecidedError as error:
            undecided: UndecidedError = error
        while True:
            _log.error("%s", undecided)
            try:
                return migration.settle()
            except UndecidedError as error:
                undecided = error

    def _never_began(self, error: Exception) -> MigrationFailedError:
        route = (self._move.origin.host_name, self._move.target.host_name)
        report = MigrationReport(self._placement.name, *route, error=str(error))
        return MigrationFailedError(
            f"VM {report.vm} was not moved and stays at {report.source}: {error}", report
        )
