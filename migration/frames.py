"""The frames of a migration stream, version 1.

A frame is a msgpack map with these keys, in this order::

    kind   str     one of the classes below, by its KIND
    seq    uint    0 for a side's first frame, then one more each time
    sum    uint    CRC-32 of kind, a colon, seq in decimal, a colon, head and data
    head   bin     a msgpack map: the fields of the class, in its order
    data   bin     its large field, if it has one (pages, console bytes)

What is read is hostile: sizes are checked before anything is allocated by them, every field has
its type and range, and nothing but `StreamError` comes out. Whether a page exists on this machine,
and whether a frame may come now, is checked by who takes it (rayvisor.migration.arrival).

Runs of pages are packed as pairs of little-endian 32-bit numbers (first page, count). A page's
number is its offset in the RAM file divided by 4096, as in the dirty log.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Final

import msgpack
from isal import isal_zlib

from rayvisor.migration.config import PAGE_BYTES, Codec
from rayvisor.migration.errors import StreamError
from rayvisor.migration.fields import boolean, number, numbers, octets, plain_map, text, texts
from rayvisor.vmm.core import _native

PROTOCOL_VERSION: Final = 2
FEATURES: Final = frozenset({"lz4", "zstd", "delta", "postcopy"})
MAX_CHUNK_BYTES: Final = 8 << 20
"""Pages of one frame, unpacked."""
MAX_FRAME_BYTES: Final = 10 << 20
MAX_HEAD_BYTES: Final = 4 << 20
MAX_RUN_BYTES: Final = 8 * MAX_CHUNK_BYTES // PAGE_BYTES
"""Every page of a frame on its own."""
MAX_CONSOLE_BYTES: Final = 4 << 20
MAX_WANTED: Final = 1024
MAX_INPUT_BYTES: Final = 2 << 20
MAX_TYPISTS_BYTES: Final = 1 << 16
_MAX_ITEMS: Final = 4096
"""Entries of one array or map inside a frame."""
_CODECS: Final = frozenset(str(codec) for codec in Codec)
_EMPTY: Final = b"\xc4\x00"
"""A bin without bytes."""
_KEYS: Final = ("kind", "seq", "sum", "head", "data")


@dataclass(frozen=True, slots=True)
class Hello:
    """The source's first frame: what it is about to send."""

    KIND: ClassVar = "hello"
    version: int = number(1, 1 << 16)
    features: tuple[str, ...] = texts()
    vm: str = text(256)
    memory_bytes: int = number(1 << 20, 1 << 44)
    page_bytes: int = number(1, 1 << 30)
    machine: str = text(64)
    """Schema of the machine's state, such as "machine/1"."""
    token: int = number(0, 1 << 62)
    """The fencing token under which the source runs the VM."""
    tsc_hz: int = number(1, 1 << 40)
    boot_id: str = text(64)
    """Which running kernel CLOCK_MONOTONIC is of: two sides with the same can compare times."""


@dataclass(frozen=True, slots=True)
class Welcome:
    """The destination's answer to `Hello`."""

    KIND: ClassVar = "welcome"
    version: int = number(1, 1 << 16)
    features: tuple[str, ...] = texts()
    """Those that both sides have."""
    boot_id: str = text(64)


@dataclass(frozen=True, slots=True)
class Pages:
    """Pages: `runs` are in `data`, in order; `zeros` read as zero and are not."""

    KIND: ClassVar = "pages"
    runs: bytes = octets(MAX_RUN_BYTES)
    zeros: bytes = octets(MAX_RUN_BYTES)
    codec: str = text(8)
    delta: bool = boolean()
    """`data` is what is to be added, to each 64-bit word, to what was sent of these pages last."""
    raw_bytes: int = number(0, MAX_CHUNK_BYTES)
    """Length of `data` when unpacked."""
    data: bytes = octets(MAX_CHUNK_BYTES + (MAX_CHUNK_BYTES >> 7))


@dataclass(frozen=True, slots=True)
class Coming:
    """These pages come later, perhaps while the guest stands still: memory for them is wanted."""

    KIND: ClassVar = "coming"
    data: bytes = octets(MAX_CHUNK_BYTES)
    """Runs."""


@dataclass(frozen=True, slots=True)
class Pace:
    """From here on the guest stands still and waits for what comes (`urgent`), or runs again."""

    KIND: ClassVar = "pace"
    urgent: bool = boolean()


