"""The 8042 keyboard controller of a PC/AT, with a keyboard on its port and no auxiliary port.

Source: IBM PC/AT technical reference, "Keyboard controller"; PS/2 technical reference for
the keyboard's commands. Everything is answered at once, so nothing waits for a timeout.
The missing auxiliary port shows in its clock that stays disabled (command byte bit 5), in an
interface test (0xA9) that finds its clock line stuck, and in a loop test without bit 5 of the
status. Not modelled: keys (nobody types on it), the keyboard lock, password commands.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rayvisor.vmm.devices.checking import checked_copy, require
from rayvisor.vmm.state import blob, copied, flag, ranged, uint

if TYPE_CHECKING:
    from collections.abc import Callable

    from rayvisor.vmm.devices.base import IrqLine

REGISTERS = 2
"""Offsets: 0 data (port 0x60), 1 command and status (port 0x64)."""

STATUS_OBF, STATUS_SYS, STATUS_A2, STATUS_UNLOCKED = 0x01, 0x04, 0x08, 0x10
STATUS_TIMEOUT = 0x40

CCB_KEYBOARD_INT, CCB_SYS, CCB_KEYBOARD_OFF, CCB_AUX_OFF, CCB_TRANSLATE = (
    0x01, 0x04, 0x10, 0x20, 0x40,
)  # fmt: skip

OUT_RESET, OUT_A20, OUT_OBF = 0x01, 0x02, 0x10
OUT_FIXED = 0xCC
"""Output port lines that nothing here moves: both clocks and data high."""
INPUT_PORT = 0xA0
"""Not locked, manufacturing jumper open."""

READ_RAM, WRITE_RAM, PULSE = 0x20, 0x60, 0xF0
TEST_AUX, SELF_TEST, TEST_KEYBOARD = 0xA9, 0xAA, 0xAB
KEYBOARD_OFF, KEYBOARD_ON, READ_INPUT, READ_OUTPUT, WRITE_OUTPUT = 0xAD, 0xAE, 0xC0, 0xD0, 0xD1
WRITE_KEYBOARD_BUFFER, WRITE_AUX_BUFFER, WRITE_AUX, A20_OFF, A20_ON, READ_TEST = (
    0xD2, 0xD3, 0xD4, 0xDD, 0xDF, 0xE0,
)  # fmt: skip

AWAITING = {
    *range(WRITE_RAM, WRITE_RAM + 32),
    WRITE_OUTPUT, WRITE_KEYBOARD_BUFFER, WRITE_AUX_BUFFER, WRITE_AUX,
}  # fmt: skip
"""Commands that are followed by a byte at port 0x60."""

SELF_TEST_PASSED, INTERFACE_GOOD, CLOCK_STUCK_LOW = 0x55, 0x00, 0x01

KB_LEDS, KB_ECHO, KB_CODE_SET, KB_IDENTIFY, KB_RATE = 0xED, 0xEE, 0xF0, 0xF2, 0xF3
KB_ENABLE, KB_DISABLE, KB_DEFAULTS, KB_RESEND, KB_RESET = 0xF4, 0xF5, 0xF6, 0xFE, 0xFF
KB_ACK, KB_AGAIN, KB_BAT_PASSED = 0xFA, 0xFE, 0xAA
KB_TYPE = b"\xab\x83"
TRANSLATED = {0x01: 0x43, 0x02: 0x41, 0x03: 0x3F, 0x83: 0x41}
"""What the controller's translation makes of the few keyboard bytes that are no code of a key."""

QUEUE_BYTES = 16


@dataclass(slots=True)
class I8042State:
    """`ram` is the controller's memory, with the command byte (CCB) first.

    `awaits` is the controller command that waits for its byte at port 0x60, and `kb_awaits`
    the keyboard's (0: none). `queue` are bytes of the keyboard that wait for the output buffer.
    """

    SCHEMA: ClassVar[tuple[str, int]] = ("i8042", 1)
    ram: bytes = blob(32, bytes((CCB_KEYBOARD_INT | CCB_AUX_OFF | CCB_TRANSLATE,)) + bytes(31))
    output: int = uint(8)
    output_full: bool = flag()
    timed_out: bool = flag()
    last_was_command: bool = flag()
    awaits: int = uint(8)
    a20: bool = flag(default=True)
    queue: bytes = blob(QUEUE_BYTES)
    kb_awaits: int = uint(8)
    kb_code_set: int = ranged(1, 3, 2)
    kb_last: int = uint(8)


