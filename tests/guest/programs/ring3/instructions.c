/* Instructions that a user program may not run, or that are none. */
#define _GNU_SOURCE
#include "ring3.h"

#include <stdio.h>
#include <string.h>

struct instruction {
    const char *name, *bytes;
    size_t count;
};
#define I(name, bytes) {name, bytes, sizeof bytes - 1}

/* Each behind two others, or an address that is only the block's would do. */
static void run_all(const struct instruction *all, size_t count) {
    for (size_t i = 0; i < count; i++) {
        uint8_t bytes[32] = {0x90, 0x90};
        memcpy(bytes + 2, all[i].bytes, all[i].count);
        run_code(bytes, all[i].count + 2);
        say_caught(all[i].name, CODE_AT);
        if (caught.signal)
            say("    ip %+lld", caught.regs[REG_RIP] - (greg_t)CODE_AT);
    }
}

/* Left out: what UMIP, FSGSBASE, XSAVE or a hypervisor change (SGDT, WRFSBASE, XSETBV, VMCALL). */
void ring3_privileged(void) {
    static const struct instruction all[] = {
        I("hlt", "\xF4"),
        I("cli", "\xFA"),
        I("sti", "\xFB"),
        I("in al, dx", "\xEC"),
        I("in eax, dx", "\xED"),
        I("in al, 0x60", "\xE4\x60"),
        I("out dx, al", "\xEE"),
        I("out 0x80, eax", "\xE7\x80"),
        I("lgdt", "\x0F\x01\x14\x24"),
        I("lidt", "\x0F\x01\x1C\x24"),
        I("lldt", "\x0F\x00\xD0"),
        I("ltr", "\x0F\x00\xD8"),
        I("lmsw", "\x0F\x01\xF0"),
        I("clts", "\x0F\x06"),
        I("invd", "\x0F\x08"),
        I("wbinvd", "\x0F\x09"),
        I("invlpg", "\x0F\x01\x3C\x24"),
        I("mov rax, cr0", "\x0F\x20\xC0"),
        I("mov rax, cr2", "\x0F\x20\xD0"),
        I("mov rax, cr3", "\x0F\x20\xD8"),
        I("mov rax, cr4", "\x0F\x20\xE0"),
        I("mov rax, cr8", "\x44\x0F\x20\xC0"),
        I("mov cr0, rax", "\x0F\x22\xC0"),
        I("mov cr3, rax", "\x0F\x22\xD8"),
        I("mov cr4, rax", "\x0F\x22\xE0"),
        I("mov cr8, rax", "\x44\x0F\x22\xC0"),
        I("mov rax, dr0", "\x0F\x21\xC0"),
        I("mov rax, dr7", "\x0F\x21\xF8"),
        I("mov dr7, rax", "\x0F\x23\xF8"),
        I("rdmsr", "\x0F\x32"),
        I("wrmsr", "\x0F\x30"),
        I("sysretl", "\x0F\x07"),
        I("sysretq", "\x48\x0F\x07"),
        I("sysexitl", "\x0F\x35"),
        I("sysexitq", "\x48\x0F\x35"),
        I("swapgs", "\x0F\x01\xF8"),
    };
    run_all(all, sizeof all / sizeof *all);
}

