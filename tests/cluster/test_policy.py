"""When a VM that ended is started again, and how long after."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayvisor.actors.policy import MAX_DELAY_S, HaPolicy, Restart, is_ours, pause_s, wants_restart
from rayvisor.actors.records import (
    LastWords,
    Pair,
    Placement,
    Protection,
    Spot,
    VmRequest,
    VmState,
)

NEVER, ON_FAILURE, ALWAYS = (HaPolicy(restart=restart) for restart in Restart)


@pytest.mark.parametrize(
    ("state", "exit_status", "on_failure", "always"),
    [
        (VmState.FAILED, None, True, True),
        (VmState.CRASHED, None, True, True),
        (VmState.EXITED, 7, True, True),
        (VmState.EXITED, 0, False, True),
        (VmState.HALTED, None, False, True),
        (VmState.STOPPED, None, False, False),
    ],
)
def test_which_ends_are_mended(
    state: VmState, exit_status: int | None, *, on_failure: bool, always: bool
) -> None:
    words = LastWords(state, "", 1.0, exit_status=exit_status)
    assert wants_restart(ON_FAILURE, words) is on_failure
    assert wants_restart(ALWAYS, words) is always
    assert wants_restart(NEVER, words) is False


def test_the_first_restart_comes_at_once_and_each_later_one_later() -> None:
    policy = HaPolicy(delay_s=2.0)
    assert [pause_s(policy, n) for n in (1, 2, 3, 4, 5)] == [0.0, 2.0, 4.0, 8.0, 16.0]


@given(st.integers(1, 10**9), st.floats(0, MAX_DELAY_S))
def test_a_pause_has_its_bounds(attempt: int, delay_s: float) -> None:
    policy = HaPolicy(delay_s=delay_s)
    assert 0 <= pause_s(policy, attempt) <= pause_s(policy, attempt + 1) <= MAX_DELAY_S


def test_fault_tolerance_sees_to_its_own() -> None:
    plain = Placement(VmRequest("web", 1 << 20), 1, "aa", "alpha", 0.0)
    assert not is_ours(plain)
    kept = replace(plain, request=replace(plain.request, ha=ON_FAILURE))
    assert is_ours(kept)
    assert is_ours(replace(kept, ft=Protection(0.025, 0.5)))
    pair = Pair("id", 2, Spot("bb", "beta"))
    assert not is_ours(replace(kept, ft=Protection(0.025, 0.5, pair=pair)))
