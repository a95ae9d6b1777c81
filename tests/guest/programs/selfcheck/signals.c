/* Signals that interrupt a computation, alternate stacks, and single steps by TF. */
#define _GNU_SOURCE
#include "check.h"

#include <signal.h>
#include <string.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

static volatile unsigned handled;
static volatile uint64_t handler_sp;
static uint8_t alternate[32 * 1024] __attribute__((aligned(16)));

/* Spoils every register file; the kernel has to give it back. */
static void spoil(int number, siginfo_t *info, void *context) {
    uint64_t here;
    (void)number, (void)info, (void)context;
    __asm__ volatile("fninit\n\tfldz\n\tfld1\n\tpcmpeqb %%xmm0, %%xmm0\n\tmovdqa %%xmm0, %%xmm3\n\t"
                     "movdqa %%xmm0, %%xmm9\n\tmov %%rsp, %0\n\tstd\n\tcld\n\tstc"
                     : "=r"(here)
                     :
                     : "xmm0", "xmm3", "xmm9", "cc", "memory");
    handler_sp = here;
    handled = handled + 1;
}

static void handle(int number, int flags, struct sigaction *old) {
    struct sigaction action = {.sa_flags = SA_SIGINFO | flags, .sa_sigaction = spoil};
    REQUIRE(sigaction(number, &action, old) == 0);
}

/* All sixteen registers, flags, x87 and SSE at work; the answer depends on each of them. */
static uint64_t compute(uint64_t seed, uint64_t turns) {
    uint64_t answer;
    __asm__ volatile("push %%rbp\n\t"
                     "mov %%rdi, %%rax\n\tmov %%rsi, %%rcx\n\t"
                     "lea 1(%%rax), %%rbx\n\tlea 2(%%rax), %%rdx\n\tlea 3(%%rax), %%rsi\n\t"
                     "lea 4(%%rax), %%rdi\n\tlea 5(%%rax), %%rbp\n\tlea 6(%%rax), %%r8\n\t"
                     "lea 7(%%rax), %%r9\n\tlea 8(%%rax), %%r10\n\tlea 9(%%rax), %%r11\n\t"
                     "lea 10(%%rax), %%r12\n\tlea 11(%%rax), %%r13\n\tlea 12(%%rax), %%r14\n\t"
                     "lea 13(%%rax), %%r15\n\t"
                     "movq %%rax, %%xmm0\n\tmovq %%rbx, %%xmm3\n\tmovq %%rdx, %%xmm9\n\t"
                     "fninit\n\tfld1\n\tfldz\n\t"
                     "1:\n\t"
                     "add %%rbx, %%rax\n\tadc %%rdx, %%rbx\n\tsbb %%rsi, %%rdx\n\t"
                     "rcl $3, %%rsi\n\txor %%rdi, %%rsi\n\tadc %%rbp, %%rdi\n\tror $7, %%rbp\n\t"
                     "imul %%r8, %%rbp\n\tadd %%r9, %%r8\n\txor %%r10, %%r9\n\tsub %%r11, %%r10\n\t"
                     "rol $11, %%r11\n\tadd %%r12, %%r11\n\txor %%r13, %%r12\n\tadd %%r14, %%r13\n\t"
                     "bswap %%r14\n\tsub %%r15, %%r14\n\tlea 1(%%rax,%%r15), %%r15\n\t"
                     "paddq %%xmm3, %%xmm0\n\tpshufd $0x4e, %%xmm0, %%xmm3\n\tpxor %%xmm9, %%xmm3\n\t"
                     "paddq %%xmm0, %%xmm9\n\tfadd %%st(1), %%st\n\t"
                     "dec %%rcx\n\tjnz 1b\n\t"
                     "fistpll -64(%%rsp)\n\tfstp %%st(0)\n\tadd -64(%%rsp), %%rax\n\t"
                     "xor %%rbx, %%rax\n\txor %%rdx, %%rax\n\txor %%rsi, %%rax\n\txor %%rdi, %%rax\n\t"
                     "xor %%rbp, %%rax\n\txor %%r8, %%rax\n\txor %%r9, %%rax\n\txor %%r10, %%rax\n\t"
                     "xor %%r11, %%rax\n\txor %%r12, %%rax\n\txor %%r13, %%rax\n\txor %%r14, %%rax\n\t"
                     "xor %%r15, %%rax\n\tmovq %%xmm0, %%rbx\n\txor %%rbx, %%rax\n\t"
                     "movq %%xmm9, %%rbx\n\txor %%rbx, %%rax\n\tpop %%rbp"
                     : "=&a"(answer), "+D"(seed), "+S"(turns)
                     :
                     : "rbx", "rcx", "rdx", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
                       "xmm0", "xmm3", "xmm9", "cc", "memory");
    return answer;
}

