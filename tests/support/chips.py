"""Every chip on a test bench: its accesses, its other inputs, and a log of its outputs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rayvisor.vmm.clock import ManualClock
from rayvisor.vmm.devices.debugexit import DebugExit
from rayvisor.vmm.devices.i8042 import I8042
from rayvisor.vmm.devices.i8254 import I8254
from rayvisor.vmm.devices.i8259 import I8259, PicPair
from rayvisor.vmm.devices.ib700 import Ib700
from rayvisor.vmm.devices.local_apic import LocalApic
from rayvisor.vmm.devices.mc146818 import Mc146818, memory_nvram
from rayvisor.vmm.devices.port61 import Port61
from rayvisor.vmm.devices.port80 import Port80
from rayvisor.vmm.devices.port92 import Port92
from rayvisor.vmm.devices.uart16550 import Uart16550

if TYPE_CHECKING:
    from collections.abc import Callable

    from rayvisor.vmm.devices.base import Device

UTC_NS = 1_700_000_000_123_456_789


@dataclass
class Log:
    """What came out of a chip, without repetitions of a wire's level."""

    events: list[tuple[str, object]] = field(default_factory=list)
    levels: dict[str, bool] = field(default_factory=dict)

    def wire(self, name: str) -> Callable[[bool], None]:
        def drive(level: bool) -> None:
            if self.levels.get(name) is not level:
                self.levels[name] = level
                self.events.append((name, level))

        return drive

    def event(self, name: str) -> Callable[..., None]:
        return lambda *args: self.events.append((name, args))


@dataclass
class Rig:
    """One chip (or the pair of PICs), its clock, its other inputs and its outputs."""

    clock: ManualClock
    log: Log
    devices: tuple[Device, ...]
    registers: int
    poke: Callable[[int], object] = lambda _: None
    """Work the inputs that are not registers; the number says how."""

    def read(self, offset: int) -> int:
        chip, register = divmod(offset, self.registers)
        return self.devices[chip % len(self.devices)].read(register)

    def write(self, offset: int, value: int) -> None:
        chip, register = divmod(offset, self.registers)
        self.devices[chip % len(self.devices)].write(register, value)

    def snapshot(self) -> list[Any]:
        return [d.snapshot() for d in self.devices]

    def restore(self, states: list[Any]) -> None:
        for device, state in zip(self.devices, states, strict=True):
            device.restore(state)

    def reset(self) -> None:
        for device in self.devices:
            device.reset()


def i8259(now_ns: int = 0) -> Rig:
    clock, log = ManualClock(now_ns), Log()
    chip = I8259(log.wire("int"), elcr_mask=0xFF)

    def poke(n: int) -> object:
        if n & 0x10:
            return chip.acknowledge()
        chip.set_line(n & 7, bool(n & 8))
        return None

    return Rig(clock, log, (chip,), 3, poke)


def pic_pair(now_ns: int = 0) -> Rig:
    clock, log = ManualClock(now_ns), Log()
    pair = PicPair(log.wire("intr"))

    def poke(n: int) -> object:
        if n & 0x20:
            return pair.acknowledge()
        if n & 0xF != 2:
            pair.line(n & 0xF)(bool(n & 0x10))
        return None

    return Rig(clock, log, (pair.master, pair.slave), 3, poke)


def i8254(now_ns: int = 0) -> Rig:
    clock, log = ManualClock(now_ns), Log()
    chip = I8254(clock, (log.wire("out0"), None, log.wire("out2")))

    def poke(n: int) -> object:
        if n & 3 < 3:
            return chip.out(n & 3)
        chip.set_gate(2 if n & 0x10 else 0, bool(n & 4))
        return None

    return Rig(clock, log, (chip,), 4, poke)


def mc146818(now_ns: int = 0) -> Rig:
    clock, log = ManualClock(now_ns), Log()
    chip = Mc146818(clock, log.wire("irq8"), utc_ns=UTC_NS, nvram=memory_nvram(256 << 20))
    return Rig(clock, log, (chip,), 2, lambda _: chip.nmi_masked)


def uart16550(now_ns: int = 0) -> Rig:
    clock, log = ManualClock(now_ns), Log()
    chip = Uart16550(clock, log.wire("irq4"), log.event("sent"))

    def poke(n: int) -> object:
        if n & 1:
            return chip.feed(bytes(range(n)))
        if n & 2:
            chip.write_burst(bytes(range(n)))
        else:
            chip.set_modem_lines(n << 2)
        return None

    return Rig(clock, log, (chip,), 8, poke)


