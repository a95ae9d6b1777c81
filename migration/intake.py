"""What every destination does first: see whether the VM fits, and put its pages into RAM."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rayvisor.migration import frames, pages
from rayvisor.migration.codec import Unpacker
from rayvisor.migration.config import PAGE_BYTES, Codec
from rayvisor.migration.errors import StreamError
from rayvisor.migration.host import boot_id, tsc_close_enough, tsc_hz
from rayvisor.vmm.errors import MigrationError

if TYPE_CHECKING:
    from rayvisor.migration.roles import Destination


class Intake:
    """Takes pages in for one destination. One thread at a time."""

    def __init__(self, destination: Destination) -> None:
        self._destination = destination
        self._unpacker = Unpacker()

    def welcome(self, hello: frames.Hello) -> frames.Welcome:
        """The answer to a source that this side can serve.

        Raises:
            MigrationError: it cannot.
        """
        mine = self._destination
        if hello.version != frames.PROTOCOL_VERSION:
            raise MigrationError(
                f"the source speaks version {hello.version} of the migration protocol, this host "
                f"{frames.PROTOCOL_VERSION}: install the same Rayvisor on both"
            )
        if hello.machine != mine.machine_schema:
            raise MigrationError(
                f"the VM is of the kind {hello.machine}, this host makes {mine.machine_schema}: "
                "install the same Rayvisor on both"
            )
        wanted = (hello.memory_bytes, hello.page_bytes)
        found = (mine.memory_bytes, PAGE_BYTES)
        if wanted != found:
            raise MigrationError(
                f"the VM needs memory and page size {wanted}, this one has {found}"
            )
        if not tsc_close_enough(hello.tsc_hz, tsc_hz()):
            raise MigrationError(
                f"the guest's clock counts {hello.tsc_hz} Hz and this host's {tsc_hz()} Hz: "
                f"choose a host whose TSC has the same frequency"
            )
        shared = frames.FEATURES & set(hello.features)
        if not mine.can_run_incomplete:
            shared -= {"postcopy"}
        return frames.Welcome(frames.PROTOCOL_VERSION, tuple(sorted(shared)), boot_id())

    def make_room(self, frame: frames.Coming) -> None:
        """Have memory at hand for pages that come later.

        Raises:
            StreamError: they belong nowhere.
        """
        pages.make_room(self._destination.ram, frame.data)

    def unpack(self, frame: frames.Pages) -> bytes:
        """The pages of a frame, or their differences.

        Raises:
            StreamError: they are damaged.
        """
        return self._unpacker.unpack(Codec(frame.codec), frame.data, frame.raw_bytes)

    def put(self, frame: frames.Pages) -> None:
        """Put the pages of a frame in their places.

        Raises:
            StreamError: they are damaged, or belong nowhere.
        """
        self.place(frame, self.unpack(frame) if frame.raw_bytes else b"")

    def place(self, frame: frames.Pages, raw: bytes) -> None:
        """As `put`, for a frame that has been unpacked to `raw`."""
        ram = self._destination.ram
        zeros = pages.read_runs(frame.zeros, len(ram) // PAGE_BYTES)
        if frame.raw_bytes:
            pages.put(ram, frame.runs, raw, change=frame.delta)
        elif frame.data or frame.runs:
            raise StreamError("pages: runs or data without pages")
        for first, length in zeros:
            self._destination.zero(first, length)