uint64_t check_signals(unsigned rounds) {
    struct sigaction old;
    stack_t stack = {.ss_sp = alternate, .ss_size = sizeof alternate}, none = {.ss_flags = SS_DISABLE};
    handle(SIGUSR1, 0, &old);
    handled = 0;
    for (unsigned i = 0; i < rounds * 500; i++) {
        uint64_t x = rnd();
        kill(getpid(), SIGUSR1);
        REQUIRE(handled == i + 1);
        mix(compute(x, 5));
    }
    handle(SIGUSR1, SA_ONSTACK, NULL);
    REQUIRE(sigaltstack(&stack, NULL) == 0);
    raise(SIGUSR1);
    REQUIRE(handler_sp > (uint64_t)alternate && handler_sp < (uint64_t)alternate + sizeof alternate);
    sigaltstack(&none, NULL);
    /* Blocked signals wait and come once. */
    sigset_t blocked, previous;
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGUSR1);
    sigprocmask(SIG_BLOCK, &blocked, &previous);
    unsigned before = handled;
    raise(SIGUSR1);
    raise(SIGUSR1);
    REQUIRE(handled == before);
    sigprocmask(SIG_SETMASK, &previous, NULL);
    REQUIRE(handled == before + 1);
    sigaction(SIGUSR1, &old, NULL);
    return digest_end();
}

/* A timer every millisecond; each run of the computation must give what it gave undisturbed. */
uint64_t check_timers(unsigned rounds) {
    struct itimerval often = {{0, 1000}, {0, 1000}}, never = {{0, 0}, {0, 0}};
    struct sigaction old, old_virtual;
    uint64_t wanted = compute(0x1357, 20000);
    mix(wanted);
    handle(SIGALRM, SA_RESTART, &old);
    handle(SIGVTALRM, SA_RESTART, &old_virtual);
    handled = 0;
    setitimer(ITIMER_REAL, &often, NULL);
    setitimer(ITIMER_VIRTUAL, &often, NULL);
    for (unsigned runs = 0; handled < rounds * 20 || runs < 20; runs++)
        REQUIRE(compute(0x1357, 20000) == wanted);
    setitimer(ITIMER_REAL, &never, NULL);
    setitimer(ITIMER_VIRTUAL, &never, NULL);
    sigaction(SIGALRM, &old, NULL);
    sigaction(SIGVTALRM, &old_virtual, NULL);
    return digest_end();
}

static volatile unsigned steps;
static volatile uint64_t step_digest;
static uint64_t step_base;

static void step(int number, siginfo_t *info, void *context) {
    const ucontext_t *uc = context;
    (void)number;
    uint64_t offset = (uint64_t)uc->uc_mcontext.gregs[REG_RIP] - step_base;
    if (info->si_code != TRAP_TRACE || uc->uc_mcontext.gregs[REG_TRAPNO] != 1)
        broken(__FILE__, __LINE__, "a trap that is no single step");
    steps = steps + 1;
    step_digest = step_digest * 31 + (offset ^ (uint64_t)uc->uc_mcontext.gregs[REG_RCX] << 20);
}

uint64_t check_steps(unsigned rounds) {
    struct sigaction action = {.sa_flags = SA_SIGINFO, .sa_sigaction = step}, old;
    uint8_t from[16] = {1, 2, 3, 4, 5}, to[16];
    sigaction(SIGTRAP, &action, &old);
    for (unsigned i = 0; i < rounds * 20; i++) {
        uint64_t result;
        steps = 0;
        __asm__ volatile("lea 1f(%%rip), %%rax\n\tmov %%rax, %[base]\n\t"
                         "pushfq\n\torq $0x100, (%%rsp)\n\tpopfq\n\t"
                         "1: mov $5, %%ecx\n\t"
                         "2: add %%rcx, %%rax\n\tpush %%rax\n\tpop %%rdx\n\tloop 2b\n\t"
                         "mov $5, %%ecx\n\tcall 3f\n\tjmp 4f\n\t3: ret\n\t4:\n\t"
                         "rep movsb\n\t"
                         "pushfq\n\tandq $~0x100, (%%rsp)\n\tpopfq\n\tmov %%rdx, %[r]\n\t"
                         "sub %[base], %[r]"
                         : [base] "+m"(step_base), [r] "=&r"(result)
                         : "S"(from), "D"(to)
                         : "rax", "rcx", "rdx", "cc", "memory");
        mix(steps);
        mix(step_digest);
        mix(result);
        REQUIRE(to[4] == 5);
    }
    sigaction(SIGTRAP, &old, NULL);
    return digest_end();
}
