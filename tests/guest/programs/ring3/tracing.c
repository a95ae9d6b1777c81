/* Single steps and breakpoints: of oneself by EFLAGS.TF, and of a child by ptrace. */
#define _GNU_SOURCE
#include "ring3.h"

#include <errno.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

static volatile unsigned steps;
static volatile uint64_t path, step_base;
static uint8_t step_stack[32 * 1024] __attribute__((aligned(16)));

static void step(int number, siginfo_t *info, void *context) {
    const ucontext_t *uc = context;
    (void)number;
    steps++;
    path = path * 31 + ((uint64_t)uc->uc_mcontext.gregs[REG_RIP] - step_base);
    path = path * 31 + (uint64_t)info->si_code + (uint64_t)uc->uc_mcontext.gregs[REG_TRAPNO] * 256;
}

extern const uint8_t stepped_end[];
uint64_t stepped(uint64_t how, void *scratch);
/* Loops, calls, strings, a system call, an interrupt shadow and changes of flags, all stepped. */
__asm__(".text\n"
        "stepped:\n"
        "    push %rbx\n"
        "    mov %rsi, %rbx\n"
        "    pushfq\n"
        "    orq $0x100, (%rsp)\n"
        "    popfq\n"
        "stepped_start:\n"
        "    nop\n"
        "    mov $3, %ecx\n"
        "1:  add %rcx, %rax\n"
        "    loop 1b\n"
        "    call 2f\n"
        "    jmp 3f\n"
        "2:  ret\n"
        "3:  mov %rbx, %rdi\n"
        "    mov $4, %ecx\n"
        "    rep stosb\n"
        "    mov $39, %eax\n" /* getpid */
        "    syscall\n"
        "    nop\n"
        "    mov $20, %eax\n" /* getpid, in the 32-bit table */
        "    int $0x80\n"
        "    nop\n"
        "    mov %ss, %edx\n"
        "    mov %edx, %ss\n"
        "    nop\n"
        "    nop\n"
        "    pushfq\n"
        "    popfq\n"
        "    lea 4f(%rip), %rdx\n"
        "    jmp *%rdx\n"
        "    ud2\n"
        "4:  xor %eax, %eax\n"
        "    cpuid\n"
        "    mov $7, %eax\n"
        "    mov %rbx, %rdx\n"
        "    pushfq\n"
        "    andq $~0x100, (%rsp)\n"
        "    popfq\n"
        "    nop\n"
        "    pop %rbx\n"
        "    ret\n");

void ring3_steps(void) {
    extern const uint8_t stepped_start[];
    struct sigaction action = {.sa_flags = SA_SIGINFO | SA_ONSTACK, .sa_sigaction = step}, old;
    stack_t stack = {.ss_sp = step_stack, .ss_size = sizeof step_stack}, before;
    uint64_t scratch[2];
    quiet_begin();
    sigaltstack(&stack, &before);
    sigaction(SIGTRAP, &action, &old);
    step_base = (uint64_t)stepped_start;
    for (int i = 0; i < 10; i++) {
        steps = 0;
        path = 1;
        uint64_t result;
        __asm__ volatile("call stepped" : "=a"(result)
                         : "S"(scratch), "a"(0ull), "D"(0ull)
                         : "rbx", "rcx", "rdx", "r8", "r9", "r10", "r11", "cc", "memory");
        say("%u steps, path %016llx, result %llu", steps, (unsigned long long)path,
            (unsigned long long)result);
    }
    sigaction(SIGTRAP, &old, NULL);
    sigaltstack(&before, NULL);
    quiet_end();
}

/* What a traced child does: stops, then calls `work` until told to end. */
static volatile long traced_value;
static __attribute__((noinline)) long work(long n) {
    long sum = 0;
    for (long i = 0; i < n; i++)
        sum += i * traced_value;
    __asm__ volatile("" : "+r"(sum));
    return sum;
}

