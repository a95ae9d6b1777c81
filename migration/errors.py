"""The ways a migration fails. Each message says what was found and where the VM runs now."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rayvisor.vmm.errors import MigrationError

if TYPE_CHECKING:
    from rayvisor.migration.report import MigrationReport


class IllegalPhaseError(MigrationError):
    """Something was done, or came, out of the order that `rayvisor.migration.phases` draws."""


class StreamError(MigrationError):
    """What came from the other side is not a migration stream, or was damaged on the way."""


class TransportError(MigrationError):
    """The other side cannot be reached any more."""


class PeerAbortedError(MigrationError):
    """The other side gave up; the message is its own."""


class MigrationCancelledError(MigrationError):
    """Somebody called it off."""


class MigrationTimeoutError(MigrationError):
    """It took longer than it was allowed to."""


class OwnershipLostError(MigrationError):
    """The placement record says that the VM belongs to somebody else."""


class UndecidedError(MigrationError):
    """The placement record does not answer, so the VM stays paused at the source."""


class MigrationFailedError(MigrationError):
    """A migration ended without moving the VM.

    Attributes:
        report: What was done until then.
    """

    def __init__(self, message: str, report: MigrationReport) -> None:
        super().__init__(message, report)
        self.report = report

    def __str__(self) -> str:
        return str(self.args[0])