/* Opcodes that 64-bit mode has not, and reserved forms. */
void ring3_undefined(void) {
    static const uint8_t opcodes[] = {0x06, 0x07, 0x0E, 0x16, 0x17, 0x1E, 0x1F, 0x27, 0x2F, 0x37,
                                      0x3F, 0x60, 0x61, 0x82, 0x9A, 0xCE, 0xD4, 0xD5, 0xD6, 0xEA};
    static const struct instruction all[] = {
        I("ud2", "\x0F\x0B"),
        I("ud1", "\x0F\xB9\xC0"),
        I("lock nop", "\xF0\x90"),
        I("lock add to a register", "\xF0\x01\xC0"),
        I("lock cmp", "\xF0\x39\x04\x24"),
        I("mov cs, ax", "\x8E\xC8"),
        I("mov rax, segment 6", "\x8C\xF0"),
        I("lea rax, rax", "\x8D\xC0"),
        I("0f 04", "\x0F\x04"),
        I("0f 0a", "\x0F\x0A"),
        I("0f 0c", "\x0F\x0C"),
        I("0f 24", "\x0F\x24\xC0"),
        I("0f 36", "\x0F\x36"),
        I("0f a7", "\x0F\xA7\xFF"),
        I("group 5, 7", "\xFF\xF8"),
        I("group 4, 7", "\xFE\xF8"),
        I("group 11, 1", "\xC7\xC8"),
        I("rsm", "\x0F\xAA"),
    };
    for (size_t i = 0; i < sizeof opcodes; i++) {
        char name[16];
        snprintf(name, sizeof name, "%02x", opcodes[i]);
        uint8_t bytes[] = {opcodes[i], 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90};
        run_code(bytes, sizeof bytes);
        say_caught(name, CODE_AT);
    }
    run_all(all, sizeof all / sizeof *all);
}

/* 3, 4 and 0x80 are open to programs; all others are a #GP that names the vector. 6 is in
 * ring3_exact_int_6. */
void ring3_int_n(void) {
    for (unsigned n = 0; n < 256; n++) {
        char name[16];
        if (n == 6)
            continue;
        /* eax: a system call that does not exist. */
        uint8_t bytes[] = {0xB8, 0xFF, 0xFF, 0x00, 0x00, 0xCD, (uint8_t)n};
        uint64_t result = run_code(bytes, sizeof bytes);
        snprintf(name, sizeof name, "int %#x", n);
        say_caught(name, CODE_AT);
        if (caught.signal)
            say("    ip %+lld", caught.regs[REG_RIP] - (greg_t)CODE_AT);
        else
            say("    rax %d", (int)result);
    }
    run_code("\xCC", 1);
    say_caught("int3", CODE_AT);
    say("    ip %+lld", caught.regs[REG_RIP] - (greg_t)CODE_AT);
}

void ring3_exact_int_6(void) {
    run_code("\xCD\x06", 2);
    say_caught("int 6", CODE_AT);
    say("    ip %+lld", caught.regs[REG_RIP] - (greg_t)CODE_AT);
}

void ring3_exact_instructions(void) {
    static const struct instruction all[] = {
        I("insb", "\x6C"),
        I("outsd", "\x6F"),
        I("rep insb, none", "\xF3\x6C"),
        I("rdpmc", "\x0F\x33"),
        I("lock mov", "\xF0\x89\x04\x24"),
        I("mov rax, cr1", "\x0F\x20\xC8"),
        I("mov rax, cr5", "\x0F\x20\xE8"),
        I("group 1a, 1", "\x8F\xC8"),
        I("int1", "\xF1"),
    };
    run_all(all, sizeof all / sizeof *all);
}

/* Which bits of EFLAGS a program can turn, one at a time. TF is `steps`, AC `alignment`. */
void ring3_popf(void) {
    for (unsigned bit = 0; bit < 32; bit++) {
        uint64_t before, after, mask = 1ull << bit;
        if (bit == 8 || bit == 18)
            continue;
        quiet_begin();
        __asm__ volatile("pushfq\n\tmov (%%rsp), %0\n\txor %2, (%%rsp)\n\tpopfq\n\t"
                         "pushfq\n\tpop %1\n\tpush %0\n\tpopfq"
                         : "=&r"(before), "=&r"(after)
                         : "r"(mask)
                         : "cc", "memory");
        quiet_end();
        say("flag %u: %s", bit, (before ^ after) & mask ? "turns" : "stays");
        __asm__ volatile("pushfw\n\txorw %w1, (%%rsp)\n\tpopfw\n\tpushfq\n\tpop %0\n\tpush $2\n\tpopfq"
                         : "=&r"(after)
                         : "r"(mask & 0x4000)
                         : "cc", "memory");
        say("    interrupts %s, IOPL %u", after & 0x200 ? "on" : "off", (unsigned)(after >> 12 & 3));
    }
}
