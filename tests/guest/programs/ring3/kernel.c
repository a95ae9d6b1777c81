/* Doors that a kernel keeps for programs: vsyscall, clocks, and new processes of every kind. */
#define _GNU_SOURCE
#include "ring3.h"

#include <cpuid.h>
#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define VSYSCALL 0xFFFFFFFFFF600000ul

/* The page at the top that the kernel emulates: it can be called, at three places, and that is
 * all (the default of kernels since 5.2, "xonly"). */
void ring3_vsyscall(void) {
    int (*get_time_of_day)(struct timeval *, void *) = (int (*)(struct timeval *, void *))VSYSCALL;
    time_t (*get_time)(time_t *) = (time_t(*)(time_t *))(VSYSCALL + 0x400);
    long (*get_cpu)(unsigned *, unsigned *, void *) =
        (long (*)(unsigned *, unsigned *, void *))(VSYSCALL + 0x800);
    struct timeval before = {0}, now = {0}, after;
    for (int i = 0; i < 50; i++) {
        gettimeofday(&before, NULL);
        int result = get_time_of_day(&now, NULL);
        gettimeofday(&after, NULL);
        REQUIRE(result == 0 && !timercmp(&now, &before, <) && !timercmp(&now, &after, >));
        time_t seconds = get_time(NULL);
        gettimeofday(&after, NULL);
        /* That clock moves in ticks. */
        REQUIRE(seconds >= before.tv_sec - 1 && seconds <= after.tv_sec);
    }
    unsigned cpu = ~0u;
    long result = get_cpu(&cpu, NULL, NULL);
    say("gettimeofday agrees, getcpu %ld %s", result, cpu < 4096 ? "a CPU" : "?");
    TRY((void)get_time_of_day((struct timeval *)8, NULL));
    say("gettimeofday to a bad pointer: %s", signal_name(caught.signal));
    static const unsigned offsets[] = {1, 7, 9, 0x3FF, 0x401, 0x7FF, 0xC00, 0xFFF};
    for (size_t i = 0; i < sizeof offsets / sizeof *offsets; i++) {
        TRY(__asm__ volatile("call *%0" : : "r"(VSYSCALL + offsets[i]) : "rax", "rcx", "r11", "memory"));
        /* Trap and error code are those of whatever trap came before. */
        say("at +%#x call: %s", offsets[i], signal_name(caught.signal));
        TRY((void)*(volatile uint8_t *)(VSYSCALL + offsets[i]));
        say_caught("    load", VSYSCALL);
        TRY(*(volatile uint8_t *)(VSYSCALL + offsets[i]) = 1);
        say_caught("    store", VSYSCALL);
    }
}

static uint64_t tsc(void) {
    uint32_t low, high;
    __asm__ volatile("lfence\n\trdtsc\n\tlfence" : "=a"(low), "=d"(high) : : "memory");
    return (uint64_t)high << 32 | low;
}

/* No clock runs backwards, whoever looks; CPUID answers the same each time. */
void ring3_clocks(void) {
    struct shared {
        volatile uint64_t tsc, backwards;
        volatile int64_t mono;
        uint32_t turn;
    } *shared = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    REQUIRE(shared != MAP_FAILED);
    pid_t pid = fork();
    REQUIRE(pid >= 0);
    for (uint32_t i = pid == 0; i < 100; i += 2) {
        turn_wait(&shared->turn, i);
        struct timespec now;
        for (int n = 0; n < 20; n++) {
            uint64_t ticks = tsc();
            clock_gettime(CLOCK_MONOTONIC, &now);
            int64_t mono = now.tv_sec * 1000000000ll + now.tv_nsec;
            shared->backwards += ticks < shared->tsc;
            shared->backwards += mono < shared->mono;
            shared->tsc = ticks;
            shared->mono = mono;
        }
        turn_pass(&shared->turn);
    }
    if (pid == 0)
        _exit(0);
    REQUIRE(waitpid(pid, NULL, 0) == pid);
    say("%llu times backwards", (unsigned long long)shared->backwards);
    struct timespec a, b;
    clock_gettime(CLOCK_MONOTONIC, &a);
    syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &b);
    say("the vdso and the kernel %s", b.tv_sec - a.tv_sec <= 5 && (b.tv_sec > a.tv_sec || (b.tv_sec == a.tv_sec && b.tv_nsec >= a.tv_nsec)) ? "agree" : "differ");
    munmap(shared, PAGE);
    uint32_t first[4], again[4];
    __cpuid(0, first[0], first[1], first[2], first[3]);
    for (int i = 0; i < 20; i++) {
        __cpuid(0, again[0], again[1], again[2], again[3]);
        REQUIRE(!memcmp(first, again, sizeof first));
    }
    __cpuid(1, again[0], again[1], again[2], again[3]);
    /* FPU, TSC, CX8, CMOV, MMX, FXSR, SSE, SSE2: what every x86-64 has. */
    say("baseline %s", (again[3] & 0x07808111) == 0x07808111 ? "whole" : "not whole");
    uint64_t rax = ~0ull, rbx = ~0ull, rcx = ~0ull, rdx = ~0ull;
    rax = 0xFFFFFFFF00000000;
    rcx = 0xFFFFFFFF00000000;
    __asm__ volatile("cpuid" : "+a"(rax), "+b"(rbx), "+c"(rcx), "+d"(rdx));
    say("upper halves %llx %llx %llx %llx", (unsigned long long)rax >> 32,
        (unsigned long long)rbx >> 32, (unsigned long long)rcx >> 32, (unsigned long long)rdx >> 32);
}

