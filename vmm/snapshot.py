"""A machine's state without its RAM, as plain values that msgpack can carry.

    {"schema": "machine", "version": 2, "memory_bytes": ..., "clock_ns": ...,
     "cpu": {...}, "devices": {name: {...}}, "console_input": b"..."}

Each section is a versioned state (rayvisor.vmm.state). RAM travels apart: it is large, and moves
while the machine runs. What comes in is untrusted: all of it is decoded and checked before
anything is changed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from rayvisor.vmm.core.vcpu import decode
from rayvisor.vmm.cpu_state import CpuState
from rayvisor.vmm.errors import CorruptStateError
from rayvisor.vmm.machine import MAX_WAITING_INPUT_BYTES
from rayvisor.vmm.state import pack, unpack

if TYPE_CHECKING:
    from rayvisor.vmm.machine import Machine

SCHEMA: Final = ("machine", 2)
"""Version 1 had no local APIC."""
MAX_CLOCK_NS: Final = 1 << 62
_KEYS: Final = frozenset(
    {"schema", "version", "memory_bytes", "clock_ns", "cpu", "devices", "console_input"}
)


@dataclass(frozen=True, slots=True)
class Capture:
    """A machine's state, copied out of it but not yet put into plain values: that takes longer."""

    memory_bytes: int
    clock_ns: int
    cpu: bytes
    chips: dict[str, Any]
    console_input: bytes

    def plain(self) -> dict[str, Any]:
        """The state as plain values. Any thread."""
        return {
            "schema": SCHEMA[0],
            "version": SCHEMA[1],
            "memory_bytes": self.memory_bytes,
            "clock_ns": self.clock_ns,
            "cpu": pack(decode(self.cpu)),
            "devices": {name: pack(state) for name, state in self.chips.items()},
            "console_input": self.console_input,
        }


def capture(machine: Machine) -> Capture:
    """A copy of the state of a machine that does not run, or that runs this very call.

    Raises:
        EngineError: it runs.
    """
    return Capture(
        memory_bytes=machine.ram.size_bytes,
        clock_ns=machine.clock.now_ns(),
        cpu=machine.vcpu.save_raw(),
        chips={name: chip.snapshot() for name, chip in machine.devices.items()},
        console_input=machine.waiting_input(),
    )


def save(machine: Machine) -> dict[str, Any]:
    """The state of a machine that does not run.

    Raises:
        EngineError: it runs.
    """
    return capture(machine).plain()


def restore(machine: Machine, plain: object) -> None:
    """Bring a machine that does not run, and whose RAM is in place, into a saved state.

    Afterwards it is paused, and `Machine.run` goes on.

    Raises:
        CorruptStateError: the state is malformed, impossible, or of another machine. If a chip
            refuses late, the machine must not be run.
        EngineError: it runs.
    """
    if type(plain) is not dict or set(plain) != _KEYS:
        raise CorruptStateError("machine: fields missing or unknown")
    if (plain["schema"], plain["version"]) != SCHEMA:
        found = str(plain["version"])[:20]
        raise CorruptStateError(
            f"machine: version {SCHEMA[1]} wanted, found {found}: use the Rayvisor that saved it"
        )
    if plain["memory_bytes"] != machine.ram.size_bytes:
        raise CorruptStateError(
            f"machine: {plain['memory_bytes']!r} bytes of memory, this one has "
            f"{machine.ram.size_bytes}"
        )
    clock_ns, waiting = plain["clock_ns"], plain["console_input"]
    if type(clock_ns) is not int or not 0 <= clock_ns <= MAX_CLOCK_NS:
        raise CorruptStateError("machine.clock_ns: out of range")
    if type(waiting) is not bytes or len(waiting) > MAX_WAITING_INPUT_BYTES:
        raise CorruptStateError("machine.console_input: too long")
    sections = plain["devices"]
    if type(sections) is not dict or set(sections) != set(machine.devices):
        raise CorruptStateError("machine.devices: not the chips of this board")
    states = {
        name: unpack(type(chip.snapshot()), sections[name])
        for name, chip in machine.devices.items()
    }
    machine.vcpu.load(unpack(CpuState, plain["cpu"]))
    machine.clock.rebase(clock_ns)
    for name, state in states.items():
        machine.devices[name].restore(state)
    machine.restored(waiting)
