"""One vCPU on Unicorn. All methods belong to the machine's thread unless they say otherwise."""

from collections.abc import Callable, Sequence
from os import PathLike

CPU_STATE_BYTES: int
EXIT_DEADLINE: int
EXIT_KICK: int
EXIT_HALTED: int
EXIT_TRIPLE_FAULT: int
LATENESS_BOUNDS_NS: tuple[int, ...]

def load(path: str | PathLike[str]) -> None:
    """Open the Unicorn library and prove it is the one the core was written for.

    Raises:
        EngineError: it is another version or another build.
    """

def measure_tsc_hz() -> int:
    """Ticks a second of the host's TSC, to a few parts in a million. Takes 10 ms."""

def map_file(room: memoryview, fd: int, count: int, alignment: int, /) -> int:
    """Map the first `count` bytes of a file, shared, over part of `room`, which is a mapping.

    Returns:
        Where in `room` it begins: at the first address that is a multiple of `alignment`.

    Raises:
        OSError: it does not fit, or the host does not map it.
    """

def copy_pages(ram: memoryview, pending: bytes, first: int, room: memoryview, /) -> tuple[int, int]:
    """Copy pages of `ram` that are `pending`, from `first` on, one after the other, to `room`.

    Does so until `room` is full or no page is left, and keeps the interpreter lock.

    Returns:
        Where to go on, and how many pages were copied.

    Raises:
        ValueError: the buffers do not fit `ram`.
    """

def pick_pages(
    source: memoryview,
    pages: int,
    pending: bytes,
    first: int,
    whole: memoryview,
    changes: memoryview,
    shadow: memoryview,
    slots: bytearray,
    keep: int,
    /,
) -> tuple[int, bytes, bytes, bytes, int]:
    """Copy pages of a RAM that are `pending` (a bit a page, low bit first), from `first` on.

    `source` is all of that RAM, or the pages that are pending, one after the other. Goes on until
    `whole` or `changes` is full or no page is left. A page that has one of the `slots` (32 bits a
    page: 0, or its number in `shadow` and 1) goes to `changes` as its difference to what is there
    (of each 64-bit word, modulo 2^64), the others to `whole`; pages of zeros go nowhere. Unless
    `slots` is empty, what was copied is remembered: for pages that have a slot, and for `keep`
    others, which get the last ones of `shadow`. With a `keep` below 0 nothing is remembered, and
    what was known of these pages is forgotten.

    Returns:
        Where to go on; the runs of the pages in `whole`, of those in `changes`, and of zero
        pages, as pairs of little-endian 32-bit numbers (first, count); what is left of `keep`.

    Raises:
        ValueError: the buffers do not fit that RAM.
    """

def put_pages(ram: memoryview, runs: bytes, data: bytes, change: bool, /) -> None:
    """Put the pages of `runs` into `ram`, or with `change` their differences.

    Raises:
        ValueError: a run is empty, out of order or outside RAM, or `data` has not as many pages.
    """

def join(head: bytes, data: bytes | memoryview, /) -> bytes:
    """`data` behind `head`, copied without the interpreter lock."""

def populate_pages(ram: memoryview, runs: bytes, /) -> None:
    """Have the operating system find memory for the pages of `runs`; it may refuse.

    Raises:
        ValueError: a run is empty, out of order or outside RAM.
    """