def i8042(now_ns: int = 0) -> Rig:
    clock, log = ManualClock(now_ns), Log()
    log.levels["a20"] = True
    chip = I8042(log.wire("irq1"), a20=log.wire("a20"), reset=log.event("reset"))
    return Rig(clock, log, (chip,), 2)


def port61(now_ns: int = 0) -> Rig:
    clock, log = ManualClock(now_ns), Log()
    chip = Port61(clock, set_gate2=log.wire("gate2"), out2=lambda: clock.now_ns() & 1 == 1)
    return Rig(clock, log, (chip,), 1)


def port80(now_ns: int = 0) -> Rig:
    return Rig(ManualClock(now_ns), Log(), (Port80(),), 1)


def port92(now_ns: int = 0) -> Rig:
    clock, log = ManualClock(now_ns), Log()
    chip = Port92(a20=log.wire("a20"), reset=log.event("reset"))
    return Rig(clock, log, (chip,), 1)


def debug_exit(now_ns: int = 0) -> Rig:
    clock, log = ManualClock(now_ns), Log()
    return Rig(clock, log, (DebugExit(log.event("exit")),), 1)


def ib700(now_ns: int = 0) -> Rig:
    clock, log = ManualClock(now_ns), Log()
    return Rig(clock, log, (Ib700(clock, log.event("expired")),), 2)


# What a local APIC has at which offset of its page; and words that a byte stands for in writes.
APIC_OFFSETS = (
    *(0x20, 0x30, 0x80, 0xA0, 0xB0, 0xD0, 0xE0, 0xF0, 0x110, 0x190, 0x210, 0x270, 0x280, 0x300),
    *(0x310, 0x320, 0x330, 0x350, 0x360, 0x370, 0x380, 0x390, 0x3E0, 0x500, 0x24),
)
APIC_DEADLINE, APIC_BASE, APIC_CR8 = range(len(APIC_OFFSETS), len(APIC_OFFSETS) + 3)
APIC_WORDS = (0, 1, 0x1FF, 0x1_0000, 0x2_0031, 0x4_0041, 0x700, 0x4_0051, 0x8_0020, 0xFFFF_FFFF)


class ManualTsc:
    """A TSC of three ticks a nanosecond of a clock that is turned by hand."""

    hz = 3_000_000_000

    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock

    def now(self) -> int:
        return 3 * self._clock.now_ns()


class NarrowApic:
    """A local APIC with a byte-wide register for each of its own and of its processor."""

    def __init__(self, chip: LocalApic, clock: ManualClock) -> None:
        self._chip = chip
        self._clock = clock
        self.reset = chip.reset
        self.snapshot = chip.snapshot
        self.restore = chip.restore

    def read(self, register: int) -> int:
        if register < len(APIC_OFFSETS):
            value = self._chip.read(APIC_OFFSETS[register])
        elif register == APIC_DEADLINE:
            value = self._chip.read_deadline()
        elif register == APIC_BASE:
            value = self._chip.read_base() >> 8
        else:
            return self._chip.read_cr8() if register == APIC_CR8 else 0xFF
        return (value ^ value >> 8 ^ value >> 16 ^ value >> 24) & 0xFF

    def write(self, register: int, value: int) -> None:
        word = APIC_WORDS[value % len(APIC_WORDS)] ^ value
        if register < len(APIC_OFFSETS):
            self._chip.write(APIC_OFFSETS[register], word)
        elif register == APIC_DEADLINE:
            self._chip.write_deadline(3 * self._clock.now_ns() + word * value if value else 0)
        elif register == APIC_BASE:
            self._chip.write_base(value << 8 & 0xF00)
        elif register == APIC_CR8:
            self._chip.write_cr8(value & 0xF)


def local_apic(now_ns: int = 0) -> Rig:
    clock, log = ManualClock(now_ns), Log()
    chip = LocalApic(
        clock,
        ManualTsc(clock),
        log.wire("intr"),
        nmi=log.event("nmi"),
        inta=lambda: 0x20 + clock.now_ns() % 8,
    )

    def poke(n: int) -> object:
        if n & 0x20:
            return chip.acknowledge()
        chip.lint0(bool(n & 1))
        return None

    return Rig(clock, log, (NarrowApic(chip, clock),), len(APIC_OFFSETS) + 3, poke)


RIGS: dict[str, Callable[[int], Rig]] = {
    "i8259": i8259,
    "pic-pair": pic_pair,
    "i8254": i8254,
    "mc146818": mc146818,
    "uart16550": uart16550,
    "i8042": i8042,
    "port61": port61,
    "port80": port80,
    "port92": port92,
    "debug-exit": debug_exit,
    "ib700": ib700,
    "local-apic": local_apic,
}
