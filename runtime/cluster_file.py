"""The file that says which Ray cluster `rayvisor up` made or joined, and the lock beside it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from rayvisor.runtime import config
from rayvisor.vmm.errors import ClusterError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class ClusterFile(BaseModel):
    """A cluster that this user's commands talk to."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    version: Literal[1] = 1
    phase: Literal["starting", "up"]
    """"starting" from before the first process until every part answers."""
    owned: bool
    """Whether `up` started Ray; a Ray that was joined is left running by `down`."""
    address: str = ""
    """HOST:PORT of Ray's control service, or "auto"."""
    cluster_id: str = ""
    """In the environment of each process of an owned cluster, as RAYVISOR_CLUSTER_ID."""
    temp_dir: str = ""
    token_file: str = ""
    dashboard_url: str = ""
    working_dir: str = ""
    started_unix_s: float = 0.0
    hosts: int = 1
    """How many hosts `up` split this machine into."""


def folder() -> Path:
    """Where the cluster's files are, for this user alone."""
    return config.state_dir() / "cluster"


def load() -> ClusterFile | None:
    """The cluster there is, or None.

    Raises:
        ClusterError: the file cannot be read as one.
    """
    path = folder() / "cluster.json"
    try:
        return ClusterFile.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValidationError, UnicodeDecodeError) as error:
        raise ClusterError(
            f"{path} is damaged ({type(error).__name__}): end its processes, if any, and remove it"
        ) from None


def save(cluster: ClusterFile) -> None:
    """Write the file, whole or not at all."""
    path = folder() / "cluster.json"
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_suffix(f".{os.getpid()}")
    draft.write_text(cluster.model_dump_json(indent=1) + "\n", encoding="utf-8")
    draft.replace(path)


def forget(cluster: ClusterFile) -> None:
    """Remove the file and what belongs to the cluster on disk. Harmless when it is gone."""
    (folder() / "cluster.json").unlink(missing_ok=True)
    if cluster.owned:
        Path(cluster.token_file).unlink(missing_ok=True)
        shutil.rmtree(cluster.temp_dir, ignore_errors=True)


@contextlib.contextmanager
def locked(waiting: Callable[[str], None]) -> Iterator[None]:
    """One `up` or `down` at a time; calls `waiting` once when another is at it."""
    folder().mkdir(parents=True, exist_ok=True, mode=0o700)
    with (folder() / "lock").open("w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting("another `rayvisor up` or `down` is at it; waiting for it to end")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