class Vcpu:
    def __init__(self, ram: memoryview, regions: Sequence[tuple[int, int, int]]) -> None:
        """A vCPU over writable `ram`, laid out as (gpa, bytes, offset), in its reset state.

        Every other physical address reads as ones and swallows writes.

        Raises:
            EngineError: Unicorn or the operating system refuses.
            ValueError: the regions overlap or leave the buffer.
        """

    def close(self) -> None:
        """Give everything back; the other methods then raise EngineError."""

    def run(self) -> int:
        """Run until the machine is needed; an EXIT_* constant. Releases the interpreter lock.

        Raises:
            EngineError: it runs already, is closed, or Unicorn gave up.
            Exception: whatever a chip raised.
        """

    def kick(self) -> None:
        """Make run() return EXIT_KICK, now or when next called. Any thread."""

    def set_intr(self, level: bool, /) -> None:
        """The level of the INTR pin. Any thread."""

    def raise_nmi(self) -> None:
        """An edge at the NMI pin. Any thread."""

    def set_deadline(self, deadline_ns: int | None, /) -> None:
        """Make run() return EXIT_DEADLINE at this time of CLOCK_MONOTONIC. Any thread."""

    def save(self) -> bytes:
        """The whole architectural state (cpu_state.h)."""

    def load(self, state: bytes, /) -> None:
        """Take over what save() gave.

        Raises:
            CorruptStateError: no processor can be in this state; nothing has changed.
        """

    def reset(self) -> None:
        """The RESET pin."""

    def set_a20(self, level: bool, /) -> None:
        """The A20 gate: False masks bit 20 of every address."""

    def run_tsc(self, runs: bool, /) -> None:
        """Let the guest's TSC count, or stand still."""

    def tsc(self) -> int:
        """The guest's TSC now, running or not."""

    def host_wrote(self, offset: int, count: int, /) -> None:
        """The host has written these bytes of RAM: log them, forget what was translated there."""

    def code_bytes(self) -> int:
        """Bytes of translated code that are kept."""

    def trim(self) -> None:
        """Forget all translated code and give the memory back to the host."""

    def start_dirty_log(self) -> None:
        """Log every write to RAM from now on. Harmless when it is on.

        Raises:
            MemoryError: no room for a bit a page.
        """

    def stop_dirty_log(self) -> None:
        """Log no more."""

    def harvest_dirty(self, most_open: int = 0, /) -> bytes:
        """The pages written since the last harvest: a bit a page of the buffer, low bit first.

        Pages that native code writes are closed, and each traps at its next write, unless they are
        at most `most_open`. Then they stay open, and count as written in the next harvest as well.

        Raises:
            EngineError: the log is off.
        """

    def set_cpuid(self, table: bytes, /) -> None:
        """What CPUID answers: leaf, subleaf, EAX, EBX, ECX, EDX, 32 bits each."""

    def engine_cpuid(self, leaf: int, subleaf: int, /) -> tuple[int, int, int, int]:
        """What the translator itself would answer: EAX, EBX, ECX, EDX."""

    def map_ports(
        self,
        first: int,
        count: int,
        read: Callable[[int], int] | None,
        write: Callable[[int, int], None] | None,
        /,
    ) -> None:
        """Answer ports by a chip: read(offset), write(offset, byte).

        Raises:
            ValueError: a port is taken, or none is left.
        """

    def map_page(
        self, gpa: int, read: Callable[[int], int], write: Callable[[int, int], None], /
    ) -> None:
        """Answer the aligned 32-bit words of a page outside RAM: read(offset), write(offset, word).

        Raises:
            ValueError: it is RAM, or another page is answered already.
        """

    def map_msr(self, index: int, read: Callable[[], int], write: Callable[[int], bool], /) -> None:
        """Answer a model-specific register; a write that returns False is a #GP.

        Raises:
            ValueError: it is answered already, or no more can be.
        """

    def map_priority(self, read: Callable[[], int], write: Callable[[int], None], /) -> None:
        """Answer CR8, the interrupt priority below which the guest takes none: 0..15."""

    def coalesce_port(self, port: int, sink: Callable[[bytes], None] | None, /) -> None:
        """Hold byte writes to `port` back and hand them over together.

        They reach `sink` before any other port access, before run() returns, and within
        0.2 ms however busy the guest is.
        """

    def set_acknowledge(self, acknowledge: Callable[[], int], /) -> None:
        """What answers the processor's interrupt acknowledge cycle with a vector."""

    def census(
        self,
    ) -> tuple[list[int], int, list[tuple[int, int, int, int]], list[tuple[int, int, int]]]:
        """Exits by kind; exits at sites beyond the table; (kind, detail, rip, count); the last."""

    def exit_counts(self) -> tuple[int, ...]:
        """Exits by kind, in the order of census.h. Any thread."""

    def interrupt_lateness(self) -> tuple[tuple[int, ...], int]:
        """Times from INTR's rise until the guest took the interrupt: by bucket, and ns in all.

        Any thread.
        """

    def tick_lateness(self) -> tuple[tuple[int, ...], int]:
        """The same of the timer that was lent: how long after its deadline it expired."""

    def lend_tick(self, vector: int, deadline: int, tsc_hz: int, /) -> None:
        """Do the local APIC's timer on its behalf.

        Expire when the TSC has reached `deadline` (0: never), drive INTR, answer its
        acknowledgement, IA32_TSC_DEADLINE and EOI.

        Raises:
            ValueError: the vector or the frequency is none.
        """

    def take_tick_back(self) -> tuple[bool, bool, int] | None:
        """Cease that.

        Returns:
            Whether the vector is requested, whether it is in service, and the deadline; None if
            the timer was not lent.
        """

    def clear_census(self) -> None:
        """Count from zero."""

    def start_direct(self, ram_fd: int, tsc_hz: int, /) -> str | None:
        """Execute user code directly where that is faster; or why this cannot be.

        Args:
            ram_fd: the memfd behind RAM, from offset 0.
            tsc_hz: ticks a second of the host's TSC.
        """

    def choose_at_random(self, seed: int, /) -> None:
        """Let a coin choose between the worlds, to test the switch; 0 lets the figures choose."""

    def direct_counts(self) -> tuple[int, int, int, int] | None:
        """Native ns, switching ns, stays in user code and traps out of it. Any thread."""
