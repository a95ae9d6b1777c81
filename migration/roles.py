"""What a migration needs from the world: two sides, a carrier, and who decides.

`rayvisor.migration.vm_source` and `vm_destination` are the two sides over a `Vm`;
`rayvisor.migration.memory_transport` is a carrier within one process.
"""

from __future__ import annotations

from typing import Any, Protocol


class Source(Protocol):
    """The side that has the VM. Methods are called from the thread that runs the migration."""

    @property
    def name(self) -> str:
        """The VM's name."""

    @property
    def ram(self) -> memoryview:
        """All of RAM, as the memory file has it; the guest may be writing it."""

    @property
    def machine_schema(self) -> str:
        """Name and version of the machine's state, as in "machine/1"."""

    def written_pages(self) -> list[tuple[int, int]]:
        """Runs (first, count) of pages that may not be zero, in order."""

    def start_log(self) -> None:
        """Log every page that is written from now on."""

    def harvest(self) -> bytes:
        """Pages written since the last harvest, a bit a page, low bit first; log on afresh."""

    def stop_log(self) -> None:
        """Log no more. Harmless when it is off."""

    def throttle(self, share: float) -> None:
        """Keep the vCPU from running for `share` (0..0.99) of its time."""

    def pause(self) -> int:
        """Stop the guest.

        Returns:
            When its last instruction ran, in nanoseconds of CLOCK_MONOTONIC.

        Raises:
            MachineStateError: the guest has ended.
        """

    @property
    def runs(self) -> bool:
        """Whether the guest ran when `pause` was called, or runs now."""

    def resume(self) -> None:
        """Let the guest go on here, if it ran before `pause`."""

    def save(self) -> dict[str, Any]:
        """The state of the paused machine, without RAM."""

    def console_output(self, offset: int) -> tuple[int, bytes]:
        """Console output from `offset` on: the first byte's offset, and at most 1 MiB."""

    def release(self) -> bytes:
        """The VM runs elsewhere: end it here, take no more console input.

        Returns:
            Console input that came after `save`.
        """


class Destination(Protocol):
    """The side that gets the VM: a machine that has not run yet, of the same size."""

    @property
    def memory_bytes(self) -> int:
        """The size of its RAM."""

    @property
    def ram(self) -> memoryview:
        """All of RAM."""

    @property
    def machine_schema(self) -> str:
        """Name and version of the machine state that it takes."""

    def zero(self, first_page: int, count: int) -> None:
        """Make these pages read as zero, and give the memory back."""

    @property
    def can_run_incomplete(self) -> bool:
        """Whether the guest can run here while pages are missing (post-copy)."""

    def expect(self, missing: list[tuple[int, int]]) -> None:
        """These runs of pages come after the guest runs: whoever needs one waits for it."""

    def fill(self, first_page: int, content: memoryview) -> None:
        """Pages that were expected have come; an empty `content` does nothing."""

    def fill_zero(self, first_page: int, count: int) -> None:
        """As `fill`, with pages of zeros."""

    def wanted(self) -> list[int]:
        """Expected pages that somebody waits for; each is named once."""

    @property
    def missing_pages(self) -> int:
        """How many expected pages have not come."""

    def complete(self) -> None:
        """Every expected page is here."""

    def lose(self) -> None:
        """Expected pages will never come: end the guest before it sees that."""

    def console_output(self, offset: int, data: bytes) -> None:
        """What the guest has written to its console so far, piece by piece.

        Raises:
            StreamError: a piece is missing before this one.
        """

    def restore(self, state: dict[str, Any]) -> None:
        """Take over the machine's state. RAM is in place, or comes later with post-copy.

        Raises:
            SnapshotError: the state is malformed or of another machine.
        """

    def adopt(self, gained_ns: int, *, running: bool) -> int:
        """The VM is ours: move its clock on by `gained_ns`, and let it run if `running`.

        Returns:
            When its first instruction ran, in nanoseconds of CLOCK_MONOTONIC.
        """

    def console_input(self, data: bytes) -> None:
        """What was typed while the VM moved; later input comes after it."""

    def discard(self) -> None:
        """The VM stays where it is: give everything back. Harmless twice."""


class Transport(Protocol):
    """Carries frames to the other side, in order, and its frames back.

    `send` and `receive` may be called by two threads at the same time.
    """

    def send(self, *frames: bytes) -> None:
        """Take frames, and wait while too much is under way.

        Raises:
            TransportError: the other side is gone.
        """

    def receive(self, timeout_s: float) -> bytes | None:
        """The other side's next frame, or None if none comes in time.

        Raises:
            TransportError: the other side is gone, and all it sent has been received.
        """

    def close(self) -> None:
        """No more frames, in either direction; a `send` under way fails. Harmless twice."""


class Ownership(Protocol):
    """The placement record, as one side sees it: who owns a VM, by fencing token.

    Both calls are idempotent for the side that makes them: asked again with the same token, the
    record gives the same answer, so a lost answer does no harm. Whatever else they raise means
    that the record did not answer.
    """

    def commit(self, vm: str, token: int) -> int:
        """The destination takes the VM that the source holds under `token`.

        Returns:
            The new, greater token.

        Raises:
            OwnershipLostError: `token` is not the current one: the source has taken it back.
        """

    def take_back(self, vm: str, token: int, *, given_up: bool) -> int:
        """The source, which held the VM under `token`, wants to go on.

        Granted when the destination has not committed; and when it has, but has died since, or
        has itself said that it never will run the VM (`given_up`).

        Returns:
            A new, greater token, with which a late commit fails.

        Raises:
            OwnershipLostError: the destination has the VM.
        """
