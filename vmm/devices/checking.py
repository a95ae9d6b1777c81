"""What every chip's `restore` asks first: the right kind of state, and its cross-field rules."""

from __future__ import annotations

from typing import TypeVar

from rayvisor.vmm.errors import CorruptStateError
from rayvisor.vmm.state import State, check, copied

S = TypeVar("S", bound=State)


def checked_copy(cls: type[S], state: object) -> S:
    """A shallow copy of `state`, proven to be a `cls` whose fields are all in range.

    Raises:
        CorruptStateError: it is something else, or a field is out of range.
    """
    if type(state) is not cls:
        raise CorruptStateError(f"{cls.SCHEMA[0]}: found {type(state).__name__} in its place")
    return copied(check(state))


def require(cls: type[State], holds: bool, rule: str) -> None:
    """Enforce a rule that ties several fields of a state together.

    Raises:
        CorruptStateError: the rule does not hold.
    """
    if not holds:
        raise CorruptStateError(f"{cls.SCHEMA[0]}: {rule}")
