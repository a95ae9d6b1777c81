"""State that leaves the process: versioned dataclasses, checked field by field.

A state class is a slotted dataclass with ``SCHEMA: ClassVar[tuple[str, int]]`` (an id and
a version). Every field is declared by one of the constructors below, which record its range;
`check` enforces them. `pack` and `unpack` turn a state into plain values for msgpack and back.
Nothing is ever unpickled, and nothing read is trusted.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import cache
from operator import attrgetter
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

from rayvisor.vmm.errors import CorruptStateError

if TYPE_CHECKING:
    from collections.abc import Callable


class State(Protocol):
    """What every state class offers."""

    SCHEMA: ClassVar[tuple[str, int]]
    __dataclass_fields__: ClassVar[dict[str, Any]]


S = TypeVar("S", bound=State)


def uint(bits: int, default: int = 0) -> Any:  # noqa: ANN401 - as dataclasses.field does
    """An unsigned register of `bits` bits."""
    return field(default=default, metadata={"low": 0, "high": (1 << bits) - 1})


def sint(bits: int, default: int = 0) -> Any:  # noqa: ANN401 - as dataclasses.field does
    """A signed quantity of `bits` bits, such as an offset in nanoseconds."""
    return field(
        default=default, metadata={"low": -(1 << (bits - 1)), "high": (1 << (bits - 1)) - 1}
    )


def ranged(low: int, high: int, default: int) -> Any:  # noqa: ANN401 - as dataclasses.field does
    """An integer in low..high, both included."""
    return field(default=default, metadata={"low": low, "high": high})


def flag(*, default: bool = False) -> Any:  # noqa: ANN401 - as dataclasses.field does
    """One bit."""
    return field(default=default, metadata={"flag": True})


def blob(max_bytes: int, default: bytes = b"") -> Any:  # noqa: ANN401 - as dataclasses.field does
    """At most `max_bytes` bytes (a FIFO, a block of RAM cells)."""
    return field(default=default, metadata={"max_bytes": max_bytes})


def uints(bits: int, count: int) -> Any:  # noqa: ANN401 - as dataclasses.field does
    """A tuple of exactly `count` unsigned registers of `bits` bits."""
    return field(default=(0,) * count, metadata={"low": 0, "high": (1 << bits) - 1, "count": count})


def nested(cls: type[Any], count: int | None = None) -> Any:  # noqa: ANN401 - as dataclasses.field does
    """Another state, or a tuple of exactly `count` of them."""
    if count is None:
        return field(default_factory=cls, metadata={"cls": cls})
    return field(
        default_factory=lambda: tuple(cls() for _ in range(count)),
        metadata={"cls": cls, "count": count},
    )


def _bad(state: State, name: str, what: str) -> CorruptStateError:
    return CorruptStateError(f"{state.SCHEMA[0]}.{name}: {what}")


def _check_int(state: State, name: str, value: object, meta: Any) -> None:  # noqa: ANN401
    if type(value) is not int or not meta["low"] <= value <= meta["high"]:
        raise _bad(state, name, f"not in {meta['low']}..{meta['high']}")


def check(state: S) -> S:
    """The state itself, if every field has its type and lies in its range.

    Raises:
        CorruptStateError: naming the first field that does not.
    """
    for f in fields(state):
        value, meta, name = getattr(state, f.name), f.metadata, f.name
        if "cls" in meta:
            items = value if "count" in meta else (value,)
            if type(items) is not tuple or len(items) != meta.get("count", 1):
                raise _bad(state, name, f"needs {meta.get('count', 1)} entries")
            for item in items:
                if type(item) is not meta["cls"]:
                    raise _bad(state, name, "wrong kind of state")
                check(item)
        elif "flag" in meta:
            if type(value) is not bool:
                raise _bad(state, name, "not a boolean")
        elif "max_bytes" in meta:
            if type(value) is not bytes or len(value) > meta["max_bytes"]:
                raise _bad(state, name, f"not at most {meta['max_bytes']} bytes")
        elif "count" in meta:
            if type(value) is not tuple or len(value) != meta["count"]:
                raise _bad(state, name, f"needs {meta['count']} numbers")
            for number in value:
                _check_int(state, name, number, meta)
        else:
            _check_int(state, name, value, meta)
    return state


@dataclass(frozen=True, slots=True)
class _Plan:
    """How a class of states is read, found out once: checkpoints do it many times a second.

    Attributes:
        names: the fields.
        values: gives all their values.
        composed: those that are not plain values, and how they become so.
    """

    names: tuple[str, ...]
    values: Callable[[Any], tuple[Any, ...]]
    composed: tuple[tuple[str, Callable[[Any], Any]], ...]


@cache
def _plan(cls: type[State]) -> _Plan:
    names = tuple(f.name for f in fields(cls))
    composed: list[tuple[str, Callable[[Any], Any]]] = []
    for f in fields(cls):
        if "cls" in f.metadata:
            composed.append((f.name, _pack_all if "count" in f.metadata else pack))
        elif "count" in f.metadata:
            composed.append((f.name, list))
    return _Plan(names, _values_getter(names), tuple(composed))


def _values_getter(names: tuple[str, ...]) -> Callable[[Any], tuple[Any, ...]]:
    if len(names) > 1:
        return attrgetter(*names)
    return lambda state: tuple(getattr(state, name) for name in names)


def _pack_all(states: tuple[State, ...]) -> list[dict[str, Any]]:
    return [pack(state) for state in states]


def copied(state: S, **changes: Any) -> S:  # noqa: ANN401 - whatever the fields hold
    """A shallow copy with `changes`: `dataclasses.replace` in a fraction of the time."""
    cls = type(state)
    copy = cls(*_plan(cls).values(state))
    for name, value in changes.items():
        setattr(copy, name, value)
    return copy


def pack(state: State) -> dict[str, Any]:
    """Plain values (int, bool, bytes, list, dict) that msgpack can carry."""
    schema_id, version = state.SCHEMA
    plan = _plan(type(state))
    out: dict[str, Any] = {"schema": schema_id, "version": version}
    out.update(zip(plan.names, plan.values(state), strict=True))
    for name, plain in plan.composed:
        out[name] = plain(out[name])
    return out


def unpack(cls: type[S], plain: object) -> S:
    """The checked state that `pack` wrote.

    Raises:
        CorruptStateError: another schema, another version, a field missing,
            unknown, of the wrong type or out of range.
    """
    schema_id, version = cls.SCHEMA
    if type(plain) is not dict:
        raise CorruptStateError(f"{schema_id}: not a map")
    found = (plain.get("schema"), plain.get("version"))
    if found != (schema_id, version):
        raise CorruptStateError(f"{schema_id}: version {version} wanted, found {found!r}"[:200])
    declared = {f.name: f.metadata for f in fields(cls)}
    if set(plain) != {"schema", "version", *declared}:
        raise CorruptStateError(f"{schema_id}: fields missing or unknown")
    values: dict[str, Any] = {}
    for name, meta in declared.items():
        value = plain[name]
        if "count" in meta:
            if type(value) is not list or len(value) != meta["count"]:
                raise CorruptStateError(f"{schema_id}.{name}: needs {meta['count']} entries")
            value = tuple(unpack(meta["cls"], v) if "cls" in meta else v for v in value)
        elif "cls" in meta:
            value = unpack(meta["cls"], value)
        values[name] = value
    return check(cls(**values))