class I8042:
    """Status, command byte, tests, output port with A20 and reset, and a keyboard.

    `irq` is IRQ 1: the output buffer is full and the command byte lets it interrupt.
    `a20` gets the level of output port bit 1 when it changes, and once from `restore`; after
    power-on and reset it is high. `reset` is called when the guest pulls the CPU's reset line.
    """

    def __init__(
        self, irq: IrqLine, *, a20: Callable[[bool], None], reset: Callable[[], None]
    ) -> None:
        self._irq = irq
        self._a20 = a20
        self._reset = reset
        self._level = False
        self._s = I8042State()
        self._ram = bytearray(self._s.ram)

    def reset(self) -> None:
        """Power-up, as a firmware leaves it: keyboard and its interrupt on, A20 high."""
        self._set_a20(True)
        self._s = I8042State()
        self._ram = bytearray(self._s.ram)
        self._update()

    def read(self, offset: int) -> int:
        """The output buffer at 0, the status at 1."""
        s = self._s
        if offset == 1:
            return (
                STATUS_UNLOCKED
                | (STATUS_OBF if s.output_full else 0)
                | (self._ram[0] & STATUS_SYS)
                | (STATUS_A2 if s.last_was_command else 0)
                | (STATUS_TIMEOUT if s.timed_out else 0)
            )
        if offset != 0:
            return 0xFF
        value = s.output
        s.output_full = s.timed_out = False
        self._update()
        return value

    def write(self, offset: int, value: int) -> None:
        """Data at 0: for the command that waits for it, else for the keyboard. A command at 1."""
        s = self._s
        if offset == 1:
            s.last_was_command = True
            s.awaits = 0
            self._command(value)
        elif offset == 0:
            s.last_was_command = False
            command, s.awaits = s.awaits, 0
            if command:
                self._command_data(command, value)
            else:
                self._ram[0] &= ~CCB_KEYBOARD_OFF
                self._keyboard(value)
        self._update()

    def snapshot(self) -> I8042State:
        """A copy of the registers."""
        return copied(self._s, ram=bytes(self._ram))

    def restore(self, state: I8042State) -> None:
        """Take over `state`, drive the IRQ line and A20.

        Raises:
            CorruptStateError: a field is out of range.
        """
        s = checked_copy(I8042State, state)
        require(I8042State, len(s.ram) == 32, "ram is not 32 bytes")
        require(I8042State, bool(s.ram[0] & CCB_AUX_OFF), "an auxiliary clock that is not there")
        require(I8042State, not s.awaits or s.awaits in AWAITING, "awaits is no such command")
        awaited = s.kb_awaits in (0, KB_LEDS, KB_CODE_SET, KB_RATE)
        require(I8042State, awaited, "kb_awaits is no such command")
        waits = not s.queue or s.output_full or bool(s.ram[0] & CCB_KEYBOARD_OFF)
        require(I8042State, waits, "queue although the output buffer is free")
        self._s = s
        self._ram = bytearray(s.ram)
        self._level = self._interrupting()
        self._irq(self._level)
        self._a20(s.a20)

    def _interrupting(self) -> bool:
        return self._s.output_full and bool(self._ram[0] & CCB_KEYBOARD_INT)

    def _update(self) -> None:
        """Let the next byte of the keyboard into the output buffer; drive the line."""
        s = self._s
        # A byte taken and the next one in are two edges, even if both happen in one access.
        if not s.output_full and self._level:
            self._level = False
            self._irq(False)
        if s.queue and not s.output_full and not self._ram[0] & CCB_KEYBOARD_OFF:
            s.output = s.queue[0]
            s.queue = s.queue[1:]
            s.output_full = True
        level = self._interrupting()
        if level != self._level:
            self._level = level
            self._irq(level)

    def _answer(self, value: int) -> None:
        """The controller's own answer takes the output buffer whatever was in it."""
        self._s.output = value
        self._s.output_full = True
        self._s.timed_out = False

    def _set_a20(self, level: bool) -> None:
        if level != self._s.a20:
            self._s.a20 = level
            self._a20(level)

    def _command(self, value: int) -> None:
        s = self._s
        if READ_RAM <= value < READ_RAM + 32:
            self._answer(self._ram[value - READ_RAM])
        elif value in AWAITING:
            s.awaits = value
        elif value == SELF_TEST:
            self._ram[0] |= CCB_SYS
            self._answer(SELF_TEST_PASSED)
        elif value == TEST_KEYBOARD:
            self._answer(INTERFACE_GOOD)
        elif value == TEST_AUX:
            self._answer(CLOCK_STUCK_LOW)
        elif value == KEYBOARD_OFF:
            self._ram[0] |= CCB_KEYBOARD_OFF
        elif value == KEYBOARD_ON:
            self._ram[0] &= ~CCB_KEYBOARD_OFF
        elif value == READ_INPUT:
            self._answer(INPUT_PORT)
        elif value == READ_OUTPUT:
            full = OUT_OBF if s.output_full else 0
            self._answer(OUT_FIXED | OUT_RESET | full | (OUT_A20 if s.a20 else 0))
        elif value in (A20_OFF, A20_ON):
            self._set_a20(value == A20_ON)
        elif value == READ_TEST:
            self._answer(0)
        elif value >= PULSE and not value & OUT_RESET:
            self._reset()

    def _command_data(self, command: int, value: int) -> None:
        s = self._s
        if command == WRITE_RAM:
            # There is no auxiliary port whose clock could be enabled.
            self._ram[0] = value | CCB_AUX_OFF
        elif command < WRITE_RAM + 32:
            self._ram[command - WRITE_RAM] = value
        elif command == WRITE_OUTPUT:
            self._set_a20(bool(value & OUT_A20))
            if not value & OUT_RESET:
                self._reset()
        elif command == WRITE_AUX:
            self._answer(KB_AGAIN)
            s.timed_out = True
        elif command in (WRITE_KEYBOARD_BUFFER, WRITE_AUX_BUFFER):
            self._answer(value)

    def _keyboard(self, value: int) -> None:
        """A byte for the keyboard: a command, or the value that its last command asked for."""
        s = self._s
        command, s.kb_awaits = s.kb_awaits, 0
        s.queue = b""
        if command and value < KB_LEDS:
            self._keyboard_value(command, value)
        elif value == KB_ECHO:
            self._send(KB_ECHO)
        elif value == KB_RESEND:
            self._send(s.kb_last)
        elif value in (KB_LEDS, KB_CODE_SET, KB_RATE):
            s.kb_awaits = value
            self._send(KB_ACK)
        elif value == KB_IDENTIFY:
            self._send(KB_ACK, *KB_TYPE)
        elif value in (KB_ENABLE, KB_DISABLE):
            self._send(KB_ACK)
        elif value == KB_DEFAULTS:
            s.kb_code_set = 2
            self._send(KB_ACK)
        elif value == KB_RESET:
            s.kb_code_set = 2
            self._send(KB_ACK, KB_BAT_PASSED)
        else:
            self._send(KB_AGAIN)

    def _keyboard_value(self, command: int, value: int) -> None:
        s = self._s
        if command != KB_CODE_SET:
            self._send(KB_ACK)
        elif value == 0:
            self._send(KB_ACK, s.kb_code_set)
        elif value <= 3:
            s.kb_code_set = value
            self._send(KB_ACK)
        else:
            self._send(KB_AGAIN)

    def _send(self, *codes: int) -> None:
        """Bytes from the keyboard, translated if the command byte asks for it."""
        s = self._s
        translate = self._ram[0] & CCB_TRANSLATE
        for code in codes:
            s.kb_last = TRANSLATED.get(code, code) if translate else code
            s.queue += bytes((s.kb_last,))
