/* Handlers that change what they return to, on stacks of their own, one inside the other. */
#define _GNU_SOURCE
#include "ring3.h"

#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

static uint8_t *area;
static volatile unsigned fixed;

static struct sigaction taken(int number, void (*handler)(int, siginfo_t *, void *), int flags) {
    struct sigaction action = {.sa_flags = SA_SIGINFO | flags, .sa_sigaction = handler}, old;
    REQUIRE(sigaction(number, &action, &old) == 0);
    return old;
}

/* Opens the page that the fault names: what a garbage collector or a debugger does. */
static void open_page(int number, siginfo_t *info, void *context) {
    uint64_t page = (uint64_t)info->si_addr & ~(PAGE - 1);
    (void)number, (void)context;
    if (page < (uint64_t)area || page >= (uint64_t)area + 32 * PAGE)
        broken(__FILE__, __LINE__, "a fault somewhere else");
    REQUIRE(mprotect((void *)page, PAGE, PROT_READ | PROT_WRITE) == 0);
    fixed++;
}

void ring3_fixups(void) {
    area = mmap(NULL, 32 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    REQUIRE(area != MAP_FAILED);
    struct sigaction old = taken(SIGSEGV, open_page, SA_ONSTACK);
    uint64_t sum = 0;
    for (unsigned turn = 0; turn < 8; turn++) {
        fixed = 0;
        mprotect(area, 32 * PAGE, turn & 1 ? PROT_READ : PROT_NONE);
        for (unsigned i = 0; i < 32; i++)
            area[i * PAGE + turn] += (uint8_t)(i + turn);
        sum = sum * 31 + digest(area, 32 * PAGE);
        say("turn %u: %u pages opened", turn, fixed);
        /* One instruction, many faults: each is repaired and the copy goes on. */
        mprotect(area + 8 * PAGE, 16 * PAGE, PROT_NONE);
        fixed = 0;
        void *to = area + 16 * PAGE, *from = area + 8 * PAGE;
        uint64_t count = 8 * PAGE;
        __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(count) : : "memory");
        say("    a copy: %u pages opened, %llu left", fixed, (unsigned long long)count);
        sum = sum * 31 + digest(area, 32 * PAGE);
    }
    say("sum %016llx", (unsigned long long)sum);
    sigaction(SIGSEGV, &old, NULL);
    munmap(area, 32 * PAGE);
}

/* Steps over an instruction of two bytes and leaves its own values in the registers. */
static void edit(int number, siginfo_t *info, void *context) {
    ucontext_t *uc = context;
    (void)info;
    uc->uc_mcontext.gregs[REG_RIP] += 2;
    uc->uc_mcontext.gregs[REG_RAX] = number;
    uc->uc_mcontext.gregs[REG_R12] ^= 0x1234567890ABCDEF;
    uc->uc_mcontext.gregs[REG_EFL] |= 1;
    uc->uc_mcontext.fpregs->_xmm[7].element[2] = 0xCAFE;
    uc->uc_mcontext.fpregs->mxcsr ^= 0x2000;
    uc->uc_mcontext.fpregs->_st[0].significand[3] ^= 0x4000;
    fixed++;
}

