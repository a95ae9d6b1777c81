"""The 16550A UART: eight registers, two FIFOs.

Source: National Semiconductor PC16550D datasheet, section 8. The line is an ideal one: the
transmitter sends at once, so THRE and TEMT are always set, and the receiver takes up a
character whenever it has room for one. Not modelled: parity, framing and break (they never
occur), DMA signalling (RXRDY and TXRDY are not wired on a PC).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rayvisor.vmm.devices.checking import checked_copy, require
from rayvisor.vmm.state import blob, copied, flag, uint

if TYPE_CHECKING:
    from rayvisor.vmm.devices.base import ByteSink, Clock, IrqLine

REGISTERS = 8
RBR_THR, IER, IIR_FCR, LCR, MCR, LSR, MSR, SCR = range(REGISTERS)

IER_RX, IER_THRE, IER_LINE, IER_MODEM = 0x01, 0x02, 0x04, 0x08
IIR_NONE, IIR_MODEM, IIR_THRE, IIR_RX, IIR_LINE, IIR_TIMEOUT = 0x01, 0x00, 0x02, 0x04, 0x06, 0x0C
IIR_FIFOS = 0xC0
FCR_ENABLE, FCR_CLEAR_RX, FCR_TRIGGER = 0x01, 0x02, 0xC0
LCR_WORD, LCR_STOP, LCR_PARITY, LCR_DLAB = 0x03, 0x04, 0x08, 0x80
MCR_DTR, MCR_RTS, MCR_OUT1, MCR_OUT2, MCR_LOOP = 0x01, 0x02, 0x04, 0x08, 0x10
LSR_DR, LSR_OE, LSR_THRE, LSR_TEMT = 0x01, 0x02, 0x20, 0x40
MSR_CTS, MSR_DSR, MSR_RI, MSR_DCD = 0x10, 0x20, 0x40, 0x80
MSR_TERI = 0x04

FIFO_BYTES = 16
TRIGGER_LEVELS = (1, 4, 8, 14)
TIMEOUT_CHARACTERS = 4
BAUD_AT_DIVISOR_1 = 115_200
"""1.8432 MHz, the clock of a PC's UART, over 16."""

BACKLOG_BYTES = 64 * 1024
_NS = 1_000_000_000


@dataclass(slots=True)
class Uart16550State:
    """Registers as the datasheet names them, and the characters on their way in.

    `rx` is the receiver FIFO (one byte deep when the FIFOs are off), `backlog` what waits
    for room in it. `msr` is the input lines (bits 4..7) outside loopback, `msr_delta` bits 0..3.
    `rx_activity_ns` is the machine time of the last character in or out of the FIFO.
    """

    SCHEMA: ClassVar[tuple[str, int]] = ("uart16550", 1)
    ier: int = uint(4)
    fcr: int = uint(8)
    lcr: int = uint(8)
    mcr: int = uint(5)
    scr: int = uint(8)
    divisor: int = uint(16, 1)
    overrun: bool = flag()
    thre_pending: bool = flag()
    timeout_pending: bool = flag()
    msr: int = uint(8, MSR_CTS | MSR_DSR | MSR_DCD)
    msr_delta: int = uint(4)
    rx: bytes = blob(FIFO_BYTES)
    backlog: bytes = blob(BACKLOG_BYTES)
    rx_activity_ns: int = uint(62)


