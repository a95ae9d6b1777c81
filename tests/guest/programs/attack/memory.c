/* Pages that are not one's own, and more pieces of memory than anybody should have. */
#define _GNU_SOURCE
#include "attack.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

struct mapping {
    uint64_t start, end;
    char rights[8];
    char name[64];
};

static struct mapping maps[512];
static size_t map_count;

static void read_maps(void) {
    char line[512];
    FILE *in = fopen("/proc/self/maps", "r");
    REQUIRE(in);
    for (map_count = 0; fgets(line, sizeof line, in); map_count++) {
        struct mapping *m = &maps[map_count];
        unsigned long start, end;
        REQUIRE(map_count < 511);
        m->name[0] = 0;
        REQUIRE(sscanf(line, "%lx-%lx %7s %*s %*s %*s %63s", &start, &end, m->rights, m->name) >= 3);
        m->start = start;
        m->end = end;
    }
    fclose(in);
}

static int mapped(uint64_t at) {
    for (size_t i = 0; i < map_count; i++)
        if (at >= maps[i].start && at < maps[i].end)
            return 1;
    return 0;
}

static int can_load(uint64_t at) {
    TRY(__asm__ volatile("movb (%0), %%al" : : "r"(at) : "rax", "memory"));
    return !caught.signal;
}
/* Stores what is there, so that nothing is spoilt. */
static int can_store(uint64_t at) {
    TRY(__asm__ volatile("movb (%0), %%al\n\tmovb %%al, (%0)" : : "r"(at) : "rax", "memory"));
    return !caught.signal;
}
static int can_or(uint64_t at) {
    TRY(__asm__ volatile("lock orb $0, (%0)" : : "r"(at) : "memory"));
    return !caught.signal;
}

/* Each page of each mapping, against what the kernel says of it. */
void attack_own_pages(void) {
    uint64_t stores = 0, loads = 0, runs = 0;
    read_maps();
    for (size_t i = 0; i < map_count; i++) {
        const struct mapping *m = &maps[i];
        uint64_t step = m->end - m->start > 512 * PAGE ? 64 * PAGE : PAGE;
        /* A variable of the kernel's may not be there at all. */
        if (!strncmp(m->name, "[vv", 3) || !strcmp(m->name, "[vsyscall]"))
            continue;
        for (uint64_t at = m->start; at < m->end; at += step) {
            if (m->rights[1] != 'w')
                stores += (uint64_t)(can_store(at) + can_or(at + PAGE - 1));
            if (m->rights[0] != 'r')
                loads += (uint64_t)can_load(at);
            if (m->rights[2] != 'x') {
                TRY(__asm__ volatile("call *%0" : : "r"(at + 16) : "rax", "rcx", "rdx", "memory"));
                runs += caught.signal != SIGSEGV || caught.regs[REG_RIP] != (greg_t)(at + 16);
            }
        }
    }
    say("stores that should not: %llu, loads: %llu, runs: %llu", (unsigned long long)stores,
        (unsigned long long)loads, (unsigned long long)runs);
}

/* What can be read, written or run outside of what the kernel has mapped. */
void attack_holes(void) {
    uint64_t found = 0, probes = 0, seed = 88172645463325252u;
    read_maps();
#define PROBE(address)                                                                             \
    do {                                                                                           \
        uint64_t to = (address);                                                                   \
        if (to < 1ull << 47 && !mapped(to)) {                                                      \
            probes++;                                                                              \
            found += (uint64_t)(can_load(to) || can_or(to));                                       \
            TRY(__asm__ volatile("call *%0" : : "r"(to) : "rax", "rcx", "rdx", "memory"));         \
            found += caught.signal != SIGSEGV || caught.regs[REG_RIP] != (greg_t)to;               \
        }                                                                                          \
    } while (0)
    /* Beside each mapping; but below the stack it grows. */
    for (size_t i = 0; i < map_count; i++)
        for (uint64_t n = 1; n <= 8; n++) {
            PROBE(maps[i].end + (n - 1) * PAGE + n * 13);
            if (strcmp(maps[i].name, "[stack]") && (i == 0 || maps[i - 1].end <= maps[i].start - n * PAGE))
                PROBE(maps[i].start - n * PAGE + n * 13);
        }
    for (uint64_t at = 0x123; at < 1ull << 47; at += 1ull << 39)
        PROBE(at);
    for (int bit = 12; bit < 47; bit++)
        for (int other = 12; other <= bit; other += 9)
            PROBE((1ull << bit) + (1ull << other));
    for (int i = 0; i < 400; i++) {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        PROBE(seed & 0x7FFFFFFFFFFF);
    }
    say("probed %s, found %llu", probes > 700 ? "enough" : "too little", (unsigned long long)found);
}

