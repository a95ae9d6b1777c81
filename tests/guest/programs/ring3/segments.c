/* Selectors: what may be loaded, what a far transfer does with it, and a table of one's own. */
#define _GNU_SOURCE
#include "ring3.h"

#include <asm/ldt.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

static const uint16_t selectors[] = {0,    1,    2,    3,    4,    7,    8,      0x10,   0x13, 0x18,  0x1B, 0x20,
                                     0x23, 0x28, 0x2A, 0x2B, 0x30, 0x33, 0x38,   0x3B,   0x40, 0x43,
                                     0x48, 0x4B, 0x83, 0xFB, 0x1003, 0xFFF8, 0xFFFF};
#define SELECTORS (sizeof selectors / sizeof *selectors)

#define LOAD_SEGMENT(segment, selector)                                                            \
    __asm__ volatile("mov %%" segment ", %%ebx\n\tmov %0, %%" segment "\n\tmov %%" segment         \
                     ", %%ecx\n\tmov %%ebx, %%" segment                                            \
                     : : "r"((uint32_t)(selector)) : "rbx", "rcx", "memory")

void ring3_segments(void) {
    uint32_t cs, ss, ds, es;
    __asm__("mov %%cs, %0\n\tmov %%ss, %1\n\tmov %%ds, %2\n\tmov %%es, %3"
            : "=r"(cs), "=r"(ss), "=r"(ds), "=r"(es));
    say("cs %#x ss %#x ds %#x es %#x", cs, ss, ds, es);
    for (size_t i = 0; i < SELECTORS; i++) {
        uint32_t selector = selectors[i];
        say("selector %#x", selector);
        TRY(LOAD_SEGMENT("ds", selector));
        say_caught("    ds", 0);
        TRY(LOAD_SEGMENT("es", selector));
        say_caught("    es", 0);
        TRY(LOAD_SEGMENT("gs", selector));
        say_caught("    gs", 0);
        TRY(LOAD_SEGMENT("ss", selector));
        say_caught("    ss", 0);
        uint8_t zf;
        uint32_t rights = 0;
        __asm__ volatile("lar %2, %0\n\tsetz %1" : "+r"(rights), "=q"(zf) : "r"(selector) : "cc");
        /* Neither the descriptor's accessed bit nor bits 19:16 are anybody's promise. */
        say("    lar %u %#x", zf, zf && rights & 0x1000 ? rights & 0xF0FE00u : 0);
        __asm__ volatile("verr %w1\n\tsetz %0" : "=q"(zf) : "r"(selector) : "cc");
        say("    verr %u", zf);
        __asm__ volatile("verw %w1\n\tsetz %0" : "=q"(zf) : "r"(selector) : "cc");
        say("    verw %u", zf);
        if (selector == 0x33 || selector == 0x23)
            continue;
        uint64_t at = 0;
        TRY(__asm__ volatile("movq $2f, %0\n\tpush %1\n\tpush $1f\n\t2: lretq\n\t1:"
                             : "=m"(at) : "r"((uint64_t)selector) : "memory"));
        say_caught("    lret", 0);
        say("    ip %+lld", caught.regs[REG_RIP] - (greg_t)at);
        TRY(__asm__ volatile("movq $2f, %0\n\tmov %%rsp, %%rcx\n\tpush $0x2B\n\tpush %%rcx\n\tpushfq\n\t"
                             "push %1\n\tpush $1f\n\t2: iretq\n\t1:"
                             : "=m"(at) : "r"((uint64_t)selector) : "rcx", "memory"));
        say_caught("    iret", 0);
        say("    ip %+lld", caught.regs[REG_RIP] - (greg_t)at);
        TRY(__asm__ volatile("mov %%rsp, %%rcx\n\tpush %0\n\tpush %%rcx\n\tpushfq\n\tpush $0x33\n\t"
                             "push $1f\n\tiretq\n\t1:\n\tmov $0x2B, %%ecx\n\tmov %%ecx, %%ss"
                             : : "r"((uint64_t)selector) : "rcx", "memory"));
        say_caught("    iret with this ss", 0);
    }
    TRY(__asm__ volatile("pushfq\n\torq $0x4000, (%%rsp)\n\tpopfq\n\tmov %%rsp, %%rcx\n\tpush $0x2B\n\t"
                         "push %%rcx\n\tpushfq\n\tpush $0x33\n\tpush $1f\n\tiretq\n\t1:"
                         : : : "rcx", "cc", "memory"));
    say_caught("iret with NT", 0);
    __asm__ volatile("push $2\n\tpopfq" : : : "cc");
}

