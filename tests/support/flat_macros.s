# Macros every flat guest may use. Nothing is emitted unless a macro is named.
#
# Memory of a flat guest: its own image at the load address (0x7C00), then
#   0x60000 IDT   0x61000 TSS   0x62000 second IST stack's top   0x6F000 stack top
#   0x70000 PML4  0x71000 PDPT  0x72000..0x75FFF page directories (4 GiB, 2 MiB pages, user)
.set IDT, 0x60000
.set TSS, 0x61000
.set IST_STACK, 0x64000
.set STACK, 0x6F000
.set PML4, 0x70000
.set COM1, 0x3F8

# Selectors, in the order SYSENTER, SYSEXIT, SYSCALL and SYSRET want them.
.set KCODE32, 0x08
.set KDATA, 0x10
.set UCODE32, 0x18
.set UDATA, 0x20
.set UCODE64, 0x28
.set UDATA64, 0x30
.set KCODE64, 0x38
.set KDATA64, 0x40
.set CODE16, 0x48
.set DATA16, 0x50
.set TSS_SELECTOR, 0x58

# Real mode: interrupts off, flat zero segments, a stack, A20 open.
.macro real_start
    cli
    cld
    xor ax, ax
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov sp, 0x7C00
    in al, 0x92
    or al, 2
    and al, 0xFE
    out 0x92, al
.endm

# The tables that enter_protected and enter_long load. Once, anywhere in the image.
.macro tables
    .balign 16
gdt:
    .quad 0
    .quad 0x00CF9B000000FFFF
    .quad 0x00CF93000000FFFF
    .quad 0x00CFFB000000FFFF
    .quad 0x00CFF3000000FFFF
    .quad 0x00AFFB000000FFFF
    .quad 0x00CFF3000000FFFF
    .quad 0x00AF9B000000FFFF
    .quad 0x00CF93000000FFFF
    .quad 0x00009B000000FFFF
    .quad 0x000093000000FFFF
    .quad 0x0000890610000067
    .quad 0
gdt_end:
gdt_pointer:
    .word gdt_end - gdt - 1
    .long gdt
idt_pointer32:
    .word 0x7FF
    .long IDT
idt_pointer64:
    .word 0xFFF
    .quad IDT
no_idt:
    .word 0
    .quad 0
.endm

# From 16-bit real mode to flat 32-bit protected mode; an empty IDT of 256 gates is loaded.
.macro enter_protected
    lgdt [gdt_pointer]
    mov eax, cr0
    or eax, 1
    mov cr0, eax
    jmp KCODE32:.Lprotected\@
    .code32
.Lprotected\@:
    mov ax, KDATA
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov fs, ax
    mov gs, ax
    mov esp, STACK
    cld
    mov edi, IDT
    mov ecx, 0x2000 / 4
    xor eax, eax
    rep stosd
    lidt [idt_pointer32]
.endm

# Page tables at PML4 that map 4 GiB to itself, writable, user (32-bit code).
.macro identity_tables
    mov edi, PML4
    mov ecx, 0x6000 / 4
    xor eax, eax
    rep stosd
    mov dword ptr [PML4], PML4 + 0x1007
    mov dword ptr [PML4 + 0x1000], PML4 + 0x2007
    mov dword ptr [PML4 + 0x1008], PML4 + 0x3007
    mov dword ptr [PML4 + 0x1010], PML4 + 0x4007
    mov dword ptr [PML4 + 0x1018], PML4 + 0x5007
    mov edi, PML4 + 0x2000
    mov eax, 0x87
.Ltables\@:
    mov [edi], eax
    add edi, 8
    add eax, 0x200000
    jnc .Ltables\@
.endm

# From 16-bit real mode to 64-bit mode, identity mapped, SSE on; an empty IDT is loaded.
.macro enter_long
    enter_protected
    identity_tables
    mov eax, cr4
    or eax, 0x620
    mov cr4, eax
    mov eax, PML4
    mov cr3, eax
    mov ecx, 0xC0000080
    rdmsr
    or eax, 0x901
    wrmsr
    mov eax, cr0
    and eax, 0xFFFFFFFB
    or eax, 0x80010002
    mov cr0, eax
    jmp KCODE64:.Llong\@
    .code64
.Llong\@:
    mov ax, KDATA64
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov rsp, STACK
    lidt [idt_pointer64]
.endm

