/* Mappings that come, change and go, and what is in them. */
#define _GNU_SOURCE
#include "ring3.h"

#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#define MIB (1ul << 20)

static void *map(void *where, size_t bytes, int protection) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | (where ? MAP_FIXED : 0);
    void *area = mmap(where, bytes, protection, flags, -1, 0);
    REQUIRE(area != MAP_FAILED);
    return area;
}

static void fill(uint8_t *at, size_t bytes, uint64_t seed) {
    for (size_t i = 0; i < bytes; i += 8) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        memcpy(at + i, &seed, 8);
    }
}

/* The same addresses over and over with other pages behind them. */
void ring3_mappings(void) {
    uint64_t sum = 0;
    uint8_t *area = map(NULL, 64 * PAGE, PROT_READ | PROT_WRITE);
    for (unsigned turn = 0; turn < 40; turn++) {
        size_t page = turn * 7 % 60;
        fill(area + page * PAGE, 4 * PAGE, turn);
        sum = sum * 31 + digest(area, 64 * PAGE);
        munmap(area + (page + 1) * PAGE, 2 * PAGE);
        map(area + (page + 1) * PAGE, 2 * PAGE, PROT_READ | PROT_WRITE);
        for (size_t i = 0; i < 2 * PAGE; i += 8)
            REQUIRE(*(uint64_t *)(void *)(area + (page + 1) * PAGE + i) == 0);
        madvise(area + page * PAGE, PAGE, MADV_DONTNEED);
        REQUIRE(area[page * PAGE + 77] == 0);
    }
    say("remapped %016llx", (unsigned long long)sum);
    /* Moved: the old place is empty, the new one has what was there. */
    fill(area, 16 * PAGE, 99);
    uint64_t before = digest(area, 16 * PAGE);
    uint8_t *moved = mremap(area, 16 * PAGE, 32 * PAGE, MREMAP_MAYMOVE);
    REQUIRE(moved != MAP_FAILED);
    say("moved %s", digest(moved, 16 * PAGE) == before ? "whole" : "damaged");
    TRY(moved[20 * PAGE] = 1);
    say_caught("the new end", (uint64_t)moved);
    TRY((void)*(volatile uint8_t *)area);
    if (moved != area)
        say_caught("the old place", (uint64_t)area);
    munmap(moved, 32 * PAGE);
    munmap(area + 16 * PAGE, 48 * PAGE);

    /* Copy on write, both ways, many times. */
    uint8_t *shared = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    area = map(NULL, 32 * PAGE, PROT_READ | PROT_WRITE);
    REQUIRE(shared != MAP_FAILED);
    fill(area, 32 * PAGE, 5);
    for (unsigned turn = 0; turn < 4; turn++) {
        pid_t pid = fork();
        REQUIRE(pid >= 0);
        if (pid == 0) {
            for (size_t i = turn; i < 32; i += 3)
                fill(area + i * PAGE, PAGE, i);
            *(uint64_t *)(void *)shared = digest(area, 32 * PAGE);
            _exit(0);
        }
        for (size_t i = turn + 1; i < 32; i += 3)
            area[i * PAGE + turn] ^= 0x55;
        int status = -1;
        REQUIRE(waitpid(pid, &status, 0) == pid && status == 0);
        say("copy on write: parent %016llx", (unsigned long long)digest(area, 32 * PAGE));
    }
    munmap(area, 32 * PAGE);
    munmap(shared, PAGE);
}

/* 2 MiB pages, where there are some: split, copied, and taken away in parts. */
void ring3_large(void) {
    uint8_t *space = map(NULL, 8 * MIB, PROT_NONE);
    uint8_t *area = (uint8_t *)(((uint64_t)space + 2 * MIB - 1) & ~(2 * MIB - 1));
    map(area, 4 * MIB, PROT_READ | PROT_WRITE);
    madvise(area, 4 * MIB, MADV_HUGEPAGE);
    for (size_t i = 0; i < 4 * MIB; i += PAGE)
        fill(area + i, 64, i);
    say("filled %016llx", (unsigned long long)digest(area, MIB));
    mprotect(area + 5 * PAGE, PAGE, PROT_READ);
    TRY(area[5 * PAGE + 1] = 1);
    say_caught("split by a protection", (uint64_t)area);
    TRY(area[6 * PAGE + 1] = 1);
    say_caught("beside it", (uint64_t)area);
    munmap(area + 9 * PAGE, 2 * PAGE);
    TRY((void)*(volatile uint8_t *)(area + 10 * PAGE));
    say_caught("split by a hole", (uint64_t)area);
    pid_t pid = fork();
    REQUIRE(pid >= 0);
    if (pid == 0) {
        for (size_t i = 2 * MIB; i < 3 * MIB; i += 16 * PAGE)
            area[i] = 0xEE;
        _exit((int)(digest(area + 2 * MIB, MIB) % 251));
    }
    area[2 * MIB + 8 * PAGE] = 0x11;
    int status = -1;
    REQUIRE(waitpid(pid, &status, 0) == pid && WIFEXITED(status));
    say("child %d, parent %016llx", WEXITSTATUS(status),
        (unsigned long long)digest(area + 2 * MIB, 2 * MIB));
    munmap(space, 8 * MIB);
    /* Explicit ones, if anybody reserved some: the text is the same with and without. */
    area = mmap(NULL, 2 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB,
                -1, 0);
    if (area == MAP_FAILED)
        area = map(NULL, 2 * MIB, PROT_READ | PROT_WRITE);
    fill(area, 2 * MIB, 3);
    say("explicit %016llx", (unsigned long long)digest(area, 2 * MIB));
    munmap(area, 2 * MIB);
}

