/* Page faults as programs see them, and addresses that no page can have. */
#define _GNU_SOURCE
#include "ring3.h"

#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define LOAD(address) __asm__ volatile("movb (%0), %%al" : : "r"(address) : "rax", "memory")
#define STORE(address) __asm__ volatile("movb $1, (%0)" : : "r"(address) : "memory")
#define LONG_LOAD(address) __asm__ volatile("movq (%0), %%rax" : : "r"(address) : "rax", "memory")
#define LONG_STORE(address) __asm__ volatile("movq $1, (%0)" : : "r"(address) : "memory")
#define RUN(address) __asm__ volatile("call *%0" : : "r"(address) : "rax", "memory")

static uint8_t *map(void *where, size_t pages, int protection) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | (where ? MAP_FIXED : 0);
    uint8_t *area = mmap(where, pages * PAGE, protection, flags, -1, 0);
    REQUIRE(area != MAP_FAILED);
    return area;
}

/* Load, store and run at each byte that matters of a page. */
static void probe(const char *name, uint8_t *page) {
    static const unsigned offsets[] = {0, 1, 2047, 4088, 4095};
    char line[80];
    for (size_t i = 0; i < sizeof offsets / sizeof *offsets; i++) {
        uint8_t *at = page + offsets[i];
        snprintf(line, sizeof line, "%s +%u load", name, offsets[i]);
        TRY(LOAD(at));
        say_caught(line, (uint64_t)page);
        snprintf(line, sizeof line, "%s +%u store", name, offsets[i]);
        TRY(STORE(at));
        say_caught(line, (uint64_t)page);
        snprintf(line, sizeof line, "%s +%u run", name, offsets[i]);
        TRY(RUN(at));
        say_caught(line, (uint64_t)page);
        if (caught.signal)
            say("    ip %+lld", caught.regs[REG_RIP] - (greg_t)page);
    }
}

/* One page between two closed ones, under every protection, touched before and not. */
void ring3_pages(void) {
    static const struct {
        const char *name;
        int protection;
    } kinds[] = {{"none", PROT_NONE},
                 {"read", PROT_READ},
                 {"read, write", PROT_READ | PROT_WRITE},
                 {"read, run", PROT_READ | PROT_EXEC},
                 {"all", PROT_READ | PROT_WRITE | PROT_EXEC}};
    uint8_t *area = map(NULL, 4, PROT_NONE), *page = area + PAGE;
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
        map(page, 1, PROT_READ | PROT_WRITE);
        memset(page, 0xC3, PAGE);
        mprotect(page, PAGE, kinds[k].protection);
        probe(kinds[k].name, page);
        /* Across the end, into the closed page: nothing may be written before it faults. */
        TRY(LONG_LOAD(page + PAGE - 3));
        say_caught("    load across the end", (uint64_t)page);
        TRY(LONG_STORE(page + PAGE - 3));
        say_caught("    store across the end", (uint64_t)page);
        map(page, 1, PROT_READ | PROT_WRITE);
        mprotect(page, PAGE, kinds[k].protection);
        TRY(STORE(page));
        say_caught("    first store", (uint64_t)page);
        map(page, 1, kinds[k].protection);
        TRY(LOAD(page + 5));
        say_caught("    load of a page never touched", (uint64_t)page);
    }
    /* Reads, then a protection taken away and given back: the last word counts at once. */
    map(page, 1, PROT_READ | PROT_WRITE);
    for (int i = 0; i < 6; i++) {
        TRY(STORE(page));
        say_caught(i & 1 ? "closed" : "open", (uint64_t)page);
        mprotect(page, PAGE, i & 1 ? PROT_READ | PROT_WRITE : PROT_READ);
    }
    munmap(page, PAGE);
    TRY(LOAD(page));
    say_caught("unmapped, load", (uint64_t)page);
    TRY(STORE(page + 9));
    say_caught("unmapped, store", (uint64_t)page);
    TRY(RUN(page + 7));
    say_caught("unmapped, run", (uint64_t)page);
    munmap(area, 4 * PAGE);

    /* A file of one page and a half, mapped for three. */
    int fd = memfd_create("ring3", 0);
    REQUIRE(fd >= 0 && ftruncate(fd, PAGE + PAGE / 2) == 0);
    area = mmap(NULL, 3 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    REQUIRE(area != MAP_FAILED);
    TRY(STORE(area + 2 * PAGE - 1));
    say_caught("in the last page, behind the end of the file", (uint64_t)area);
    TRY(LOAD(area + 2 * PAGE));
    say_caught("behind the file, load", (uint64_t)area);
    TRY(STORE(area + 3 * PAGE - 8));
    say_caught("behind the file, store", (uint64_t)area);
    REQUIRE(ftruncate(fd, 0) == 0);
    TRY(LOAD(area));
    say_caught("the file was cut", (uint64_t)area);
    munmap(area, 3 * PAGE);
    close(fd);
}