static pid_t start_child(void (*body)(void)) {
    pid_t pid = fork();
    REQUIRE(pid >= 0);
    if (pid == 0) {
        ptrace(PTRACE_TRACEME, 0, NULL, NULL);
        raise(SIGSTOP);
        body();
        _exit(0);
    }
    int status = 0;
    REQUIRE(waitpid(pid, &status, 0) == pid && WIFSTOPPED(status));
    return pid;
}

static void work_three_times(void) {
    long sum = 0;
    for (int i = 0; i < 3; i++)
        sum += work(5);
    _exit((int)sum & 127);
}

static int go_on(int request, pid_t pid) {
    int status = 0;
    REQUIRE(ptrace(request, pid, NULL, NULL) == 0);
    REQUIRE(waitpid(pid, &status, 0) == pid);
    return status;
}

/* INT3 put into a child's code, its registers and memory read and written. */
void ring3_breakpoints(void) {
    traced_value = 2;
    pid_t pid = start_child(work_three_times);
    uint64_t at = (uint64_t)work;
    errno = 0;
    long original = ptrace(PTRACE_PEEKTEXT, pid, at, NULL);
    REQUIRE(errno == 0);
    REQUIRE(ptrace(PTRACE_POKETEXT, pid, at, (original & ~0xFFl) | 0xCC) == 0);
    for (int hit = 0; hit < 3; hit++) {
        struct user_regs_struct regs;
        struct user_fpregs_struct fpregs;
        siginfo_t info;
        int status = go_on(PTRACE_CONT, pid);
        REQUIRE(ptrace(PTRACE_GETREGS, pid, NULL, &regs) == 0);
        REQUIRE(ptrace(PTRACE_GETFPREGS, pid, NULL, &fpregs) == 0);
        REQUIRE(ptrace(PTRACE_GETSIGINFO, pid, NULL, &info) == 0);
        say("hit %d: status %#x ip %+lld argument %lld code %d mxcsr %#x", hit, (unsigned)status,
            (long long)(regs.rip - at), (long long)regs.rdi, info.si_code, fpregs.mxcsr);
        regs.rip = at;
        regs.rdi += (unsigned long long)hit;
        REQUIRE(ptrace(PTRACE_SETREGS, pid, NULL, &regs) == 0);
        REQUIRE(ptrace(PTRACE_POKEDATA, pid, &traced_value, (long)hit + 1) == 0);
        REQUIRE(ptrace(PTRACE_POKETEXT, pid, at, original) == 0);
        status = go_on(PTRACE_SINGLESTEP, pid);
        REQUIRE(ptrace(PTRACE_GETREGS, pid, NULL, &regs) == 0);
        say("    stepped: status %#x, moved %s, TF %u", (unsigned)status,
            regs.rip > at && regs.rip < at + 16 ? "on" : "away", (unsigned)(regs.eflags >> 8 & 1));
        REQUIRE(ptrace(PTRACE_POKETEXT, pid, at, (original & ~0xFFl) | 0xCC) == 0);
    }
    REQUIRE(ptrace(PTRACE_POKETEXT, pid, at, original) == 0);
    say("ended: %#x", (unsigned)go_on(PTRACE_CONT, pid));
    say("own copy: %ld %ld", traced_value, work(5));
}

static void calls(void) {
    for (int i = 0; i < 3; i++)
        syscall(SYS_getppid, 11, 22, 33);
    __asm__ volatile("ud2");
    _exit(3);
}

