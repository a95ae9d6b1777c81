/* Threads: their own FS and GS bases, futexes, and locks that all of them fight for. */
#define _GNU_SOURCE
#include "ring3.h"

#include <asm/prctl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { THREADS = 6, TURNS = 300 };

static _Thread_local uint64_t mine, mine_too[100];
static volatile uint64_t total;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_barrier_t barrier;

static void *run_thread(void *argument) {
    uint64_t number = (uint64_t)argument;
    uint64_t *gs_area = calloc(4, sizeof *gs_area), errors = 0;
    REQUIRE(gs_area);
    gs_area[1] = number * 1000;
    REQUIRE(syscall(SYS_arch_prctl, ARCH_SET_GS, gs_area) == 0);
    pthread_barrier_wait(&barrier);
    for (uint64_t i = 0; i < TURNS; i++) {
        mine += number + i;
        mine_too[i % 100] ^= number;
        uint64_t through_gs;
        __asm__ volatile("incq %%gs:8\n\tmov %%gs:8, %0" : "=r"(through_gs) : : "cc", "memory");
        errors += through_gs != number * 1000 + i + 1;
        pthread_mutex_lock(&lock);
        total += number;
        pthread_mutex_unlock(&lock);
        if (i % 50 == number)
            sched_yield();
    }
    uint64_t base = 0;
    syscall(SYS_arch_prctl, ARCH_GET_GS, &base);
    errors += base != (uint64_t)gs_area;
    errors += mine != number * TURNS + (uint64_t)TURNS * (TURNS - 1) / 2;
    free(gs_area);
    return (void *)errors;
}

void ring3_threads(void) {
    pthread_t threads[THREADS];
    total = 0;
    pthread_barrier_init(&barrier, NULL, THREADS);
    for (uint64_t i = 0; i < THREADS; i++)
        REQUIRE(pthread_create(&threads[i], NULL, run_thread, (void *)i) == 0);
    for (uint64_t i = 0; i < THREADS; i++) {
        void *errors = NULL;
        REQUIRE(pthread_join(threads[i], &errors) == 0);
        say("thread %llu: %llu errors", (unsigned long long)i, (unsigned long long)(uint64_t)errors);
    }
    say("total %llu", (unsigned long long)total);
    pthread_barrier_destroy(&barrier);
}

static uint64_t read_gs(uint64_t offset) {
    uint64_t value;
    __asm__ volatile("movq %%gs:(%1), %0" : "=r"(value) : "r"(offset));
    return value;
}

/* Segment bases by system call: what they reach, what they refuse, who inherits them. */
void ring3_bases(void) {
    static uint64_t here[4] = {11, 22, 33, 44};
    uint64_t fs, gs;
    REQUIRE(syscall(SYS_arch_prctl, ARCH_GET_FS, &fs) == 0);
    REQUIRE(syscall(SYS_arch_prctl, ARCH_SET_GS, here) == 0);
    uint64_t self;
    __asm__ volatile("movq %%fs:0, %0" : "=r"(self));
    say("fs:0 is %s", self == fs ? "its own base" : "something else");
    say("gs %llu %llu", (unsigned long long)read_gs(0), (unsigned long long)read_gs(24));
    TRY(read_gs(0x7FFFFFFFF000 - (uint64_t)here));
    say_caught("gs to the end", 0);
    TRY(read_gs(0x100000000000000 - (uint64_t)here));
    say_caught("gs into the hole", 0);
    TRY(read_gs(0 - (uint64_t)here));
    say_caught("gs to zero", 0);
    /* 2^47 to 2^55 are a matter of the paging's levels. */
    for (int bit = 46; bit < 64; bit += bit == 46 ? 10 : 1) {
        long result = syscall(SYS_arch_prctl, ARCH_SET_GS, 1ul << bit);
        say("gs base of 2^%d: %s", bit, result ? "refused" : "taken");
        if (result == 0) {
            TRY(read_gs(8));
            say_caught("    load", 0);
        }
    }
    REQUIRE(syscall(SYS_arch_prctl, ARCH_SET_GS, here) == 0);
    pid_t pid = fork();
    REQUIRE(pid >= 0);
    if (pid == 0) {
        here[1] = 99;
        _exit((int)read_gs(8));
    }
    int status = -1;
    REQUIRE(waitpid(pid, &status, 0) == pid);
    say("child read %d, parent %llu", WEXITSTATUS(status), (unsigned long long)read_gs(8));
    here[1] = 22;
    /* A selector loaded, and the base is the descriptor's: zero. */
    __asm__ volatile("mov %0, %%gs" : : "r"(0x2B));
    REQUIRE(syscall(SYS_arch_prctl, ARCH_GET_GS, &gs) == 0);
    TRY(read_gs(0));
    say_caught("gs with the flat segment", 0);
    TRY(say("    reaches %llu", (unsigned long long)read_gs((uint64_t)here)));
    __asm__ volatile("mov %0, %%gs" : : "r"(0));
    REQUIRE(syscall(SYS_arch_prctl, ARCH_SET_GS, 0) == 0);
}

void turn_wait(uint32_t *turn, uint32_t wanted) {
    uint32_t seen;
    while ((seen = __atomic_load_n(turn, __ATOMIC_ACQUIRE)) != wanted)
        syscall(SYS_futex, turn, FUTEX_WAIT, seen, NULL, NULL, 0);
}

void turn_pass(uint32_t *turn) {
    __atomic_fetch_add(turn, 1, __ATOMIC_RELEASE);
    syscall(SYS_futex, turn, FUTEX_WAKE, 2, NULL, NULL, 0);
}

/* Two processes over shared memory: atomics, and a futex that each waits on for the other. */
void ring3_futex(void) {
    enum { ROUNDS = 100 };
    volatile uint32_t *shared = mmap(NULL, PAGE, PROT_READ | PROT_WRITE,
                                     MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    REQUIRE(shared != MAP_FAILED);
    pid_t pid = fork();
    REQUIRE(pid >= 0);
    uint32_t me = pid == 0, *turn = (uint32_t *)(uint64_t)shared, sum = 0;
    for (uint32_t i = 0; i < ROUNDS; i++) {
        turn_wait(turn, i * 2 + me);
        sum = sum * 31 + shared[1];
        shared[1] = shared[1] * 1664525 + me + 7;
        turn_pass(turn);
        for (int n = 0; n < 50; n++) {
            __atomic_fetch_add((uint32_t *)(uint64_t)&shared[2], 1, __ATOMIC_RELAXED);
            __atomic_fetch_xor((uint32_t *)(uint64_t)&shared[3], 1u << (n + me) % 32, __ATOMIC_RELAXED);
        }
    }
    if (pid == 0)
        _exit((int)(sum % 251));
    int status = -1;
    REQUIRE(waitpid(pid, &status, 0) == pid);
    say("turns %u, last %u, sums %u %d, counted %u, bits %u", shared[0], shared[1], sum,
        WEXITSTATUS(status), shared[2], shared[3]);
    struct timespec soon = {0, 2000000};
    syscall(SYS_futex, turn, FUTEX_WAIT, shared[0], &soon, NULL, 0);
    say("a wait that ends by itself");
    munmap((void *)(uint64_t)shared, PAGE);
}
