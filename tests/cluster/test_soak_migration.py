"""The long soak, for a short time: a guest that watches itself, moved, and some of it killed."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.guest,
    pytest.mark.network,
    pytest.mark.timeout(400),
]


def test_a_guest_that_watches_itself_sees_nothing() -> None:
    size = ["--hosts", "2", "--memory", "128M", "--megabytes", "8"]
    done = subprocess.run(
        [*(sys.executable, "-m", "bench.soak_migration"), "--moves", "8", "--kills", "2", *size],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=380,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    tally = ast.literal_eval(done.stdout)
    assert tally["kills"] >= 1, "a move may end before it is found to have begun"
    assert tally["moved"] + tally["failed"] + tally["kills_of_the_owner"] == 8
    assert tally["lines"] >= 8
