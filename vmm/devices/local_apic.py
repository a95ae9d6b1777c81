"""The local APIC of a processor that is the only one.

Source: Intel SDM 3A chapter 11; the state that a firmware leaves, "virtual wire mode", from the
MultiProcessor Specification 1.4, 3.6.2.2: the 8259A's INT comes in at LINT0 as ExtINT. Not
modelled: x2APIC, moving the registers to another address, an I/O APIC and with it level-triggered
interrupts (TMR reads 0, an EOI is told nobody), SMI, INIT and start-up messages, which have nobody
to go to; sensors and counters at the thermal and performance entries.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Final

from rayvisor.vmm.devices.checking import checked_copy, require
from rayvisor.vmm.devices.local_apic_timer import TSC_DEADLINE, ApicTimer, ApicTimerState
from rayvisor.vmm.state import copied, flag, nested, uint, uints

if TYPE_CHECKING:
    from collections.abc import Callable

    from rayvisor.vmm.devices.base import Clock, IrqLine
    from rayvisor.vmm.devices.local_apic_timer import Tsc

    Lend = Callable[[int, int], None]
    TakeBack = Callable[[], tuple[bool, bool, int] | None]

BASE_GPA: Final = 0xFEE0_0000
MSR_BASE, MSR_TSC_DEADLINE = 0x1B, 0x6E0
BASE_BSP, BASE_ENABLE, BASE_ADDRESS = 0x100, 0x800, (1 << 40) - (1 << 12)

ID, VERSION, TPR, PPR, EOI, LDR, DFR, SVR = 0x20, 0x30, 0x80, 0xA0, 0xB0, 0xD0, 0xE0, 0xF0
ISR, TMR, IRR, ESR, ICR_LOW, ICR_HIGH = 0x100, 0x180, 0x200, 0x280, 0x300, 0x310
LVT, INITIAL_COUNT, CURRENT_COUNT, DIVIDE = 0x320, 0x380, 0x390, 0x3E0
LVT_TIMER, LVT_THERMAL, LVT_COUNTERS, LVT_LINT0, LVT_LINT1, LVT_ERROR = range(6)
LVT_BITS: Final = (0x7_00FF, 0x1_07FF, 0x1_07FF, 0x1_A7FF, 0x1_A7FF, 0x1_00FF)
"""What can be written to each entry of the local vector table."""

MASKED: Final = 0x1_0000
NMI, EXTINT = 4, 7
ICR_BITS: Final = 0xC_CFFF
ICR_LOGICAL: Final = 0x800
FLAT: Final = 0xF
SVR_ENABLE, SVR_BITS = 0x100, 0x3FF
VERSION_VALUE: Final = 0x14 | (len(LVT_BITS) - 1) << 16
SEND_ILLEGAL_VECTOR, RECEIVE_ILLEGAL_VECTOR, ILLEGAL_REGISTER = 0x20, 0x40, 0x80
FIRST_VECTOR: Final = 16
ONES: Final = 0xFFFF_FFFF


@dataclass(slots=True)
class LocalApicState:
    """The registers as the manual names them; `errors` waits to be seen in `esr`.

    `ldr` and `icr_high` are the byte that the registers have at their top, `dfr` the model.
    """

    SCHEMA: ClassVar[tuple[str, int]] = ("local-apic", 1)
    enabled: bool = flag(default=True)
    apic_id: int = uint(8)
    tpr: int = uint(8)
    ldr: int = uint(8)
    dfr: int = uint(4, FLAT)
    svr: int = uint(10, 0xFF)
    isr: tuple[int, ...] = uints(32, 8)
    irr: tuple[int, ...] = uints(32, 8)
    esr: int = uint(8)
    errors: int = uint(8)
    icr_low: int = uint(20)
    icr_high: int = uint(8)
    lvt: tuple[int, ...] = uints(19, 6)
    lint0: bool = flag()
    """The level at LINT0: the 8259A's INT."""
    timer: ApicTimerState = nested(ApicTimerState)


