/* Page faults and traps as a program sees them: the exact address, error code, trap number and
 * RIP, and registers as they were before the instruction. */
#define _GNU_SOURCE
#include "check.h"

#include <setjmp.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

static sigjmp_buf back;
static uint8_t *area;
static volatile int last_signal, last_code;
static volatile uint64_t last_address;
static volatile greg_t last_regs[NGREG];
static uint8_t signal_stack[64 * 1024] __attribute__((aligned(16)));

static void note(int number, siginfo_t *info, void *context) {
    const ucontext_t *uc = context;
    last_signal = number;
    last_code = info->si_code;
    last_address = (uint64_t)info->si_addr;
    for (int i = 0; i < NGREG; i++)
        last_regs[i] = uc->uc_mcontext.gregs[i];
    siglongjmp(back, 1);
}

static const int signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP};
#define SIGNALS (sizeof signals / sizeof *signals)

static void catch_all(struct sigaction *old) {
    struct sigaction action = {.sa_flags = SA_SIGINFO | SA_ONSTACK, .sa_sigaction = note};
    stack_t stack = {.ss_sp = signal_stack, .ss_size = sizeof signal_stack};
    sigaltstack(&stack, NULL);
    for (size_t i = 0; i < SIGNALS; i++)
        sigaction(signals[i], &action, &old[i]);
}

static void release_all(const struct sigaction *old) {
    stack_t none = {.ss_flags = SS_DISABLE};
    for (size_t i = 0; i < SIGNALS; i++)
        sigaction(signals[i], &old[i], NULL);
    sigaltstack(&none, NULL);
}

static void mix_fault(void) {
    mix((uint64_t)last_signal);
    mix((uint64_t)(uint32_t)last_code);
    mix(last_address - (uint64_t)area);
    mix((uint64_t)last_regs[REG_ERR]);
    mix((uint64_t)last_regs[REG_TRAPNO]);
}

/* As `mix_fault`, for an instruction that reads what it writes: a translator reads first, so the
 * error code says so. */
static void mix_read_write_fault(void) {
    last_regs[REG_ERR] = 0;
    mix_fault();
}

#define EXPECT_FAULT(...)                                                                          \
    do {                                                                                           \
        last_signal = 0;                                                                           \
        if (!sigsetjmp(back, 1)) {                                                                 \
            __VA_ARGS__;                                                                           \
            broken(__FILE__, __LINE__, "no fault: " #__VA_ARGS__);                                 \
        }                                                                                          \
    } while (0)

/* page 0 writable, 1 read-only and present, 2 closed, 3 writable, 4 read-only never touched */
static void prepare(void) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
    REQUIRE(mmap(area, 5 * PAGE, PROT_READ | PROT_WRITE, flags, -1, 0) == area);
    memset(area, 0x5A, 4 * PAGE);
    mprotect(area + PAGE, PAGE, PROT_READ);
    mprotect(area + 2 * PAGE, PAGE, PROT_NONE);
    mprotect(area + 4 * PAGE, PAGE, PROT_READ);
}

#define STORE(address, text) __asm__ volatile(text : : "D"(address), "a"(0x11ull) : "memory", "cc")

static void kinds(void) {
    uint64_t offset = rnd() % (PAGE - 8);
    EXPECT_FAULT(STORE(area + PAGE + offset, "movb %%al, (%%rdi)"));
    REQUIRE(last_address == (uint64_t)area + PAGE + offset && last_regs[REG_ERR] == 7);
    mix_fault();
    EXPECT_FAULT(STORE(area + 2 * PAGE + offset, "mov (%%rdi), %%rax"));
    REQUIRE(last_address == (uint64_t)area + 2 * PAGE + offset && last_regs[REG_RAX] == 0x11);
    mix_fault();
    EXPECT_FAULT(STORE(area + 4 * PAGE + offset, "incq (%%rdi)"));
    mix_read_write_fault();
    EXPECT_FAULT(STORE(area + 3 * PAGE, "jmp *%%rdi"));
    REQUIRE(last_regs[REG_RIP] == (greg_t)(area + 3 * PAGE) && last_regs[REG_ERR] == 0x15);
    mix_fault();
    EXPECT_FAULT(STORE(area + PAGE + offset, "xor %%eax, %%eax\n\tlock cmpxchg %%rdx, (%%rdi)"));
    mix_fault();
    EXPECT_FAULT(STORE(area + 2 * PAGE + (offset & 0xFF0), "movaps %%xmm0, (%%rdi)"));
    mix_fault();
    EXPECT_FAULT(STORE(area + 2 * PAGE + offset, "fnstenv (%%rdi)"));
    mix_fault();
    EXPECT_FAULT(STORE(0xFFFFFFFF80000000u, "mov (%%rdi), %%al"));
    REQUIRE(last_address == 0xFFFFFFFF80000000u && last_regs[REG_TRAPNO] == 14);
    EXPECT_FAULT(STORE(0x1234567800000000u, "mov (%%rdi), %%al"));
    REQUIRE(last_address == 0 && last_regs[REG_TRAPNO] == 13 && last_regs[REG_ERR] == 0);
}

