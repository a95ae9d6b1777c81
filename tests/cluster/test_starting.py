"""An `up` that ends half-way, by whatever, leaves no process and no file behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rayvisor.runtime import cluster_file

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

INTERRUPTED_IN_RAYS_IMPORT = """
import os, signal, sys, time
from rayvisor import Cluster
from rayvisor.runtime import cluster_file

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == "ray.actor":
            while not cluster_file.load().address:
                time.sleep(0.05)
            time.sleep(1)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)

sys.meta_path.insert(0, Interrupt())
Cluster.up()
"""

FAILED_IN_RAYS_IMPORT = """
import sys
from rayvisor import Cluster

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name == "ray.actor":
            raise ImportError("no actor today")

sys.meta_path.insert(0, Refuse())
Cluster.up()
"""

SECOND_HOST_DOES_NOT_START = """
from pathlib import Path
from rayvisor import Cluster
from rayvisor.runtime import cluster_file

def progress(text):
    if "more hosts" in text:
        Path(cluster_file.load().token_file).unlink()

Cluster.up(hosts=3, progress=progress)
"""


def _processes_that_say(word: bytes) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and word in (entry / "environ").read_bytes().split(b"\0"):
                found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found


@pytest.mark.parametrize(
    ("program", "said"),
    [
        (INTERRUPTED_IN_RAYS_IMPORT, "KeyboardInterrupt"),
        (FAILED_IN_RAYS_IMPORT, "no actor today"),
        (SECOND_HOST_DOES_NOT_START, "Ray did not start"),
    ],
    ids=["interrupted in Ray's import", "Ray's import fails", "a host does not start"],
)
def test_an_up_that_ends_half_way_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, said: str
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode
    assert said in done.stderr
    assert _processes_that_say(f"XDG_STATE_HOME={tmp_path}".encode()) == []
    assert cluster_file.load() is None
