"""The MC146818 real-time clock with the PC/AT's 128 bytes of CMOS memory.

Source: Motorola MC146818A datasheet; CMOS layout of the IBM PC/AT technical reference.
The time is machine time plus an offset, so it neither drifts nor costs anything to keep.
Not modelled: daylight saving (DSE is a plain bit), the square-wave pin, time bases other than
32.768 kHz (they stop the divider), and a change of DM or 24/12 while the clock runs converts
the time instead of leaving it to be written anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rayvisor.vmm.devices.checking import checked_copy, require
from rayvisor.vmm.devices.mc146818_time import (
    TIME_REGISTERS,
    Format,
    decode,
    encode,
    seconds_until_alarm,
)
from rayvisor.vmm.state import blob, copied, flag, ranged, sint, uint

if TYPE_CHECKING:
    from rayvisor.vmm.devices.base import Clock, IrqLine

REGISTERS = 2
"""Offsets: 0 the address latch (port 0x70), 1 the data (port 0x71)."""

CMOS_BYTES = 128
SECONDS_ALARM, MINUTES_ALARM, HOURS_ALARM = 1, 3, 5
REG_A, REG_B, REG_C, REG_D = 0x0A, 0x0B, 0x0C, 0x0D
A_UIP, A_DV, A_RS, A_DV_32KHZ = 0x80, 0x70, 0x0F, 0x20
B_SET, B_PIE, B_AIE, B_UIE, B_SQWE, B_DM, B_24H = 0x80, 0x40, 0x20, 0x10, 0x08, 0x04, 0x02
C_IRQF, C_PF, C_AF, C_UF = 0x80, 0x40, 0x20, 0x10
D_VRT = 0x80

UIP_NS = 244_000 + 1_984_000
"""UIP is set 244 us before an update cycle of 1984 us, which ends with the second."""

DIVIDER_RELEASE_NS = 500_000_000
"""The first update after the divider chain is released."""

_NS = 1_000_000_000
_TIME_BITS = 63


@dataclass(slots=True)
class Mc146818State:
    """Registers, CMOS memory and the clock's place in machine time.

    While the clock runs, the time is `epoch_s` + (machine time + `phase_ns`) / 1e9 seconds
    since 1970; while it is held (SET, or the divider is off) it is what `cmos` holds.
    `reg_c` is without IRQF, and has every flag that was due until `seen_ns`.
    """

    SCHEMA: ClassVar[tuple[str, int]] = ("mc146818", 1)
    index: int = uint(7)
    nmi_masked: bool = flag()
    reg_a: int = uint(7, 0x26)
    reg_b: int = uint(8, B_24H)
    reg_c: int = uint(7)
    cmos: bytes = blob(CMOS_BYTES, bytes(CMOS_BYTES))
    epoch_s: int = sint(_TIME_BITS)
    phase_ns: int = ranged(0, _NS - 1, 0)
    weekday_shift: int = ranged(0, 6, 0)
    seen_ns: int = uint(_TIME_BITS - 1)


def memory_nvram(below_4g_bytes: int, above_4g_bytes: int = 0) -> bytes:
    """CMOS memory in which a PC firmware tells the size of RAM, with its checksum.

    0x15 base KiB; 0x17 and 0x30 KiB from 1 MiB on, at most 63 MiB; 0x34 blocks of
    64 KiB from 16 MiB on; 0x5B blocks of 64 KiB from 4 GiB on.
    """
    cmos = bytearray(CMOS_BYTES)
    extended = min(max(0, below_4g_bytes - (1 << 20)) >> 10, 63 << 10)
    sizes = {
        0x15: min(below_4g_bytes >> 10, 640),
        0x17: extended,
        0x30: extended,
        0x34: min(max(0, below_4g_bytes - (16 << 20)) >> 16, 0xFFFF),
    }
    for register, size in sizes.items():
        cmos[register : register + 2] = size.to_bytes(2, "little")
    cmos[0x5B:0x5E] = min(above_4g_bytes >> 16, 0xFF_FFFF).to_bytes(3, "little")
    cmos[0x2E:0x30] = sum(cmos[0x10:0x2E]).to_bytes(2, "big")
    return bytes(cmos)


class Mc146818:
    """Clock, calendar, alarm, periodic interrupt and CMOS memory.

    `irq` is the IRQ output (IRQ 8). `utc_ns` is the time at machine time now, in
    nanoseconds since 1970. `nvram` fills the CMOS memory from byte 0; its time and control
    registers are ignored. An alarm is armed only while an interrupt is enabled
    and none is pending.
    """

    def __init__(self, clock: Clock, irq: IrqLine, *, utc_ns: int, nvram: bytes = b"") -> None:
        self._clock = clock
        self._irq = irq
        self._alarm = clock.alarm(self._update)
        self._level = False
        now = clock.now_ns()
        epoch_s, phase_ns = divmod(utc_ns - now, _NS)
        self._cmos = bytearray(nvram[:CMOS_BYTES].ljust(CMOS_BYTES, b"\0"))
        self._s = Mc146818State(epoch_s=epoch_s, phase_ns=phase_ns, seen_ns=now)

    def reset(self) -> None:
        """The RESET pin: interrupts off and their flags clear. Time and CMOS memory stay."""
        s = self._s
        self._sync()
        s.reg_b &= ~(B_PIE | B_AIE | B_UIE | B_SQWE)
        s.reg_c = s.index = 0
        s.nmi_masked = False
        self._update()

    @property
    def nmi_masked(self) -> bool:
        """Bit 7 of port 0x70, which masks the NMI on a PC."""
        return self._s.nmi_masked

    def read(self, offset: int) -> int:
        """The addressed register or CMOS byte at 1; the address latch cannot be read."""
        if offset != 1:
            return 0xFF
        s = self._s
        index = s.index
        if index in TIME_REGISTERS:
            return self._time_byte(index)
        if index == REG_A:
            return s.reg_a | (A_UIP if self._updating() else 0)
        if index == REG_B:
            return s.reg_b
        if index == REG_C:
            return self._read_reg_c()
        return D_VRT if index == REG_D else self._cmos[index]

    def write(self, offset: int, value: int) -> None:
        """The address latch at 0 (bit 7 masks the NMI), the addressed byte at 1."""
        s = self._s
        if offset == 0:
            s.index = value & 0x7F
            s.nmi_masked = bool(value & 0x80)
        elif offset == 1 and s.index not in (REG_C, REG_D):
            self._sync()
            if s.index in TIME_REGISTERS:
                self._write_time(s.index, value)
            elif s.index == REG_A:
                self._write_control(value & ~A_UIP, s.reg_b)
            elif s.index == REG_B:
                self._write_control(s.reg_a, value & ~B_UIE if value & B_SET else value)
            else:
                self._cmos[s.index] = value
            self._update()

    def snapshot(self) -> Mc146818State:
        """A copy of the registers."""
        return copied(self._s, cmos=bytes(self._cmos))

    def restore(self, state: Mc146818State) -> None:
        """Take over `state`, drive the IRQ line and re-arm.

        Raises:
            CorruptStateError: a field is out of range.
        """
        s = checked_copy(Mc146818State, state)
        require(Mc146818State, len(s.cmos) == CMOS_BYTES, f"cmos is not {CMOS_BYTES} bytes")
        require(Mc146818State, not s.reg_c & 0xF, "reg_c has bits that do not exist")
        require(Mc146818State, not (s.reg_b & B_SET and s.reg_b & B_UIE), "SET clears UIE")
        self._s = s
        self._cmos = bytearray(s.cmos)
        self._level = self._irqf()
        self._irq(self._level)
        self._arm()

    def _format(self) -> Format:
        b = self._s.reg_b
        return Format(bool(b & B_DM), bool(b & B_24H))

    def _divider_runs(self) -> bool:
        return self._s.reg_a & A_DV == A_DV_32KHZ

    def _clock_runs(self) -> bool:
        return self._divider_runs() and not self._s.reg_b & B_SET

    def _second(self, now: int) -> int:
        s = self._s
        return s.epoch_s + (now + s.phase_ns) // _NS

    def _updating(self) -> bool:
        fraction = (self._clock.now_ns() + self._s.phase_ns) % _NS
        return fraction >= _NS - UIP_NS and self._clock_runs()

    def _time_byte(self, index: int) -> int:
        if not self._clock_runs():
            return self._cmos[index]
        s = self._s
        return encode(self._second(self._clock.now_ns()), s.weekday_shift, self._format())[index]

    def _hold(self, now: int) -> None:
        """Leave the running time in the registers."""
        registers = encode(self._second(now), self._s.weekday_shift, self._format())
        for index, byte in registers.items():
            self._cmos[index] = byte

    def _run_on(self, now: int) -> None:
        """Let the time run on from the registers."""
        s = self._s
        second, s.weekday_shift = decode(self._cmos, self._format())
        s.epoch_s = second - (now + s.phase_ns) // _NS

    def _write_time(self, index: int, value: int) -> None:
        if not self._clock_runs():
            self._cmos[index] = value
            return
        now = self._s.seen_ns
        self._hold(now)
        self._cmos[index] = value
        self._run_on(now)

    def _write_control(self, reg_a: int, reg_b: int) -> None:
        s = self._s
        now = s.seen_ns
        ran, divided = self._clock_runs(), self._divider_runs()
        runs = reg_a & A_DV == A_DV_32KHZ and not reg_b & B_SET
        if ran and not runs:
            self._hold(now)
        s.reg_a, s.reg_b = reg_a, reg_b
        if self._divider_runs() and not divided:
            s.phase_ns = (_NS - DIVIDER_RELEASE_NS - now) % _NS
        if runs and not ran:
            self._run_on(now)

    def _read_reg_c(self) -> int:
        s = self._s
        self._sync()
        value = s.reg_c | (C_IRQF if self._irqf() else 0)
        s.reg_c = 0
        self._update()
        return value

    def _irqf(self) -> bool:
        return bool(self._s.reg_c & self._s.reg_b & (C_PF | C_AF | C_UF))

    def _update(self) -> None:
        """Bring flags, IRQ line and alarm up to date."""
        self._sync()
        level = self._irqf()
        if level != self._level:
            self._level = level
            self._irq(level)
        self._arm()

    def _sync(self) -> None:
        """Set every flag of register C whose moment lies between `seen_ns` and now."""
        s = self._s
        now = self._clock.now_ns()
        if not s.reg_c & C_PF and self._is_due(C_PF, now):
            s.reg_c |= C_PF
        # An alarm comes with an update, so most of the time there is no need to look for one.
        if self._is_due(C_UF, now):
            s.reg_c |= C_UF
            if not s.reg_c & C_AF and self._is_due(C_AF, now):
                s.reg_c |= C_AF
        s.seen_ns = max(s.seen_ns, now)

    def _arm(self) -> None:
        """Wake for the first flag that interrupts, unless the line is up already."""
        enabled = self._s.reg_b & (B_PIE | B_AIE | B_UIE)
        if not enabled or self._level:
            self._alarm.disarm()
            return
        due = [self._due_ns(bit) for bit in (C_PF, C_AF, C_UF) if enabled & bit]
        times = [t for t in due if t is not None]
        if times:
            self._alarm.arm(min(times))
        else:
            self._alarm.disarm()

    def _is_due(self, bit: int, now: int) -> bool:
        due = self._due_ns(bit)
        return due is not None and due <= now

    def _due_ns(self, bit: int) -> int | None:
        """The machine time after `seen_ns` at which a flag of register C is set next."""
        s = self._s
        if bit == C_PF:
            rate = s.reg_a & A_RS
            if not rate or not self._divider_runs():
                return None
            # Rates 1 and 2 tap the chain where 8 and 9 do.
            frequency = 32_768 >> ((rate if rate > 2 else rate + 7) - 1)
            tick = (s.seen_ns + s.phase_ns) * frequency // _NS + 1
            return -(-tick * _NS // frequency) - s.phase_ns
        if not self._clock_runs():
            return None
        wait = 1
        if bit == C_AF:
            alarm = tuple(self._cmos[i] for i in (SECONDS_ALARM, MINUTES_ALARM, HOURS_ALARM))
            match = seconds_until_alarm(
                self._second(s.seen_ns), (alarm[0], alarm[1], alarm[2]), self._format()
            )
            if match is None:
                return None
            wait = match
        return ((s.seen_ns + s.phase_ns) // _NS + wait) * _NS - s.phase_ns