/* System calls of a child watched, changed, and its signals swallowed; then steps, all counted. */
void ring3_tracing(void) {
    pid_t pid = start_child(calls);
    REQUIRE(ptrace(PTRACE_SETOPTIONS, pid, NULL, PTRACE_O_TRACESYSGOOD) == 0);
    for (int stop = 0; stop < 5; stop++) {
        struct user_regs_struct regs;
        int status = go_on(PTRACE_SYSCALL, pid);
        REQUIRE(ptrace(PTRACE_GETREGS, pid, NULL, &regs) == 0);
        if (regs.orig_rax != SYS_getppid) {
            stop--;
            continue;
        }
        say("stop %d: status %#x call %lld argument %lld rax %s", stop, (unsigned)status,
            (long long)regs.orig_rax, (long long)regs.rsi,
            (long long)regs.rax == -ENOSYS ? "-ENOSYS" : "a pid");
        if (stop == 2) {
            regs.orig_rax = 0xFFFF;
            REQUIRE(ptrace(PTRACE_SETREGS, pid, NULL, &regs) == 0);
        }
    }
    int status = go_on(PTRACE_CONT, pid);
    struct user_regs_struct regs;
    REQUIRE(ptrace(PTRACE_GETREGS, pid, NULL, &regs) == 0);
    say("ud2: status %#x", (unsigned)status);
    regs.rip += 2;
    REQUIRE(ptrace(PTRACE_SETREGS, pid, NULL, &regs) == 0);
    say("swallowed: %#x", (unsigned)go_on(PTRACE_CONT, pid));
    /* The whole of work(5), step by step. */
    traced_value = 2;
    pid = start_child(work_three_times);
    long original = ptrace(PTRACE_PEEKTEXT, pid, work, NULL);
    REQUIRE(ptrace(PTRACE_POKETEXT, pid, work, (original & ~0xFFl) | 0xCC) == 0);
    go_on(PTRACE_CONT, pid);
    REQUIRE(ptrace(PTRACE_POKETEXT, pid, work, original) == 0);
    REQUIRE(ptrace(PTRACE_GETREGS, pid, NULL, &regs) == 0);
    regs.rip = (uint64_t)work;
    REQUIRE(ptrace(PTRACE_SETREGS, pid, NULL, &regs) == 0);
    uint64_t places = 0, end = regs.rsp;
    unsigned count = 0;
    while (regs.rsp <= end && count < 1000) {
        REQUIRE(go_on(PTRACE_SINGLESTEP, pid) == (SIGTRAP << 8 | 0x7F));
        REQUIRE(ptrace(PTRACE_GETREGS, pid, NULL, &regs) == 0);
        if (regs.rsp <= end)
            places = places * 31 + regs.rip - (uint64_t)work;
        count++;
    }
    say("%u steps, %016llx, result %lld", count, (unsigned long long)places, (long long)regs.rax);
    REQUIRE(kill(pid, SIGKILL) == 0 && waitpid(pid, &status, 0) == pid);
    say("killed: %#x", (unsigned)status);
}

#define DEBUG_REGISTER(n) offsetof(struct user, u_debugreg[n])

static void write_three_times(void) {
    for (long i = 1; i < 4; i++)
        traced_value = i * 10;
    _exit(work(2) == 30 ? 7 : 8);
}

/* Runs to the end with debug register 0 on write_three_times' variable or on its function. */
static void watch(uint64_t address, unsigned long control) {
    traced_value = 0;
    pid_t pid = start_child(write_three_times);
    REQUIRE(ptrace(PTRACE_POKEUSER, pid, DEBUG_REGISTER(0), address) == 0);
    REQUIRE(ptrace(PTRACE_POKEUSER, pid, DEBUG_REGISTER(7), control) == 0);
    for (int hit = 0; hit < 5; hit++) {
        int status = go_on(PTRACE_CONT, pid);
        if (!WIFSTOPPED(status)) {
            say("ended: %#x", (unsigned)status);
            return;
        }
        errno = 0;
        long value = ptrace(PTRACE_PEEKDATA, pid, &traced_value, NULL);
        long dr6 = ptrace(PTRACE_PEEKUSER, pid, DEBUG_REGISTER(6), NULL);
        say("hit %d: status %#x value %ld, by %ld", hit, (unsigned)status, value, dr6 & 0xF);
    }
    int status;
    kill(pid, SIGKILL);
    waitpid(pid, &status, 0);
}

/* A breakpoint by debug register. */
void ring3_watch(void) { watch((uint64_t)work, 0x1); }

/* A watchpoint: on writes of 8 bytes. */
void ring3_exact_watch(void) { watch((uint64_t)&traced_value, 0x00090001); }
