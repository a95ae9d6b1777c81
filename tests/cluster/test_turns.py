"""The order in which guests that are started again run."""

from __future__ import annotations

import threading

from rayvisor.actors.turns import NOBODY, Turns


def goes(turns: Turns, name: str) -> threading.Event:
    """Set once it was this one's turn."""
    went = threading.Event()

    def wait() -> None:
        if turns.wait(name):
            went.set()

    threading.Thread(target=wait, daemon=True).start()
    return went


def test_the_less_urgent_wait() -> None:
    turns = Turns()
    turns.join("low", 1)
    turns.join("high", 2)
    low, high = goes(turns, "low"), goes(turns, "high")
    assert high.wait(5)
    assert not low.wait(0.05)
    turns.leave("high")
    assert low.wait(5)


def test_equals_go_side_by_side() -> None:
    turns = Turns()
    turns.join("one", 1)
    turns.join("other", 1)
    assert goes(turns, "one").wait(5)
    assert goes(turns, "other").wait(5)


def test_who_is_to_come_counts() -> None:
    turns = Turns()
    turns.join("low", 1)
    turns.expect(2)
    low = goes(turns, "low")
    assert not low.wait(0.05)
    turns.expect(NOBODY)
    assert low.wait(5)


def test_nobody_is_held_up_for_ever() -> None:
    turns = Turns(patience_s=0.02)
    turns.join("stuck", 2)
    turns.join("low", 1)
    assert not turns.wait("low")
