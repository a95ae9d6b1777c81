/* LOCK-prefixed instructions from several processes over shared memory: no update may be lost,
 * wherever an interrupt, a stop or a switch of processes falls. */
#define _GNU_SOURCE
#include "check.h"

#include <cpuid.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define PROCESSES 4u

struct __attribute__((aligned(64))) shared {
    volatile uint64_t increments, additions, exchanged, spun, plain, xored, turns;
    volatile uint32_t ticket, narrow;
    volatile uint16_t tiny;
    volatile uint8_t bits[64];
    volatile uint32_t spin;
    __attribute__((aligned(16))) volatile uint64_t pair[2];
    __attribute__((aligned(64))) uint8_t straddle[128];
};

static void lock(volatile uint32_t *spin) {
    uint32_t taken = 1;
    for (;;) {
        __asm__ volatile("xchg %0, %1" : "+r"(taken), "+m"(*spin) : : "memory");
        if (!taken)
            return;
        sched_yield();
        taken = 1;
    }
}

static void unlock(volatile uint32_t *spin) {
    __asm__ volatile("movl $0, %0" : "=m"(*spin) : : "memory");
}

static void add_pair(volatile uint64_t *pair, int wide) {
    uint64_t low = pair[0], high = pair[1];
    uint8_t done = 0;
    while (wide && !done)
        __asm__ volatile("lea 1(%%rax), %%rbx\n\tlea 3(%%rdx), %%rcx\n\tlock cmpxchg16b %1\n\tsete %0"
                         : "=q"(done), "+m"(*(volatile __int128 *)pair), "+a"(low), "+d"(high)
                         :
                         : "rbx", "rcx", "cc", "memory");
    while (!wide && !done) {
        uint32_t a = (uint32_t)low, d = (uint32_t)(low >> 32);
        __asm__ volatile("lea 1(%%rax), %%ebx\n\tmov %%edx, %%ecx\n\tlock cmpxchg8b %1\n\tsete %0"
                         : "=q"(done), "+m"(*pair), "+a"(a), "+d"(d)
                         :
                         : "rbx", "rcx", "cc", "memory");
        low = a | (uint64_t)d << 32;
        if (done)
            __asm__ volatile("lock addq $3, %0" : "+m"(pair[1]) : : "cc", "memory");
    }
}

static void work(struct shared *s, unsigned who, unsigned turns, int wide) {
    uint64_t *across = (uint64_t *)(void *)(s->straddle + 60);
    for (unsigned i = 0; i < turns; i++) {
        uint64_t one = 1, seen, want;
        __asm__ volatile("lock incq %0" : "+m"(s->increments) : : "cc", "memory");
        __asm__ volatile("lock xadd %0, %1" : "+r"(one), "+m"(s->additions) : : "cc", "memory");
        __asm__ volatile("lock decw %0" : "+m"(s->tiny) : : "cc", "memory");
        __asm__ volatile("lock subl $3, %0" : "+m"(s->narrow) : : "cc", "memory");
        __asm__ volatile("lock xorq %1, %0" : "+m"(s->xored) : "r"(1ull << who) : "cc", "memory");
        __asm__ volatile("lock btcq %1, %0" : "+m"(s->xored) : "r"(8ull + who) : "cc", "memory");
        __asm__ volatile("lock addq $5, %0" : "+m"(*across) : : "cc", "memory");
        __asm__ volatile("lock notb %0" : "+m"(s->bits[who]) : : "memory");
        __asm__ volatile("lock negb %0" : "+m"(s->bits[8 + who]) : : "cc", "memory");
        /* One instruction, no LOCK: a single CPU cannot be interrupted inside it; several can. */
        __asm__ volatile("incq %0" : "+m"(s->plain) : : "cc", "memory");
        seen = s->exchanged;
        do {
            want = seen;
            __asm__ volatile("lock cmpxchg %2, %1"
                             : "+a"(seen), "+m"(s->exchanged)
                             : "r"(want + 7)
                             : "cc", "memory");
        } while (seen != want);
        lock(&s->spin);
        s->spun = s->spun + 1;
        unlock(&s->spin);
        add_pair(s->pair, wide);
    }
}

uint64_t check_locks(unsigned rounds) {
    unsigned turns = 4001 * rounds, a, b, c, d;
    int wide = __get_cpuid(1, &a, &b, &c, &d) && (c & bit_CMPXCHG16B);
    struct shared *s =
        mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    REQUIRE(s != MAP_FAILED);
    for (unsigned who = 0; who < PROCESSES; who++)
        s->bits[8 + who] = 5;
    for (unsigned who = 0; who < PROCESSES; who++) {
        pid_t pid = fork();
        REQUIRE(pid >= 0);
        if (pid == 0) {
            work(s, who, turns, wide);
            _exit(0);
        }
    }
    for (unsigned who = 0; who < PROCESSES; who++) {
        int status = -1;
        REQUIRE(wait(&status) > 0 && status == 0);
    }
    uint64_t total = (uint64_t)PROCESSES * turns;
    REQUIRE(s->increments == total && s->additions == total && s->spun == total);
    REQUIRE(s->exchanged == 7 * total && s->pair[0] == total && s->pair[1] == 3 * total);
    if (sysconf(_SC_NPROCESSORS_ONLN) == 1)
        REQUIRE(s->plain == total);
    mix(s->increments ^ s->additions << 16 ^ s->exchanged << 32);
    mix(s->tiny ^ (uint64_t)s->narrow << 16);
    mix(s->xored);
    mix_bytes(s->straddle, sizeof s->straddle);
    for (unsigned i = 0; i < 16; i++)
        mix(s->bits[i]);
    munmap(s, PAGE);
    return digest_end();
}
