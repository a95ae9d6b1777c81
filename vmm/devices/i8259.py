"""The 8259A interrupt controller, and the pair of them that a PC has.

Source: Intel 8259A datasheet (order number 231468); the edge/level control register from
Intel 82371AB (PIIX4) 4.2.5. Not modelled: the MCS-80/85 CALL sequence (an ICW4 that asks for
it gets 8086 vectors) and buffered mode, which only steers a bus transceiver.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from rayvisor.vmm.devices.checking import checked_copy, require
from rayvisor.vmm.state import copied, flag, ranged, uint

if TYPE_CHECKING:
    from rayvisor.vmm.devices.base import IrqLine

REGISTERS = 3
"""Offsets: 0 and 1 are A0 = 0 and 1; 2 is the chip set's edge/level control register."""

MASTER_ELCR_MASK, SLAVE_ELCR_MASK = 0xF8, 0xDE
CASCADE_IR = 2

ICW1_IC4, ICW1_SNGL, ICW1_LTIM, ICW1 = 0x01, 0x02, 0x08, 0x10
ICW4_AEOI, ICW4_SFNM = 0x02, 0x10
OCW3, OCW3_RIS, OCW3_RR, OCW3_P, OCW3_SMM, OCW3_ESMM = 0x08, 0x01, 0x02, 0x04, 0x20, 0x40
OCW2_EOI, OCW2_SL, OCW2_R = 0x20, 0x40, 0x80
POLL_INTERRUPT = 0x80
SPURIOUS_IR = 7


@dataclass(slots=True)
class I8259State:
    """The registers as the datasheet names them, and the levels on IR0..IR7.

    A request lives only while its line is high (a line that falls before INTA leaves a
    spurious IR7), so `irr` is within `lines`; on level-triggered lines the two are equal.
    """

    SCHEMA: ClassVar[tuple[str, int]] = ("i8259", 1)
    irr: int = uint(8)
    isr: int = uint(8)
    imr: int = uint(8)
    lines: int = uint(8)
    elcr: int = uint(8)
    icw1: int = uint(8)
    icw2: int = uint(8)
    icw3: int = uint(8)
    icw4: int = uint(8)
    next_icw: int = ranged(0, 4, 0)
    """The initialization word awaited at A0 = 1 (2..4); 0 in operation."""
    lowest_ir: int = ranged(0, 7, 7)
    """The IR of lowest priority: 7 unless rotated."""
    rotate_on_aeoi: bool = flag()
    special_mask: bool = flag()
    read_isr: bool = flag()
    poll: bool = flag()


