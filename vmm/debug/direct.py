"""What direct execution did, for people and programs to read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rayvisor.vmm.machine import Machine


def direct_as_dict(machine: Machine) -> dict[str, Any]:
    """Where user code ran, in JSON's terms: `on`, `refused` (why not, or null), and counts.

    Seconds of wall time on the processor itself (`native_s`) and on the way there and back
    (`switching_s`); the rest of the vCPU's time went to the translator.
    """
    counts = machine.vcpu.direct_counts()
    return {
        "on": machine.spec.direct and machine.direct_refused is None,
        "refused": machine.direct_refused,
        "native_s": counts.native_s,
        "switching_s": counts.switching_s,
        "stays": counts.stays,
        "traps": counts.traps,
    }


def render_direct(plain: dict[str, Any]) -> str:
    """What `direct_as_dict` gave, as one line."""
    if plain["refused"]:
        return f"translated: {plain['refused']}"
    if not plain["on"]:
        return "translated, as asked"
    return (
        f"native {plain['native_s']:.1f} s, switching {plain['switching_s']:.1f} s, "
        f"{plain['stays']:,} stays, {plain['traps']:,} traps"
    )
