/* Signal frames that no kernel wrote. */
#define _GNU_SOURCE
#include "attack.h"

#include <asm/prctl.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static int forged_register;
static uint64_t forged_value;

static void forge(int number, siginfo_t *info, void *context) {
    ucontext_t *uc = context;
    (void)number, (void)info;
    uc->uc_mcontext.gregs[forged_register] = (greg_t)forged_value;
}

static void forge_flags(int number, siginfo_t *info, void *context) {
    ucontext_t *uc = context;
    (void)number, (void)info;
    uc->uc_mcontext.gregs[REG_EFL] = (greg_t)forged_value;
}

static void forge_state(int number, siginfo_t *info, void *context) {
    ucontext_t *uc = context;
    (void)number, (void)info;
    uc->uc_mcontext.fpregs = (fpregset_t)forged_value;
}

static void raise_forged(void (*handler)(int, siginfo_t *, void *)) {
    struct sigaction action = {.sa_flags = SA_SIGINFO, .sa_sigaction = handler};
    sigaction(SIGUSR2, &action, NULL);
    raise(SIGUSR2);
}
static void with_register(void) {
    raise_forged(forge);
    _exit(7);
}
static void with_state(void) {
    raise_forged(forge_state);
    _exit(7);
}

/* RSP somewhere, and the system call that believes what lies there. */
static void no_frame(void) {
    __asm__ volatile("mov %0, %%rsp\n\tmov $15, %%eax\n\tsyscall" : : "r"(forged_value) : "rax", "rcx", "r11", "memory");
}
static void old_frame(void) {
    __asm__ volatile("mov %0, %%rsp\n\tmov $173, %%eax\n\tint $0x80" : : "r"(forged_value) : "rax", "memory");
}

void attack_frames(void) {
    static const uint64_t selectors[] = {0x0000000000000010, 0x0000000000000008, 0x002B000000000000, 0x002B000000000010,
                                         0x0018000000000010, 0x002B000000000033, 0x002B000000000030, 0x0028000000000030,
                                         0x002B00000000002B, 0x002B00000000FFFF, 0xFFFF000000000033, 0x002B000000000007};
    static const uint64_t addresses[] = {0, 0x1000, 0x7FFFFFFFF000, 0x100000000000000, 0xFFFFFFFF81000000, ~0ull};
    static uint8_t zeros[4096] __attribute__((aligned(64))), ones[4096] __attribute__((aligned(64)));
    memset(ones, 0xFF, sizeof ones);
    forged_register = REG_CSGSFS;
    for (size_t i = 0; i < sizeof selectors / sizeof *selectors; i++) {
        forged_value = selectors[i];
        say("ss %#llx cs %#llx", (unsigned long long)forged_value >> 48, (unsigned long long)forged_value & 0xFFFF);
        say_child("    returned", with_register);
    }
    static const int registers[] = {REG_RIP, REG_RSP};
    for (size_t r = 0; r < 2; r++)
        for (size_t i = 0; i < sizeof addresses / sizeof *addresses; i++) {
            /* A stack that is not canonical: a #SS, which translators take for a #GP. */
            if (r && addresses[i] == 0x100000000000000)
                continue;
            forged_register = registers[r];
            forged_value = addresses[i];
            say("%s %#llx", r ? "rsp" : "rip", (unsigned long long)forged_value);
            say_child("    returned", with_register);
        }
    const uint64_t states[] = {0, 8, (uint64_t)zeros + 1, 0x7FFFFFFFF000, 0xFFFFFFFF81000000, 0x100000000000000};
    for (size_t i = 0; i < sizeof states / sizeof *states; i++) {
        forged_value = states[i];
        say_child("forged floating-point state", with_state);
    }
    /* Reserved bits of MXCSR: a processor refuses them, a translator need not; both go on. */
    forged_value = (uint64_t)ones;
    pid_t pid = fork();
    REQUIRE(pid >= 0);
    if (pid == 0) {
        signal(SIGSEGV, SIG_DFL);
        with_state();
    }
    REQUIRE(waitpid(pid, NULL, 0) == pid);
    const uint64_t frames[] = {0, 16, (uint64_t)zeros + 1024, (uint64_t)ones + 1024, 0x7FFFFFFFF000, 0xFFFFFFFF81000000, 0x100000000000000};
    for (size_t i = 0; i < sizeof frames / sizeof *frames; i++) {
        forged_value = frames[i];
        say_child("no frame", no_frame);
        say_child("no 32-bit frame", old_frame);
    }
    /* Flags: what a program may not have it does not get. */
    struct sigaction action = {.sa_flags = SA_SIGINFO | SA_ONSTACK, .sa_sigaction = forge_flags}, old;
    sigaction(SIGUSR2, &action, &old);
    static const uint64_t flags[] = {0, 0x3000, 0x200, 0x20000, 0x180000, 0x4000, 0x200000, 0x3B7ED7, 0xFFFFFFFF00000000};
    for (size_t i = 0; i < sizeof flags / sizeof *flags; i++) {
        uint64_t seen;
        forged_value = flags[i];
        quiet_begin();
        /* kill(getpid(), SIGUSR2), and the flags just after. */
        __asm__ volatile("syscall\n\tpushfq\n\tpop %0\n\tpush $2\n\tpopfq"
                         : "=r"(seen)
                         : "a"(SYS_kill), "D"((uint64_t)getpid()), "S"((uint64_t)SIGUSR2)
                         : "rcx", "r11", "cc", "memory");
        quiet_end();
        /* Without AC, which translators do not keep, and RF, which they show. */
        say("flags %#llx: %#llx", (unsigned long long)forged_value, (unsigned long long)seen & ~0x50000ull);
    }
    sigaction(SIGUSR2, &old, NULL);
}

