"""The file that remembers a cluster, and the processes that belong to it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from rayvisor.runtime import cluster_file, local_ray
from rayvisor.runtime.cluster_file import ClusterFile
from rayvisor.vmm.errors import ClusterError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path / "rayvisor" / "cluster"


@pytest.fixture
def owned(tmp_path: Path) -> ClusterFile:
    (tmp_path / "ray").mkdir()
    (tmp_path / "token").write_text("secret")
    return ClusterFile(
        phase="up",
        owned=True,
        cluster_id=f"test-{tmp_path.name}-{os.getpid()}",
        temp_dir=str(tmp_path / "ray"),
        token_file=str(tmp_path / "token"),
    )


@pytest.fixture
def process(owned: ClusterFile) -> Iterator[subprocess.Popen[bytes]]:
    """A process of the cluster that ignores SIGTERM, with a child that hides its environment."""
    script = "trap '' TERM; env -i sleep 600 & sleep 600 & wait"
    env = {**os.environ, local_ray.MARK: owned.cluster_id}
    with subprocess.Popen(["sh", "-c", script], env=env, start_new_session=True) as started:
        yield started
        local_ray.stop(owned)


def test_none_at_first() -> None:
    assert cluster_file.load() is None


def test_what_is_saved_is_loaded_and_forgotten_with_what_belongs_to_it(
    owned: ClusterFile, tmp_path: Path
) -> None:
    cluster_file.save(owned)
    assert cluster_file.load() == owned
    cluster_file.forget(owned)
    assert cluster_file.load() is None
    assert not (tmp_path / "ray").exists()
    assert not (tmp_path / "token").exists()
    cluster_file.forget(owned)


def test_a_cluster_that_was_joined_keeps_its_folders(owned: ClusterFile, tmp_path: Path) -> None:
    cluster_file.forget(owned.model_copy(update={"owned": False}))
    assert (tmp_path / "ray").exists()


@pytest.mark.parametrize("text", ["", "{}", "\x00", '{"version": 2}', "[]"])
def test_a_damaged_file_is_one_line(state: Path, text: str) -> None:
    state.mkdir(parents=True)
    (state / "cluster.json").write_text(text)
    with pytest.raises(ClusterError, match=r"cluster\.json is damaged"):
        cluster_file.load()


def test_one_at_a_time() -> None:
    script = (
        "import sys\nfrom rayvisor.runtime import cluster_file\n"
        "with cluster_file.locked(print):\n print('have it', flush=True)\n sys.stdin.read()\n"
    )
    said: list[str] = []
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == "have it\n"

        def let_go(text: str) -> None:
            said.append(text)
            other.stdin.close()  # type: ignore[union-attr]

        with cluster_file.locked(let_go):
            assert other.wait(20) == 0
    assert len(said) == 1
    assert "another `rayvisor up`" in said[0]


def test_all_processes_of_a_cluster_are_ended_and_no_others(
    owned: ClusterFile, process: subprocess.Popen[bytes]
) -> None:
    while len(local_ray.processes(owned)) < 3:
        assert process.poll() is None
    other = owned.model_copy(update={"cluster_id": "other"})
    assert local_ray.processes(other) == []
    assert local_ray.stop(other) == 0
    assert len(local_ray.processes(owned)) == 3
    assert local_ray.stop(owned) == 3
    assert local_ray.processes(owned) == []
    assert process.wait(20) != 0


def test_neighbours_of_a_marked_process_are_left_alone(owned: ClusterFile) -> None:
    # A session whose leader is not marked, with a marked process and another one in it.
    script = f"env {local_ray.MARK}={owned.cluster_id} sleep 600 & sleep 600 & echo $! && wait"
    with subprocess.Popen(
        ["sh", "-c", script], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as shell:
        assert shell.stdout is not None
        neighbour = int(shell.stdout.readline())
        while not local_ray.processes(owned):
            assert shell.poll() is None
        assert local_ray.stop(owned) == 1
        assert shell.poll() is None
        os.kill(neighbour, signal.SIGTERM)


def test_a_file_without_an_id_has_no_processes(owned: ClusterFile) -> None:
    assert local_ray.processes(owned.model_copy(update={"cluster_id": ""})) == []
