/* 32-bit code inside the 64-bit program: instructions that 64-bit mode no longer has, and the
 * 32-bit kernel entry. The text lies below 4 GiB (no PIE), so a far jump is all it takes. */
#include "check.h"

#include <sys/mman.h>

struct frame32 {
    uint32_t eax, ebx, ecx, edx, flags;
};

/* Runs `code` in compatibility mode on `stack_top` (below 4 GiB) with the registers of `frame`.
 * The code ends with a near return. */
void run32(struct frame32 *frame, void *code, void *stack_top);

__asm__(".text\n"
        ".globl run32\n"
        "run32:\n"
        "    push %rbx\n"
        "    push %rbp\n"
        "    push %r12\n"
        "    push %r13\n"
        "    push %r14\n"
        "    push %r15\n"
        "    mov %rsp, saved_stack(%rip)\n"
        "    mov %rsi, %r8\n"
        "    mov %rdx, %rsp\n"
        "    mov %edi, %ebp\n"
        "    mov %r8d, %esi\n"
        "    push $0x23\n"
        "    push $run32_compat\n"
        "    lretq\n"
        "    .code32\n"
        "run32_compat:\n"
        "    mov $0x2B, %eax\n"
        "    mov %eax, %ds\n"
        "    mov %eax, %es\n"
        "    push %ebp\n"
        "    mov (%ebp), %eax\n"
        "    mov 4(%ebp), %ebx\n"
        "    mov 8(%ebp), %ecx\n"
        "    mov 12(%ebp), %edx\n"
        "    push 16(%ebp)\n"
        "    popf\n"
        "    call *%esi\n"
        "    pushf\n"
        "    mov 4(%esp), %ebp\n"
        "    pop 16(%ebp)\n"
        "    mov %eax, (%ebp)\n"
        "    mov %ebx, 4(%ebp)\n"
        "    mov %ecx, 8(%ebp)\n"
        "    mov %edx, 12(%ebp)\n"
        "    ljmp $0x33, $run32_long\n"
        "    .code64\n"
        "run32_long:\n"
        "    cld\n"
        "    mov saved_stack(%rip), %rsp\n"
        "    pop %r15\n"
        "    pop %r14\n"
        "    pop %r13\n"
        "    pop %r12\n"
        "    pop %rbp\n"
        "    pop %rbx\n"
        "    ret\n"
        ".local saved_stack\n"
        ".comm saved_stack, 8, 8\n");

#define CODE32(name, text)                                                                         \
    void name(void);                                                                               \
    __asm__(".text\n.code32\n" #name ": " text "\n ret\n.code64\n")

CODE32(decimal_adjust, "daa; das; mov %eax, %ecx");
CODE32(ascii_add, "aaa");
CODE32(ascii_sub, "aas");
CODE32(ascii_multiply, "aam");
CODE32(ascii_divide, "aad");
CODE32(push_all, "pusha; pop %edi; pop %esi; pop %ebp; add $4, %esp; pop %ebx; pop %edx; pop %ecx;"
                 "pop %eax; xchg %ebx, %edx");
CODE32(short_forms, "inc %eax; dec %ebx; inc %ecx; .byte 0x66; inc %edx");
CODE32(counted_loop, "and $0xff, %ecx; inc %ecx; 1: add %ecx, %eax; rol $3, %eax; loop 1b;"
                     "jcxz 2f; inc %eax; 2: jecxz 3f; inc %eax; 3:");
CODE32(bcd_salc, "add %bl, %al; .byte 0xd6");
CODE32(enter_frame, "enter $32, $0; mov %eax, -4(%ebp); mov %ebx, -8(%ebp); mov -8(%ebp), %eax;"
                    "mov -4(%ebp), %ebx; leave");
CODE32(int80_getppid, "mov $64, %eax; int $0x80; mov %eax, %edx");

static const struct {
    void (*code)(void);
    uint32_t flags;
} pieces[] = {
    {decimal_adjust, FLAG_CF | FLAG_AF | FLAG_ZF | FLAG_SF | FLAG_PF},
    {ascii_add, FLAG_CF | FLAG_AF},
    {ascii_sub, FLAG_CF | FLAG_AF},
    {ascii_multiply, FLAG_ZF | FLAG_SF | FLAG_PF},
    {ascii_divide, FLAG_ZF | FLAG_SF | FLAG_PF},
    {push_all, FLAGS_ALL},
    {short_forms, FLAGS_ALL},
    {counted_loop, 0},
    {bcd_salc, FLAGS_ALL},
    {enter_frame, FLAGS_ALL},
};

uint64_t check_legacy(unsigned rounds) {
    unsigned char *low =
        mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
    REQUIRE(low != MAP_FAILED);
    struct frame32 *frame = (struct frame32 *)low;
    for (unsigned i = 0; i < rounds * 1000; i++) {
        for (size_t p = 0; p < sizeof pieces / sizeof *pieces; p++) {
            *frame = (struct frame32){(uint32_t)edge(), (uint32_t)edge(), (uint32_t)edge(),
                                      (uint32_t)edge(), (uint32_t)rnd() & FLAGS_ALL};
            run32(frame, (void *)pieces[p].code, low + 4 * PAGE);
            mix(frame->eax);
            mix(frame->ebx);
            mix(frame->ecx);
            mix(frame->edx);
            mix(frame->flags & pieces[p].flags);
        }
        if (i % 8 == 0) {
            *frame = (struct frame32){0, (uint32_t)rnd(), (uint32_t)rnd(), 0, 0};
            uint32_t ebx = frame->ebx, ecx = frame->ecx;
            run32(frame, (void *)int80_getppid, low + 4 * PAGE);
            REQUIRE(frame->eax == frame->edx && (int32_t)frame->eax >= 0);
            REQUIRE(frame->ebx == ebx && frame->ecx == ecx);
        }
    }
    munmap(low, 4 * PAGE);
    return digest_end();
}