void ring3_contexts(void) {
    struct sigaction old[3] = {taken(SIGILL, edit, SA_ONSTACK), taken(SIGSEGV, edit, SA_ONSTACK),
                               taken(SIGFPE, edit, SA_ONSTACK)};
#define EDITED(name, text)                                                                         \
    do {                                                                                           \
        uint64_t rax = 77, flags;                                                                  \
        register uint64_t r12 __asm__("r12") = 5;                                                  \
        uint32_t vector[4] = {1, 2, 3, 4}, mxcsr = 0x1F80, wanted = 0x1F80;                        \
        double st = 0;                                                                             \
        __asm__ volatile("ldmxcsr %6\n\tmovups %3, %%xmm7\n\tfninit\n\tfld1\n\t"                   \
                         "xor %%edx, %%edx\n\txor %%ecx, %%ecx\n\tclc\n\t" text "\n\t"            \
                         "pushfq\n\tpop %2\n\tfstpl %5\n\tmovups %%xmm7, %3\n\tstmxcsr %4\n\t"     \
                         "ldmxcsr %6"                                                              \
                         : "+a"(rax), "+r"(r12), "=&b"(flags), "+m"(vector), "+m"(mxcsr),          \
                           "+m"(st)                                                                \
                         : "m"(wanted)                                                             \
                         : "rcx", "rdx", "xmm7", "st", "st(1)", "st(2)", "st(3)", "st(4)",         \
                           "st(5)", "st(6)", "st(7)", "cc", "memory");                             \
        say("%s: rax %llu r12 %#llx carry %u xmm7 %x mxcsr %#x st %g", name,                       \
            (unsigned long long)rax, (unsigned long long)r12, (unsigned)flags & 1, vector[2],      \
            mxcsr, st);                                                                            \
    } while (0)
    EDITED("ud2", "ud2");
    EDITED("in", "insl\n\tnop");
    EDITED("load", "movb (%%rcx), %%al");
    EDITED("division", "divl %%ecx");
    for (unsigned i = fixed = 0; i < 200; i++)
        __asm__ volatile("ud2" : : : "rax", "r12", "cc", "xmm7", "memory");
    say("%u edits", fixed);
    static const int numbers[] = {SIGILL, SIGSEGV, SIGFPE};
    for (int i = 0; i < 3; i++)
        sigaction(numbers[i], &old[i], NULL);
    /* The signal's own data. */
    sigset_t wanted, before;
    siginfo_t info;
    sigemptyset(&wanted);
    sigaddset(&wanted, SIGUSR2);
    sigprocmask(SIG_BLOCK, &wanted, &before);
    sigqueue(getpid(), SIGUSR2, (union sigval){.sival_int = 4711});
    int got;
    while ((got = sigwaitinfo(&wanted, &info)) < 0)
        ;
    say("waited for %s, value %d, code %d", signal_name(got), info.si_value.sival_int,
        info.si_code);
    sigprocmask(SIG_SETMASK, &before, NULL);
}

static volatile unsigned depth, deepest;
static volatile uint64_t stack_low, stack_high;

static void inner(int number, siginfo_t *info, void *context) {
    uint8_t here;
    (void)number, (void)info, (void)context;
    REQUIRE((uint64_t)&here > stack_low && (uint64_t)&here < stack_high);
    depth++;
    if (depth > deepest)
        deepest = depth;
    if (depth < 12) {
        if (depth & 1)
            raise(SIGUSR2);
        else
            __asm__ volatile("ud2" : : : "memory");
    }
    depth--;
    ucontext_t *uc = context;
    if (number == SIGILL)
        uc->uc_mcontext.gregs[REG_RIP] += 2;
}

/* A dozen handlers deep on an alternate stack, then an exit from the middle. */
void ring3_nested(void) {
    static uint8_t stack_memory[256 * 1024] __attribute__((aligned(16)));
    stack_t stack = {.ss_sp = stack_memory, .ss_size = sizeof stack_memory}, before, during;
    stack_low = (uint64_t)stack_memory;
    stack_high = stack_low + sizeof stack_memory;
    REQUIRE(sigaltstack(&stack, &before) == 0);
    struct sigaction ill = taken(SIGILL, inner, SA_ONSTACK | SA_NODEFER);
    struct sigaction usr = taken(SIGUSR2, inner, SA_ONSTACK | SA_NODEFER);
    for (unsigned i = 0; i < 20; i++) {
        depth = deepest = 0;
        raise(SIGUSR2);
        REQUIRE(depth == 0);
    }
    say("%u deep", deepest);
    sigaltstack(NULL, &during);
    say("stack flags %d", during.ss_flags);
    sigaction(SIGILL, &ill, NULL);
    sigaction(SIGUSR2, &usr, NULL);
    REQUIRE(sigaltstack(&before, NULL) == 0);
    /* A handler whose stack cannot hold its frame ends the process by SIGSEGV. */
    pid_t pid = fork();
    REQUIRE(pid >= 0);
    if (pid == 0) {
        struct sigaction plain = {.sa_handler = SIG_DFL};
        sigaction(SIGSEGV, &plain, NULL);
        taken(SIGUSR2, inner, 0);
        __asm__ volatile("mov %0, %%rsp\n\tsyscall"
                         :
                         : "r"(0x1000ull), "a"((uint64_t)SYS_kill), "D"((uint64_t)getpid()),
                           "S"((uint64_t)SIGUSR2)
                         : "rcx", "r11", "memory");
        _exit(1);
    }
    int status = 0;
    while (syscall(SYS_wait4, pid, &status, 0, NULL) != pid)
        ;
    say("no stack: status %#x", (unsigned)status & 0x7F);
}
