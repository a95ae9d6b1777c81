"""What is typed at a guest's console: each piece once, in order, across a failover.

Who types gives each piece a number. A piece whose fate is not known is sent again under the same
number, to the same process or to the one that has the VM by then; which have arrived is part of a
checkpoint, so the survivor knows of each piece whether its guest has it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import msgpack

from rayvisor.migration.errors import StreamError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TYPISTS: Final = 256
"""So many are remembered: those that typed last."""
MAX_NAME: Final = 64
_MAX_NUMBER: Final = 1 << 62


class Inputs:
    """One console's input. Thread-safe.

    Args:
        send: takes it on to the guest; what it raises is the typist's to see.
    """

    def __init__(self, send: Callable[[bytes], None]) -> None:
        self._send = send
        self._lock = threading.Lock()
        self._last: OrderedDict[str, int] = OrderedDict()
        self._typed = 0

    def type(self, data: bytes, typist: str = "", number: int = 0) -> int:
        """Type `data` unless this typist's piece `number` has been typed; without one, always.

        Returns:
            How many pieces have been typed, this one included.
        """
        with self._lock:
            typist = typist[:MAX_NAME]
            if typist and number <= self._last.get(typist, 0):
                return self._typed
            self._send(data)
            self._typed += 1
            if typist:
                self._last[typist] = number
                self._last.move_to_end(typist)
                while len(self._last) > TYPISTS:
                    self._last.popitem(last=False)
            return self._typed

    @contextmanager
    def still(self) -> Iterator[tuple[dict[str, int], int]]:
        """Inside, nothing is typed; gives the last piece of each typist, and how many in all."""
        with self._lock:
            yield dict(self._last), self._typed

    def restore(self, table: bytes) -> None:
        """Continue after what `pack` wrote.

        Raises:
            StreamError: it is something else.
        """
        last = unpack(table)
        with self._lock:
            self._last = OrderedDict(last)


def pack(last: dict[str, int]) -> bytes:
    """The table as it travels."""
    return bytes(msgpack.packb(last))


def unpack(table: bytes) -> dict[str, int]:
    """What `pack` wrote.

    Raises:
        StreamError: it is something else.
    """
    try:
        plain = msgpack.unpackb(
            table, max_map_len=TYPISTS, max_str_len=4 * MAX_NAME, max_array_len=0, max_ext_len=0
        )
    except Exception as error:  # the unpacker raises ValueErrors and others like it
        raise StreamError(f"inputs: {type(error).__name__}") from error
    if type(plain) is not dict or any(
        type(k) is not str or type(v) is not int or not 0 <= v < _MAX_NUMBER
        for k, v in plain.items()
    ):
        raise StreamError("inputs: not a map of names to numbers")
    return plain