static uint16_t ldt_entry(unsigned number, uint64_t base, unsigned limit, unsigned contents,
                          unsigned read_only, unsigned not_present) {
    struct user_desc entry = {.entry_number = number,
                              .base_addr = (unsigned)base,
                              .limit = limit,
                              .seg_32bit = 1,
                              .contents = contents,
                              .read_exec_only = read_only,
                              .seg_not_present = not_present,
                              .useable = 1};
    REQUIRE(syscall(SYS_modify_ldt, 0x11, &entry, sizeof entry) == 0);
    return (uint16_t)(number << 3 | 7);
}

uint32_t call_segment(uint32_t selector, uint32_t offset, uint32_t argument);
/* Far-calls 32-bit code of another segment, which ends with a far return. */
__asm__(".text\n"
        "call_segment:\n"
        "    push %rbx\n"
        "    mov %edx, %eax\n"
        "    sub $16, %rsp\n"
        "    mov %esi, (%rsp)\n"
        "    mov %edi, 4(%rsp)\n"
        "    mov %rsp, %rbx\n"
        "    lcall *(%rbx)\n"
        "    add $16, %rsp\n"
        "    pop %rbx\n"
        "    ret\n");

/* lea ebx,[eax+eax*2]; mov eax,cs; shl eax,16; add eax,ebx; lretl. No stack but for the return:
 * the caller's lies above 4 GiB. */
static const uint8_t far_code[] = {0x8D, 0x1C, 0x40, 0x8C, 0xC8, 0xC1, 0xE0, 0x10, 0x01, 0xD8, 0xCB};

/* A far call by the low stack, since 32-bit code cuts RSP to 32 bits. */
static uint32_t far_call(uint8_t *low_stack, uint16_t selector, uint32_t offset, uint32_t argument) {
    uint32_t result;
    __asm__ volatile("mov %%rsp, %%r12\n\tmov %1, %%rsp\n\tcall call_segment\n\tmov %%r12, %%rsp"
                     : "=a"(result)
                     : "r"(low_stack), "D"((uint32_t)selector), "S"(offset), "d"(argument)
                     : "rcx", "r8", "r9", "r10", "r11", "r12", "cc", "memory");
    return result;
}

/* PUSHF shows no RF; a far call behind a limit names no selector. */
void ring3_exact_segments(void) {
    uint64_t flags;
    __asm__ volatile("mov %%rsp, %%rcx\n\tpush $0x2B\n\tpush %%rcx\n\tpush $0x3BFED7\n\tpush $0x33\n\t"
                     "push $1f\n\tiretq\n\t1: pushfq\n\tpop %0\n\tpush $2\n\tpopfq"
                     : "=r"(flags) : : "rcx", "cc", "memory");
    say("iret with all flags but TF and AC: %#llx", (unsigned long long)flags);
    uint8_t *low = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
    REQUIRE(low != MAP_FAILED);
    quiet_begin();
    uint16_t code = ldt_entry(4, (uint64_t)low, 0xFF, MODIFY_LDT_CONTENTS_CODE, 0, 0);
    TRY(far_call(low + PAGE - 64, code, 0x1000, 0));
    say_caught("behind the code's limit", 0);
    quiet_end();
    munmap(low, PAGE);
}