class Uart16550:
    """A 16550A as a PC wires it: MCR's OUT2 gates the interrupt line.

    `sink` gets what the guest sends. In loopback OUT2 is inactive by the datasheet, so the
    line is low then; IIR still tells what is pending.
    """

    def __init__(self, clock: Clock, irq: IrqLine, sink: ByteSink) -> None:
        self._clock = clock
        self._irq = irq
        self._sink = sink
        self._alarm = clock.alarm(self._on_alarm)
        self._s = Uart16550State()
        self._backlog = bytearray()
        self._level = False

    def reset(self) -> None:
        """Master reset, power-up values for what it leaves alone; the input lines stay."""
        self._s = Uart16550State(msr=self._s.msr)
        self._backlog.clear()
        self._alarm.disarm()
        self._update()

    @property
    def coalescing_allowed(self) -> bool:
        """Whether bytes written to offset 0 are characters to send, so `write_burst` may take them.

        It changes only by a write to LCR or MCR, by `reset` and by `restore`.
        """
        return not (self._s.lcr & LCR_DLAB or self._s.mcr & MCR_LOOP)

    @property
    def backlog_room(self) -> int:
        """How many bytes `feed` would accept now."""
        return BACKLOG_BYTES - len(self._backlog)

    def feed(self, data: bytes) -> int:
        """Characters for the receiver: how many were accepted (the rest is the caller's)."""
        accepted = min(len(data), self.backlog_room)
        self._backlog += data[:accepted]
        if self._refill():
            self._update()
        return accepted

    def write_burst(self, data: bytes) -> None:
        """The same as writing each byte of `data` to offset 0 at this instant."""
        if not data:
            return
        if not self.coalescing_allowed:
            for value in data:
                self.write(RBR_THR, value)
            return
        self._sink(data)
        self._transmitted()

    def set_modem_lines(self, lines: int) -> None:
        """The modem inputs, as bits of MSR: CTS 0x10, DSR 0x20, RI 0x40, DCD 0x80."""
        before = self._modem_lines()
        self._s.msr = lines & 0xF0
        self._modem_changed(before)
        self._update()

    def read(self, offset: int) -> int:
        """The register at `offset` (0..7); DLAB shows the divisor at 0 and 1."""
        s = self._s
        if offset == LSR:
            value = LSR_THRE | LSR_TEMT | (LSR_DR if s.rx else 0) | (LSR_OE if s.overrun else 0)
            if s.overrun:
                s.overrun = False
                self._update()
            return value
        if offset == RBR_THR:
            return s.divisor & 0xFF if s.lcr & LCR_DLAB else self._read_rbr()
        if offset == IER:
            return s.divisor >> 8 if s.lcr & LCR_DLAB else s.ier
        if offset == IIR_FCR:
            return self._read_iir()
        if offset == MSR:
            value = self._modem_lines() | s.msr_delta
            if s.msr_delta:
                s.msr_delta = 0
                self._update()
            return value
        if offset == LCR:
            return s.lcr
        if offset == MCR:
            return s.mcr
        return s.scr if offset == SCR else 0xFF

    def write(self, offset: int, value: int) -> None:
        """The register at `offset` (0..7); LSR and MSR ignore it."""
        s = self._s
        if offset == RBR_THR:
            if s.lcr & LCR_DLAB:
                s.divisor = s.divisor & 0xFF00 | value
                self._update()
            elif s.mcr & MCR_LOOP:
                self._loop_back(value)
                self._transmitted()
            else:
                self._sink(bytes((value,)))
                self._transmitted()
        elif offset == IER:
            if s.lcr & LCR_DLAB:
                s.divisor = s.divisor & 0xFF | value << 8
            else:
                if value & IER_THRE & ~s.ier:
                    s.thre_pending = True
                s.ier = value & 0xF
            self._update()
        elif offset == IIR_FCR:
            self._write_fcr(value)
        elif offset == LCR:
            s.lcr = value
            self._update()
        elif offset == MCR:
            before = self._modem_lines()
            s.mcr = value & 0x1F
            self._modem_changed(before)
            self._refill()
            self._update()
        elif offset == SCR:
            s.scr = value

    def snapshot(self) -> Uart16550State:
        """A copy of the registers, the FIFO and the backlog."""
        return copied(self._s, backlog=bytes(self._backlog))

    def restore(self, state: Uart16550State) -> None:
        """Take over `state`, drive the IRQ line and re-arm.

        Raises:
            CorruptStateError: a field is out of range, or the FIFO holds more than it can.
        """
        s = checked_copy(Uart16550State, state)
        depth = FIFO_BYTES if s.fcr & FCR_ENABLE else 1
        require(Uart16550State, len(s.rx) <= depth, "rx is longer than the FIFO")
        require(Uart16550State, not s.msr & 0xF, "msr has bits that are no input line")
        require(Uart16550State, bool(s.rx) or not s.timeout_pending, "timeout of an empty FIFO")
        waiting = not s.backlog or bool(s.mcr & MCR_LOOP) or len(s.rx) == depth
        require(Uart16550State, waiting, "backlog although the FIFO has room")
        self._backlog = bytearray(s.backlog)
        s.backlog = b""
        self._s = s
        self._level = self._interrupting()
        self._irq(self._level)
        self._arm()

    def _pending(self) -> int:
        """The IIR code of the enabled interrupt of highest priority (datasheet table V)."""
        s = self._s
        if s.overrun and s.ier & IER_LINE:
            return IIR_LINE
        if s.ier & IER_RX:
            if len(s.rx) >= self._trigger():
                return IIR_RX
            if s.timeout_pending:
                return IIR_TIMEOUT
        if s.thre_pending and s.ier & IER_THRE:
            return IIR_THRE
        if s.msr_delta and s.ier & IER_MODEM:
            return IIR_MODEM
        return IIR_NONE

    def _interrupting(self) -> bool:
        return self._s.mcr & (MCR_OUT2 | MCR_LOOP) == MCR_OUT2 and self._pending() != IIR_NONE

    def _update(self) -> None:
        level = self._interrupting()
        if level != self._level:
            self._level = level
            self._irq(level)
        self._arm()

    def _trigger(self) -> int:
        fcr = self._s.fcr
        return TRIGGER_LEVELS[fcr >> 6] if fcr & FCR_ENABLE else 1

    def _depth(self) -> int:
        return FIFO_BYTES if self._s.fcr & FCR_ENABLE else 1

    def _character_ns(self, count: int) -> int:
        """The time of `count` characters on the line. A divisor of 0 counts as 65536."""
        s = self._s
        halves = 2 * (1 + 5 + (s.lcr & LCR_WORD) + bool(s.lcr & LCR_PARITY) + 1)
        if s.lcr & LCR_STOP:
            halves += 1 if s.lcr & LCR_WORD == 0 else 2
        return count * halves * (s.divisor or 1 << 16) * _NS // (2 * BAUD_AT_DIVISOR_1)

    def _arm(self) -> None:
        """Wait for the character timeout if it can come and would be noticed."""
        s = self._s
        if (
            s.rx
            and s.ier & IER_RX
            and s.fcr & FCR_ENABLE
            and not s.timeout_pending
            and len(s.rx) < self._trigger()
        ):
            self._alarm.arm(s.rx_activity_ns + self._character_ns(TIMEOUT_CHARACTERS))
        else:
            self._alarm.disarm()

    def _on_alarm(self) -> None:
        self._s.timeout_pending = True
        self._update()

    def _transmitted(self) -> None:
        """THR was written and is empty again."""
        s = self._s
        if not s.ier & IER_THRE:
            s.thre_pending = True
            return
        # Writing THR takes the interrupt back, and an edge-triggered input must see that.
        if self._level and s.thre_pending:
            s.thre_pending = False
            if not self._interrupting():
                self._level = False
                self._irq(False)
        s.thre_pending = True
        self._update()

    def _refill(self) -> bool:
        """Move what there is room for from the backlog to the FIFO."""
        s = self._s
        room = self._depth() - len(s.rx)
        if not self._backlog or room <= 0 or s.mcr & MCR_LOOP:
            return False
        s.rx += self._backlog[:room]
        del self._backlog[:room]
        s.rx_activity_ns = self._clock.now_ns()
        return True

    def _loop_back(self, value: int) -> None:
        s = self._s
        value &= 0xFF >> (3 - (s.lcr & LCR_WORD))
        if len(s.rx) < self._depth():
            s.rx += bytes((value,))
        else:
            s.overrun = True
            if not s.fcr & FCR_ENABLE:
                s.rx = bytes((value,))
        s.rx_activity_ns = self._clock.now_ns()
        self._update()

    def _read_rbr(self) -> int:
        s = self._s
        if not s.rx:
            return 0
        value = s.rx[0]
        s.rx = s.rx[1:]
        s.timeout_pending = False
        s.rx_activity_ns = self._clock.now_ns()
        self._refill()
        self._update()
        return value

    def _read_iir(self) -> int:
        s = self._s
        code = self._pending()
        if code == IIR_THRE:
            s.thre_pending = False
            self._update()
        return code | (IIR_FIFOS if s.fcr & FCR_ENABLE else 0)

    def _write_fcr(self, value: int) -> None:
        s = self._s
        clears = FCR_ENABLE | FCR_CLEAR_RX
        if (value ^ s.fcr) & FCR_ENABLE or value & clears == clears:
            s.rx = b""
            s.timeout_pending = False
        # The other bits are taken only together with the enable bit.
        s.fcr = value & (FCR_TRIGGER | FCR_ENABLE) if value & FCR_ENABLE else 0
        self._refill()
        self._update()

    def _modem_lines(self) -> int:
        """MSR bits 4..7: the inputs, or in loopback the outputs of MCR."""
        s = self._s
        if not s.mcr & MCR_LOOP:
            return s.msr
        return (
            (MSR_CTS if s.mcr & MCR_RTS else 0)
            | (MSR_DSR if s.mcr & MCR_DTR else 0)
            | (MSR_RI if s.mcr & MCR_OUT1 else 0)
            | (MSR_DCD if s.mcr & MCR_OUT2 else 0)
        )

    def _modem_changed(self, before: int) -> None:
        now = self._modem_lines()
        changed = (before ^ now) >> 4
        # Of the ring indicator only the end of a ring counts.
        if now & MSR_RI:
            changed &= ~MSR_TERI
        self._s.msr_delta |= changed
