"""The secondary of a fault tolerant VM, in the process that stands by."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from rayvisor.actors.landing import GuestDestination
from rayvisor.actors.quay import Quay
from rayvisor.migration.ft_standby import Standby

if TYPE_CHECKING:
    from collections.abc import Callable

    from rayvisor.actors.guest import Guest
    from rayvisor.actors.quay import Berth
    from rayvisor.migration.ft_config import FtConfig
    from rayvisor.migration.ft_primary import Cell
    from rayvisor.migration.ft_standby import Takeover

_log = logging.getLogger(__name__)


class Outpost:
    """Stands by for one VM, and runs it when its primary is lost.

    Args:
        guest: holds the machine, which is off and as large as the VM's.
        cell: who goes on when the two part.
        config: limits and choices, those of the primary.
        started_unix_s: when the VM was started.
        on_run: called once it runs here.
    """

    def __init__(
        self,
        guest: Guest,
        cell: Cell,
        config: FtConfig,
        *,
        started_unix_s: float,
        on_run: Callable[[Takeover], None],
    ) -> None:
        self._look_s = config.look_s
        self._standby = Standby(
            GuestDestination(guest.vm, guest, started_unix_s),
            guest.inputs,
            cell,
            config,
            on_run=on_run,
        )

    @property
    def has_taken_over(self) -> bool:
        """Whether the VM runs here."""
        return self._standby.takeover is not None

    def listen(self, address: str) -> Berth:
        """Wait for the primary on a thread of its own."""
        return Quay(self, self._look_s).listen(address)

    @property
    def urgent(self) -> bool:
        """See `Standby.urgent`."""
        return self._standby.urgent

    def feed(self, frame: bytes | bytearray) -> list[bytes]:
        """See `Standby.feed`."""
        return self._standby.feed(frame)

    def idle(self, *, heard: bool) -> list[bytes]:
        """See `Standby.idle`."""
        return self._standby.idle(heard=heard)

    def disconnected(self) -> None:
        """See `Standby.disconnected`."""
        try:
            self._standby.disconnected()
        except Exception:
            if not self.has_taken_over:
                # The VM is ours and does not run: that must show as the end of this process.
                _log.critical("the VM was given to this process, which cannot run it")
                os._exit(1)
            raise
