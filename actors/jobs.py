"""Ray jobs as owners of VMs: a job that ends, however it ends, takes along what it has made.

A job is what was submitted to Ray as one (`ray job submit`, a RayJob on Kubernetes), its tasks and
actors included. Its own `finally` is the polite way; this one holds when its driver was killed, or
its machine with it. A notebook or a program that merely connects is no job: it is closed and opened
again, and its VMs wait for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast

import ray
from ray._private import state as ray_state
from ray._private.worker import global_worker

from rayvisor.actors.looking import keep_looking
from rayvisor.vmm.errors import UnknownVmError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rayvisor.actors.directory import Directory

LOOK_EVERY_S: Final = 1.0
_SUBMISSION: Final = "job_submission_id"


def owning_job() -> str:
    """The id of the Ray job that this process is of; empty when nobody submitted it as one."""
    config = cast("Any", global_worker).core_worker.get_job_config()
    if not config.metadata.get(_SUBMISSION):
        return ""
    return ray.get_runtime_context().get_job_id()


def ended_jobs() -> set[str]:
    """The ids of the Ray jobs whose drivers are gone."""
    return {job["JobID"] for job in cast("Any", ray_state).jobs() if job["IsDead"]}


class JobWatch:
    """Removes VMs whose jobs have ended, and says why.

    Args:
        directory: the cluster.
        ended: the ids of jobs that have ended; a job that it does not know counts as alive.
    """

    def __init__(self, directory: Directory[Any], ended: Callable[[], set[str]]) -> None:
        self._directory = directory
        self._ended = ended

    def start(self) -> None:
        """Watch, on a thread of its own."""
        keep_looking("jobs", self.look, LOOK_EVERY_S)

    def look(self) -> None:
        """Look once. A VM that is being created is left until it is there."""
        placements = self._directory.ledger.placements()
        owned = [p for p in placements if p.request.owner and p.pid]
        if not owned:
            return
        ended = self._ended()
        for placement in owned:
            owner = placement.request.owner
            if owner not in ended:
                continue
            try:
                self._directory.remove(
                    placement.name, force=True, why=f"the job {owner} that made it has ended"
                )
            except UnknownVmError:
                continue  # it was removed this moment
