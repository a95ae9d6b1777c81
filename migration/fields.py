"""Constructors for the fields of frames: what each may hold, checked when a frame is read.

The counterpart of rayvisor.vmm.state for frames, which have texts and maps and raise StreamError.
"""

from __future__ import annotations

from dataclasses import field
from typing import TYPE_CHECKING, Any, Final

from rayvisor.migration.errors import StreamError

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_FEATURES: Final = 32
MAX_FEATURE_CHARACTERS: Final = 32


def _declare(read: Callable[[str, object], Any]) -> Any:  # noqa: ANN401 - as dataclasses.field does
    return field(metadata={"read": read})


def number(low: int, high: int) -> Any:  # noqa: ANN401 - as dataclasses.field does
    """An integer in low..high, both included."""

    def read(name: str, value: object) -> int:
        if type(value) is not int or not low <= value <= high:
            raise StreamError(f"{name}: not in {low}..{high}")
        return value

    return _declare(read)


def boolean() -> Any:  # noqa: ANN401 - as dataclasses.field does
    """True or false."""

    def read(name: str, value: object) -> bool:
        if type(value) is not bool:
            raise StreamError(f"{name}: not a boolean")
        return value

    return _declare(read)


def text(max_characters: int) -> Any:  # noqa: ANN401 - as dataclasses.field does
    """At most `max_characters` characters."""

    def read(name: str, value: object) -> str:
        if type(value) is not str or len(value) > max_characters:
            raise StreamError(f"{name}: not a text of at most {max_characters} characters")
        return value

    return _declare(read)


def texts() -> Any:  # noqa: ANN401 - as dataclasses.field does
    """A few short words, such as the names of features."""

    def read(name: str, value: object) -> tuple[str, ...]:
        if type(value) is not list or len(value) > MAX_FEATURES:
            raise StreamError(f"{name}: not a list of at most {MAX_FEATURES} words")
        if any(type(word) is not str or len(word) > MAX_FEATURE_CHARACTERS for word in value):
            raise StreamError(f"{name}: a word is not a text or too long")
        return tuple(value)

    return _declare(read)


def numbers(max_count: int, high: int) -> Any:  # noqa: ANN401 - as dataclasses.field does
    """At most `max_count` integers in 0..high."""

    def read(name: str, value: object) -> tuple[int, ...]:
        if type(value) is not list or len(value) > max_count:
            raise StreamError(f"{name}: not a list of at most {max_count} numbers")
        if any(type(item) is not int or not 0 <= item <= high for item in value):
            raise StreamError(f"{name}: a number is not in 0..{high}")
        return tuple(value)

    return _declare(read)


def octets(max_bytes: int) -> Any:  # noqa: ANN401 - as dataclasses.field does
    """At most `max_bytes` bytes."""

    def read(name: str, value: object) -> bytes:
        if type(value) is not bytes or len(value) > max_bytes:
            raise StreamError(f"{name}: not at most {max_bytes} bytes")
        return value

    return _declare(read)


def plain_map() -> Any:  # noqa: ANN401 - as dataclasses.field does
    """A map that is checked by who takes it (rayvisor.vmm.snapshot)."""

    def read(name: str, value: object) -> dict[str, Any]:
        if type(value) is not dict:
            raise StreamError(f"{name}: not a map")
        return value

    return _declare(read)
