/* Alignment checks. A translator need not make them: tests leave this section to processors. */
#define _GNU_SOURCE
#include "ring3.h"

#define AC 0x40000ull

#define WITH_AC(text, address)                                                                     \
    TRY(__asm__ volatile("pushfq\n\torq %1, (%%rsp)\n\tpopfq\n\t" text "\n\t"                      \
                         "pushfq\n\tandq %2, (%%rsp)\n\tpopfq"                                     \
                         :                                                                         \
                         : "r"(address), "i"(AC), "i"(~AC)                                         \
                         : "rax", "xmm0", "cc", "memory"));                                        \
    __asm__ volatile("pushfq\n\tandq %0, (%%rsp)\n\tpopfq" : : "i"(~AC) : "cc", "memory")

void ring3_exact_alignment(void) {
    static uint8_t area[64] __attribute__((aligned(64)));
    quiet_begin();
    for (uint64_t offset = 0; offset < 9; offset++) {
        uint8_t *at = area + offset;
        say("offset %llu", (unsigned long long)offset);
        WITH_AC("movb (%0), %%al", at);
        say_caught("    1 byte", (uint64_t)area);
        WITH_AC("movw (%0), %%ax", at);
        say_caught("    2 bytes", (uint64_t)area);
        WITH_AC("movl %%eax, (%0)", at);
        say_caught("    4 bytes", (uint64_t)area);
        WITH_AC("movq (%0), %%rax", at);
        say_caught("    8 bytes", (uint64_t)area);
        TRY(__asm__ volatile("movaps (%0), %%xmm0" : : "r"(at) : "xmm0"));
        say_caught("    movaps", (uint64_t)area);
        TRY(__asm__ volatile("paddq (%0), %%xmm0" : : "r"(at) : "xmm0"));
        say_caught("    paddq", (uint64_t)area);
        TRY(__asm__ volatile("movups (%0), %%xmm0" : : "r"(at) : "xmm0"));
        say_caught("    movups", (uint64_t)area);
    }
    quiet_end();
}