@dataclass(frozen=True, slots=True)
class RoundEnd:
    """All pages of round `number` have been sent; to be acknowledged."""

    KIND: ClassVar = "round"
    number: int = number(0, 1 << 31)


@dataclass(frozen=True, slots=True)
class Ack:
    """Everything up to the other side's frame `upto` is in place."""

    KIND: ClassVar = "ack"
    upto: int = number(0, 1 << 62)
    at_ns: int = number(0, 1 << 62)
    """When, on the destination's CLOCK_MONOTONIC: two of them say how fast it takes pages."""


@dataclass(frozen=True, slots=True)
class ConsoleOutput:
    """Console output whose first byte has the absolute offset `offset`."""

    KIND: ClassVar = "console"
    offset: int = number(0, 1 << 62)
    data: bytes = octets(MAX_CONSOLE_BYTES)


@dataclass(frozen=True, slots=True)
class MachineState:
    """Everything but RAM and console output, as rayvisor.vmm.snapshot writes it."""

    KIND: ClassVar = "state"
    state: dict[str, Any] = plain_map()  # noqa: RUF009 - declares a field
    running: bool = boolean()
    """Whether it goes on at once: a VM that was paused stays so."""
    stopped_for_ns: int = number(0, 1 << 62)
    """How long it had stood still when this frame was made."""


@dataclass(frozen=True, slots=True)
class Commit:
    """The source lets go: the destination may claim the VM and run it."""

    KIND: ClassVar = "commit"


@dataclass(frozen=True, slots=True)
class Running:
    """The destination owns the VM."""

    KIND: ClassVar = "running"
    token: int = number(0, 1 << 62)
    resumed_ns: int = number(0, 1 << 62)
    """When its first instruction ran, on the destination's CLOCK_MONOTONIC."""
    gained_ns: int = number(0, 1 << 62)
    """How far the guest's clock was moved on for the time it stood still."""


@dataclass(frozen=True, slots=True)
class Done:
    """The source's last frame: console input that came while the VM moved."""

    KIND: ClassVar = "done"
    data: bytes = octets(MAX_INPUT_BYTES)


@dataclass(frozen=True, slots=True)
class Abort:
    """The sender has given up; before COMMIT, the source keeps the VM."""

    KIND: ClassVar = "abort"
    reason: str = text(1024)


@dataclass(frozen=True, slots=True)
class Missing:
    """Post-copy: these pages come after the guest runs; what was sent of them is out of date."""

    KIND: ClassVar = "missing"
    data: bytes = octets(MAX_CHUNK_BYTES)
    """Runs."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Post-copy, the answer to `Pages`: pages that the guest waits for, oldest first."""

    KIND: ClassVar = "wanted"
    pages: tuple[int, ...] = numbers(MAX_WANTED, (1 << 32) - 1)


@dataclass(frozen=True, slots=True)
class EpochEnd:
    """Fault tolerance: pages and output of epoch `epoch` have been sent; all count now."""

    KIND: ClassVar = "epoch"
    epoch: int = number(1, 1 << 62)
    last: bool = boolean()
    """The source stands still: the other side is to go on."""
    typed: bytes = octets(MAX_TYPISTS_BYTES)
    """Which input has been typed; see rayvisor.migration.ft_inputs."""
    data: bytes = octets(MAX_HEAD_BYTES)
    """The machine's state (`pack_state`), which is read when it is needed."""


@dataclass(frozen=True, slots=True)
class Guarded:
    """Fault tolerance: the secondary has the whole of this epoch."""

    KIND: ClassVar = "guarded"
    epoch: int = number(1, 1 << 62)


@dataclass(frozen=True, slots=True)
class Beat:
    """Fault tolerance: the sender lives, and has nothing else to say."""

    KIND: ClassVar = "beat"


Frame = (
    Hello
    | Welcome
    | Pages
    | Coming
    | Pace
    | RoundEnd
    | Ack
    | ConsoleOutput
    | MachineState
    | Commit
    | Running
    | Done
    | Abort
    | Missing
    | Wanted
    | EpochEnd
    | Guarded
    | Beat
)

_CLASSES: Final[dict[str, type[Any]]] = {cls.KIND: cls for cls in Frame.__args__}


def pack_state(state: dict[str, Any]) -> bytes:
    """The state of a machine, as rayvisor.vmm.snapshot writes it, in bytes."""
    return bytes(msgpack.packb(state))


def read_state(packed: bytes) -> dict[str, Any]:
    """What `pack_state` wrote.

    Raises:
        StreamError: it is something else.
    """
    return _unpack(packed, MAX_HEAD_BYTES)


