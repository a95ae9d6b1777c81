"""A short run of the loaders' fuzz target, the same every time."""

from __future__ import annotations

import itertools

from tests.fuzz import fuzz_loaders


def test_the_seeds_pass() -> None:
    for data in fuzz_loaders.seeds():
        fuzz_loaders.test_one_input(data)


def test_mutations_of_the_seeds_pass() -> None:
    for data in itertools.islice(fuzz_loaders.mutations(seed=2), 3000):
        fuzz_loaders.test_one_input(data)