static uint64_t deep(unsigned depth) {
    volatile uint8_t frame[1000];
    frame[depth % 1000] = (uint8_t)depth;
    return depth ? deep(depth - 1) * 3 + frame[depth % 1000] : frame[0];
}

/* The stack grows by itself, up to its limit, and a growing mapping up to its neighbour. */
void ring3_stack(void) {
    pid_t pid = fork();
    REQUIRE(pid >= 0);
    if (pid == 0) {
        struct rlimit limit = {1 * MIB, 1 * MIB};
        setrlimit(RLIMIT_STACK, &limit);
        volatile uint64_t sum = deep(600);
        TRY(sum = deep(1u << 20));
        int deep_enough = caught.signal == SIGSEGV && caught.regs[REG_TRAPNO] == 14;
        _exit((int)(sum % 61) + (deep_enough ? 100 : 0));
    }
    int status = -1;
    REQUIRE(waitpid(pid, &status, 0) == pid && WIFEXITED(status));
    say("600 frames, then too many: %d", WEXITSTATUS(status));
    uint8_t *space = map(NULL, 600 * PAGE, PROT_NONE);
    munmap(space, 600 * PAGE);
    uint8_t *top = mmap(space + 599 * PAGE, PAGE, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_FIXED, -1, 0);
    REQUIRE(top != MAP_FAILED);
    for (int i = 1; i < 200; i++)
        TRY(top[-i * (int)PAGE] = 1);
    say_caught("the 200th page down", (uint64_t)top);
    munmap(top - 200 * PAGE, 201 * PAGE);
}

/* One memory file in two places, one to write and one to read or run. */
void ring3_aliases(void) {
    int fd = memfd_create("ring3", 0);
    REQUIRE(fd >= 0 && ftruncate(fd, 4 * (off_t)PAGE) == 0);
    uint8_t *out = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    uint8_t *in = mmap(NULL, 4 * PAGE, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0);
    uint8_t *copy = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    REQUIRE(out != MAP_FAILED && in != MAP_FAILED && copy != MAP_FAILED);
    uint64_t sum = 0;
    for (uint32_t i = 0; i < 400; i++) {
        uint8_t code[] = {0xB8, 0, 0, 0, 0, 0xC3};
        uint8_t *to = out + i * 37 % (4 * PAGE - 8);
        memcpy(code + 1, &i, 4);
        memcpy(to, code, sizeof code);
        uint32_t (*function)(void) = (uint32_t(*)(void))(uint64_t)(in + (to - out));
        sum = sum * 31 + function();
    }
    say("run through the other mapping %016llx", (unsigned long long)sum);
    copy[PAGE] = 0xAA;
    out[PAGE] = 0xBB;
    out[2 * PAGE] = 0xCC;
    say("private copy %02x %02x, shared %02x %02x", copy[PAGE], copy[2 * PAGE], in[PAGE],
        in[2 * PAGE]);
    pid_t pid = fork();
    REQUIRE(pid >= 0);
    if (pid == 0) {
        out[3 * PAGE] = 0xDD;
        copy[3 * PAGE] = 0x22;
        _exit(in[PAGE] == 0xBB ? 0 : 1);
    }
    int status = -1;
    REQUIRE(waitpid(pid, &status, 0) == pid);
    say("child %d wrote %02x, private %02x", status, in[3 * PAGE], copy[3 * PAGE]);
    TRY(*(volatile uint8_t *)in = 1);
    say_caught("store to the side that runs", (uint64_t)in);
    REQUIRE(pwrite(fd, "\x77", 1, 0) == 1);
    say("written by a system call %02x %02x", in[0], out[0]);
    munmap(out, 4 * PAGE);
    munmap(in, 4 * PAGE);
    munmap(copy, 4 * PAGE);
    close(fd);
}