class I8259:
    """One 8259A: edge and level trigger, all EOI and rotation commands, poll, special mask.

    `int_out` is called when the INT pin changes, and once by `restore`. INT stays low
    while an initialization sequence is unfinished.
    """

    __slots__ = ("_elcr_mask", "_int", "_int_out", "_level", "_s")

    def __init__(self, int_out: IrqLine, elcr_mask: int = 0) -> None:
        self._int_out = int_out
        self._elcr_mask = elcr_mask
        self._s = I8259State()
        self._level = 0
        self._int = False

    def reset(self) -> None:
        """Power-up: nothing requested, masked or in service. The input lines keep their level."""
        self._s = I8259State(lines=self._s.lines)
        self._level = 0
        self._update()

    def set_line(self, ir: int, level: bool) -> None:
        """The level of input `ir` (0..7)."""
        s = self._s
        bit = 1 << ir
        if level:
            if s.lines & bit:
                return
            s.lines |= bit
            s.irr |= bit
            if not (self._int or s.imr & bit):
                self._update()
        elif s.lines & bit:
            s.lines &= ~bit
            s.irr &= ~bit
            if self._int:
                self._update()

    def line(self, ir: int) -> IrqLine:
        """Input `ir` (0..7) as a wire."""
        return partial(self.set_line, ir)

    @property
    def int_level(self) -> bool:
        """The level of the INT pin."""
        return self._int

    def acknowledge(self) -> int:
        """The INTA sequence: the IR that is served from now on, or 7 if none asks any more."""
        s = self._s
        ir = self._pending()
        if ir < 0:
            return SPURIOUS_IR
        bit = 1 << ir
        s.irr &= ~bit | self._level
        if s.icw4 & ICW4_AEOI:
            if s.rotate_on_aeoi:
                s.lowest_ir = ir
        else:
            s.isr |= bit
        # INT falls with INTA even if more is waiting: an edge-triggered master counts on it.
        if self._int:
            self._int = False
            self._int_out(False)
        self._update()
        return ir

    def vector(self, ir: int) -> int:
        """The byte driven on the bus for `ir` in the second INTA cycle."""
        return self._s.icw2 | ir

    def cascades(self, ir: int) -> bool:
        """Whether, as a master, it leaves the vector of `ir` to a slave."""
        s = self._s
        return not s.icw1 & ICW1_SNGL and bool(s.icw3 >> ir & 1)

    def answers_to(self, cascade_id: int) -> bool:
        """Whether, as a slave, it drives the vector for that code on CAS0..2."""
        return self._s.icw3 & 7 == cascade_id

    def read(self, offset: int) -> int:
        """IMR at 1, the register chosen by OCW3 at 0; the poll byte at either once if polled."""
        s = self._s
        if offset > 1:
            return s.elcr if offset == REGISTERS - 1 else 0xFF
        if s.poll:
            s.poll = False
            if self._pending() < 0:
                return 0
            return POLL_INTERRUPT | self.acknowledge()
        if offset:
            return s.imr
        return s.isr if s.read_isr else s.irr

    def write(self, offset: int, value: int) -> None:
        """ICW1, OCW2 and OCW3 at 0; OCW1 or the awaited ICW2..4 at 1; ELCR at 2."""
        s = self._s
        if offset == 1:
            if s.next_icw:
                self._write_icw(value)
            else:
                s.imr = value
        elif offset == 0:
            if value & ICW1:
                self._write_icw1(value)
            elif value & OCW3:
                self._write_ocw3(value)
            else:
                self._write_ocw2(value)
        elif offset == REGISTERS - 1:
            s.elcr = value & self._elcr_mask
            self._set_trigger()
        self._update()

    def snapshot(self) -> I8259State:
        """A copy of the registers."""
        return copied(self._s)

    def restore(self, state: I8259State) -> None:
        """Take over `state` and drive INT accordingly.

        Raises:
            CorruptStateError: a field is out of range, or `irr` does not fit `lines`.
        """
        s = checked_copy(I8259State, state)
        level = 0xFF if s.icw1 & ICW1_LTIM else s.elcr
        require(I8259State, not s.icw2 & 7, "icw2 has its low bits set")
        require(I8259State, not s.elcr & ~self._elcr_mask, "elcr has a line that is always edge")
        require(I8259State, not s.irr & ~s.lines, "irr holds a request on a low line")
        require(I8259State, s.irr & level == s.lines & level, "irr is not its level-triggered line")
        require(I8259State, s.next_icw != 1, "next_icw is 1")
        self._s = s
        self._level = level
        self._int = self._pending() >= 0
        self._int_out(self._int)

    def _update(self) -> None:
        level = self._pending() >= 0
        if level != self._int:
            self._int = level
            self._int_out(level)

    def _pending(self) -> int:
        """The IR that INT stands for now, or -1."""
        s = self._s
        ready = s.irr & ~s.imr
        if not ready or s.next_icw:
            return -1
        ir = self._highest(ready)
        # In special mask mode a masked level that is in service holds nobody back.
        busy = s.isr & ~s.imr if s.special_mask else s.isr
        if not busy:
            return ir
        serving = self._highest(busy)
        first = s.lowest_ir + 1
        if (ir - first) & 7 < (serving - first) & 7:
            return ir
        # Special fully nested mode: a slave in service may interrupt itself.
        if ir == serving and s.icw4 & ICW4_SFNM and self.cascades(ir):
            return ir
        return -1

    def _highest(self, bits: int) -> int:
        """The bit of highest priority in `bits`, which is not 0."""
        first = (self._s.lowest_ir + 1) & 7
        if first:
            bits = bits >> first | bits << (8 - first) & 0xFF
        return ((bits & -bits).bit_length() - 1 + first) & 7

    def _set_trigger(self) -> None:
        s = self._s
        self._level = level = 0xFF if s.icw1 & ICW1_LTIM else s.elcr
        s.irr |= s.lines & level

    def _write_icw1(self, value: int) -> None:
        s = self._s
        self._s = I8259State(
            lines=s.lines, elcr=s.elcr, icw1=value, icw2=s.icw2, icw3=s.icw3, next_icw=2
        )
        self._set_trigger()

    def _write_icw(self, value: int) -> None:
        s = self._s
        step = s.next_icw
        needs_icw4 = 4 if s.icw1 & ICW1_IC4 else 0
        if step == 2:
            s.icw2 = value & 0xF8
            s.next_icw = needs_icw4 if s.icw1 & ICW1_SNGL else 3
        elif step == 3:
            s.icw3 = value
            s.next_icw = needs_icw4
        else:
            s.icw4 = value
            s.next_icw = 0

    def _write_ocw2(self, value: int) -> None:
        s = self._s
        ir = value & 7
        if not value & OCW2_EOI:
            if value & OCW2_SL:
                if value & OCW2_R:
                    s.lowest_ir = ir
            else:
                s.rotate_on_aeoi = bool(value & OCW2_R)
            return
        if not value & OCW2_SL:
            ending = s.isr & ~s.imr if s.special_mask else s.isr
            if not ending:
                return
            ir = self._highest(ending)
        s.isr &= ~(1 << ir)
        if value & OCW2_R:
            s.lowest_ir = ir

    def _write_ocw3(self, value: int) -> None:
        s = self._s
        if value & OCW3_ESMM:
            s.special_mask = bool(value & OCW3_SMM)
        if value & OCW3_P:
            s.poll = True
        elif value & OCW3_RR:
            s.read_isr = bool(value & OCW3_RIS)


class PicPair:
    """Master and slave as the PC/AT wires them: the slave's INT on the master's IR2.

    Each chip is a device of its own, with a snapshot of its own; the pair has no state.
    The order in which the two are restored does not matter.
    """

    __slots__ = ("master", "slave")

    def __init__(self, intr: IrqLine) -> None:
        self.master = I8259(intr, MASTER_ELCR_MASK)
        self.slave = I8259(self.master.line(CASCADE_IR), SLAVE_ELCR_MASK)

    def line(self, irq: int) -> IrqLine:
        """Interrupt request `irq` (0..15) as a wire.

        Raises:
            ValueError: no such wire; IRQ 2 is the cascade.
        """
        if irq == CASCADE_IR or not 0 <= irq <= 15:
            raise ValueError(f"IRQ {irq} is not a wire of the board (0..15, and 2 is the cascade)")
        return self.slave.line(irq & 7) if irq & 8 else self.master.line(irq)

    def acknowledge(self) -> int:
        """Both INTA cycles: the vector (0..255) that the CPU takes.

        A request that went away gives the vector of IR7 of the chip it went away from, and
        nothing in service there. With no slave answering, the bus floats: 0xFF.
        """
        master = self.master
        ir = master.acknowledge()
        if not master.cascades(ir):
            return master.vector(ir)
        slave = self.slave
        if not slave.answers_to(ir):
            return 0xFF
        return slave.vector(slave.acknowledge())
