"""The VM actor: one process, one VM, or none yet."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, cast

import ray

from rayvisor.actors import lease, stats, watching
from rayvisor.actors.bootstore import BootStore
from rayvisor.actors.calls import answer, find_actor
from rayvisor.actors.events import EventLog
from rayvisor.actors.ft_record import StoreCell, config_of, failovers_of
from rayvisor.actors.ledger import StaleTokenError, forget_end, read_placement, write_end
from rayvisor.actors.names import CONSOLE_GROUP, INPUT_GROUP, MOVE_GROUP
from rayvisor.actors.ownership import RayOwnership
from rayvisor.actors.store import RayStore
from rayvisor.vmm.errors import MachineStateError, MigrationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rayvisor.actors.departure import Departure
    from rayvisor.actors.guest import Guest
    from rayvisor.actors.leaseguard import LeaseGuard
    from rayvisor.actors.policy import HaPolicy
    from rayvisor.actors.quay import Berth
    from rayvisor.actors.records import (
        ConsoleChunk,
        GuestStatus,
        LastWords,
        Placement,
        Report,
        VmRequest,
    )
    from rayvisor.migration.config import MigrationConfig
    from rayvisor.migration.ft_standby import Takeover
    from rayvisor.migration.report import MigrationReport, Progress
    from rayvisor.vmm.debug.disasm import Instruction
    from rayvisor.vmm.exits import ExitCensus
    from rayvisor.vmm.spec import BootSource
    from rayvisor.vmm.stats import FtStats

CONTROL_THREADS: Final = 8
MOVE_THREADS: Final = 4
CONSOLE_THREADS: Final = 32
"""Long polls of consoles, each of which holds a thread while it waits."""

RECEIVE_S: Final = 30.0


class VmActor:
    """Ray shell around `Guest`, `Departure` and `Landing`: marshals calls, adds no behaviour.

    It starts empty, with all that a VM needs imported, and gets its VM later: by `boot`, or by
    `receive` from another process.
    """

    def __init__(self) -> None:
        # In the VM's process alone: hosts need neither the engine nor the chips.
        from rayvisor.vmm.core.library import load_engine

        load_engine()
        self._here = ray.get_runtime_context()
        self._actor_name = cast("str", self._here.get_actor_name())
        self._name = ""
        self._image = ""
        self._events = EventLog(RayStore())
        self._held: Guest | None = None
        self._teller: stats.Teller | None = None
        self._guard: LeaseGuard | None = None
        self._departure: Departure | None = None
        self._departing = threading.Lock()

    def ping(self) -> int:
        """The pid of this process."""
        return os.getpid()

    def boot(self, placement: Placement, boot: Sequence[ray.ObjectRef[BootSource]]) -> GuestStatus:
        """Make the machine and start it.

        The boot source comes as a reference inside a list, which Ray passes on as it is: the
        bytes go from the object store to this process alone.
        """
        guest = self._make(placement, placement.token, boot)
        if self._guard is not None:
            # The guard knows the host's lease from now on; before it did, the VM may have been
            # given to another host.
            current = read_placement(RayStore(), placement.name)
            if current is None or current.token != placement.token:
                raise StaleTokenError(f"VM {placement.name!r} is elsewhere by now")
        guest.start()
        self._hold(guest)
        return self.status()

    def receive(
        self,
        placement: Placement,
        boot: Sequence[ray.ObjectRef[BootSource]],
        started_unix_s: float,
    ) -> Berth:
        """Make the machine, empty, and wait for the VM that moves here."""
        from rayvisor.actors.landing import Landing

        move = placement.move
        if move is None or move.target.actor != self._actor_name:
            raise MigrationError(f"VM {placement.name!r} does not move to this process")
        guest = self._make(placement, move.token, boot)
        self._held = guest
        ownership = RayOwnership(self._actor_name)
        ownership.reach()
        landing = Landing(
            guest.vm,
            guest,
            ownership,
            started_unix_s=started_unix_s,
            on_running=lambda: self._attend(guest),
        )
        return landing.listen(ray.util.get_node_ip_address())

    @ray.method(concurrency_group=MOVE_GROUP)
    def migrate(self, placement: Placement, config: MigrationConfig | None) -> MigrationReport:
        """Move the guest of this process; see `Departure.run`.

        Args:
            placement: the VM's, with the move.
            config: None to join a migration that was begun before.

        Raises:
            MigrationFailedError: it stays here.
            MigrationError: there is no such migration to join.
        """
        from rayvisor.actors.departure import Departure

        guest = self._guest
        with self._departing:
            departure = self._departure
            if departure is None or departure.id != placement.moving.id:
                if config is None:
                    raise MigrationError(f"VM {self._name!r}: this migration was never begun")
                departure = self._departure = Departure(placement)
            else:
                config = None
        if config is None:
            return departure.wait()
        self._hurry(True)
        try:
            report = departure.run(
                guest,
                lambda: self._ask_for_berth(placement, guest),
                RayOwnership(self._actor_name),
                config,
            )
        except BaseException:
            self._token_changed(placement.token, guest)
            self._hurry(False)
            raise
        if self._teller is not None:
            self._teller.stop()
        if self._guard is not None:
            self._guard.stop()
        guest.vm.close()
        return report

    def cancel_migration(self, move_id: str) -> bool:
        """Call a migration off; whether there is such a one."""
        departure = self._departure
        if departure is None or departure.id != move_id:
            return False
        departure.cancel()
        return True

    def migration_progress(self, move_id: str) -> Progress | None:
        """Where a migration stands; None when nothing is known of it."""
        departure = self._departure
        return departure.progress if departure is not None and departure.id == move_id else None

    @ray.method(concurrency_group=MOVE_GROUP)
    def protect(self, placement: Placement) -> None:
        """Begin to give the guest of this process the secondary that the placement names."""
        from rayvisor.actors.ft_events import Teller as FtTeller
        from rayvisor.actors.shield import Shield

        guest, pair = self._guest, placement.pair
        with self._departing:
            if pair is None or (guest.shield is not None and not guest.shield.over.is_set()):
                raise MigrationError(f"VM {self._name!r} has a secondary")
            teller = FtTeller(placement, RayStore())

            def changed(state: str, reason: str) -> None:
                if self._teller is not None:
                    self._teller.tell()
                teller.tell(state, reason)

            shield = Shield(
                guest,
                pair.id,
                placement.token,
                config_of(placement),
                StoreCell(RayStore(), pair.id),
                changed,
            )
            guest.shield, guest.failovers = shield, failovers_of(placement)
        shield.start(
            lambda: self._ask_to_stand_by(placement, guest), RayOwnership(self._actor_name)
        )

    def unprotect(self, why: str, for_good: bool) -> None:
        """End the guest's pair, if it has one; see `Shield.dissolve`."""
        guest = self._guest
        if for_good:
            guest.failovers = None
        if guest.shield is not None:
            guest.shield.dissolve(why)

    def switch_over(self, pair_id: str) -> None:
        """See `Shield.switch_over`."""
        shield = self._guest.shield
        if shield is None or shield.pair_id != pair_id:
            raise MigrationError(f"VM {self._name!r} has no such secondary")
        shield.switch_over()

    def ft_pair(self) -> tuple[str, FtStats]:
        """The id of the guest's pair while there is one, or empty; and what is counted of it."""
        guest = self._guest
        guest.require_here()
        shield = guest.shield
        live = shield is not None and not shield.over.is_set()
        return shield.pair_id if shield is not None and live else "", guest.ft_stats()

    def stand_by(
        self,
        placement: Placement,
        boot: Sequence[ray.ObjectRef[BootSource]],
        started_unix_s: float,
    ) -> Berth:
        """Make the machine, empty, and stand by for the VM."""
        from rayvisor.actors.ft_events import Teller as FtTeller
        from rayvisor.actors.outpost import Outpost

        pair = placement.pair
        if pair is None or pair.secondary.actor != self._actor_name:
            raise MigrationError(f"this process is no secondary of VM {placement.name!r}")
        guest = self._make(placement, pair.token, boot)
        guest.failovers = failovers_of(placement) + 1
        self._held = guest
        cell = StoreCell(RayStore(), pair.id)
        cell.read()  # the first call takes long, and a guest would wait
        teller = FtTeller(placement, RayStore())

        def running(takeover: Takeover) -> None:
            self._attend(guest)
            teller.tell_takeover(takeover)

        outpost = Outpost(
            guest,
            cell,
            config_of(placement),
            started_unix_s=started_unix_s,
            on_run=lambda takeover: threading.Thread(
                target=running, args=(takeover,), daemon=True
            ).start(),
        )
        return outpost.listen(ray.util.get_node_ip_address())

    def _ask_to_stand_by(self, placement: Placement, guest: Guest) -> Berth:
        if placement.pair is None:
            raise MigrationError(f"VM {placement.name!r} has no secondary")
        there = find_actor(placement.pair.secondary.actor)
        boot = [ray.put(guest.vm.machine.spec.boot)]
        call = there.stand_by.remote(placement, boot, guest.started_unix_s)
        return cast("Berth", answer(call, RECEIVE_S))

    def _ask_for_berth(self, placement: Placement, guest: Guest) -> Berth:
        target = find_actor(placement.moving.target.actor)
        boot = [ray.put(guest.vm.machine.spec.boot)]
        call = target.receive.remote(placement, boot, guest.started_unix_s)
        return cast("Berth", answer(call, RECEIVE_S))

    def _make(
        self, placement: Placement, token: int, boot: Sequence[ray.ObjectRef[BootSource]]
    ) -> Guest:
        from rayvisor.actors.guest import Guest
        from rayvisor.vmm.spec import MachineSpec
        from rayvisor.vmm.vm import Vm

        request, store = placement.request, RayStore()
        self._name, self._image = request.name, request.image
        spec = MachineSpec(
            memory_bytes=request.memory_bytes,
            boot=ray.get(boot[0]),
            cpus=request.cpus,
            name=request.name,
            direct=request.direct,
            on_hang=request.ha.on_hang,
            heartbeat_s=request.ha.heartbeat_s,
        )
        events = self._events

        def remember(words: LastWords) -> None:
            write_end(store, request.name, guest.token, words)
            watching.tell_end(events, request.name, words)
            if self._teller is not None:
                self._teller.tell()

        guest = Guest(
            Vm(spec), token, remember=remember, forget=lambda: forget_end(store, request.name)
        )

        def hangs(reason: str) -> None:
            # Not on the machine's thread, which would wait for the store.
            told = (events, request.name, guest.vm.machine.hang_action, reason)
            threading.Thread(target=watching.tell_hang, args=told, daemon=True).start()

        guest.vm.machine.on_hang = hangs
        self._guard = self._guard_of(request, guest)
        return guest

    def _guard_of(self, request: VmRequest, guest: Guest) -> LeaseGuard | None:
        here = self._here
        host_id = here.get_node_id()
        ward = watching.GuestWard(
            request.name,
            guest,
            watching.Claim(self._actor_name, RayOwnership(self._actor_name), RayStore()),
            self._events,
            lambda before: self._token_changed(before, guest),
        )
        file = lease.lease_file(here.get_temp_dir(), here.get_session_name(), host_id)
        return watching.guard_of(host_id, request, RayStore(), file, ward)

    def _hold(self, guest: Guest) -> None:
        self._held = guest
        self._attend(guest)

    def _attend(self, guest: Guest) -> None:
        """It runs here: tell of it, and guard it."""
        self._tell_stats(guest)
        if self._guard is not None:
            self._guard.start()
        # What was asked of it on its way here reached the process that it came from.
        threading.Thread(target=self._heed_record, args=(guest,), daemon=True).start()

    def _heed_record(self, guest: Guest) -> None:
        placement = read_placement(RayStore(), self._name)
        if placement is not None:
            machine, policy = guest.vm.machine, placement.request.ha
            asked = (policy.on_hang, policy.heartbeat_s)
            if asked != (machine.spec.on_hang, machine.spec.heartbeat_s):
                guest.watch_for_hangs(policy)

    def _tell_stats(self, guest: Guest) -> None:
        """Have the host see what this VM counts."""
        here = self._here
        place = stats.folder(here.get_temp_dir(), here.get_session_name(), here.get_node_id())
        self._teller = stats.Teller(place, guest.token, lambda: guest.stats(self._image))
        self._teller.start()

    def _hurry(self, hurried: bool) -> None:
        if self._teller is not None:
            self._teller.hurry(hurried)

    def _token_changed(self, before: int, guest: Guest) -> None:
        if guest.token != before and self._teller is not None:
            self._teller.stop()
            self._tell_stats(guest)

    @property
    def _guest(self) -> Guest:
        if self._held is None:
            raise MachineStateError(f"VM {self._name!r} is still being built")
        return self._held

    def status(self) -> GuestStatus:
        """See `Guest.status`."""
        return self._guest.status()

    def stop(self) -> GuestStatus:
        """See `Guest.stop`."""
        return self._guest.stop()

    def reset(self) -> GuestStatus:
        """See `Guest.reset`. A vCPU that may start again runs only under the VM's token."""
        guest = self._guest
        current = read_placement(RayStore(), self._name)
        if current is not None and current.token != guest.token and current.move is None:
            raise StaleTokenError(f"VM {self._name!r} is not this process's any more")
        return guest.reset()

    def watch_for_hangs(self, policy: HaPolicy) -> None:
        """See `Guest.watch_for_hangs`."""
        self._guest.watch_for_hangs(policy)

    def keep_boot(self, policy: HaPolicy) -> HaPolicy:
        """Keep what the VM boots, and heed the host's lease; the policy that says where it is."""
        guest, store = self._guest, RayStore()
        boot = BootStore(store).keep(guest.vm.machine.spec.boot)
        policy = replace(policy, boot=boot)
        if self._guard is None:
            current = read_placement(store, self._name)
            if current is None:
                raise StaleTokenError(f"VM {self._name!r} was removed")
            self._guard = self._guard_of(replace(current.request, ha=policy), guest)
            if self._guard is not None:
                self._guard.start()
        return policy

    def revive(self, token: int) -> GuestStatus:
        """See `Guest.revive`; for whoever has the VM under this token."""
        if self._guest.token != token:
            raise StaleTokenError(f"VM {self._name!r} has another token by now")
        return self._guest.revive()

    def report(self) -> Report:
        """See `Guest.report`."""
        return self._guest.report()

    def exits(self) -> ExitCensus:
        """See `Guest.exits`."""
        return self._guest.exits()

    def exit_sites(self, limit: int) -> Report:
        """See `Guest.exit_sites`."""
        return self._guest.exit_sites(limit)

    def disassemble(self, address: int | None, count: int) -> list[Instruction]:
        """See `Guest.disassemble`."""
        return self._guest.disassemble(address, count)

    def console_offsets(self) -> tuple[int, int]:
        """See `Guest.console_offsets`."""
        return self._guest.console_offsets()

    @ray.method(concurrency_group=CONSOLE_GROUP)
    def read_console(self, offset: int, max_bytes: int, timeout_s: float) -> ConsoleChunk:
        """See `Guest.read_console`."""
        return self._guest.read_console(offset, max_bytes, timeout_s)

    @ray.method(concurrency_group=CONSOLE_GROUP)
    def wait(self, timeout_s: float) -> GuestStatus | None:
        """See `Guest.wait`."""
        return self._guest.wait(timeout_s)

    @ray.method(concurrency_group=INPUT_GROUP)
    def send_console(self, data: bytes, typist: str = "", number: int = 0) -> None:
        """See `Guest.send_console`. One thread, so that keys arrive in their order."""
        self._guest.send_console(data, typist, number)


REMOTE: Final = cast("Any", ray.remote)(
    concurrency_groups={CONSOLE_GROUP: CONSOLE_THREADS, INPUT_GROUP: 1, MOVE_GROUP: MOVE_THREADS}
)(VmActor)
"""`VmActor` as Ray makes it."""