def _checksum(kind: str, seq: int, head: bytes, data: bytes | memoryview) -> int:
    start = isal_zlib.crc32(f"{kind}:{seq}:".encode())
    return isal_zlib.crc32(data, isal_zlib.crc32(head, start))


def encode(seq: int, frame: Frame) -> bytes:
    """The bytes of a frame."""
    head: dict[str, Any] = {}
    data: bytes | memoryview = b""
    for f in fields(frame):
        value = getattr(frame, f.name)
        if f.name == "data":
            data = value
        else:
            head[f.name] = list(value) if type(value) is tuple else value
    packed = msgpack.packb(head)
    total = _checksum(frame.KIND, seq, packed, data)
    values = (frame.KIND, seq, total, packed, b"")
    outer = msgpack.packb(dict(zip(_KEYS, values, strict=True)))
    # Large data is put behind its length by hand: msgpack would copy it twice.
    return _native.join(outer[: -len(_EMPTY)] + _bin_head(len(data)), data)


def _bin_head(length: int) -> bytes:
    """What msgpack writes before a bin of that length."""
    if length < 1 << 8:
        return struct.pack(">BB", 0xC4, length)
    if length < 1 << 16:
        return struct.pack(">BH", 0xC5, length)
    return struct.pack(">BI", 0xC6, length)


def _unpack(data: bytes | bytearray, limit: int) -> dict[str, Any]:
    try:
        plain = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            max_str_len=4096,
            max_bin_len=limit,
            max_array_len=_MAX_ITEMS,
            max_map_len=_MAX_ITEMS,
            max_ext_len=0,
        )
    # The unpacker raises ValueError and its subclasses, and RecursionError-like StackError.
    except Exception as error:
        raise StreamError(f"not a frame: {type(error).__name__}") from error
    if type(plain) is not dict:
        raise StreamError(f"not a frame: a map wanted, found {type(plain).__name__}")
    return plain


def decode(data: bytes | bytearray, seq: int) -> Frame:
    """The frame in `data`, which must be the sender's number `seq`.

    Raises:
        StreamError: it is damaged, malformed, out of range, or out of sequence.
    """
    if len(data) > MAX_FRAME_BYTES:
        raise StreamError(f"a frame of {len(data)} bytes: {MAX_FRAME_BYTES} are allowed")
    outer = _unpack(data, MAX_FRAME_BYTES)
    if tuple(outer) != _KEYS:
        raise StreamError("not a frame: keys missing, unknown or out of order")
    kind, found, total, head, body = outer.values()
    if type(kind) is not str or kind not in _CLASSES:
        raise StreamError(f"unknown kind of frame {kind!r:.40}")
    if type(head) is not bytes or type(body) is not bytes or len(head) > MAX_HEAD_BYTES:
        raise StreamError(f"{kind}: head and data must be bytes, the head at most 4 MiB")
    if type(found) is not int or found != seq:
        raise StreamError(f"{kind}: frame {seq} wanted, found {found!r:.24}: one was lost")
    if type(total) is not int or total != _checksum(kind, seq, head, body):
        raise StreamError(f"{kind}: the checksum of frame {seq} is wrong: it was damaged")
    return _build(_CLASSES[kind], _unpack(head, MAX_HEAD_BYTES), body)


def _build(cls: type[Any], head: dict[str, Any], body: bytes) -> Frame:
    declared = fields(cls)
    names = [f.name for f in declared if f.name != "data"]
    if list(head) != names:
        raise StreamError(f"{cls.KIND}: fields missing, unknown or out of order")
    if len(names) == len(declared) and body:
        raise StreamError(f"{cls.KIND}: {len(body)} bytes of data where none belong")
    values = {
        f.name: f.metadata["read"](
            f"{cls.KIND}.{f.name}", body if f.name == "data" else head[f.name]
        )
        for f in declared
    }
    frame: Frame = cls(**values)
    if isinstance(frame, Pages):
        _check_pages(frame)
    return frame


def _check_pages(frame: Pages) -> None:
    if frame.codec not in _CODECS:
        raise StreamError(f"pages.codec: {frame.codec!r:.20} is not known")
    if len(frame.runs) % 8 or len(frame.zeros) % 8:
        raise StreamError("pages: a run has 8 bytes")
    if frame.raw_bytes % PAGE_BYTES:
        raise StreamError(f"pages: {frame.raw_bytes} bytes are not whole pages")