/* The kernel's half, the hole, NULL, and the ends of the user's half. The hole is the smaller one
 * of paging with five levels. */
static const uint64_t addresses[] = {
    0,
    1,
    0xFFF,
    0x1000,
    0x7FFFFFFFEFFF,
    0x7FFFFFFFF000,
    0x100000000000000,
    0x8000000000000000,
    0xFEFFFFFFFFFFFFF8,
    0xFFFF888000000000,
    0xFFFFFFFF80000000,
    0xFFFFFFFF81000000,
    0xFFFFFFFFFF5FF000,
    0xFFFFFFFFFF5FFFFF,
    0xFFFFFFFFFF601000,
    0xFFFFFFFFFFFFF000,
    0xFFFFFFFFFFFFFFFF,
};

/* A stack of its own kind: what is not canonical is a #SS and not a #GP. */
static void probe_stack(uint64_t at) {
    say("%#llx", (unsigned long long)at);
    TRY(__asm__ volatile("mov %0, %%rsp\n\tpush %%rax" : : "r"(at) : "memory"));
    say_caught("    push", 0);
    if (caught.signal)
        say("    rsp %+lld", caught.regs[REG_RSP] - (greg_t)at);
    TRY(__asm__ volatile("mov %0, %%rbp\n\tmov 16(%%rbp), %%al" : : "r"(at) : "memory"));
    say_caught("    load by rbp", 0);
}

static int canonical(uint64_t at) { return at < 1ull << 47 || at >= -(1ull << 47); }

void ring3_addresses(void) {
    for (size_t i = 0; i < sizeof addresses / sizeof *addresses; i++) {
        uint64_t at = addresses[i];
        char line[64];
        snprintf(line, sizeof line, "%#llx", (unsigned long long)at);
        TRY(LOAD(at));
        say_caught(line, 0);
        TRY(STORE(at));
        say_caught("    store", 0);
        TRY(LONG_LOAD(at - 4));
        say_caught("    load from 4 below", 0);
        TRY(RUN(at));
        say_caught("    call", 0);
        if (canonical(at))
            probe_stack(at);
    }
}

void ring3_exact_stack(void) {
    for (size_t i = 0; i < sizeof addresses / sizeof *addresses; i++)
        if (!canonical(addresses[i]))
            probe_stack(addresses[i]);
}

/* Ways to go somewhere: all must fault where the target is no code. */
void ring3_jumps(void) {
    static const uint64_t targets[] = {0, 0x1000, 0x7FFFFFFFF000, 0xFFFFFFFF81000000,
                                       0xFFFFFFFFFF600008};
    for (size_t i = 0; i < sizeof targets / sizeof *targets; i++) {
        uint64_t to = targets[i];
        say("to %#llx", (unsigned long long)to);
        TRY(__asm__ volatile("jmp *%0" : : "r"(to) : "memory"));
        say_caught("    jmp", 0);
        say("    ip %+lld", caught.regs[REG_RIP] - (greg_t)to);
        TRY(__asm__ volatile("push %0\n\tret" : : "r"(to) : "memory"));
        say_caught("    ret", 0);
        say("    ip %+lld", caught.regs[REG_RIP] - (greg_t)to);
        TRY(__asm__ volatile("push $0x33\n\tpush %0\n\tlretq" : : "r"(to) : "memory"));
        say_caught("    lret", 0);
        say("    ip %+lld", caught.regs[REG_RIP] - (greg_t)to);
        TRY(__asm__ volatile("mov %%rsp, %%rcx\n\tpush $0x2B\n\tpush %%rcx\n\tpushfq\n\t"
                             "push $0x33\n\tpush %0\n\tiretq"
                             :
                             : "r"(to)
                             : "rcx", "memory"));
        say_caught("    iret", 0);
        say("    ip %+lld", caught.regs[REG_RIP] - (greg_t)to);
    }
}