void ring3_ldt(void) {
    uint8_t *low = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE | PROT_EXEC,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
    REQUIRE(low != MAP_FAILED);
    for (size_t i = 0; i < 8 * PAGE; i++)
        low[i] = (uint8_t)(i * 7 ^ i >> 8);
    uint16_t data = ldt_entry(1, (uint64_t)low, 0xFFF, MODIFY_LDT_CONTENTS_DATA, 0, 0);
    uint16_t constant = ldt_entry(2, (uint64_t)low + 256, 0x1FF, MODIFY_LDT_CONTENTS_DATA, 1, 0);
    uint16_t absent = ldt_entry(3, (uint64_t)low, 0xFFF, MODIFY_LDT_CONTENTS_DATA, 0, 1);
    uint16_t code = ldt_entry(4, (uint64_t)low + 4 * PAGE, 0xFFF, MODIFY_LDT_CONTENTS_CODE, 0, 0);
    quiet_begin();
    uint32_t value;
    /* A segment in GS: its base counts in 64-bit code, its limit does not. */
    __asm__ volatile("mov %0, %%gs" : : "r"((uint32_t)data));
    for (uint64_t offset = 0; offset < 0x2000; offset += 0x5FF) {
        __asm__ volatile("movl %%gs:(%1), %0" : "=r"(value) : "r"(offset));
        say("gs:%#llx %s", (unsigned long long)offset, !memcmp(&value, low + offset, 4) ? "there" : "elsewhere");
    }
    __asm__ volatile("mov %0, %%gs" : : "r"((uint32_t)constant));
    __asm__ volatile("movl %%gs:8, %0" : "=r"(value));
    say("another %s", !memcmp(&value, low + 264, 4) ? "there" : "elsewhere");
    uint32_t limit = 0;
    uint8_t zf;
    __asm__ volatile("lsl %2, %0\n\tsetz %1" : "+r"(limit), "=q"(zf) : "r"((uint32_t)constant) : "cc");
    say("lsl %u %#x", zf, limit);
    __asm__ volatile("verw %w1\n\tsetz %0" : "=q"(zf) : "r"(constant) : "cc");
    say("verw %u", zf);
    TRY(LOAD_SEGMENT("es", absent));
    say_caught("not present in es", 0);
    TRY(LOAD_SEGMENT("gs", absent));
    say_caught("not present in gs", 0);
    TRY(LOAD_SEGMENT("ss", absent));
    say_caught("not present in ss", 0);
    TRY(LOAD_SEGMENT("ss", constant));
    say_caught("read-only in ss", 0);
    TRY(LOAD_SEGMENT("ds", 9 << 3 | 7));
    say_caught("never made", 0);
    TRY(LOAD_SEGMENT("ds", 5000 << 3 | 7));
    say_caught("beyond the table", 0);
    /* 32-bit code with a base of its own. */
    memcpy(low + 4 * PAGE + 64, far_code, sizeof far_code);
    for (uint32_t i = 0; i < 5; i++)
        say("far call %#x", far_call(low + 8 * PAGE - 64, code, 64, i * 1000));
    TRY(far_call(low + 8 * PAGE - 64, data, 64, 0));
    say_caught("into data", 0);
    /* Closed and replaced: the same selector leads elsewhere. */
    ldt_entry(1, (uint64_t)low + PAGE, 0xFFF, MODIFY_LDT_CONTENTS_DATA, 0, 0);
    __asm__ volatile("mov %0, %%gs\n\tmovl %%gs:4, %0" : "=r"(value) : "0"((uint32_t)data));
    say("replaced %s", !memcmp(&value, low + PAGE + 4, 4) ? "there" : "elsewhere");
    __asm__ volatile("mov %0, %%gs" : : "r"(0));
    quiet_end();
    struct user_desc none;
    for (unsigned i = 1; i < 5; i++) {
        memset(&none, 0, sizeof none);
        none.entry_number = i;
        none.read_exec_only = 1;
        none.seg_not_present = 1;
        REQUIRE(syscall(SYS_modify_ldt, 0x11, &none, sizeof none) == 0);
    }
    munmap(low, 8 * PAGE);
}