class LocalApic:
    """Between the 8259A and the processor: a timer, priorities, messages to itself.

    `intr` and `nmi` are the processor's; `inta` asks the 8259A for its vector. Registers are
    32-bit words; `write_base` and `write_deadline` answer whether the value is one.

    Whoever gives `lend` and `take_back` does the tick of a kernel on the chip's behalf: while
    nothing is requested or in service, the timer is lent (its vector, and the TSC at which it
    expires, or 0), and taken back at the next call of any method: whether the vector is requested,
    whether it is in service, and the deadline now; None if it was not lent.
    """

    def __init__(
        self,
        clock: Clock,
        tsc: Tsc,
        intr: IrqLine,
        *,
        nmi: Callable[[], None],
        inta: Callable[[], int],
        lend: Lend | None = None,
        take_back: TakeBack = lambda: None,
    ) -> None:
        self._lend_timer = lend
        self._take_timer_back = take_back
        self._lent = -1
        """The vector, while the timer is lent."""
        self._intr = intr
        self._nmi = nmi
        self._inta = inta
        self._timer = ApicTimer(clock, tsc, self._timer_expired)
        self._s = _virtual_wire()
        self._irr = 0
        self._isr = 0
        self._level = False
        self._readers = self._reading()
        self._writers = self._writing()

    def reset(self) -> None:
        """What a firmware leaves: virtual wire mode. LINT0 keeps its level."""
        self._take_back()
        self._start_over(_virtual_wire())

    def lint0(self, level: bool) -> None:
        """The level of the 8259A's INT."""
        self._take_back()
        s = self._s
        rises = level and not s.lint0
        s.lint0 = level
        if rises and s.enabled:
            self._local_interrupt(LVT_LINT0)
        self._update()

    def acknowledge(self) -> int:
        """The processor takes an interrupt: its vector."""
        self._take_back()
        vector = self._deliverable()
        if vector >= 0:
            self._irr &= ~(1 << vector)
            self._isr |= 1 << vector
            self._update()
            return vector
        return self._inta() if self._passes_pic() else self._s.svr & 0xFF

    def read(self, offset: int) -> int:
        """The 32-bit register at `offset` of its page."""
        self._take_back()
        if not self._s.enabled:
            return ONES
        read = self._readers.get(offset)
        if read is None:
            self._error(ILLEGAL_REGISTER)
            return 0
        return read()

    def write(self, offset: int, value: int) -> None:
        """Write `value` to the 32-bit register at `offset` of its page."""
        self._take_back()
        if not self._s.enabled:
            return
        write = self._writers.get(offset)
        if write is not None:
            write(value)
        elif offset not in self._readers:
            self._error(ILLEGAL_REGISTER)

    def read_base(self) -> int:
        """IA32_APIC_BASE."""
        return BASE_GPA | BASE_BSP | (BASE_ENABLE if self._s.enabled else 0)

    def write_base(self, value: int) -> bool:
        """IA32_APIC_BASE: switch it on or off; it starts over then. The address stays."""
        self._take_back()
        if value & ~(BASE_ADDRESS | BASE_BSP | BASE_ENABLE):
            return False
        enabled = bool(value & BASE_ENABLE)
        if enabled != self._s.enabled:
            self._start_over(LocalApicState(enabled=enabled, lvt=(MASKED,) * len(LVT_BITS)))
        return True

    def read_deadline(self) -> int:
        """IA32_TSC_DEADLINE."""
        self._take_back()
        return self._timer.deadline()

    def write_deadline(self, value: int) -> bool:
        """IA32_TSC_DEADLINE; without effect unless the timer is in that mode."""
        self._take_back()
        self._timer.set_deadline(value)
        self._lend()
        return True

    def read_cr8(self) -> int:
        """The upper half of TPR."""
        return self._s.tpr >> 4

    def write_cr8(self, value: int) -> None:
        """The upper half of TPR; the lower is 0."""
        self._take_back()
        self._write_tpr(value << 4)

    def snapshot(self) -> LocalApicState:
        """A copy of the registers."""
        self._take_back()
        return copied(
            self._s, isr=_words(self._isr), irr=_words(self._irr), timer=self._timer.snapshot()
        )

    def restore(self, state: LocalApicState) -> None:
        """Take over `state`, drive INTR and re-arm.

        Raises:
            CorruptStateError: a field is out of range, or two contradict each other.
        """
        s = checked_copy(LocalApicState, state)
        self._take_back()
        timer = s.timer
        for entry, bits in zip(s.lvt, LVT_BITS, strict=True):
            require(LocalApicState, not entry & ~bits, "lvt has bits that do not exist")
            off = not s.enabled or not s.svr & SVR_ENABLE
            require(
                LocalApicState, not off or bool(entry & MASKED), "lvt is not masked, though off"
            )
        require(LocalApicState, not s.icr_low & ~ICR_BITS, "icr_low has bits that do not exist")
        low = (1 << FIRST_VECTOR) - 1
        require(LocalApicState, not (s.isr[0] | s.irr[0]) & low, "a vector below 16")
        require(LocalApicState, timer.mode == s.lvt[LVT_TIMER] >> 17, "timer.mode is not lvt's")
        require(LocalApicState, not timer.divide & 4, "timer.divide has bits that do not exist")
        counts, deadline = timer.mode < TSC_DEADLINE, timer.mode == TSC_DEADLINE
        require(LocalApicState, counts or not (timer.initial or timer.count), "a count in no mode")
        require(LocalApicState, deadline or not timer.deadline, "a deadline in no mode")
        require(LocalApicState, timer.count <= timer.initial, "timer.count beyond initial")
        self._s = s
        self._isr, self._irr = _bits(s.isr), _bits(s.irr)
        self._timer.restore(timer)
        self._level = self._wants_intr()
        self._intr(self._level)

    def _start_over(self, state: LocalApicState) -> None:
        state.lint0 = self._s.lint0
        self._s = state
        self._isr = self._irr = 0
        self._timer.reset()
        self._update()

    def _reading(self) -> dict[int, Callable[[], int]]:
        timer = self._timer
        readers: dict[int, Callable[[], int]] = {
            ID: lambda: self._s.apic_id << 24,
            VERSION: lambda: VERSION_VALUE,
            TPR: lambda: self._s.tpr,
            PPR: self._priority,
            EOI: lambda: 0,
            LDR: lambda: self._s.ldr << 24,
            DFR: lambda: self._s.dfr << 28 | 0xFFF_FFFF,
            SVR: lambda: self._s.svr,
            ESR: lambda: self._s.esr,
            ICR_LOW: lambda: self._s.icr_low,
            ICR_HIGH: lambda: self._s.icr_high << 24,
            INITIAL_COUNT: lambda: timer.initial,
            CURRENT_COUNT: timer.current,
            DIVIDE: lambda: timer.divide,
        }
        for word in range(8):
            readers[ISR + 16 * word] = partial(self._in_service, word)
            readers[TMR + 16 * word] = lambda: 0
            readers[IRR + 16 * word] = partial(self._requested, word)
        for entry in range(len(LVT_BITS)):
            readers[LVT + 16 * entry] = partial(self._read_lvt, entry)
        return readers

    def _in_service(self, word: int) -> int:
        return self._isr >> 32 * word & ONES

    def _requested(self, word: int) -> int:
        return self._irr >> 32 * word & ONES

    def _read_lvt(self, entry: int) -> int:
        return self._s.lvt[entry]

    def _writing(self) -> dict[int, Callable[[int], None]]:
        return {
            ID: partial(self._write_top, "apic_id", 24),
            TPR: self._write_tpr,
            EOI: self._end_of_interrupt,
            LDR: partial(self._write_top, "ldr", 24),
            DFR: partial(self._write_top, "dfr", 28),
            SVR: self._write_svr,
            ESR: self._write_esr,
            ICR_LOW: self._send,
            ICR_HIGH: partial(self._write_top, "icr_high", 24),
            INITIAL_COUNT: self._timer.set_initial,
            DIVIDE: self._timer.set_divide,
            **{LVT + 16 * n: partial(self._write_lvt, n) for n in range(len(LVT_BITS))},
        }

    def _write_top(self, field: str, shift: int, value: int) -> None:
        setattr(self._s, field, value >> shift)

    def _write_tpr(self, value: int) -> None:
        self._s.tpr = value & 0xFF
        self._update()

    def _end_of_interrupt(self, _value: int) -> None:
        if self._isr:
            self._isr ^= 1 << (self._isr.bit_length() - 1)
            self._update()
        self._lend()

    def _write_svr(self, value: int) -> None:
        s = self._s
        s.svr = value & SVR_BITS
        if not s.svr & SVR_ENABLE:
            s.lvt = tuple(entry | MASKED for entry in s.lvt)
        self._update()

    def _write_esr(self, _value: int) -> None:
        s = self._s
        s.esr, s.errors = s.errors, 0

    def _write_lvt(self, entry: int, value: int) -> None:
        s = self._s
        value &= LVT_BITS[entry]
        if not s.svr & SVR_ENABLE:
            value |= MASKED
        s.lvt = (*s.lvt[:entry], value, *s.lvt[entry + 1 :])
        if entry == LVT_TIMER:
            self._timer.set_mode(value >> 17)
        self._update()

    def _send(self, value: int) -> None:
        """Send the message in ICR; only one to itself arrives anywhere."""
        s = self._s
        s.icr_low = value & ICR_BITS
        shorthand, vector = value >> 18 & 3, value & 0xFF
        to_itself = shorthand in {1, 2} or (shorthand == 0 and self._is_addressed(value))
        match value >> 8 & 7:
            case 0 | 1 if vector < FIRST_VECTOR:
                self._error(SEND_ILLEGAL_VECTOR)
            case 0 | 1 if to_itself:
                self._accept(vector)
            case 4 if to_itself:
                self._nmi()

    def _is_addressed(self, icr_low: int) -> bool:
        s = self._s
        to = s.icr_high
        if not icr_low & ICR_LOGICAL:
            return to in {s.apic_id, 0xFF}
        if s.dfr == FLAT:
            return bool(to & s.ldr)
        return to >> 4 in {s.ldr >> 4, 0xF} and bool(to & s.ldr & 0xF)

    def _lend(self) -> None:
        """Lend the timer, if a tick is all that can happen now."""
        s = self._s
        entry = s.lvt[LVT_TIMER]
        vector = entry & 0xFF
        if (
            self._lend_timer is not None
            and self._timer.mode == TSC_DEADLINE
            and not (self._irr or self._isr or s.lint0 or entry & MASKED)
            and s.enabled
            and vector >= FIRST_VECTOR
            and vector >> 4 > s.tpr >> 4
        ):
            self._lent = vector
            self._lend_timer(vector, self._timer.lend())

    def _take_back(self) -> None:
        if self._lent < 0:
            return
        bit, self._lent = 1 << self._lent, -1
        state = self._take_timer_back()
        if state is None:
            return
        requested, in_service, deadline = state
        self._irr |= bit if requested else 0
        self._isr |= bit if in_service else 0
        self._level = self._wants_intr()
        self._timer.take_back(deadline)

    def _timer_expired(self) -> None:
        self._local_interrupt(LVT_TIMER)

    def _local_interrupt(self, source: int) -> None:
        """What an entry of the local vector table says is to be done."""
        entry = self._s.lvt[source]
        if entry & MASKED:
            return
        match 0 if source in {LVT_TIMER, LVT_ERROR} else entry >> 8 & 7:
            case 0:
                self._accept(entry & 0xFF)
            case 4:
                self._nmi()

    def _accept(self, vector: int) -> None:
        if vector < FIRST_VECTOR:
            self._error(RECEIVE_ILLEGAL_VECTOR)
        elif self._s.svr & SVR_ENABLE:
            self._irr |= 1 << vector
            self._update()

    def _error(self, bit: int) -> None:
        s = self._s
        first = not s.errors & bit
        s.errors |= bit
        if first:
            self._local_interrupt(LVT_ERROR)

    def _priority(self) -> int:
        """PPR."""
        serving = max(0, self._isr.bit_length() - 1)
        tpr = self._s.tpr
        return tpr if tpr >> 4 >= serving >> 4 else serving & 0xF0

    def _deliverable(self) -> int:
        """The vector that the processor may take now, or -1."""
        if not self._irr:
            return -1
        vector = self._irr.bit_length() - 1
        return vector if vector >> 4 > self._priority() >> 4 else -1

    def _passes_pic(self) -> bool:
        entry = self._s.lvt[LVT_LINT0]
        return not self._s.enabled or (entry >> 8 & 7 == EXTINT and not entry & MASKED)

    def _wants_intr(self) -> bool:
        return (self._s.lint0 and self._passes_pic()) or self._deliverable() >= 0

    def _update(self) -> None:
        level = self._wants_intr()
        if level != self._level:
            self._level = level
            self._intr(level)


def _virtual_wire() -> LocalApicState:
    lvt = [MASKED] * len(LVT_BITS)
    lvt[LVT_LINT0], lvt[LVT_LINT1] = EXTINT << 8, NMI << 8
    return LocalApicState(svr=0xFF | SVR_ENABLE, lvt=tuple(lvt))


def _words(bits: int) -> tuple[int, ...]:
    return tuple(bits >> 32 * word & ONES for word in range(8))


def _bits(words: tuple[int, ...]) -> int:
    return sum(value << 32 * word for word, value in enumerate(words))
