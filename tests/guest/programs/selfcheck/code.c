/* Code that changes: written, run, rewritten through each way there is to write memory. */
#define _GNU_SOURCE
#include "check.h"

#include <cpuid.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

typedef uint64_t (*function)(void);

/* What the manual asks for between writing code elsewhere and running it: a serialising one. */
static void serialise(void) {
    unsigned a, b, c, d;
    __cpuid(0, a, b, c, d);
}

/* mov $value, %eax; ret */
static size_t emit(uint8_t *at, uint32_t value) {
    at[0] = 0xB8;
    memcpy(at + 1, &value, 4);
    at[5] = 0xC3;
    return 6;
}

static uint64_t call(const uint8_t *at) {
    function f;
    memcpy(&f, &at, sizeof f);
    return f();
}

static void rewrite(uint8_t *page) {
    for (unsigned i = 0; i < 40; i++) {
        uint32_t value = (uint32_t)rnd();
        uint8_t *at = page + rnd() % (PAGE - 8);
        emit(at, value);
        serialise();
        REQUIRE(call(at) == value);
        at[1] ^= 0xFF;
        serialise();
        mix(call(at));
    }
    /* Over the border of two pages. */
    uint8_t *across = page + PAGE - 3;
    emit(across, 0x12345678);
    REQUIRE(call(across) == 0x12345678);
    across[4] = 0x99;
    serialise();
    REQUIRE(call(across) == 0x99345678);
}

/* A loop whose own store changes the constant of the next instruction but one. */
static void modify_next(uint8_t *page) {
    static const uint8_t code[] = {
        0x31, 0xC0,                   /*     xor %eax, %eax              */
        0xB9, 100,  0,    0,    0,    /*     mov $100, %ecx              */
        0xFE, 0x05, 3,    0,    0, 0, /* 1:  incb 3(%rip): the constant  */
        0xEB, 0,                      /*     jmp 2f                      */
        0x05, 0,    0,    0,    0,    /* 2:  add $0, %eax                */
        0xFF, 0xC9,                   /*     dec %ecx                    */
        0x75, 0xEF,                   /*     jnz 1b                      */
        0xC3,
    };
    memcpy(page, code, sizeof code);
    serialise();
    uint64_t sum = call(page);
    mix(sum);
    REQUIRE(sum == 5050);
}

/* The same page at two addresses: written at one, run at the other. */
static void aliased(void) {
    int fd = memfd_create("code", 0);
    REQUIRE(fd >= 0 && ftruncate(fd, PAGE) == 0);
    uint8_t *writable = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    uint8_t *runnable = mmap(NULL, PAGE, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0);
    REQUIRE(writable != MAP_FAILED && runnable != MAP_FAILED);
    for (uint32_t i = 0; i < 50; i++) {
        emit(writable, i * 77);
        serialise();
        REQUIRE(call(runnable) == i * 77);
        uint8_t fresh[6];
        emit(fresh, i * 99);
        REQUIRE(pwrite(fd, fresh, sizeof fresh, 0) == sizeof fresh);
        serialise();
        REQUIRE(call(runnable) == i * 99);
        mix(call(runnable));
    }
    munmap(writable, PAGE);
    munmap(runnable, PAGE);
    close(fd);
}

/* The kernel writes the code (read from a pipe); protection comes and goes as in a JIT. */
static void by_kernel(uint8_t *page) {
    int ends[2];
    REQUIRE(pipe(ends) == 0);
    for (uint32_t i = 0; i < 30; i++) {
        uint8_t fresh[6];
        emit(fresh, i ^ 0xABCDEF);
        REQUIRE(write(ends[1], fresh, sizeof fresh) == sizeof fresh);
        mprotect(page, PAGE, PROT_READ | PROT_WRITE);
        REQUIRE(read(ends[0], page + 64, sizeof fresh) == sizeof fresh);
        mprotect(page, PAGE, PROT_READ | PROT_EXEC);
        serialise();
        REQUIRE(call(page + 64) == (i ^ 0xABCDEF));
    }
    mprotect(page, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC);
    close(ends[0]);
    close(ends[1]);
}

/* After a fork parent and child run different code at one address. */
static void diverged(uint8_t *page) {
    emit(page, 1);
    REQUIRE(call(page) == 1);
    pid_t pid = fork();
    REQUIRE(pid >= 0);
    if (pid == 0) {
        emit(page, 40);
        serialise();
        _exit((int)call(page) + 2);
    }
    int status = 0;
    REQUIRE(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 42);
    REQUIRE(call(page) == 1);
    /* Unmapped and mapped again: the new page is what runs. */
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
    REQUIRE(mmap(page, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC, flags, -1, 0) == page);
    emit(page, 2);
    serialise();
    REQUIRE(call(page) == 2);
}

uint64_t check_code(unsigned rounds) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS;
    uint8_t *page = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE | PROT_EXEC, flags, -1, 0);
    REQUIRE(page != MAP_FAILED);
    for (unsigned i = 0; i < rounds * 4; i++) {
        rewrite(page);
        modify_next(page);
        aliased();
        by_kernel(page);
        diverged(page);
    }
    munmap(page, 2 * PAGE);
    return digest_end();
}