static uint64_t to_set;
static void write_gs(void) { __asm__ volatile("wrgsbase %0\n\tmovb %%gs:0, %%al" : : "r"(to_set) : "rax", "memory"); }
static void write_fs(void) { __asm__ volatile("wrfsbase %0\n\tmovb %%fs:0, %%al" : : "r"(to_set) : "rax", "memory"); }

/* Bases that lead into the kernel or nowhere. */
void attack_bases(void) {
    static const uint64_t bases[] = {0x7FFFFFFFF000, 0x100000000000000, 0xFFFFFFFF81000000, ~0ull};
    static const long codes[] = {ARCH_SET_FS, ARCH_SET_GS, ARCH_GET_FS, ARCH_GET_GS};
    for (size_t c = 0; c < 4; c++)
        for (size_t i = 0; i < sizeof bases / sizeof *bases; i++)
            say("arch_prctl %#lx, %#llx: %ld", codes[c], (unsigned long long)bases[i], syscall(SYS_arch_prctl, codes[c], bases[i]));
    say("arch_prctl of nothing: %ld", syscall(SYS_arch_prctl, 0xFFFF, 0));
    /* Without FSGSBASE it is no instruction: refused in any case, and by a signal. */
    for (size_t i = 0; i < sizeof bases / sizeof *bases; i++) {
        to_set = bases[i];
        TRY(write_gs());
        say("wrgsbase %#llx: %s", (unsigned long long)to_set, caught.signal ? "refused" : "taken");
        unsigned long long base = 0;
        syscall(SYS_arch_prctl, ARCH_GET_GS, &base);
        say("    base %#llx", base);
    }
    syscall(SYS_arch_prctl, ARCH_SET_GS, 0);
    for (size_t i = 1; i < sizeof bases / sizeof *bases; i++) {
        to_set = bases[i];
        pid_t before = getpid();
        (void)before;
        say("wrfsbase %#llx", (unsigned long long)to_set);
        say_child("    child", write_fs);
    }
}
