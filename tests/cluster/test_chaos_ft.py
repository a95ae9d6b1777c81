"""The long chaos, for a short time: a fault tolerant guest whose hosts fail."""

from __future__ import annotations

import json
import os
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


def test_a_guest_whose_hosts_fail_sees_nothing() -> None:
    size = ["--memory", "128M", "--megabytes", "8", "--json", "--seed", "5"]
    done = subprocess.run(
        [*(sys.executable, "-m", "bench.chaos_ft"), "--failures", "8", *size],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=380,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    tally = json.loads(done.stdout)
    assert sum(tally["done"].values()) == 8
    assert tally["lines"] >= 8 * 5
