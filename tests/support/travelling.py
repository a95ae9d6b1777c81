"""A small guest for VMs that move: it counts, remembers and echoes, and says so when it errs."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.support import flat

FILLED_MIB = 8

_SOURCE = """
    mov edi, 0x100000
    mov ecx, {dwords}
    mov eax, 0x12345678
fill:                       # xorshift: nothing that a compressor could use
    mov edx, eax
    shl edx, 13
    xor eax, edx
    mov edx, eax
    shr edx, 17
    xor eax, edx
    mov edx, eax
    shl edx, 5
    xor eax, edx
    mov [edi], eax
    add edi, 4
    dec ecx
    jnz fill
    xor ebx, ebx
step:
    inc ebx
    mov esi, ebx
    and esi, 1023
    shl esi, 12
    add esi, 0x100000
    cmp ebx, 1024
    jbe store
    mov eax, [esi]          # what was stored here 1024 steps ago
    add eax, 1024
    cmp eax, ebx
    jne bad
store:
    mov [esi], ebx
    mov ecx, 8
    mov edi, ebx
digit:
    rol edi, 4
    mov eax, edi
    and eax, 15
    add eax, '0'
    cmp eax, '9'
    jbe put
    add eax, 'a' - '0' - 10
put:
    mov dx, 0x3F8
    out dx, al
    dec ecx
    jnz digit
    mov al, 10
    out dx, al
    mov dx, 0x3FD
    in al, dx
    test al, 1
    jz wait
    mov dx, 0x3F8
    in al, dx
    cmp al, 'Q'
    je quit
    mov ah, al
    mov al, '<'
    out dx, al
    mov al, ah
    out dx, al
    mov al, 10
    out dx, al
wait:
    mov ecx, {pause}
again:
    dec ecx
    jnz again
    jmp step
bad:
    mov dx, 0x3F8
    mov al, '!'
    out dx, al
    mov al, 10
    out dx, al
quit:
    cli
    hlt
"""


def traveller(pause: int = 300_000) -> bytes:
    """The guest: a line of eight hex digits for each step, "<c" for each key; Q halts it.

    Each step stores its number in one of 1024 pages, and checks what it stored there before; a
    wrong one is said with "!". 8 MiB are filled with noise first.

    Args:
        pause: turns of an empty loop after each step.
    """
    return flat.protected(_SOURCE.format(dwords=FILLED_MIB << 18, pause=pause))


@dataclass
class Journal:
    """What the guest said, checked as it comes: every number once, in order."""

    offset: int = 0
    steps: int = 0
    keys: list[str] = field(default_factory=list)
    _rest: bytes = b""

    def add(self, offset: int, data: bytes) -> None:
        """Take the next piece of output."""
        assert offset == self.offset, f"byte {self.offset} wanted, found {offset}"
        self.offset += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            text = line.decode("ascii")
            if text.startswith("<"):
                self.keys.append(text[1:])
                continue
            assert text != "!", f"the guest's memory is wrong after step {self.steps}"
            assert int(text, 16) == self.steps + 1, f"{text} after step {self.steps}"
            self.steps += 1
