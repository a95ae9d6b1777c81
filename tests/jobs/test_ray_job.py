"""The example through a real job server: `ray job submit -- python job.py`."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rayvisor.runtime import cluster_file
from rayvisor.runtime.cluster import Cluster
from rayvisor.runtime.images import ImageStore
from rayvisor.vmm.errors import ImageError
from tests.cluster.conftest import CONNECTED

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.guest,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("default::ResourceWarning"),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster with a job server, and an environment that talks to it."""
    try:
        ImageStore().get("debian")
    except ImageError as error:
        pytest.skip(f"{error}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        patch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        # How long a job that is stopped has to end by itself: as long as a busy machine needs.
        patch.setenv("RAY_JOB_STOP_WAIT_TIME_S", "120")
        for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN"):
            patch.delenv(name, raising=False)
        for other in CONNECTED:
            other.close()
        with Cluster.up(hosts=2, object_store="100M", dashboard=True) as made:
            patch.setenv("RAY_AUTH_MODE", "token")
            patch.setenv("RAY_AUTH_TOKEN_PATH", str(cluster_file.folder() / "token"))
            patch.setenv("RAY_API_SERVER_ADDRESS", made.dashboard_url)
            yield made
    if CONNECTED:
        Cluster.connect()


def ray_job(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`ray job ARGUMENT...` as a person types it."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "job", *arguments]
    return subprocess.run(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=400,
    )


@pytest.mark.parametrize(
    ("folder", "script"),
    [
        pytest.param("examples", "job.py", id="rayvisor-installed"),
        pytest.param(".", "examples/job.py", id="rayvisor-in-the-folder"),
    ],
)
def test_job_prints_what_its_guest_said(cluster: Cluster, folder: str, script: str) -> None:
    done = ray_job(
        *("submit", "--working-dir", folder, "--", "python", script, "uname -s; expr 6 '*' 7")
    )
    assert done.returncode == 0, done.stdout
    assert "\nLinux\n42\n" in done.stdout
    assert cluster.vms() == []


def test_job_moves_its_vm_while_the_command_runs(cluster: Cluster) -> None:
    work = "for i in 1 2 3 4 5; do sleep 1; echo step $i; done"
    done = ray_job(
        *("submit", "--working-dir", "examples", "--", "python", "job.py", "--move", "--", work)
    )
    assert done.returncode == 0, done.stdout
    boots = re.search(r"boots on (\S+)", done.stdout)
    moved = re.search(r"moved to (\S+) in", done.stdout)
    assert boots, done.stdout
    assert moved, done.stdout
    assert {boots[1], moved[1]} == {host.name for host in cluster.hosts()}
    assert "\n".join(f"step {i}" for i in range(1, 6)) in done.stdout
    assert cluster.vms() == []


def test_job_ends_as_the_command_does(cluster: Cluster) -> None:
    done = ray_job("submit", "--working-dir", "examples", "--", "python", "job.py", "(exit 3)")
    assert done.returncode == 1, done.stdout
    assert "exit code 3" in done.stdout
    assert cluster.vms() == []


def test_job_that_is_stopped_takes_its_vm_along(cluster: Cluster) -> None:
    name = "stopped"
    begun = ray_job(
        *("submit", "--no-wait", "--submission-id", name, "--working-dir", "examples"),
        *("--", "python", "job.py", "sleep 1000"),
    )
    assert begun.returncode == 0, begun.stdout
    wait_for(cluster, name, vms=1)
    assert ray_job("stop", name).returncode == 0
    wait_for(cluster, name, vms=0)
    assert "STOPPED" in ray_job("status", name).stdout.upper()


OWNERS = """
import os
from rayvisor import Cluster, VmSpec
with Cluster.connect() as cluster:
    cluster.create(VmSpec(name="owned", memory="64M"))
    cluster.create(VmSpec(name="kept", memory="64M", detached=True))
    print("pid", os.getpid(), flush=True)
    os.system("sleep 1000")
"""


def test_job_that_is_killed_takes_its_vm_along(cluster: Cluster, tmp_path: Path) -> None:
    """SIGKILL leaves its program no word to say; a VM that is detached stays."""
    (tmp_path / "owners.py").write_text(OWNERS)
    name = "killed"
    begun = ray_job(
        *("submit", "--no-wait", "--submission-id", name, "--working-dir", str(tmp_path)),
        *("--", "python", "owners.py"),
    )
    assert begun.returncode == 0, begun.stdout
    wait_for(cluster, name, vms=2)
    said: re.Match[str] | None = None
    deadline_s = time.monotonic() + 60
    while said is None and time.monotonic() < deadline_s:
        said = re.search(r"pid (\d+)", ray_job("logs", name).stdout)
    assert said, ray_job("logs", name).stdout
    owned = cluster.status("owned")
    assert owned.owner
    os.kill(int(said[1]), signal.SIGKILL)
    wait_for(cluster, name, vms=1)
    assert [vm.name for vm in cluster.vms()] == ["kept"]
    removed = [event.text for event in cluster.events() if event.kind == "vm_removed"]
    assert removed[-1] == f"VM owned was removed: the job {owned.owner} that made it has ended"
    cluster.remove("kept", force=True)


def wait_for(cluster: Cluster, job: str, *, vms: int) -> None:
    deadline_s = time.monotonic() + 200
    while len(cluster.vms()) != vms:
        if time.monotonic() > deadline_s:
            said = "\n".join(ray_job(word, job).stdout for word in ("status", "logs"))
            pytest.fail(f"{cluster.vms()} instead of {vms} VMs; the job:\n{said}")
        time.sleep(0.2)
