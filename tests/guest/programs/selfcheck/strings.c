/* String instructions in both directions, up to the last byte before a page that faults, and a
 * REP that faults half way and goes on. */
#define _GNU_SOURCE
#include "check.h"

#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

#define AREA (4 * PAGE)

static uint8_t *source, *target;

#define REPEAT(text)                                                                               \
    __asm__ volatile(text : "+S"(from), "+D"(to), "+c"(count), "+a"(value) : : "cc", "memory")

/* Registers after a string instruction, relative to the areas. */
static void mix_pointers(const uint8_t *from, const uint8_t *to, uint64_t count, uint64_t value) {
    mix((uint64_t)(from - source));
    mix((uint64_t)(to - target));
    mix(count);
    mix(value);
}

static void forward(unsigned size) {
    uint64_t count = rnd() % 700 / size, value = rnd();
    /* Half the time the areas end where the next page faults. */
    uint8_t *from = (rnd() & 1) ? source + AREA - count * size : source + rnd() % 1024;
    uint8_t *to = (rnd() & 1) ? target + AREA - count * size : target + rnd() % 1024;
    switch (size) {
    case 1:
        REPEAT("rep movsb");
        break;
    case 2:
        REPEAT("rep movsw");
        break;
    case 4:
        REPEAT("rep movsl");
        break;
    default:
        REPEAT("rep movsq");
    }
    mix_pointers(from, to, count, value);
    count = rnd() % 300;
    to = target + AREA - count * 8;
    REPEAT("rep stosq");
    mix_pointers(from, to, count, value);
    count = rnd() % 100;
    to = target + rnd() % 2000;
    REPEAT("rep stosb");
    mix_pointers(from, to, count, value);
}

static void backward(void) {
    uint64_t count = rnd() % 500, value = rnd();
    uint8_t *from = source + count + rnd() % 1000, *to = target + count * 4;
    __asm__ volatile("std\n\trep movsb\n\tcld"
                     : "+S"(from), "+D"(to), "+c"(count)
                     :
                     : "cc", "memory");
    mix_pointers(from, to, count, value);
    count = rnd() % 200;
    to = target + AREA - 4;
    __asm__ volatile("std\n\trep stosl\n\tcld" : "+D"(to), "+c"(count) : "a"(value) : "cc", "memory");
    mix_pointers(from, to, count, value);
    count = rnd() % 64;
    to = from = target + 512;
    from += rnd() % 8;
    /* Overlapping, downwards, in words. */
    __asm__ volatile("std\n\trep movsq\n\tcld"
                     : "+S"(from), "+D"(to), "+c"(count)
                     :
                     : "cc", "memory");
    mix((uint64_t)(from - target));
    mix((uint64_t)(to - target));
}

static void search(void) {
    uint64_t count = 600, value = rnd() & 0xFF, flags = 0;
    uint8_t *from = source, *to = target + AREA - count;
    __asm__ volatile("repne scasb\n\tpushfq\n\tpop %2"
                     : "+D"(to), "+c"(count), "=r"(flags)
                     : "a"(value)
                     : "cc", "memory");
    mix_pointers(from, to, count, flags & FLAGS_ALL);
    count = 1 + rnd() % 400;
    to = target + rnd() % 512;
    from = source + rnd() % 512;
    memcpy(to, from, count);
    to[rnd() % count] ^= (uint8_t)rnd();
    __asm__ volatile("repe cmpsb\n\tpushfq\n\tpop %3"
                     : "+S"(from), "+D"(to), "+c"(count), "=r"(flags)
                     :
                     : "cc", "memory");
    mix_pointers(from, to, count, flags & FLAGS_ALL);
    count = 0;
    __asm__ volatile("cmp $5, %1\n\trepne scasq\n\tpushfq\n\tpop %2"
                     : "+D"(to), "+c"(count), "=r"(flags)
                     : "a"(value)
                     : "cc", "memory");
    mix(flags & FLAGS_ALL);
    count = 1 + rnd() % 50;
    from = source + AREA - count * 4;
    __asm__ volatile("1: lodsl\n\trol $1, %%rax\n\tloop 1b"
                     : "+S"(from), "+c"(count), "+a"(value)
                     :
                     : "cc", "memory");
    mix_pointers(from, to, count, value);
}

static volatile uint64_t fault_at, fault_count, fault_to;

static void open_page(int number, siginfo_t *info, void *context) {
    ucontext_t *uc = context;
    (void)number;
    fault_at = (uint64_t)info->si_addr;
    fault_count = (uint64_t)uc->uc_mcontext.gregs[REG_RCX];
    fault_to = (uint64_t)uc->uc_mcontext.gregs[REG_RDI];
    mprotect((void *)(fault_at & ~(uint64_t)(PAGE - 1)), PAGE, PROT_READ | PROT_WRITE);
}

/* The fault comes at the first byte of the closed page, with the registers of that element. */
static void interrupted(void) {
    struct sigaction action = {.sa_flags = SA_SIGINFO, .sa_sigaction = open_page}, old;
    uint8_t *closed = target + 2 * PAGE;
    uint64_t ahead = 8 * (rnd() % 100), count = 300, value = rnd();
    uint8_t *from = source, *to = closed - ahead;
    sigaction(SIGSEGV, &action, &old);
    mprotect(closed, PAGE, PROT_NONE);
    fault_at = 0;
    REPEAT("rep stosq");
    REQUIRE(fault_at == (uint64_t)closed && fault_to == (uint64_t)closed);
    REQUIRE(fault_count == 300 - ahead / 8);
    mix_pointers(from, to, count, value);
    count = 1000;
    to = closed - ahead;
    mprotect(closed, PAGE, PROT_READ);
    REPEAT("rep movsb");
    mix_pointers(from, to, count, fault_count);
    sigaction(SIGSEGV, &old, NULL);
}

uint64_t check_strings(unsigned rounds) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS;
    uint8_t *area = mmap(NULL, 2 * (AREA + PAGE), PROT_READ | PROT_WRITE, flags, -1, 0);
    REQUIRE(area != MAP_FAILED);
    source = area;
    target = area + AREA + PAGE;
    mprotect(source + AREA, PAGE, PROT_NONE);
    mprotect(target + AREA, PAGE, PROT_NONE);
    for (unsigned i = 0; i < AREA; i++)
        source[i] = (uint8_t)rnd();
    for (unsigned i = 0; i < rounds * 200; i++) {
        forward(1u << i % 4);
        backward();
        search();
        interrupted();
        if (i % 20 == 0)
            mix_bytes(target, AREA);
    }
    munmap(area, 2 * (AREA + PAGE));
    return digest_end();
}