/* Nothing of a store that straddles into a closed page may be written. */
static void straddling(void) {
    for (unsigned before = 1; before < 8; before++) {
        uint8_t *volatile at = area + PAGE - before;
        memset(at, 0xC3, before);
        EXPECT_FAULT(STORE(at, "movq %%rax, (%%rdi)"));
        REQUIRE(last_address == (uint64_t)area + PAGE);
        for (unsigned i = 0; i < before; i++)
            REQUIRE(at[i] == 0xC3);
        mix_fault();
        at = area + 2 * PAGE - before;
        EXPECT_FAULT(STORE(at, "addq (%%rdi), %%rax"));
        REQUIRE(last_address == (uint64_t)area + 2 * PAGE && last_regs[REG_RAX] == 0x11);
        mix_fault();
    }
}

/* RSP and the other operand stay as they were when the second half of an instruction faults. */
static void precise(void) {
    uint8_t *volatile stack_top = area + 3 * PAGE;
#define ON_STACK(text)                                                                             \
    EXPECT_FAULT(__asm__ volatile("mov %0, %%rsp\n\t" text                                         \
                                  :                                                                \
                                  : "r"(stack_top), "D"(area + 2 * PAGE + 8)                       \
                                  : "memory", "cc", "rax"))
    ON_STACK("push %%rax");
    REQUIRE(last_regs[REG_RSP] == (greg_t)stack_top && last_address == (uint64_t)stack_top - 8);
    mix_fault();
    ON_STACK("call 1f\n\t1:");
    REQUIRE(last_regs[REG_RSP] == (greg_t)stack_top);
    mix_fault();
    stack_top = area + 64;
    memset(area, 0x77, 256);
    ON_STACK("pop (%%rdi)");
    REQUIRE(last_regs[REG_RSP] == (greg_t)stack_top);
    mix_fault();
    ON_STACK("push (%%rdi)");
    REQUIRE(last_regs[REG_RSP] == (greg_t)stack_top && area[56] == 0x77);
    mix_fault();
    ON_STACK("mov $9, %%eax\n\txadd %%rax, (%%rdi)");
    REQUIRE(last_regs[REG_RAX] == 9);
    mix_read_write_fault();
    ON_STACK("mov $9, %%eax\n\txchg %%rax, (%%rdi)");
    REQUIRE(last_regs[REG_RAX] == 9);
    ON_STACK("stc\n\tsbb %%rax, %%rax\n\tadcq $1, (%%rdi)");
    REQUIRE(last_regs[REG_EFL] & FLAG_CF);
}

uint64_t check_faults(unsigned rounds) {
    struct sigaction old[SIGNALS];
    area = mmap(NULL, 5 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    REQUIRE(area != MAP_FAILED);
    catch_all(old);
    for (unsigned i = 0; i < rounds * 30; i++) {
        prepare();
        kinds();
        straddling();
        precise();
    }
    release_all(old);
    munmap(area, 5 * PAGE);
    return digest_end();
}

#define EXPECT_TRAP(number, signal, text)                                                          \
    do {                                                                                           \
        uint64_t here = 0;                                                                         \
        EXPECT_FAULT(__asm__ volatile("lea 1f(%%rip), %%rbx\n\tmov %%rbx, %0\n\t1: " text          \
                                      : "=m"(here)                                                 \
                                      :                                                            \
                                      : "rax", "rbx", "rcx", "rdx", "cc", "memory"));              \
        REQUIRE(last_regs[REG_TRAPNO] == (number) && last_signal == (signal));                     \
        mix((uint64_t)last_regs[REG_RIP] - (uint64_t)last_regs[REG_RBX]);                          \
        mix((uint64_t)last_regs[REG_ERR]);                                                         \
        mix((uint64_t)(uint32_t)last_code);                                                        \
        if (last_signal == SIGILL || last_signal == SIGFPE)                                        \
            REQUIRE(last_address == (uint64_t)last_regs[REG_RIP]);                                 \
    } while (0)

/* Left out: the alignment of SSE operands and EFLAGS.AC, which translators do not check. */
uint64_t check_traps(unsigned rounds) {
    struct sigaction old[SIGNALS];
    catch_all(old);
    for (unsigned i = 0; i < rounds * 40; i++) {
        EXPECT_TRAP(0, SIGFPE, "xor %%ecx, %%ecx\n\tdiv %%rcx");
        EXPECT_TRAP(0, SIGFPE, "mov $-1, %%rcx\n\tmov $1, %%eax\n\tror $1, %%rax\n\tcqo\n\tidiv %%rcx");
        EXPECT_TRAP(0, SIGFPE, "mov $0x8000, %%eax\n\tmov $2, %%cl\n\tdiv %%cl");
        EXPECT_TRAP(3, SIGTRAP, "int3");
        EXPECT_TRAP(6, SIGILL, "ud2");
        EXPECT_TRAP(6, SIGILL, ".byte 0x0f, 0xff, 0xc0");
        EXPECT_TRAP(6, SIGILL, ".byte 0x06");
        EXPECT_TRAP(6, SIGILL, ".byte 0xf0, 0x90, 0x90");
        EXPECT_TRAP(13, SIGSEGV, "hlt");
        EXPECT_TRAP(13, SIGSEGV, "cli");
        EXPECT_TRAP(13, SIGSEGV, "in $0x60, %%al");
        EXPECT_TRAP(13, SIGSEGV, "mov %%cr0, %%rax");
        EXPECT_TRAP(13, SIGSEGV, "wrmsr");
        EXPECT_TRAP(13, SIGSEGV, "int $0x40");
        EXPECT_TRAP(13, SIGSEGV, "mov $0x1003, %%eax\n\tmov %%eax, %%fs");
    }
    release_all(old);
    return digest_end();
}