/* As many mappings as the kernel allows, each beside one of another kind. */
void attack_pieces(void) {
    enum { PAGES = 70000 };
    uint8_t *area = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    REQUIRE(area != MAP_FAILED);
    madvise(area, PAGES * PAGE, MADV_NOHUGEPAGE);
    size_t pieces = 0;
    while (pieces < PAGES && mprotect(area + pieces * PAGE, PAGE, PROT_READ) == 0)
        pieces += 2;
    say("pieces %s, then %s", pieces > 64000 && pieces < 66000 ? "as many as allowed" : "too few or many",
        errno == ENOMEM ? "ENOMEM" : "?");
    uint64_t sum = 0, faults = 0;
    for (size_t i = 0; i < pieces; i += 2) {
        sum += area[i * PAGE];
        if (i % 16 == 0)
            area[(i + 1) * PAGE + 5] = (uint8_t)i;
    }
    for (size_t i = 0; i < pieces; i += 202) {
        faults += (uint64_t)!can_or((uint64_t)(area + i * PAGE));
        sum += area[(i + 1) * PAGE + 5];
    }
    say("sum %llu, closed pages %s", (unsigned long long)sum, faults == (pieces + 201) / 202 ? "closed" : "open");
    REQUIRE(munmap(area, PAGES * PAGE) == 0);
    TRY(area[8] = 1);
    say_caught("all gone", (uint64_t)area);
    /* And every protection turned again and again on few of them. */
    area = mmap(NULL, 64 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    REQUIRE(area != MAP_FAILED);
    for (unsigned turn = 0; turn < 500; turn++) {
        size_t page = turn * 37 % 64;
        mprotect(area + page * PAGE, PAGE, turn & 1 ? PROT_READ : PROT_READ | PROT_WRITE);
        faults = (faults << 1 | (uint64_t)can_or((uint64_t)(area + page * PAGE))) * 31;
    }
    say("turned %016llx", (unsigned long long)faults);
    munmap(area, 64 * PAGE);
}

/* Code and data at the ends of the address space. */
void attack_edges(void) {
    static const uint64_t places[] = {0x10000,        0x11000,        0x80000000,     0xFFFFF000,     0x100000000,
                                      0x555000000000, 0x7FFF00000000, 0x7FFFFFFFD000, 0x7FFFFFFFE000, 0x7FFFFFFFF000,
                                      0x800000000000, 0xFFFFFFFF80000000, 0xFFFFFFFFFFFFF000};
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        uint8_t *page = mmap((void *)places[i], PAGE, PROT_READ | PROT_WRITE | PROT_EXEC,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
        if (page != (uint8_t *)places[i]) {
            say("%#llx: no", (unsigned long long)places[i]);
            continue;
        }
        static const uint8_t code[] = {0x48, 0x8D, 0x05, 0xF9, 0xFF, 0xFF, 0xFF, 0xC3}; /* lea rax, [rip-7]; ret */
        memcpy(page + 4088, code, sizeof code);
        memcpy(page, code, sizeof code);
        uint64_t (*first)(void) = (uint64_t(*)(void))(uint64_t)page;
        uint64_t (*last)(void) = (uint64_t(*)(void))(uint64_t)(page + 4088);
        say("%#llx: runs at %#llx and %#llx", (unsigned long long)places[i], (unsigned long long)first(),
            (unsigned long long)last());
        munmap(page, PAGE);
    }
}

/* Busy code in a page whose last byte is the first of a CPUID, executed now and then. */
void attack_crossing(void) {
    enum { TURNS = 20, LOOPS = 40000000 };
    static const uint8_t busy[] = {0xFF, 0xCF, 0x75, 0xFC, 0xC3}; /* dec edi; jnz; ret */
    static const uint8_t tell[] = {0x89, 0xF8, 0x53, 0x0F, 0xA2, 0x89, 0xD8, 0x5B, 0xC3};
    uint8_t *pages = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    REQUIRE(pages != MAP_FAILED);
    uint8_t *crossing = pages + PAGE - 4, *whole = pages + PAGE + 64;
    memcpy(pages, busy, sizeof busy);
    memcpy(crossing, tell, sizeof tell);
    memcpy(whole, tell, sizeof tell);
    uint32_t leaves[] = {0, 0x80000003};
    for (unsigned turn = 0, odd = 0; turn <= TURNS; turn++) {
        ((void (*)(unsigned))(uint64_t)pages)(LOOPS);
        for (unsigned i = 0; i < 2; i++)
            odd += ((uint32_t(*)(uint32_t))(uint64_t)crossing)(leaves[i]) !=
                   ((uint32_t(*)(uint32_t))(uint64_t)whole)(leaves[i]);
        if (turn == TURNS)
            say("CPUID across pages: %u answers of another processor", odd);
    }
    munmap(pages, 2 * PAGE);
}

/* Busy code in a page with a whole CPUID, executed now and then. */
void attack_beside(void) {
    enum { TURNS = 20, LOOPS = 40000000 };
    static const uint8_t busy[] = {0xFF, 0xCF, 0x75, 0xFC, 0xC3}; /* dec edi; jnz; ret */
    static const uint8_t tell[] = {0x89, 0xF8, 0x53, 0x0F, 0xA2, 0x89, 0xD8, 0x5B, 0xC3};
    uint8_t *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    REQUIRE(page != MAP_FAILED);
    memcpy(page, busy, sizeof busy);
    memcpy(page + 64, tell, sizeof tell);
    uint32_t (*ask)(uint32_t) = (uint32_t(*)(uint32_t))(uint64_t)(page + 64);
    uint32_t first = ask(0), odd = 0;
    for (unsigned turn = 0; turn < TURNS; turn++) {
        ((void (*)(unsigned))(uint64_t)page)(LOOPS);
        odd += ask(0) != first;
    }
    say("CPUID beside busy code: %u answers of another processor", odd);
    munmap(page, PAGE);
}

/* Page zero, which a host gives to nobody but which is the guest's root's own. */
void attack_low(void) {
    static const uint64_t places[] = {0, 0x1000, 0xF000};
    for (size_t i = 0; i < 3; i++) {
        uint8_t *page = mmap((void *)places[i], PAGE, PROT_READ | PROT_WRITE | PROT_EXEC,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        if (page != (uint8_t *)places[i]) {
            say("%#llx: no", (unsigned long long)places[i]);
            continue;
        }
        static const uint8_t code[] = {0xB8, 0x2A, 0, 0, 0, 0xC3}; /* mov eax, 42; ret */
        uint8_t *to = page + 16;
        const uint8_t *from = code;
        size_t count = sizeof code;
        __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(count) : : "memory");
        uint64_t result = 0;
        for (int turn = 0; turn < 1000; turn++) {
            uint64_t one;
            __asm__ volatile("call *%1" : "=a"(one) : "r"(page + 16) : "memory");
            result += one;
        }
        say("%#llx: runs, %llu", (unsigned long long)places[i], (unsigned long long)result);
        munmap(page, PAGE);
    }
}

/* Addresses from standard input, in hexadecimal, one a line: load, store, and a jump to each byte
 * of the page. A page of the monitor's own must look as if it were not there. */
void attack_given(void) {
    char line[64];
    while (fgets(line, sizeof line, stdin) && line[0] != '\n') {
        uint64_t page = strtoull(line, NULL, 16) & ~(PAGE - 1), wrong = 0;
        /* Long enough for whoever decides where user code runs. */
        for (volatile unsigned i = 0; i < 30000000; i++)
            ;
        for (uint64_t at = page; at < page + PAGE; at++) {
            wrong += (uint64_t)(can_load(at) + can_or(at));
            TRY(__asm__ volatile("call *%0" : : "r"(at) : "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "memory"));
            wrong += caught.signal != SIGSEGV || caught.address != at || caught.regs[REG_RIP] != (greg_t)at;
        }
        say("given: %s", wrong ? "REACHED" : "not there");
    }
}