static int clone_body(void *argument) {
    *(volatile int *)argument += 5;
    return *(volatile int *)argument;
}

/* vfork is kept apart: its child runs on this very stack frame. */
static __attribute__((noinline)) int vforked(volatile int *variable) {
    pid_t pid = vfork();
    if (pid == 0) {
        *variable = 42;
        _exit(9);
    }
    int status = -1;
    REQUIRE(pid > 0 && waitpid(pid, &status, 0) == pid);
    return WEXITSTATUS(status);
}

void ring3_forks(void) {
    static uint8_t stack[64 * 1024] __attribute__((aligned(16)));
    volatile int variable = 1;
    int status = -1;
    quiet_begin();
    say("vfork %d, the variable is %d", vforked(&variable), variable);
    variable = 1;
    pid_t pid = clone(clone_body, stack + sizeof stack, SIGCHLD, (void *)(uint64_t)&variable);
    REQUIRE(pid > 0 && waitpid(pid, &status, 0) == pid);
    say("clone %d, the variable is %d", WEXITSTATUS(status), variable);
    pid = clone(clone_body, stack + sizeof stack, SIGCHLD | CLONE_VM | CLONE_FILES,
                (void *)(uint64_t)&variable);
    REQUIRE(pid > 0 && waitpid(pid, &status, 0) == pid);
    say("clone with shared memory %d, the variable is %d", WEXITSTATUS(status), variable);
    quiet_end();
    /* A family of 3 x 3, all exiting with sums. */
    pid = fork();
    REQUIRE(pid >= 0);
    if (pid == 0) {
        int sum = 0;
        for (int i = 0; i < 3; i++) {
            pid_t child = fork();
            if (child == 0) {
                int inner = i;
                for (int j = 0; j < 3; j++) {
                    pid_t grandchild = fork();
                    if (grandchild == 0)
                        _exit(i * 3 + j);
                    waitpid(grandchild, &status, 0);
                    inner += WEXITSTATUS(status);
                }
                _exit(inner);
            }
            waitpid(child, &status, 0);
            sum += WEXITSTATUS(status);
        }
        _exit(sum);
    }
    REQUIRE(waitpid(pid, &status, 0) == pid);
    say("family %d", WEXITSTATUS(status));
    /* A process that dies of each signal. */
    for (int i = 0; i < 4; i++) {
        pid = fork();
        REQUIRE(pid >= 0);
        if (pid == 0) {
            for (int number = 1; number < 32; number++)
                signal(number, SIG_DFL);
            if (i == 0)
                __asm__ volatile("ud2");
            else if (i == 1)
                __asm__ volatile("movb $1, (%0)" : : "r"(8ull) : "memory");
            else if (i == 2)
                __asm__ volatile("int3");
            else
                __asm__ volatile("xor %%ecx, %%ecx\n\tdivl %%ecx" : : "a"(1), "d"(0) : "rcx", "cc");
            _exit(0);
        }
        REQUIRE(waitpid(pid, &status, 0) == pid);
        say("died of %s", WIFSIGNALED(status) ? signal_name(WTERMSIG(status)) : "nothing");
    }
}
