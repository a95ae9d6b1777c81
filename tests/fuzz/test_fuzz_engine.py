"""A short run of the engine's fuzzer, from fixed seeds."""

from __future__ import annotations

import pytest

from tests.fuzz.fuzz_engine import run_batch


@pytest.mark.parametrize("first", [0, 10_000, 20_000])
def test_random_guests_neither_crash_nor_hang_the_process(first: int) -> None:
    assert run_batch(first, 200, quiet=True) is None
