"""What is done about a VM that ends or hangs: its policy, and what follows from it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from rayvisor.vmm.spec import HangAction

if TYPE_CHECKING:
    from rayvisor.actors.records import LastWords, Placement

MAX_PRIORITY: Final = 100
MAX_DELAY_S: Final = 300.0
STABLE_S: Final = 60.0
"""A VM that has run for so long is well: its next restart is a first one again."""


class Restart(StrEnum):
    """When a VM that is down is started again, from its boot source."""

    NEVER = "never"
    ON_FAILURE = "on-failure"
    """Its process or its host died, its guest crashed or left with a status that is not 0."""
    ALWAYS = "always"
    """Also when its guest powered itself off; not after `rayvisor stop`."""


@dataclass(frozen=True, slots=True)
class HaPolicy:
    """High availability of one VM.

    Attributes:
        restart: when it is started again.
        priority: 0 to `MAX_PRIORITY`; of several VMs that are down the greater goes first.
        delay_s: the pause before a second restart in a row. The first one comes at once, and
            each further one waits twice as long as that before it, at most `MAX_DELAY_S`.
        on_hang: what is done when its watchdog expires or its heartbeat stops.
        heartbeat_s: how long its console may be silent before it counts as hung; 0 for ever.
        boot: what it boots, by its name in the cluster's store (`rayvisor.actors.bootstore`).
    """

    restart: Restart = Restart.NEVER
    priority: int = 50
    delay_s: float = 1.0
    on_hang: HangAction = HangAction.RESET
    heartbeat_s: float = 0.0
    boot: str = ""


def is_ours(placement: Placement) -> bool:
    """Whether high availability restarts this VM; fault tolerance sees to its own."""
    return placement.request.ha.restart is not Restart.NEVER and placement.pair is None


def wants_restart(policy: HaPolicy, words: LastWords) -> bool:
    """Whether a VM that ended like this is started again."""
    # By value: this module is read by the records, and so cannot know their states.
    match words.state.value:
        case "failed" | "crashed":
            return policy.restart is not Restart.NEVER
        case "exited":
            failed = bool(words.exit_status)
            return policy.restart is Restart.ALWAYS or (
                failed and policy.restart is Restart.ON_FAILURE
            )
        case "halted":
            return policy.restart is Restart.ALWAYS
        case _:
            return False


def pause_s(policy: HaPolicy, attempt: int) -> float:
    """How long to wait before restart number `attempt` in a row, from 1."""
    if attempt <= 1:
        return 0.0
    # The exponent is kept small: a VM may have failed a thousand times.
    return min(MAX_DELAY_S, policy.delay_s * 2.0 ** min(attempt - 2, 32))
