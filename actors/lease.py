"""A host's lease: who may run the VMs that would be started elsewhere if their host were lost.

A host renews its lease by writing to the cluster's store (`lease/HOST`). A renewal that was begun
at one moment holds for `lease_s` from that moment, by this machine's clock; the deadline lies in a
small file that every process of the host reads. A VM that may be started elsewhere stands still
while the deadline is past. Whoever starts it elsewhere has seen no renewal for the lease and a
grace period on top (`rayvisor.actors.availability`), so that two clocks need only run at nearly
the same speed, and never show the same time.

Any process of the host may renew: the host actor does so all the time, and a VM's process when the
host actor is late, because it died and is started again.

The clock is CLOCK_BOOTTIME: it is one for the machine, and also counts while the machine sleeps.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import secrets
import struct
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pydantic import TypeAdapter, ValidationError

from rayvisor.actors.records import Capacity  # noqa: TC001 - pydantic reads it

if TYPE_CHECKING:
    from collections.abc import Callable

    from rayvisor.actors.store import KeyValueStore

_log = logging.getLogger(__name__)

HEARTBEAT_S: Final = 0.5
LEASE_S: Final = 4.0
GRACE_S: Final = 1.0
"""Waited beyond the lease: for clocks of slightly different speed, and for guests to stop."""
LEASE_VARIABLE: Final = "RAYVISOR_HOST_LEASE_S"
PREFIX: Final = "lease/"

_FORMAT: Final = "<QQ"


def lease_s() -> float:
    """How long a lease of this host holds: `LEASE_S`, or what the environment says."""
    try:
        asked = float(os.environ.get(LEASE_VARIABLE, ""))
    except ValueError:
        return LEASE_S
    if math.isnan(asked):
        return LEASE_S
    return min(max(asked, 2 * HEARTBEAT_S), 3600.0)


def now_ns() -> int:
    """The machine's clock."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


@dataclass(frozen=True, slots=True)
class Beat:
    """What a host writes when it renews. Every renewal has another `mark`."""

    mark: str
    lease_s: float
    capacity: Capacity | None = None


_BEAT = TypeAdapter(Beat)


def read_beat(raw: bytes) -> Beat | None:
    """What `Renewal` wrote; None when it is something else."""
    try:
        return _BEAT.validate_json(raw)
    except ValidationError:
        return None


@dataclass(frozen=True, slots=True)
class Held:
    """The lease as this host knows it.

    `term` grows by one each time the lease was lost and had again. In between the VMs may have
    been started elsewhere, also when nobody here was awake to see the deadline pass.
    """

    term: int
    deadline_ns: int


class LeaseFile:
    """Where the processes of a host find its lease. Written whole or not at all."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> Held:
        """The lease; one that ended long ago if there is none."""
        try:
            return Held(*struct.unpack(_FORMAT, self._path.read_bytes()))
        except (OSError, struct.error):
            return Held(0, 0)

    def write(self, held: Held) -> None:
        """Replace it.

        Raises:
            OSError: the folder cannot be written.
        """
        fresh = self._path.with_name(f"{self._path.name}.{secrets.token_hex(4)}")
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            fresh.write_bytes(struct.pack(_FORMAT, held.term, held.deadline_ns))
            fresh.replace(self._path)
        except OSError:
            fresh.unlink(missing_ok=True)
            raise


def lease_file(temp_dir: str, session: str, node_id: str) -> LeaseFile:
    """That of a Ray node: in the session's folder, gone with it."""
    return LeaseFile(Path(temp_dir) / session / "rayvisor-lease" / node_id)


class Renewal:
    """Renews a host's lease. Any number of processes of the host may have one."""

    def __init__(
        self,
        host_id: str,
        store: KeyValueStore,
        file: LeaseFile,
        *,
        lease_s: float,
        capacity: Callable[[], Capacity] | None = None,
        clock_ns: Callable[[], int] = now_ns,
    ) -> None:
        self._key = PREFIX + host_id
        self._store = store
        self._file = file
        self._lease_s = lease_s
        self._capacity = capacity
        self._clock_ns = clock_ns

    def renew(self) -> None:
        """Renew once. Waits for the store, for as long as that takes.

        Raises:
            Exception: the store cannot be reached; whatever its client raises.
        """
        begun_ns = self._clock_ns()
        capacity = self._capacity() if self._capacity is not None else self._told()
        beat = Beat(f"{begun_ns}-{secrets.token_hex(3)}", self._lease_s, capacity)
        self._store.put(self._key, _BEAT.dump_json(beat))
        done_ns = self._clock_ns()
        deadline_ns = begun_ns + int(self._lease_s * 1e9)
        held = self._file.read()
        if deadline_ns <= max(done_ns, held.deadline_ns):
            return  # it took longer than it holds, or another process was faster
        # Between the old deadline and now the lease was not held, even if nobody noticed.
        lost = done_ns > held.deadline_ns
        self._file.write(Held(held.term + lost, deadline_ns))

    def _told(self) -> Capacity | None:
        """What the host actor said of the host: who stands in for it keeps that."""
        raw = self._store.get(self._key)
        beat = None if raw is None else read_beat(raw)
        return None if beat is None else beat.capacity


class Renewer:
    """Renews a host's lease from a thread of its own."""

    def __init__(self, renewal: Renewal, every_s: float = HEARTBEAT_S) -> None:
        self._renewal = renewal
        self._every_s = every_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)

    def start(self) -> None:
        """Begin to renew."""
        self._thread.start()

    def stop(self) -> None:
        """Renew no more."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        away = False
        while True:
            try:
                self._renewal.renew()
                away = False
            except Exception as error:  # noqa: BLE001 - Ray's, while its control service is away
                if not away:
                    _log.warning("the lease is not renewed: %s", error)
                away = True
            if self._stopping.wait(self._every_s):
                return


class Standby:
    """Renews in the background when asked to, once at a time: for VMs' processes."""

    def __init__(self, renewal: Renewal) -> None:
        self._renewal = renewal
        self._busy = threading.Lock()

    def renew(self) -> None:
        """Begin to renew, unless that is being done."""
        if self._busy.acquire(blocking=False):
            threading.Thread(target=self._run, name="lease", daemon=True).start()

    def _run(self) -> None:
        try:
            with contextlib.suppress(Exception):
                self._renewal.renew()
        finally:
            self._busy.release()