# Interrupt gate of 32-bit code: `type` 0x8E (ring 0 only), 0xEE (also by INT n of ring 3).
.macro gate32 vector, handler, type=0x8E
    mov eax, offset \handler
    mov [IDT + \vector * 8], ax
    mov word ptr [IDT + \vector * 8 + 2], KCODE32
    mov word ptr [IDT + \vector * 8 + 4], \type << 8
    shr eax, 16
    mov [IDT + \vector * 8 + 6], ax
.endm

# Interrupt gate of 64-bit code. Clobbers rax.
.macro gate64 vector, handler, type=0x8E, ist=0
    mov rax, offset \handler
    mov [IDT + \vector * 16], ax
    mov word ptr [IDT + \vector * 16 + 2], KCODE64
    mov word ptr [IDT + \vector * 16 + 4], \type << 8 | \ist
    shr rax, 16
    mov [IDT + \vector * 16 + 6], ax
    mov qword ptr [IDT + \vector * 16 + 8], 0
.endm

# A 32-bit TSS whose ring-0 stack is STACK.
.macro load_tss32
    mov dword ptr [TSS + 4], STACK
    mov dword ptr [TSS + 8], KDATA
    mov word ptr [TSS + 0x66], 0x68
    mov ax, TSS_SELECTOR
    ltr ax
.endm

# A 64-bit TSS: ring-0 stack STACK, IST1 IST_STACK.
.macro load_tss64
    mov qword ptr [TSS + 4], STACK
    mov qword ptr [TSS + 0x24], IST_STACK
    mov word ptr [TSS + 0x66], 0x68
    mov ax, TSS_SELECTOR
    ltr ax
.endm

# Both 8259A: IRQ 0..15 at vectors 0x20..0x2F, everything masked but the lines of `mask`.
.macro pic_init mask=0xFFFF
    mov al, 0x11
    out 0x20, al
    out 0xA0, al
    mov al, 0x20
    out 0x21, al
    mov al, 0x28
    out 0xA1, al
    mov al, 4
    out 0x21, al
    mov al, 2
    out 0xA1, al
    mov al, 1
    out 0x21, al
    out 0xA1, al
    mov al, \mask & 0xFF
    out 0x21, al
    mov al, \mask >> 8
    out 0xA1, al
.endm

.macro eoi
    mov al, 0x20
    out 0x20, al
.endm

# Channel 0 of the 8254, both bytes: control word of `mode`, then `count` (0 is 65536).
.macro pit_start mode, count
    mov al, 0x30 | \mode << 1
    out 0x43, al
    mov al, \count & 0xFF
    out 0x40, al
    mov al, \count >> 8
    out 0x40, al
.endm

# AL to COM1, any mode. Clobbers dx.
.macro putc
    mov ah, al
    mov dx, COM1 + 5
.Lputc\@:
    in al, dx
    test al, 0x20
    jz .Lputc\@
    mov al, ah
    mov dx, COM1
    out dx, al
.endm

# A string constant to COM1, any mode. Clobbers eax, edx, esi.
.macro print text
    jmp .Lprint\@
.Ltext\@:
    .asciz "\text"
.Lprint\@:
    mov esi, offset .Ltext\@
.Lnext\@:
    mov al, [esi]
    test al, al
    jz .Lprinted\@
    putc
    inc esi
    jmp .Lnext\@
.Lprinted\@:
.endm

# EAX as eight hexadecimal digits to COM1, any mode. Clobbers eax, ebx, ecx, edx.
.macro print_hex
    mov ebx, eax
    mov ecx, 8
.Lhex\@:
    rol ebx, 4
    mov al, bl
    and al, 15
    add al, 0x30
    cmp al, 0x3A
    jb .Ldigit\@
    add al, 7
.Ldigit\@:
    putc
    dec ecx
    jnz .Lhex\@
.endm

# Long mode: 0x400000 and 0x401000 at 0x40000000, by a page table at 0x310000; a hole follows.
# Changes RAX.
.macro map_two_pages
    mov dword ptr [PML4 + 0x3000], 0x310007
    mov dword ptr [PML4 + 0x3004], 0
    mov dword ptr [0x310000], 0x400007
    mov dword ptr [0x310004], 0
    mov dword ptr [0x310008], 0x401007
    mov dword ptr [0x31000C], 0
    mov dword ptr [0x310010], 0
    mov dword ptr [0x310014], 0
    mov rax, cr3
    mov cr3, rax
.endm

# Leave through the debug exit with a constant; AL with `exit_al`.
.macro exit status
    mov al, \status
    exit_al
.endm

.macro exit_al
    out 0xF4, al
.Lexited\@:
    cli
    hlt
    jmp .Lexited\@
.endm
